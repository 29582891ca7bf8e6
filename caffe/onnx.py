"""A net as an ONNX file, for ONNX Runtime, browsers, phones, TensorRT, OpenCV 5: what does not read Caffe's files.

`save_onnx(net, "net.onnx")`, or `python -m caffe.tools.export_onnx`. Each layer becomes the operators that compute the
same (https://onnx.ai/onnx/operators); what is between them keeps the blobs' names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import CaffeError
from .files import StrPath, replace_bytes
from .layers.base import Layer, Shape
from .layers.normalization import spread
from .layers.pooling import AVE, MAX, Windows, overhang
from .net import Net
from .proto.caffe_pb2 import TEST, EltwiseParameter, LRNParameter
from .proto.onnx_pb2 import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

OPSET, IR_VERSION = 13, 7  # of 2020: what newer versions add is not needed, and older programs read these
BATCH = "N"  # the name of the first axis, which may have any size

Names = list[str]
Converter = Callable[["_Graph", Any, Names, Names, list[Shape]], None]
CONVERTERS: dict[str, Converter] = {}


def save_onnx(net: Net, path: StrPath) -> None:
    """Write a net with its weights as an ONNX model, all or nothing; any number of images goes in.

    net: of phase TEST, such as a deploy.prototxt's. Its inputs and outputs keep their names.
    Raises CaffeError for a layer that has no such operators, naming it; OSError where the file cannot be written.
    """
    if net.phase != TEST:
        raise CaffeError("the net is of phase TRAIN; expected caffe.TEST")
    model = ModelProto(ir_version=IR_VERSION, producer_name="caffe", graph=_Graph(net).proto)
    model.opset_import.add(domain="", version=OPSET)
    replace_bytes(path, model.SerializeToString())


def _converts(*types: str) -> Callable[[Converter], Converter]:
    def add(converter: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(types, converter))
        return converter

    return add


class _Graph:
    """The graph of a net, layer by layer.

    An operator writes a name once, where a layer in place writes its blob again: the last one has the blob's name.
    """

    def __init__(self, net: Net) -> None:
        self.proto = GraphProto(name=net.name or "net")
        self._used = set(net.blobs)
        self._shapes = {name: tuple(blob.shape) for name, blob in net.blobs.items()}
        self._batch = [self._shapes[name][:1] for name in net.inputs[:1]]
        current = {name: name for name in net.inputs}
        # by the layers' numbers, since layers without parameters may share a name
        last = {top: number for number, layer in enumerate(net.layers) for top in layer.param.top}
        for number, layer in enumerate(net.layers):
            if layer.type in ("Input", "Silence"):
                continue
            if layer.type not in CONVERTERS:
                layer.error(f"has no operators of ONNX here; expected one of {', '.join(sorted(CONVERTERS))}")
            bottoms = [current[name] for name in layer.param.bottom]
            tops = [
                name if last[name] == number and name not in net.inputs else self.name(layer, name)
                for name in layer.param.top
            ]
            CONVERTERS[layer.type](self, layer, bottoms, tops, [self._shapes[name] for name in layer.param.bottom])
            current.update(zip(layer.param.top, tops, strict=True))
        for name in net.inputs:
            self._describe(self.proto.input.add(), name, self._shapes[name])
        for name in net.outputs:
            self._describe(self.proto.output.add(), current[name], self._shapes[name])

    def _describe(self, value: ValueInfoProto, name: str, shape: Shape) -> None:
        value.name = name
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        value.type.tensor_type.shape.SetInParent()
        for axis, size in enumerate(shape):
            dim = value.type.tensor_type.shape.dim.add()
            if axis:
                dim.dim_value = size
            elif (size,) in self._batch:  # else any other size: what has one name has one size
                dim.dim_param = BATCH

    def name(self, layer: Layer, what: str) -> str:
        """A name that nothing has yet."""
        name = f"{layer.name}/{what}"
        while name in self._used:
            name += "_"
        self._used.add(name)
        return name

    def constant(self, layer: Layer, what: str, values: Any, dtype: type = np.float32) -> str:
        """Weights, or other numbers that stand still; their name."""
        array: np.ndarray = np.ascontiguousarray(np.asarray(values, dtype))  # which makes of a scalar an array of one
        kind = TensorProto.FLOAT if dtype is np.float32 else TensorProto.INT64
        name = self.name(layer, what)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        self.proto.initializer.add(name=name, dims=np.shape(values), data_type=kind, raw_data=little.tobytes())
        return name

    def add(self, layer: Layer, operator: str, inputs: Names, top: str | Names = "", **attributes: Any) -> str:
        """An operator, by default with an output of a new name; the first output's name."""
        outputs = [top or self.name(layer, operator)] if isinstance(top, str) else top
        node = self.proto.node.add(op_type=operator, input=inputs, output=outputs, name=self.name(layer, "operator"))
        for key, value in attributes.items():
            if isinstance(value, float):
                node.attribute.add(name=key, f=value, type=AttributeProto.FLOAT)
            elif isinstance(value, int):
                node.attribute.add(name=key, i=value, type=AttributeProto.INT)
            else:
                node.attribute.add(name=key, ints=value, type=AttributeProto.INTS)
        return outputs[0]

    def affine(self, layer: Layer, x: str, scale: float, shift: float, top: str = "") -> str:
        """scale · x + shift."""
        if scale == 1 and shift == 0:
            return self.add(layer, "Identity", [x], top) if top else x
        if scale != 1:
            x = self.add(layer, "Mul", [x, self.constant(layer, "scale", scale)], top if shift == 0 else "")
        return x if shift == 0 else self.add(layer, "Add", [x, self.constant(layer, "shift", shift)], top)

    def reshape(self, layer: Layer, x: str, sizes: Sequence[int], top: str = "") -> str:
        """Other axes for the same values; a size of 0 is that of the same axis before."""
        return self.add(layer, "Reshape", [x, self.constant(layer, "shape", sizes, np.int64)], top)


