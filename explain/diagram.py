"""Draw a net as an SVG: a box a layer, from the input down, with branches side by side. Needs no other program.

python -m explain.diagram prototxt/NET/deploy.prototxt [--output net.svg]
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import caffe
from caffe.complexity import complexity
from caffe.files import StrPath
from caffe.layers import Layer
from caffe.proto.caffe_pb2 import EltwiseParameter, NetParameter, PoolingParameter
from preprocessing.stage import Stage, StageError, replace_file, run_main

OUTPUT = Path("data/diagrams")
FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"  # widths are known: a letter is 0.6 of the size
LETTER, LINE = 7.3, 16  # pixels a letter and a line of text take, at 12 pixels
PADDING, BESIDE, BELOW = 10, 26, 30  # pixels inside a box, between boxes side by side, and between ranks
LANE = 14  # the width that an edge takes where it passes boxes
MARGIN, HEADER = 24, 84
LONGEST_NAME = 40  # letters; longer names are cut, and whole where the pointer rests on the box
ORDER_SWEEPS, ONE_SIDED_SWEEPS, PLACE_SWEEPS, STRAIGHTENING = 12, 8, 24, 6
STRAIGHT = 8.0  # how much more it counts that a chain runs straight than that a box stands amid its neighbours

# what a kind of layer is called in the legend, its colour, and its types
KINDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("input", "#e6e6e6", ("Input", "Data", "ImageData", "HDF5Data", "MemoryData", "DummyData", "WindowData")),
    ("convolution", "#c6dff5", ("Convolution", "Deconvolution")),
    ("inner product", "#dccff0", ("InnerProduct", "Embed", "LSTM", "RNN")),
    ("pooling", "#fbdcae", ("Pooling", "SPP")),
    ("normalisation", "#dbe8c9", ("BatchNorm", "Scale", "Bias", "LRN", "MVN")),
    ("activation", "#f8cfc9", ("ReLU", "PReLU", "ELU", "Sigmoid", "TanH", "Swish", "Clip", "AbsVal", "BNLL", "Power")),
    ("combination", "#c5e9e4", ("Eltwise", "Concat", "Slice", "Split", "Flatten", "Reshape", "Crop", "Tile")),
    ("output", "#fdf0a6", ("Softmax", "SoftmaxWithLoss", "EuclideanLoss", "HingeLoss", "Accuracy", "ArgMax")),
)
OTHER = ("other", "#f4f4f4")


@dataclass(eq=False)
class _Node:
    """A box, or (without layers) the place where an edge passes a rank. `x` is its centre, `place` its number there."""

    layers: list[Layer] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    above: list[_Node] = field(default_factory=list)
    below: list[_Node] = field(default_factory=list)
    rank: int = 0
    place: int = 0
    x: float = 0.0

    @property
    def width(self) -> float:
        longest = max((len(line) for line in self.lines), default=0)
        return longest * LETTER + 2 * PADDING if self.layers else LANE

    @property
    def height(self) -> float:
        return len(self.lines) * LINE + 2 * PADDING - 4 if self.layers else 0


def net_diagram(net: caffe.Net | NetParameter | StrPath, title: str | None = None) -> str:
    """A picture of a net: boxes of layers and, between them, how they read each other.

    A box holds a layer's name, type and settings, the layers that work in place on its top, the shape of its top
    without the batch, and its learned parameters. Each box stands below all that it reads.

    Parameters
    ----------
    net: a net, or a NetParameter or path of a prototxt, of which the TEST phase is drawn.
    title: what stands above; default: the net's name.

    Returns
    -------
    The text of an SVG that needs nothing else, as large as it is to be read; it may stand in an HTML page as it is.

    Raises
    ------
    StageError: the prototxt is not one, or its layers do not fit.
    """
    if not isinstance(net, caffe.Net):
        try:
            net = caffe.Net(net, caffe.TEST, seed=1)
        except caffe.CaffeError as error:
            raise StageError(str(error)) from error
    boxes = _boxes(net)
    ranks = _ranks(boxes)
    _order(ranks)
    _place(ranks)
    return _svg(net, boxes, ranks, net.name or "net" if title is None else title)


def _boxes(net: caffe.Net) -> list[_Node]:
    """A node a layer, but those in place on the one top of another, which nothing has read before, are in its box."""
    boxes: list[_Node] = []
    makers: dict[str, _Node] = {}
    read: set[str] = set()
    for layer in net.layers:
        bottoms, tops = list(layer.param.bottom), list(layer.param.top)
        if len(bottoms) == 1 and bottoms == tops and tops[0] not in read:
            maker = makers[tops[0]]
            if len(maker.layers[0].param.top) == 1:
                maker.layers.append(layer)
                continue
        box = _Node([layer], above=list(dict.fromkeys(makers[bottom] for bottom in bottoms)))
        for maker in box.above:
            maker.below.append(box)
        read.update(bottoms)
        read.difference_update(tops)
        makers.update(dict.fromkeys(tops, box))
        boxes.append(box)
    seen: set[int] = set()
    for box in boxes:
        box.lines = _lines(net, box.layers, seen)
    return boxes


def _lines(net: caffe.Net, layers: Sequence[Layer], seen: set[int]) -> list[str]:
    """What stands in a box. `seen` are the parameters that are counted already: layers may share them."""
    first, rest = layers[0], layers[1:]
    name = first.name if len(first.name) <= LONGEST_NAME else f"{first.name[: LONGEST_NAME - 1]}…"
    shapes = dict.fromkeys("×".join(map(str, net.blobs[top].shape[1:])) or "1" for top in first.param.top)
    parameters = 0
    for layer in layers:
        for blob in layer.blobs if layer.type != "BatchNorm" else []:  # whose sums are measured, not learned
            parameters += blob.count if id(blob.owner) not in seen else 0
            seen.add(id(blob.owner))
    learned = f" · {parameters:,} parameter{'s' * (parameters != 1)}" if parameters else ""
    lines = [name, _settings(first), " · ".join(layer.type for layer in rest), ", ".join(shapes) + learned]
    return [line for line in lines if line]


def _settings(layer: Layer) -> str:
    """A layer's type, and what decides what it computes: the windows, the outputs, how it combines."""
    param, kind = layer.param, layer.type
    if kind in ("Convolution", "Deconvolution"):
        conv = param.convolution_param
        dilation = [f"dilation {'×'.join(map(str, conv.dilation))}"] if any(n > 1 for n in conv.dilation) else []
        group = [f"group {conv.group}"] if conv.group > 1 else []
        return ", ".join([f"{kind} {_window(conv, 'kernel')}", str(conv.num_output), *_steps(conv), *dilation, *group])
    if kind == "Pooling":
        pool = param.pooling_param
        method = PoolingParameter.PoolMethod.Name(pool.pool).lower()
        window = "global" if pool.global_pooling else _window(pool, "kernel")
        return ", ".join([f"{kind} {method} {window}", *_steps(pool)])
    if kind == "InnerProduct":
        return f"{kind} {param.inner_product_param.num_output}"
    if kind == "Eltwise":
        return f"{kind} {EltwiseParameter.EltwiseOp.Name(param.eltwise_param.operation).lower()}"
    if kind == "Dropout":
        return f"{kind} {param.dropout_param.dropout_ratio:g}"
    return kind


