"""Nets as ONNX files, read by OpenCV's importer: the same answers as the net's own, for any number of images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_opencv_reader import randomise

import caffe
from caffe.errors import CaffeError
from caffe.onnx import CONVERTERS, save_onnx
from caffe.proto.onnx_pb2 import ModelProto
from caffe.tools.export_onnx import main

PROTOTXT = Path(__file__).resolve().parents[2] / "prototxt"
SHIPPED = ("face_resnet16_pair", "mini_xception")
INPUT = 'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 6 dim: 9 dim: 8 } } }'


def net_of(layers: str, folder: Path) -> caffe.Net:
    (folder / "net.prototxt").write_text(f'name: "small" {INPUT} {layers}')
    net = caffe.Net(str(folder / "net.prototxt"), caffe.TEST)
    randomise(net)
    return net


def assert_opencv_agrees(net: caffe.Net, file: Path, scale: float = 1.0) -> None:
    """All outputs, of three images, whatever the prototxt says."""
    save_onnx(net, file)
    (data,) = net.inputs
    random = np.random.default_rng(0)
    x = (scale * random.standard_normal((3, *net.blobs[data].shape[1:]))).astype(np.float32)
    ours = net.infer(**{data: torch.from_numpy(x)})
    theirs = cv2.dnn.readNetFromONNX(str(file))
    theirs.setInput(x, data)
    for name in net.outputs:
        expected = ours[name].numpy()
        assert np.ptp(expected, axis=0).max() > 0.01, "the images make no difference: the comparison says nothing"
        np.testing.assert_allclose(theirs.forward(name).reshape(expected.shape), expected, atol=2e-5)


@pytest.mark.parametrize("name", SHIPPED)
def test_nets_that_ship(name: str, tmp_path: Path) -> None:
    net = caffe.Net(str(PROTOTXT / name / "deploy.prototxt"), str(PROTOTXT / name / f"{name}.caffemodel"), caffe.TEST)
    assert_opencv_agrees(net, tmp_path / "net.onnx", scale=60)


LAYERS = {
    "Convolution": """type: "Convolution" convolution_param {
        num_output: 4 group: 2 kernel_h: 3 kernel_w: 5 stride_h: 1 stride_w: 2 pad_h: 1 pad_w: 2 }""",
    "dilation": 'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 dilation: 2 bias_term: false }',
    "Deconvolution": """type: "Deconvolution" convolution_param {
        num_output: 4 kernel_size: 3 stride: 2 pad: 1 group: 2 }""",
    "InnerProduct": 'type: "InnerProduct" inner_product_param { num_output: 5 }',
    "transpose": 'type: "InnerProduct" inner_product_param { num_output: 5 bias_term: false transpose: true }',
    "max": 'type: "Pooling" pooling_param { kernel_size: 3 stride: 2 }',
    "max padded": 'type: "Pooling" pooling_param { kernel_h: 3 kernel_w: 4 stride: 2 pad: 1 }',
    "average": 'type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 3 }',
    "average beyond": 'type: "Pooling" pooling_param { pool: AVE kernel_size: 4 stride: 3 }',
    "average padded": 'type: "Pooling" pooling_param { pool: AVE kernel_h: 4 kernel_w: 5 stride: 3 pad_h: 1 pad_w: 2 }',
    "floor": 'type: "Pooling" pooling_param { pool: AVE kernel_size: 4 stride: 3 pad: 1 round_mode: FLOOR }',
    "global max": 'type: "Pooling" pooling_param { global_pooling: true }',
    "global average": 'type: "Pooling" pooling_param { pool: AVE global_pooling: true }',
    "BatchNorm": 'type: "BatchNorm"',
    "Scale": 'type: "Scale" scale_param { bias_term: true }',
    "Scale of an image": 'type: "Scale" scale_param { num_axes: -1 }',
    "Bias": 'type: "Bias"',
    "LRN": 'type: "LRN" lrn_param { local_size: 3 alpha: 0.5 beta: 0.7 k: 2 }',
    "ReLU": 'type: "ReLU"',
    "leaky": 'type: "ReLU" relu_param { negative_slope: 0.1 }',
    "PReLU": 'type: "PReLU"',
    "one slope": 'type: "PReLU" prelu_param { channel_shared: true }',
    "ELU": 'type: "ELU" elu_param { alpha: 0.5 }',
    "AbsVal": 'type: "AbsVal"',
    "BNLL": 'type: "BNLL"',
    "Sigmoid": 'type: "Sigmoid"',
    "TanH": 'type: "TanH"',
    "Clip": 'type: "Clip" clip_param { min: -0.5 max: 0.25 }',
    "Power": 'type: "Power" power_param { scale: 0.1 shift: 1 power: 3 }',
    "scale alone": 'type: "Power" power_param { scale: 0.1 }',
    "power of one": 'type: "Power"',
    "Swish": 'type: "Swish" swish_param { beta: 2 }',
    "Softmax": 'type: "Softmax"',
    "Dropout": 'type: "Dropout"',
    "Flatten": 'type: "Flatten"',
    "flatten some": 'type: "Flatten" flatten_param { axis: 2 end_axis: 3 }',
    "Reshape": 'type: "Reshape" reshape_param { shape { dim: 2 dim: -1 } axis: 1 num_axes: 1 }',
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer: str, tmp_path: Path) -> None:
    net = net_of(f'layer {{ name: "it" bottom: "data" top: "it" {LAYERS[layer]} }}', tmp_path)
    assert_opencv_agrees(net, tmp_path / "net.onnx")


NETS = {
    "Eltwise": """layer { name: "a" type: "Power" bottom: "data" top: "a" power_param { scale: -2 } }
        layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "a" top: "sum" eltwise_param { coeff: 3 coeff: 1 } }
        layer { name: "product" type: "Eltwise" bottom: "data" bottom: "a" bottom: "a" top: "product"
          eltwise_param { operation: PROD } }
        layer { name: "max" type: "Eltwise" bottom: "data" bottom: "a" top: "max" eltwise_param { operation: MAX } }""",
    "Slice and Concat": """layer { name: "cut" type: "Slice" bottom: "data" top: "a" top: "b" top: "c"
          slice_param { slice_point: 1 slice_point: 4 } }
        layer { name: "joined" type: "Concat" bottom: "c" bottom: "a" top: "joined" }
        layer { name: "other" type: "AbsVal" bottom: "b" top: "other" }""",
    "both halves of a channel pair": """layer { name: "cut" type: "Slice" bottom: "data" top: "a" top: "b" }
        layer { name: "joined" type: "Concat" bottom: "a" bottom: "b" top: "joined" concat_param { axis: 0 } }
        layer { name: "parts" type: "Slice" bottom: "joined" top: "c" top: "d" slice_param { axis: 0 } }
        layer { name: "sum" type: "Eltwise" bottom: "c" bottom: "d" top: "sum" eltwise_param { coeff: 1 coeff: 2 } }""",
    "Scale by another blob": """layer { name: "pool" type: "Pooling" bottom: "data" top: "pool"
          pooling_param { pool: AVE global_pooling: true } }
        layer { name: "gate" type: "InnerProduct" bottom: "pool" top: "gate" inner_product_param { num_output: 6 } }
        layer { name: "scaled" type: "Scale" bottom: "data" bottom: "gate" top: "scaled" scale_param { axis: 0 } }
        layer { name: "moved" type: "Bias" bottom: "data" bottom: "gate" top: "moved" bias_param { axis: 0 } }""",
    "in place": """layer { name: "first" type: "ReLU" bottom: "data" top: "data" relu_param { negative_slope: 0.5 } }
        layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
          convolution_param { num_output: 4 kernel_size: 3 } }
        layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
        layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
        layer { name: "rectified" type: "ReLU" bottom: "conv" top: "conv" }""",
    "layers of one name": """layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
          convolution_param { num_output: 4 kernel_size: 3 } }
        layer { name: "act" type: "ReLU" bottom: "conv" top: "conv" }
        layer { name: "act" type: "Sigmoid" bottom: "conv" top: "conv" }""",
    "rows of all images": """layer { name: "rows" type: "Reshape" bottom: "data" top: "rows"
          reshape_param { shape { dim: -1 dim: 72 } } }
        layer { name: "fc" type: "InnerProduct" bottom: "rows" top: "fc" inner_product_param { num_output: 5 } }""",
    "names that are taken": """layer { name: "a" type: "Power" bottom: "data" top: "a"
          power_param { scale: 2 shift: 1 } }
        layer { name: "b" type: "AbsVal" bottom: "data" top: "a/scale" }
        layer { name: "c" type: "Split" bottom: "a" top: "c" top: "a/Mul" }""",
}


@pytest.mark.parametrize("layers", NETS)
def test_nets(layers: str, tmp_path: Path) -> None:
    assert_opencv_agrees(net_of(NETS[layers], tmp_path), tmp_path / "net.onnx")


def test_every_operator_is_tried() -> None:
    text = " ".join([*LAYERS.values(), *NETS.values()])
    assert [kind for kind in CONVERTERS if f'type: "{kind}"' not in text] == []


def test_what_the_file_says(tmp_path: Path) -> None:
    net = net_of(
        'layer { name: "fc" bottom: "data" top: "fc" type: "InnerProduct" inner_product_param { num_output: 5 } }',
        tmp_path,
    )
    save_onnx(net, tmp_path / "net.onnx")
    model = ModelProto.FromString((tmp_path / "net.onnx").read_bytes())
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    (data,), (fc,) = model.graph.input, model.graph.output
    assert [dim.dim_param or dim.dim_value for dim in data.type.tensor_type.shape.dim] == ["N", 6, 9, 8]
    assert [dim.dim_param or dim.dim_value for dim in fc.type.tensor_type.shape.dim] == ["N", 5]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "fc/weight")
    assert np.array_equal(np.frombuffer(weight.raw_data, "<f4").reshape(weight.dims), net.params["fc"][0].data)


def test_a_name_of_a_size_is_of_one_size(tmp_path: Path) -> None:
    layers = """layer { name: "rows" type: "Reshape" bottom: "data" top: "rows"
          reshape_param { shape { dim: -1 dim: 72 } } }
        layer { name: "p" type: "Softmax" bottom: "data" top: "p" }"""
    save_onnx(net_of(layers, tmp_path), tmp_path / "net.onnx")
    graph = ModelProto.FromString((tmp_path / "net.onnx").read_bytes()).graph
    sizes = {output.name: output.type.tensor_type.shape.dim for output in graph.output}
    assert [dim.dim_param or dim.dim_value for dim in sizes["rows"]] == [0, 72]  # six for each image
    assert [dim.dim_param or dim.dim_value for dim in sizes["p"]] == ["N", 6, 9, 8]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ('type: "MVN"', r"layer 'it' \(MVN\): has no operators of ONNX here; expected one of AbsVal, BNLL,"),
        ('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 }', r"expected pool: MAX or AVE"),
        ('type: "Pooling" top: "mask" pooling_param { kernel_size: 2 }', r"one top, for ONNX"),
        ('type: "Pooling" pooling_param { kernel_size: 1 stride: 7 }', r"windows that lie beyond its bottom"),
        ('type: "LRN" lrn_param { norm_region: WITHIN_CHANNEL }', r"expected ACROSS_CHANNELS"),
        ('type: "InnerProduct" inner_product_param { num_output: 2 axis: 2 }', r"has axis 2; expected 1"),
        ('type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 axis: 2 }', r"channels on axis 2"),
        ('type: "BatchNorm" batch_norm_param { use_global_stats: false }', r"expected use_global_stats"),
    ],
)
def test_what_onnx_does_not_have_is_an_error(layer: str, message: str, tmp_path: Path) -> None:
    net = net_of(f'layer {{ name: "it" bottom: "data" top: "it" {layer} }}', tmp_path)
    (tmp_path / "net.onnx").write_text("old")
    with pytest.raises(CaffeError, match=message):
        save_onnx(net, tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_text() == "old"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = net_of('layer { name: "p" bottom: "data" top: "p" type: "Softmax" }', tmp_path)
    net.save(tmp_path / "net.caffemodel")
    file = tmp_path / "net.onnx"
    assert main([str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"), str(file)]) == 0
    assert capsys.readouterr() == (f"{file}: data N×6×9×8 → p N×6×9×8\n", "")
    assert cv2.dnn.readNetFromONNX(str(file)).getUnconnectedOutLayersNames()
    with pytest.raises(CaffeError, match=r"phase TRAIN; expected caffe\.TEST"):
        save_onnx(caffe.Net(str(tmp_path / "net.prototxt"), caffe.TRAIN), file)
    assert main([str(tmp_path / "none.prototxt"), str(tmp_path / "net.caffemodel"), str(tmp_path / "other.onnx")]) == 1
    assert capsys.readouterr().err.startswith(f"export_onnx: {tmp_path}/none.prototxt: ")
    assert not (tmp_path / "other.onnx").exists()