def _parameters(graph: _Graph, layer: Layer) -> Names:
    return [graph.constant(layer, what, blob.data) for what, blob in zip(("weight", "bias"), layer.blobs, strict=False)]


@_converts("Convolution", "Deconvolution")
def _convolution(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    if layer.channel_axis != 1 or not layer.kernel:
        layer.error(f"has its channels on axis {layer.channel_axis} of {shapes[0]}; expected N×C×… for ONNX")
    parameters = _parameters(graph, layer)
    for x, y in zip(bottoms, tops, strict=True):
        graph.add(
            layer,
            "Conv" if layer.type == "Convolution" else "ConvTranspose",
            [x, *parameters],
            y,
            kernel_shape=layer.kernel,
            strides=layer.stride,
            pads=(*layer.pad, *layer.pad),
            dilations=layer.dilation,
            group=layer.group,
        )


@_converts("InnerProduct")
def _inner_product(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    if layer.first != 1:
        layer.error(f"has axis {layer.first}; expected 1 for ONNX")
    x = bottoms[0] if len(shapes[0]) == 2 else graph.add(layer, "Flatten", bottoms, axis=1)
    transposed = int(not layer.param.inner_product_param.transpose)
    graph.add(layer, "Gemm", [x, *_parameters(graph, layer)], tops[0], transB=transposed)


@_converts("Pooling")
def _pooling(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    """With padding behind the image as far as the windows reach, since runtimes round their number up differently."""
    if layer.method not in (MAX, AVE) or len(tops) > 1:
        layer.error("expected pool: MAX or AVE, and one top, for ONNX")
    kind = "MaxPool" if layer.method == MAX else "AveragePool"
    if layer.param.pooling_param.global_pooling:
        graph.add(layer, f"Global{kind}", bottoms, tops[0])
        return
    windows, over = layer.windows, overhang(layer.windows, shapes[0])
    ends = [max(0, pad + beyond) for pad, beyond in zip(windows.pad, over, strict=True)]
    if any(end >= size for end, size in zip(ends, windows.kernel, strict=True)):
        layer.error(f"has windows that lie beyond its bottom of shape {shapes[0]}, which ONNX does not have")
    settings = {"kernel_shape": windows.kernel, "strides": windows.stride}
    if layer.method == MAX:
        graph.add(layer, kind, bottoms, tops[0], pads=(*windows.pad, *ends), **settings)
        return
    x = bottoms[0]
    if any((*windows.pad, *ends)):  # by an operator of its own: not all runtimes count padding that is the pool's
        pads = graph.constant(layer, "pads", [0, 0, *windows.pad, 0, 0, *ends], np.int64)
        x = graph.add(layer, "Pad", [x, pads])
    if max(over) <= 0:
        graph.add(layer, kind, [x], tops[0], **settings)
        return
    means = graph.add(layer, kind, [x], **settings)
    graph.add(layer, "Mul", [means, graph.constant(layer, "share", _kernels_share(windows, shapes[0]))], tops[0])


def _kernels_share(windows: Windows, shape: Shape) -> np.ndarray:
    """The kernel's size over that of each window within the image as padded on both sides, by which Caffe divides."""
    inside = []
    for size, kernel, stride, pad, count in zip(
        shape[2:], windows.kernel, windows.stride, windows.pad, windows.counts(shape), strict=True
    ):
        starts = stride * np.arange(count)
        inside.append(np.minimum(starts + kernel, size + 2 * pad) - starts)
    return math.prod(windows.kernel) / np.outer(*inside)


@_converts("BatchNorm")
def _batch_norm(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    if not layer.global_stats or len(shapes[0]) < 2:
        layer.error(f"expected use_global_stats and N×C×…, not {shapes[0]}, for ONNX")
    mean, variance = (values.detach().cpu().numpy() for values in layer.statistics())
    values = {"scale": np.ones_like(mean), "bias": np.zeros_like(mean), "mean": mean, "variance": variance}
    constants = [graph.constant(layer, what, array) for what, array in values.items()]
    graph.add(layer, "BatchNormalization", [*bottoms, *constants], tops[0], epsilon=layer.param.batch_norm_param.eps)


@_converts("Scale", "Bias")
def _scale(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    axis = (layer.param.scale_param if layer.type == "Scale" else layer.param.bias_param).axis
    operand = shapes[1] if len(shapes) == 2 else tuple(layer.blobs[0].shape)
    view = spread(layer, axis, operand, shapes[0])
    operands = [graph.constant(layer, f"operand{i}", blob.data.reshape(view)) for i, blob in enumerate(layer.blobs)]
    if len(bottoms) == 2:
        if operand != shapes[0]:  # the batch's axis keeps its size, if it is among them
            sizes = [0, *view[1:]] if operand and layer.axis(axis, shapes[0]) == 0 else view
            bottoms[1] = graph.reshape(layer, bottoms[1], sizes)
        operands.insert(0, bottoms[1])
    operators = ("Mul", "Add") if layer.type == "Scale" else ("Add",)
    x = bottoms[0]
    for i, value in enumerate(operands):
        x = graph.add(layer, operators[i], [x, value], tops[0] if i == len(operands) - 1 else "")


@_converts("LRN")
def _lrn(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    p = layer.param.lrn_param
    if p.norm_region != LRNParameter.ACROSS_CHANNELS:
        layer.error("has norm_region: WITHIN_CHANNEL; expected ACROSS_CHANNELS for ONNX")
    graph.add(layer, "LRN", bottoms, tops[0], alpha=p.alpha, beta=p.beta, bias=p.k, size=p.local_size)


@_converts("ReLU")
def _relu(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    slope = layer.param.relu_param.negative_slope
    if slope:
        graph.add(layer, "LeakyRelu", bottoms, tops[0], alpha=slope)
    else:
        graph.add(layer, "Relu", bottoms, tops[0])


@_converts("PReLU")
def _prelu(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    slope = layer.blobs[0].data.reshape(-1, *(1,) * (len(shapes[0]) - 2))
    graph.add(layer, "PRelu", [*bottoms, graph.constant(layer, "slope", slope)], tops[0])


@_converts("ELU")
def _elu(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    graph.add(layer, "Elu", bottoms, tops[0], alpha=layer.param.elu_param.alpha)


@_converts("AbsVal", "BNLL", "Dropout", "Sigmoid", "Split", "TanH")
def _plain(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    operators = {"AbsVal": "Abs", "BNLL": "Softplus", "Dropout": "Identity", "Split": "Identity", "TanH": "Tanh"}
    for top in tops:
        graph.add(layer, operators.get(layer.type, layer.type), bottoms, top)


@_converts("Clip")
def _clip(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    p = layer.param.clip_param
    limits = [graph.constant(layer, what, value) for what, value in (("min", p.min), ("max", p.max))]
    graph.add(layer, "Clip", [*bottoms, *limits], tops[0])


@_converts("Power")
def _power(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    p = layer.param.power_param
    x = graph.affine(layer, bottoms[0], p.scale, p.shift, tops[0] if p.power == 1 else "")
    if p.power != 1:
        graph.add(layer, "Pow", [x, graph.constant(layer, "power", p.power)], tops[0])


@_converts("Swish")
def _swish(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    gate = graph.add(layer, "Sigmoid", [graph.affine(layer, bottoms[0], layer.param.swish_param.beta, 0)])
    graph.add(layer, "Mul", [bottoms[0], gate], tops[0])


@_converts("Softmax")
def _softmax(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    graph.add(layer, "Softmax", bottoms, tops[0], axis=layer.axis(layer.param.softmax_param.axis, shapes[0]))


@_converts("Eltwise")
def _eltwise(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    p = layer.param.eltwise_param
    operator = {EltwiseParameter.PROD: "Mul", EltwiseParameter.SUM: "Add", EltwiseParameter.MAX: "Max"}[p.operation]
    terms = [
        graph.affine(layer, x, scale, 0) for x, scale in zip(bottoms, p.coeff or [1.0] * len(bottoms), strict=True)
    ]
    total = terms[0]
    for i, term in enumerate(terms[1:], 2):
        total = graph.add(layer, operator, [total, term], tops[0] if i == len(terms) else "")


@_converts("Concat")
def _concat(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    graph.add(layer, "Concat", bottoms, tops[0], axis=layer.along)


@_converts("Slice")
def _slice(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    """Without sizes equal parts, of however many images."""
    sizes = [top[layer.along] for top in layer.top_shapes(shapes)]
    equal = layer.along == 0 and not layer.param.slice_param.slice_point
    split = [] if equal else [graph.constant(layer, "split", sizes, np.int64)]
    graph.add(layer, "Split", [*bottoms, *split], tops, axis=layer.along)


@_converts("Flatten", "Reshape")
def _reshape(graph: _Graph, layer: Any, bottoms: Names, tops: Names, shapes: list[Shape]) -> None:
    (sizes,) = layer.top_shapes(shapes)
    keeps = sizes[:1] == shapes[0][:1]  # the batch, of any size
    graph.reshape(layer, bottoms[0], [0 if keeps else -1, *sizes[1:]], tops[0])