def _window(settings: object, what: str) -> str:
    """A size in both directions, `what` being kernel, stride or pad: 3×3, or nothing where there is none."""
    rows, columns = getattr(settings, f"{what}_h"), getattr(settings, f"{what}_w")
    if not rows and not columns:
        value = getattr(settings, "kernel_size" if what == "kernel" else what)
        sizes = [value] if isinstance(value, int) else list(value)
        if not sizes:
            return ""
        rows, columns = sizes[0], sizes[-1]
    return f"{rows}×{columns}"


def _steps(settings: object) -> list[str]:
    """Stride and pad, where they are not the usual 1 and 0."""
    stride, pad = _window(settings, "stride"), _window(settings, "pad")
    strides = [f"stride {_short(stride)}"] if stride not in ("", "1×1", "0×0") else []
    return strides + ([f"pad {_short(pad)}"] if pad not in ("", "0×0") else [])


def _short(size: str) -> str:
    rows, columns = size.split("×")
    return rows if rows == columns else size


# Where the boxes stand: ranks by longest path, order within a rank by the places of the neighbours (Sugiyama et al.
# 1981), then the x that lies nearest to the neighbours'.


def _ranks(boxes: Sequence[_Node]) -> list[list[_Node]]:
    """The nodes of each rank: a box one below the lowest that it reads, and a lane in each rank that an edge passes."""
    for box in boxes:  # in the net's order, so what a box reads has its rank
        box.rank = 1 + max((maker.rank for maker in box.above), default=-1)
    ranks: list[list[_Node]] = [[] for _ in range(1 + max((box.rank for box in boxes), default=-1))]
    for box in boxes:
        box.above = [_lane(maker, box, ranks) for maker in box.above]
        ranks[box.rank].append(box)
    for rank in ranks:
        _number(rank)
    return ranks


