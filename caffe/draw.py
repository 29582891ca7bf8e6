"""Drawing a net as a graph of its layers and blobs, with pycaffe's functions; needs the package pydot.

Pictures (png, svg, pdf, …) are made by Graphviz's program `dot`; a .dot file, the graph's text, is written without it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import CaffeError
from .files import StrPath, replace_bytes
from .proto.caffe_pb2 import LayerParameter, NetParameter, PoolingParameter

if TYPE_CHECKING:
    import pydot

LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}  # layers that work in place
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}

DIRECTIONS = ("LR", "RL", "TB", "BT")  # left to right, …, bottom to top
TEXT_FORMATS = ("dot", "raw")  # the graph's text itself
LEARNING_TYPES = ("Convolution", "Deconvolution", "InnerProduct")


def get_pooling_types_dict() -> dict[int, str]:
    """The names of the ways to pool, by their numbers."""
    return {number: name for name, number in PoolingParameter.PoolMethod.items()}


def get_edge_label(layer: LayerParameter) -> str:
    """What stands on the edges to a layer's tops: its batch size or number of outputs, or nothing (`""`)."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in ("Convolution", "Deconvolution"):
        return str(layer.convolution_param.num_output)
    if layer.type == "InnerProduct":
        return str(layer.inner_product_param.num_output)
    return '""'


def get_layer_lr_mult(layer: LayerParameter) -> tuple[float, float]:
    """The multipliers of the learning rates of a convolution's or inner product's weights and bias.

    Raises CaffeError for a layer of another type, or with more than two `param`.
    """
    rates = [spec.lr_mult for spec in layer.param]
    if layer.type not in LEARNING_TYPES or len(rates) > 2:
        raise CaffeError(
            f"layer {layer.name!r} ({layer.type}) with {len(rates)} param; expected one of {', '.join(LEARNING_TYPES)} "
            "with at most 2"
        )
    weights, bias = [*rates, 1.0, 1.0][:2]
    return weights, bias


def _size(settings: Any, name: str, default: int) -> str:
    """A size of a convolution's or pooling's windows, `name` being kernel_size, stride or pad: `3`, or `3x5`."""
    rows, columns = (f"{name.removesuffix('_size')}_{axis}" for axis in "hw")
    if settings.HasField(rows) or settings.HasField(columns):
        sizes: Sequence[int] = (getattr(settings, rows), getattr(settings, columns))
    else:
        value = getattr(settings, name)
        sizes = (value,) if isinstance(value, int) else value or (default,)
    return "x".join(map(str, sizes))


def _escaped(name: str) -> str:
    """A name in a quoted string of the dot language; of a record's label, where braces and the like mean something."""
    return "".join(f"\\{letter}" if letter in '\\"{}|<>' else letter for letter in name)


def get_layer_label(layer: LayerParameter, rankdir: str, display_lrm: bool = False) -> str:
    """What stands in a layer's box, in quotes: name, type, and the geometry of a convolution or pooling.

    Parameters
    ----------
    rankdir: the graph's direction. In a vertical one (TB, BT) the words stand in one line, else in lines of their own.
    display_lrm: add the multipliers of the learning rates of weights and bias, unless both are 0.
    """
    kind = layer.type
    settings: Any = None
    if kind == "Pooling":
        settings = layer.pooling_param
        kind = f"Pooling {get_pooling_types_dict()[settings.pool]}"
    elif kind in ("Convolution", "Deconvolution"):
        settings = layer.convolution_param
    words = [_escaped(layer.name), f"({kind})"]
    if settings is not None:
        for what, name, default in (("kernel size", "kernel_size", 1), ("stride", "stride", 1), ("pad", "pad", 0)):
            words.append(f"{what}: {_size(settings, name, default)}")
    if display_lrm and layer.type in LEARNING_TYPES:
        weights, bias = get_layer_lr_mult(layer)
        if weights or bias:
            words.append(f"lr mult: {weights:.1f}, {bias:.1f}")
    return '"{}"'.format((" " if rankdir in ("TB", "BT") else r"\n").join(words))


def choose_color_by_layertype(layertype: str) -> str:
    """The colour of a layer's box, as `#RRGGBB`."""
    if layertype in ("Convolution", "Deconvolution"):
        return "#FF5050"
    return {"Pooling": "#FF9900", "InnerProduct": "#CC33FF"}.get(layertype, "#6495ED")


def _in_phase(layer: LayerParameter, phase: int) -> bool:
    """Whether a layer's rules let it into the nets of a phase, whatever their level and stages."""
    if layer.include and layer.exclude:
        raise CaffeError(f"layer {layer.name!r}: has include and exclude rules; expected one kind")
    if layer.include:
        return any(rule.phase == phase or not rule.HasField("phase") for rule in layer.include)
    return not any(rule.phase == phase and rule.HasField("phase") for rule in layer.exclude)


