"""Passes without gradient, in which layers are folded into one: their values, and that new weights always count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import caffe

HEAD = """
name: "net"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 2 dim: 4 dim: 7 dim: 6 }} }} }}
layer {{
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{
    num_output: 6 kernel_size: 3 stride: 2 pad: 1 group: {group} bias_term: {bias} weight_filler {{ type: "xavier" }}
  }}
}}
"""
NORM = 'layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" batch_norm_param { eps: 0.01 } }\n'
SCALE = 'layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }\n'
RELU = 'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }\n'
OUT = 'layer { name: "relu" type: "ReLU" bottom: "conv" top: "out" }\n'
LEAKY = 'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" relu_param { negative_slope: 0.2 } }\n'
APART = 'layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "norm" batch_norm_param { eps: 0.01 } }\n'
TAIL = """
layer {
  name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } }
}
layer { name: "relu_fc" type: "ReLU" bottom: "fc" top: "fc" }
"""


def make(folder: Path, text: str, group: int = 1, bias: bool = True, phase: int = caffe.TEST) -> caffe.Net:
    """The net with weights that no folding would get right by accident."""
    path = folder / "net.prototxt"
    path.write_text(HEAD.format(group=group, bias=str(bias).lower()) + text)
    net = caffe.Net(str(path), phase, seed=3)
    fill(net, 5)
    return net


def fill(net: caffe.Net, seed: int) -> None:
    random = np.random.default_rng(seed)
    for name, blobs in net.params.items():
        for blob in blobs:
            blob.data[...] = random.normal(0, 0.7, blob.shape)
        if net.layer_dict[name].type == "BatchNorm":
            blobs[1].data[...] = random.uniform(0.5, 4, blobs[1].shape)
            blobs[2].data[...] = 2.5


def expected(net: caffe.Net, x: np.ndarray, group: int) -> np.ndarray:
    """The layers' formulas one by one in double precision, the convolution by torch."""
    p = {name: [torch.from_numpy(blob.data.astype(np.float64)) for blob in blobs] for name, blobs in net.params.items()}
    bias = p["conv"][1] if len(p["conv"]) > 1 else None
    y = F.conv2d(torch.from_numpy(x).double(), p["conv"][0], bias, 2, 1, 1, group)

    def along(values: torch.Tensor) -> torch.Tensor:
        return values.view(1, -1, 1, 1)

    if "norm" in p:
        mean, var, total = p["norm"]
        y = (y - along(mean / total)) / torch.sqrt(along(var / total) + 0.01)
    if "scale" in p:
        y = y * along(p["scale"][0]) + along(p["scale"][1])
    if "relu" in net.layer_dict:
        y = torch.where(y > 0, y, y * net.layer_dict["relu"].param.relu_param.negative_slope)
    if "fc" in p:
        y = (y.flatten(1) @ p["fc"][0].T + p["fc"][1]).clamp(min=0)
    return y.numpy()


def infer(net: caffe.Net, x: np.ndarray) -> np.ndarray:
    return net.infer(data=torch.from_numpy(x))[net.outputs[0]].numpy()


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (2, 4, 7, 6)).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    "text",
    [
        "",
        RELU,
        NORM,
        SCALE,
        NORM + SCALE,
        NORM + SCALE + RELU,
        NORM + OUT,
        SCALE + LEAKY,
        NORM + LEAKY,
        NORM + SCALE + RELU + TAIL,
    ],
)
def test_folded_layers_give_what_their_formulas_say(
    tmp_path: Path, x: np.ndarray, text: str, group: int, bias: bool
) -> None:
    net = make(tmp_path, text, group, bias)
    np.testing.assert_allclose(infer(net, x), expected(net, x, group), rtol=1e-4, atol=1e-5)
    net.blobs["data"].data[...] = x
    np.testing.assert_allclose(next(iter(net.forward().values())), expected(net, x, group), rtol=1e-4, atol=1e-5)