def _lane(maker: _Node, reader: _Node, ranks: list[list[_Node]]) -> _Node:
    """Put lanes between two boxes in the ranks between them; returns what then stands above the reader."""
    last, index = maker, maker.below.index(reader)
    for rank in range(maker.rank + 1, reader.rank):
        lane = _Node(rank=rank, above=[last])
        if last is maker:
            maker.below[index] = lane
        else:
            last.below = [lane]
        ranks[rank].append(lane)
        last = lane
    if last is not maker:
        last.below = [reader]
    return last


def _number(rank: list[_Node]) -> None:
    for place, node in enumerate(rank):
        node.place = place


def _crossings(ranks: Sequence[Sequence[_Node]]) -> int:
    """Pairs of edges between neighbouring ranks that cross."""
    total = 0
    for rank in ranks:
        ends = sorted((node.place, other.place) for node in rank for other in node.below)
        total += sum(a[0] < b[0] and a[1] > b[1] for i, b in enumerate(ends) for a in ends[:i])
    return total


def _order(ranks: list[list[_Node]]) -> None:
    """Order each rank by the mean place of the neighbours, down and up in turn; the order of fewest crossings stays."""
    best, order = _crossings(ranks), [list(rank) for rank in ranks]
    for sweep in range(ORDER_SWEEPS):
        if best == 0:
            break
        down = sweep % 2 == 0
        for rank in ranks if down else ranks[::-1]:
            keys = {node: _mean_place(node, node.above if down else node.below) for node in rank}
            rank.sort(key=keys.__getitem__)
            _number(rank)
        crossings = _crossings(ranks)
        if crossings < best:
            best, order = crossings, [list(rank) for rank in ranks]
    ranks[:] = order
    for rank in ranks:
        _number(rank)


def _mean_place(node: _Node, neighbours: Sequence[_Node]) -> float:
    return sum(other.place for other in neighbours) / len(neighbours) if neighbours else node.place


def _place(ranks: Sequence[Sequence[_Node]]) -> None:
    """Give each node its x: as near to its neighbours' as the boxes beside it allow.

    Down and up in turn, first by the neighbours on the side that a sweep comes from, then by those on both; then chains
    are made straight. A box alone in its rank stands in the middle, so that the trunk of a net is one line.
    """
    for rank in ranks:
        _spread(rank, [0.0] * len(rank), [1.0] * len(rank))
    for sweep in range(PLACE_SWEEPS):
        down, both = sweep % 2 == 0, sweep >= ONE_SIDED_SWEEPS
        for rank in ranks if down else ranks[::-1]:
            if len(rank) == 1:
                rank[0].x = 0.0
                continue
            wanted, weights = [], []
            for node in rank:
                near = [(_pull(other, node), other) for other in node.above if down or both]
                near += [(_pull(node, other), other) for other in node.below if both or not down]
                total = sum(pull for pull, _ in near)
                wanted.append(sum(pull * other.x for pull, other in near) / total if near else node.x)
                weights.append(total or 0.1)
            _spread(rank, wanted, weights)
    chains = list(_chains(ranks))
    for _ in range(STRAIGHTENING):
        for chain in chains:
            _straighten(chain, ranks)


