"""Caffe's interface and semantics, computed by PyTorch: what `import caffe` gives a script written for pycaffe.

To read it: graph.py makes a net of a prototxt, passes.py runs it, net.py is what scripts see of it, and solver.py
trains it; layers/ has a module for each family of layers.
"""

import os

# Before torch is imported: its threads wait for each other in a busy loop of a fraction of a second. On a machine that
# does other work too, that takes the time in which the others could finish; cut short, all is up to four times faster
# there, and as fast as ever elsewhere.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from . import coord_map, io
from .classifier import Classifier
from .context import (
    NCCL,
    Timer,
    current_device,
    has_nccl,
    set_device,
    set_memory_limit,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
    use_device,
)
from .detector import Detector
from .errors import CaffeError
from .glog import init_log, log
from .layers import LAYERS
from .layers.python import PythonLayer as Layer
from .net import Net
from .net_spec import NetSpec, layers, params, to_proto
from .proto.caffe_pb2 import TEST, TRAIN
from .solver import Solver
from .solvers import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    AdamWSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    get_solver,
)

__version__ = "1.0.0"  # of Caffe, whose interface this is: scripts ask for it


def layer_type_list() -> list[str]:
    """The names of all layer types."""
    return sorted(LAYERS)


__all__ = [
    "NCCL",
    "TEST",
    "TRAIN",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "AdamWSolver",
    "CaffeError",
    "Classifier",
    "Detector",
    "Layer",
    "NesterovSolver",
    "Net",
    "NetSpec",
    "RMSPropSolver",
    "SGDSolver",
    "Solver",
    "Timer",
    "__version__",
    "coord_map",
    "current_device",
    "get_solver",
    "has_nccl",
    "init_log",
    "io",
    "layer_type_list",
    "layers",
    "log",
    "params",
    "set_device",
    "set_memory_limit",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
    "to_proto",
    "use_device",
]

from . import _caffe, pycaffe  # noqa: E402, F401 - at the end, since they name what stands above