def get_pydot_graph(
    caffe_net: NetParameter,
    rankdir: str,
    label_edges: bool = True,
    phase: int | None = None,
    display_lrm: bool = False,
) -> pydot.Dot:
    """The graph of a net, as pydot has it.

    Parameters
    ----------
    caffe_net: the net, in the current form (`caffe.io.read_net_parameter` gives it).
    rankdir: the direction: LR (left to right), RL, TB (top to bottom) or BT.
    label_edges: whether the edges from layers to their tops are labelled.
    phase: caffe.TRAIN or caffe.TEST for the layers of that phase, None for all.
    display_lrm: whether boxes show the multipliers of the learning rates.

    Raises
    ------
    CaffeError: the package pydot is missing, or the direction is none.
    """
    drawing = _pydot()
    if rankdir not in DIRECTIONS:
        raise CaffeError(f"rankdir is {rankdir!r}; expected one of {', '.join(DIRECTIONS)}")
    nodes: dict[str, pydot.Node] = {}
    edges: list[pydot.Edge] = []

    def node(key: str, label: str, style: dict[str, str]) -> pydot.Node:
        name = f'"{_escaped(key)}"'
        return nodes.setdefault(name, drawing.Node(name, label=label, **style))

    for layer in caffe_net.layer:
        if phase is not None and not _in_phase(layer, phase):
            continue
        in_place = len(layer.bottom) == len(layer.top) == 1 and layer.bottom[0] == layer.top[0]
        style = LAYER_STYLE_DEFAULT | {"fillcolor": choose_color_by_layertype(layer.type)}
        label = get_layer_label(layer, rankdir, display_lrm)
        box = node(f"{layer.name}_{layer.type}", label, NEURON_LAYER_STYLE if in_place else style)
        for bottom in layer.bottom:
            blob = node(f"{bottom}_blob", f'"{_escaped(bottom)}"', BLOB_STYLE)
            edges.append(drawing.Edge(blob, box, label='""'))
        for top in layer.top:
            blob = node(f"{top}_blob", f'"{_escaped(top)}"', BLOB_STYLE)
            edges.append(drawing.Edge(box, blob, label=get_edge_label(layer) if label_edges else '""'))
    graph = drawing.Dot(f'"{_escaped(caffe_net.name or "Net")}"', graph_type="digraph", rankdir=rankdir)
    for one in nodes.values():
        graph.add_node(one)
    for edge in edges:
        graph.add_edge(edge)
    return graph


def _pydot() -> ModuleType:
    try:
        import pydot
    except ImportError:
        raise CaffeError(
            "drawing a net needs the package pydot: pip install pydot, or pip install 'face-emotion-net[draw]'"
        ) from None
    return pydot


def draw_net(
    caffe_net: NetParameter, rankdir: str, ext: str = "png", phase: int | None = None, display_lrm: bool = False
) -> bytes:
    """The picture of a net as the bytes of a file.

    Parameters
    ----------
    ext: the file's type: dot for the graph's text, or one that Graphviz makes: png, svg, pdf, ….
    caffe_net, rankdir, phase, display_lrm: as `get_pydot_graph`'s.

    Raises
    ------
    CaffeError: as `get_pydot_graph`, and where Graphviz is missing or does not know the type.
    """
    text = get_pydot_graph(caffe_net, rankdir, phase=phase, display_lrm=display_lrm).to_string().encode()
    if ext in TEXT_FORMATS:
        return text
    program = shutil.which("dot")
    if program is None:
        raise CaffeError(
            f"drawing a net as {ext} needs Graphviz's program dot (packages are named graphviz); a .dot file does not"
        )
    done = subprocess.run([program, f"-T{ext}"], input=text, capture_output=True, check=False)
    if done.returncode:
        raise CaffeError(f"drawing a net as {ext}: dot says: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def draw_net_to_file(
    caffe_net: NetParameter,
    filename: StrPath,
    rankdir: str = "LR",
    phase: int | None = None,
    display_lrm: bool = False,
) -> None:
    """Write the picture of a net to a file, whose type is that of its name: `net.png`; the rest is `draw_net`'s."""
    ext = Path(filename).suffix[1:]
    if not ext:
        raise CaffeError(f"{filename}: has no type of picture in its name; expected NAME.png, NAME.svg, NAME.dot, …")
    replace_bytes(filename, draw_net(caffe_net, rankdir, ext, phase, display_lrm))