def test_what_another_layer_reads_is_not_folded_away(tmp_path: Path, x: np.ndarray) -> None:
    both = 'layer { name: "sum" type: "Eltwise" bottom: "conv" bottom: "norm" top: "sum" }\n'
    net = make(tmp_path, APART + both)
    blobs = net.params.pop("norm")  # for `expected`, the convolution alone
    plain = expected(net, x, 1)
    mean, var = (blob.data.astype(np.float64).reshape(1, -1, 1, 1) / 2.5 for blob in blobs[:2])
    np.testing.assert_allclose(infer(net, x), plain + (plain - mean) / np.sqrt(var + 0.01), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_scale_in_place_behind_a_batch_norm_that_is_not(tmp_path: Path, x: np.ndarray, phase: int) -> None:
    scale = SCALE.replace('"conv"', '"norm"')
    net = make(tmp_path, APART + scale, phase=phase)
    net.blobs["data"].data[...] = x
    y = net.forward()["norm"]
    if phase == caffe.TEST:
        np.testing.assert_allclose(y, expected(net, x, 1), rtol=1e-4, atol=1e-5)
    else:
        gamma, beta = (blob.data for blob in net.params["scale"])
        conv = net.blobs["conv"].data
        mean, var = (of(conv, axis=(0, 2, 3), keepdims=True) for of in (np.mean, np.var))
        normal = (conv - mean) / np.sqrt(var + 0.01)
        np.testing.assert_allclose(y, normal * gamma[:, None, None] + beta[:, None, None], rtol=1e-4, atol=1e-5)


def write_through_data(net: caffe.Net) -> None:
    net.params["conv"][0].data[...] *= -1


def write_one_value(net: caffe.Net) -> None:
    net.params["scale"][1].data[2] = 7


def write_with_torch(net: caffe.Net) -> None:
    with torch.no_grad():
        net.params["norm"][1].tensor().mul_(3)


def copy_from_a_file(net: caffe.Net) -> None:
    other = caffe.Net(net.source, caffe.TEST)
    fill(other, 6)
    path = net.source + ".caffemodel"
    other.save(path)
    net.copy_from(path)


def share_with_another_net(net: caffe.Net) -> None:
    other = caffe.Net(net.source, caffe.TEST)
    fill(other, 6)
    net.share_with(other)


@pytest.mark.parametrize(
    "change", [write_through_data, write_one_value, write_with_torch, copy_from_a_file, share_with_another_net]
)
def test_changed_weights_count_at_once(tmp_path: Path, x: np.ndarray, change: Callable[[caffe.Net], None]) -> None:
    net = make(tmp_path, NORM + SCALE + RELU + TAIL)
    before = infer(net, x)
    np.testing.assert_array_equal(infer(net, x), before)
    change(net)
    after = infer(net, x)
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after, expected(net, x, 1), rtol=1e-4, atol=1e-5)


def test_an_array_of_the_weights_may_be_written_to_at_any_time(tmp_path: Path, x: np.ndarray) -> None:
    net = make(tmp_path, NORM + SCALE + RELU)
    row = net.params["conv"][0].data[1]  # a view: the array that it is of is nobody's
    flat = torch.from_numpy(net.params["scale"][0].data)
    for value in (0.5, 1.5):
        infer(net, x)
        row[...] = value
        flat.mul_(2)
        np.testing.assert_allclose(infer(net, x), expected(net, x, 1), rtol=1e-4, atol=1e-5)
    infer(net, x)
    row[...] = -1
    del row, flat
    np.testing.assert_allclose(infer(net, x), expected(net, x, 1), rtol=1e-4, atol=1e-5)