def _chains(ranks: Sequence[Sequence[_Node]]) -> Iterator[list[_Node]]:
    """Nodes that follow each other without a branch, the upper first, the longest chains first."""
    found: list[list[_Node]] = []
    for node in (node for rank in ranks for node in rank):
        if len(node.above) == 1 and len(node.above[0].below) == 1:
            continue
        chain = [node]
        while len(chain[-1].below) == 1 and len(chain[-1].below[0].above) == 1:
            chain.append(chain[-1].below[0])
        found.append(chain)
    yield from sorted(found, key=len, reverse=True)


def _straighten(chain: Sequence[_Node], ranks: Sequence[Sequence[_Node]]) -> None:
    """Bring the nodes of a chain to one x, where what stands beside them leaves room, else to as few as possible."""
    run: list[_Node] = []
    least, most = -math.inf, math.inf
    for node in chain:
        low, high = _room(node, ranks[node.rank])
        if max(least, low) > min(most, high):
            _align(run, least, most)
            run, least, most = [], -math.inf, math.inf
        run.append(node)
        least, most = max(least, low), min(most, high)
    _align(run, least, most)


def _room(node: _Node, rank: Sequence[_Node]) -> tuple[float, float]:
    """Between which x a node may stand, its neighbours in the rank where they are."""
    if len(rank) == 1:
        return 0.0, 0.0
    low, high = -math.inf, math.inf
    if node.place > 0:
        other = rank[node.place - 1]
        low = other.x + (other.width + node.width) / 2 + BESIDE
    if node.place + 1 < len(rank):
        other = rank[node.place + 1]
        high = other.x - (other.width + node.width) / 2 - BESIDE
    return min(low, node.x), max(high, node.x)  # it stands there now, whatever the sums' rounding says


def _align(run: Sequence[_Node], least: float, most: float) -> None:
    x = min(max(sum(node.x for node in run) / len(run), least), most)
    for node in run:
        node.x = x


def _pull(upper: _Node, lower: _Node) -> float:
    """How much it counts that one stands straight above the other: most in a chain, and where an edge passes boxes."""
    return STRAIGHT if len(upper.below) == len(lower.above) == 1 else 1.0


