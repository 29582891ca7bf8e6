"""Caffe's interface and semantics, computed by PyTorch: what `import caffe` gives a script written for pycaffe."""

from . import io
from .context import current_device, set_device, set_mode_cpu, set_mode_gpu, set_random_seed, use_device
from .errors import CaffeError
from .layers import LAYERS, Layer
from .net import Net
from .net_spec import NetSpec, layers, params, to_proto
from .proto.caffe_pb2 import TEST, TRAIN
from .solver import SGDSolver, Solver, get_solver


def layer_type_list() -> list[str]:
    """The names of all layer types."""
    return sorted(LAYERS)


__all__ = [
    "TEST",
    "TRAIN",
    "CaffeError",
    "Layer",
    "Net",
    "NetSpec",
    "SGDSolver",
    "Solver",
    "current_device",
    "get_solver",
    "io",
    "layer_type_list",
    "layers",
    "params",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_random_seed",
    "to_proto",
    "use_device",
]