def test_a_net_made_in_inference_mode_is_a_net_like_any_other(tmp_path: Path, x: np.ndarray) -> None:
    with torch.inference_mode():
        net = make(tmp_path, NORM + SCALE + RELU)
        infer(net, x)
        write_through_data(net)
        np.testing.assert_allclose(infer(net, x), expected(net, x, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", [NORM + SCALE + RELU, LEAKY])
def test_any_sequence_of_batch_sizes_and_sizes(tmp_path: Path, text: str) -> None:
    """The weights are packed for the first shapes that come; others must give the same."""
    net = make(tmp_path, text)
    random = np.random.default_rng(8)
    for shape in ((3, 4, 7, 6), (1, 4, 7, 6), (17, 4, 7, 6), (1, 4, 21, 9), (64, 4, 3, 3), (1, 4, 7, 6)):
        x = random.normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(infer(net, x), expected(net, x, 1), rtol=1e-4, atol=1e-5)


def test_infer_leaves_out_what_one_layer_reads_and_forward_does_not(tmp_path: Path, x: np.ndarray) -> None:
    """BatchNorm and ReLU with tops of their own: folded where only the outputs are asked for."""
    apart = APART + 'layer { name: "relu" type: "ReLU" bottom: "norm" top: "relu" }\n'
    net = make(tmp_path, apart)
    wanted = expected(net, x, 1)
    np.testing.assert_allclose(infer(net, x), wanted, rtol=1e-4, atol=1e-5)
    assert [last - first for _, first, last in net._inference_plans[True].steps] == [0, 2]
    net.blobs["data"].data[...] = x
    net.compute(gradient=False)
    np.testing.assert_allclose(net.blobs["relu"].data, wanted, rtol=1e-4, atol=1e-5)
    plain = F.conv2d(torch.from_numpy(x), *(torch.from_numpy(blob.data) for blob in net.params["conv"]), 2, 1)
    np.testing.assert_allclose(net.blobs["conv"].data, plain.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.maximum(net.blobs["norm"].data, 0), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", ["", RELU, LEAKY])
@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((1, 1, 28, 28), "kernel_size: 5"),
        ((1, 1, 9, 30), "kernel_h: 3 kernel_w: 5 stride_h: 2 stride_w: 3 pad_h: 2 pad_w: 1"),
        ((1, 3, 17, 12), "kernel_size: 4 stride: 2 pad: 3"),
        ((2, 3, 8, 9), "kernel_size: 3 pad: 1"),
        ((2, 16, 6, 5), "kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1"),
        ((1, 20, 12, 11), "kernel_size: 5 bias_term: false"),
        ((3, 40, 7, 6), "kernel_h: 2 kernel_w: 3 stride_h: 1 stride_w: 2 pad_h: 1 pad_w: 0"),
        ((1, 64, 5, 4), "kernel_size: 1"),
        ((2, 64, 5, 4), "kernel_size: 1 stride: 2 pad: 1"),
        ((1, 40, 9, 9), "kernel_size: 3 dilation: 2"),
        ((1, 32, 60, 50), "kernel_size: 5 pad: 2"),
    ],
)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_convolutions_of_all_sizes(
    tmp_path: Path, shape: tuple[int, ...], settings: str, relu: str, order: torch.memory_format
) -> None:
    """Small ones are computed otherwise than large ones, those of few channels otherwise than those of many."""
    sizes = " ".join(f"dim: {size}" for size in shape)
    path = tmp_path / "net.prototxt"
    path.write_text(
        f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {sizes} }} }} }}\n'
        f'layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" '
        f"convolution_param {{ num_output: 24 {settings} }} }}\n" + relu
    )
    net = caffe.Net(str(path), caffe.TEST)
    fill(net, 2)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    layer = net.layer_dict["conv"]
    weight, bias = ([*(torch.from_numpy(blob.data).double() for blob in layer.blobs), None][i] for i in (0, 1))
    y = F.conv2d(x.double(), weight, bias, layer.stride, layer.pad, layer.dilation)
    if relu:
        y = F.leaky_relu(y, net.layer_dict["relu"].param.relu_param.negative_slope)
    out = net.infer(data=x.contiguous(memory_format=order))["conv"]
    torch.testing.assert_close(out.double(), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("relu", ["", RELU, LEAKY])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 4, 7), 1), ((2, 4, 3, 5, 4), 1), ((2, 6, 4, 5, 7), 2)],  # the last has as many places there as outputs
)
def test_other_axes_than_an_images(tmp_path: Path, shape: tuple[int, ...], axis: int, relu: str) -> None:
    sizes = " ".join(f"dim: {size}" for size in shape)
    path = tmp_path / "net.prototxt"
    path.write_text(
        f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {sizes} }} }} }}\n'
        f'layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" '
        f"convolution_param {{ num_output: 6 kernel_size: 2 axis: {axis} }} }}\n{NORM}{SCALE}{relu}"
    )
    net = caffe.Net(str(path), caffe.TEST)
    fill(net, 6)
    x = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    p = {name: [torch.from_numpy(blob.data).double() for blob in blobs] for name, blobs in net.params.items()}
    images = torch.from_numpy(x).double().flatten(0, axis - 1)
    y = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[images.dim() - 2](images, *p["conv"])
    y = y.unflatten(0, shape[:axis]).movedim(1, -1)  # the channels that are normalised: always axis 1
    mean, var, total = p["norm"]
    y = ((y - mean / total) / torch.sqrt(var / total + 0.01) * p["scale"][0] + p["scale"][1]).movedim(-1, 1)
    if relu:
        y = F.leaky_relu(y, net.layer_dict["relu"].param.relu_param.negative_slope)
    np.testing.assert_allclose(infer(net, x), y.numpy(), rtol=1e-4, atol=1e-5)