def _spread(rank: Sequence[_Node], wanted: Sequence[float], weights: Sequence[float]) -> None:
    """The x of least squares from those that are wanted, in the rank's order and without overlap.

    With the room that the nodes before it take subtracted, each x must be no less than the one before: isotonic
    regression, which joining neighbours that are out of order to their mean solves (Ayer et al. 1955).
    """
    offsets, room = [], 0.0
    for i, node in enumerate(rank):
        room += (rank[i - 1].width + node.width) / 2 + BESIDE if i else 0.0
        offsets.append(room)
    blocks: list[list[float]] = []  # mean, weight, nodes
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        blocks.append([want - offset, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, more, count = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * more) / (last[1] + more)
            last[1] += more
            last[2] += count
    means = [mean for mean, _, count in blocks for _ in range(int(count))]
    for node, mean, offset in zip(rank, means, offsets, strict=True):
        node.x = mean + offset


# The SVG


def _svg(net: caffe.Net, boxes: Sequence[_Node], ranks: Sequence[Sequence[_Node]], title: str) -> str:
    nodes = [node for rank in ranks for node in rank]
    left = min((node.x - node.width / 2 for node in nodes), default=0.0)
    right = max((node.x + node.width / 2 for node in nodes), default=0.0)
    kinds = [kind for kind in (*KINDS, (*OTHER, ())) if any(_kind(box)[0] == kind[0] for box in boxes)]
    cost = complexity(net)
    subtitle = (
        f"{len(net.layers)} layers, {cost.parameters:,} parameters, {cost.multiply_adds / 1e6:,.1f} M multiply-adds"
    )
    legend = sum(len(name) * LETTER + 34 for name, *_ in kinds)
    width = math.ceil(max(right - left, legend, LETTER * len(subtitle), 1.25 * LETTER * len(title)) + 2 * MARGIN)
    shift = (width - right - left) / 2
    for node in nodes:
        node.x += shift
    tops = [HEADER + MARGIN]
    for rank in ranks:
        tops.append(tops[-1] + math.ceil(max(node.height for node in rank)) + BELOW)
    height = tops[-1] - BELOW + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{FONT}" font-size="12" role="img" aria-label={_attribute(f"the layers of {title}")}>',
        '<defs><marker id="net-diagram-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#666666"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="32" font-size="15" font-weight="bold" fill="#111111">{_text(title)}</text>',
        f'<text x="{MARGIN}" y="52" fill="#444444">{_text(subtitle)}</text>',
        *_legend(kinds),
        *(edge for box in boxes for edge in _edges(box, tops)),
        *(_box(box, tops[box.rank]) for box in boxes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend(kinds: Sequence[tuple[str, str, tuple[str, ...]]]) -> Iterator[str]:
    x = float(MARGIN)
    for name, color, _ in kinds:
        yield f'<rect x="{x:.0f}" y="66" width="12" height="12" fill="{color}" stroke="#666666"/>'
        yield f'<text x="{x + 18:.0f}" y="76" fill="#444444">{name}</text>'
        x += len(name) * LETTER + 34


def _kind(box: _Node) -> tuple[str, str]:
    found = [(name, color) for name, color, types in KINDS if box.layers[0].type in types]
    return found[0] if found else OTHER


def _edges(box: _Node, tops: Sequence[float]) -> Iterator[str]:
    """A path from a box to each that reads it: straight past the boxes of a rank, a curve in the gap below it."""
    for first in box.below:
        y = tops[box.rank] + box.height
        path, x, node = [f"M{box.x:.1f} {y:.1f}"], box.x, first
        while True:
            end, start = tops[node.rank], tops[node.rank] - BELOW
            middle = (start + end) / 2
            path.append(f"V{start:.1f}C{x:.1f} {middle:.1f} {node.x:.1f} {middle:.1f} {node.x:.1f} {end:.1f}")
            x = node.x
            if node.layers:
                break
            node = node.below[0]
        yield (
            f'<path d="{"".join(path)}" fill="none" stroke="#666666" stroke-width="1.2" '
            'marker-end="url(#net-diagram-arrow)"/>'
        )


def _box(box: _Node, top: float) -> str:
    """A box with its text; the layers' names and types show where the pointer rests on it."""
    names = ", ".join(f"{layer.name} ({layer.type})" for layer in box.layers)
    left = box.x - box.width / 2
    texts = []
    for i, line in enumerate(box.lines):
        style = ' font-weight="bold"' if i == 0 else ' fill="#444444"' if i == len(box.lines) - 1 else ""
        y = top + PADDING + 10 + i * LINE
        texts.append(f'<text x="{box.x:.1f}" y="{y:.1f}" text-anchor="middle"{style}>{_text(line)}</text>')
    return (
        f'<g class="layer"><title>{_text(names)}</title><rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="5" fill="{_kind(box)[1]}" stroke="#555555"/>{"".join(texts)}</g>'
    )


def _printable(text: str) -> str:
    """Without what XML cannot hold at all: control characters and halves of surrogate pairs."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)


def _text(text: str) -> str:
    return escape(_printable(text))


def _attribute(text: str) -> str:
    return quoteattr(_printable(text))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m explain.diagram", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("net", type=Path, metavar="PROTOTXT", help="a net's prototxt; its TEST phase is drawn")
    parser.add_argument("--output", type=Path, help=f"the picture, an SVG (default: {OUTPUT}/NAME.svg)")
    args = parser.parse_args()
    stage = Stage("diagram")
    if not args.net.is_file():
        raise StageError(f"{args.net}: no such file; expected a net's prototxt")
    picture = net_diagram(args.net)
    name = args.net.resolve().parent.name if args.net.stem in ("deploy", "train_val") else args.net.stem
    output = args.output or OUTPUT / f"{name}.svg"
    with replace_file(output) as partial:
        partial.write_text(picture, encoding="utf-8")
    boxes = picture.count('<g class="layer">')
    stage.summary(f"{boxes} boxes in {output}")


if __name__ == "__main__":
    run_main(main)