BRANCH = """
layer {{
  name: "branch" type: "Convolution" bottom: "data" top: "branch"
  convolution_param {{ num_output: {outputs} kernel_size: {kernel} pad: {pad} weight_filler {{ type: "xavier" }} }}
}}
layer {{ name: "norm" type: "BatchNorm" bottom: "branch" top: "branch" batch_norm_param {{ eps: 0.01 }} }}
layer {{ name: "scale" type: "Scale" bottom: "branch" top: "branch" scale_param {{ bias_term: true }} }}
"""
SUM = 'layer { name: "sum" type: "Eltwise" bottom: "branch" bottom: "data" top: "sum" }\n'
RELU_SUM = 'layer { name: "relu" type: "ReLU" bottom: "sum" top: "sum" }\n'


def residual(folder: Path, text: str, shape: tuple[int, ...], kernel: int, precision: str = "fp32") -> caffe.Net:
    """A convolution with BatchNorm and Scale beside the input itself, and `text` behind them."""
    sizes = " ".join(f"dim: {size}" for size in shape)
    path = folder / "net.prototxt"
    path.write_text(
        f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {sizes} }} }} }}\n'
        + BRANCH.format(outputs=shape[1], kernel=kernel, pad=kernel // 2)
        + text
    )
    net = caffe.Net(str(path), caffe.TEST, seed=3, precision=precision)
    fill(net, 7)
    return net


def branch(net: caffe.Net, x: torch.Tensor) -> torch.Tensor:
    """The branch's formula in double precision."""
    p = {name: [torch.from_numpy(blob.data.copy()).double() for blob in blobs] for name, blobs in net.params.items()}
    y = F.conv2d(x.double(), *p["branch"], padding=p["branch"][0].shape[2] // 2)
    mean, var, (gamma, beta) = p["norm"][0] / 2.5, p["norm"][1] / 2.5, p["scale"]
    along = [values.view(1, -1, 1, 1) for values in (gamma / torch.sqrt(var + 0.01), mean, beta)]
    return (y - along[1]) * along[0] + along[2]


@pytest.mark.parametrize(
    "shape", [(1, 3, 5, 4), (2, 24, 30, 26), (1, 16, 40, 40)]
)  # a product of matrices, and oneDNN's
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("text", "wanted", "folded"),
    [
        (SUM, lambda y, x: y + x, True),
        (SUM + RELU_SUM, lambda y, x: (y + x).clamp(min=0), True),
        (SUM.replace('bottom: "branch" bottom: "data"', 'bottom: "data" bottom: "branch"'), lambda y, x: y + x, True),
        (
            SUM.replace(" }", " eltwise_param { coeff: 0.2 coeff: 1 } }") + RELU_SUM,
            lambda y, x: (0.2 * y + x).relu(),
            True,
        ),
        (SUM.replace('top: "sum"', 'top: "branch"'), lambda y, x: y + x, True),
        (SUM.replace(" }", " eltwise_param { coeff: 1 coeff: -2 } }"), lambda y, x: y - 2 * x, False),
        (SUM.replace(" }", " eltwise_param { operation: MAX } }"), torch.maximum, False),
        (SUM.replace(" }", " eltwise_param { operation: PROD } }"), torch.mul, False),
        (SUM.replace(" }", ' bottom: "data" }'), lambda y, x: y + 2 * x, False),
        (SUM.replace('"data"', '"branch"'), lambda y, x: 2 * y, False),
        (
            SUM + RELU_SUM.replace(" }", " relu_param { negative_slope: 0.3 } }"),
            lambda y, x: F.leaky_relu(y + x, 0.3),
            True,
        ),
        (RELU_SUM.replace("sum", "branch") + SUM, lambda y, x: y.relu() + x, False),
    ],
)
def test_the_sum_of_a_residual_block(
    tmp_path: Path,
    shape: tuple[int, ...],
    kernel: int,
    text: str,
    wanted: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    folded: bool,
) -> None:
    net = residual(tmp_path, text, shape, kernel)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    kept = x.clone()
    for order in (torch.contiguous_format, torch.channels_last):
        y = net.infer(data=x.contiguous(memory_format=order))[net.outputs[0]]
        torch.testing.assert_close(y.double(), wanted(branch(net, x), x.double()), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)  # the input is summed, not overwritten
    steps = net._inference_plans[True].steps
    assert ("sum" in [net.layers[last].param.name for step, first, last in steps if first == last]) != folded
    net.blobs["data"].data[...] = x.numpy()
    np.testing.assert_allclose(net.forward()[net.outputs[0]], y.numpy(), rtol=1e-4, atol=1e-4)


def test_a_branch_that_is_read_elsewhere_is_not_lost_in_the_sum(tmp_path: Path) -> None:
    shape = (2, 8, 12, 12)
    late = SUM + 'layer { name: "more" type: "Eltwise" bottom: "sum" bottom: "branch" top: "more" }\n'
    net = residual(tmp_path, late, shape, 3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    y = branch(net, x)
    torch.testing.assert_close(net.infer(data=x)["more"].double(), 2 * y + x, rtol=1e-4, atol=1e-4)


def test_the_sum_in_bfloat16(tmp_path: Path) -> None:
    """Beside an input in float32, then beside a sum in bfloat16: within the rounding of 8 bits."""
    shape = (2, 16, 20, 20)
    again = BRANCH.format(outputs=16, kernel=3, pad=1).replace('"data"', '"sum"').replace('"branch"', '"second"')
    again = again.replace('name: "norm"', 'name: "norm2"').replace('name: "scale"', 'name: "scale2"')
    text = SUM + again + SUM.replace('"sum"', '"end"').replace('"branch"', '"second"').replace('"data"', '"sum"')
    exact, rounded = (residual(tmp_path, text, shape, 3, precision) for precision in ("fp32", "bf16"))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    y, z = exact.infer(data=x)["end"], rounded.infer(data=x)["end"]
    assert (y - z).abs().max() < 0.03 * y.abs().max()
    assert not torch.equal(y, z)


def test_terms_that_differ_in_their_number_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    shapes = "input_param { shape { dim: 2 dim: 24 dim: 30 dim: 26 } }"
    path.write_text(
        f'layer {{ name: "in" type: "Input" top: "data" top: "other" {shapes} }}\n'
        + BRANCH.format(outputs=24, kernel=3, pad=1)
        + SUM.replace('"data"', '"other"')
    )
    net = caffe.Net(str(path), caffe.TEST)
    with pytest.raises(caffe.CaffeError, match="other"):
        net.infer(data=torch.randn(2, 24, 30, 26), other=torch.randn(0, 24, 30, 26))
    assert [last - first for _, first, last in net._inference_plans[True].steps] == [0, 3]
