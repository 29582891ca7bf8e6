"""Layers with settings that the reference values leave out, against formulas written out in numpy.

Gradients are held against the reference's own where it has a short one, else against central differences along
random directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_checks import backward, check_gradient, close
from small_nets import input_layer, net_of, normal, one_layer, run

import caffe

# Inner product


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("axis", "first"), [(0, 0), (1, 1), (2, 2), (-1, 3)])
def test_inner_product(transpose: bool, axis: int, first: int) -> None:
    shape = (2, 3, 4, 5)
    net = one_layer(
        f'type: "InnerProduct" inner_product_param {{ num_output: 6 axis: {axis} transpose: {str(transpose).lower()} '
        'weight_filler { type: "xavier" } bias_filler { type: "gaussian" } }',
        shape,
    )
    x, (weight, bias) = normal(*shape), (blob.data for blob in net.params["layer"])
    inputs = math.prod(shape[first:])
    assert weight.shape == ((inputs, 6) if transpose else (6, inputs))
    flat = x.reshape(*shape[:first], inputs)
    close(run(net, x)["y"], flat @ (weight if transpose else weight.T) + bias)
    check_gradient(net, x)


# Normalisation


@pytest.mark.parametrize(("size", "height", "width"), [(3, 5, 6), (5, 4, 7), (5, 2, 2)])
def test_lrn_within_channels(size: int, height: int, width: int) -> None:
    net = one_layer(
        f'type: "LRN" lrn_param {{ local_size: {size} alpha: 0.7 beta: 0.6 norm_region: WITHIN_CHANNEL }}',
        (2, 3, height, width),
    )
    x, half = normal(2, 3, height, width), size // 2
    mean = np.zeros(x.shape)
    for i, j in np.ndindex(height, width):
        window = x[:, :, max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1]
        mean[:, :, i, j] = (window.astype(np.float64) ** 2).sum((2, 3)) / size**2
    close(run(net, x)["y"], x * (1 + 0.7 * mean) ** -0.6)
    check_gradient(net, x)


def test_lrn_across_channels() -> None:
    net = one_layer('type: "LRN" lrn_param { local_size: 5 alpha: 0.7 beta: 0.6 k: 2 }', (2, 7, 3, 2))
    x = normal(2, 7, 3, 2)
    total = np.stack([(x[:, max(c - 2, 0) : c + 3] ** 2).sum(1) for c in range(7)], 1)
    close(run(net, x)["y"], x * (2 + 0.7 / 5 * total) ** -0.6)
    check_gradient(net, x)


@pytest.mark.parametrize(
    ("axis", "num_axes", "operand"),
    [
        (0, 1, (2, 1, 1, 1)),
        (1, 1, (3, 1, 1)),
        (1, 2, (3, 4, 1)),
        (2, -1, (4, 5)),
        (-1, 1, (5,)),
        (0, -1, (2, 3, 4, 5)),
        (1, 0, ()),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_scale(axis: int, num_axes: int, operand: tuple[int, ...], bias: bool) -> None:
    net = one_layer(
        f'type: "Scale" scale_param {{ axis: {axis} num_axes: {num_axes} bias_term: {str(bias).lower()} '
        'filler { type: "gaussian" } bias_filler { type: "gaussian" } }',
        (2, 3, 4, 5),
    )
    x, parameters = normal(2, 3, 4, 5), [blob.data for blob in net.params["layer"]]
    assert len(parameters) == 1 + bias
    assert all(p.shape == tuple(n for n in operand if n > 1) for p in parameters)
    beta = parameters[1].reshape(operand) if bias else 0
    close(run(net, x)["y"], x * parameters[0].reshape(operand) + beta)
    check_gradient(net, x)


def test_scale_starts_as_the_identity() -> None:
    x = normal(2, 3, 4)
    net = one_layer('type: "Scale" scale_param { bias_term: true }', x.shape)
    assert np.array_equal(run(net, x)["y"], x)


@pytest.mark.parametrize(
    ("axis", "shape", "operand"), [(0, (2, 3), (2, 3, 1, 1)), (1, (3,), (3, 1, 1)), (2, (4, 5), (4, 5))]
)
@pytest.mark.parametrize("bias", [False, True])
def test_scale_by_a_second_bottom(axis: int, shape: tuple[int, ...], operand: tuple[int, ...], bias: bool) -> None:
    net = one_layer(
        f'type: "Scale" scale_param {{ axis: {axis} bias_term: {str(bias).lower()} '
        'bias_filler { type: "gaussian" } }',
        (2, 3, 4, 5),
        shape,
    )
    x, gamma = normal(2, 3, 4, 5), normal(*shape, seed=1)
    beta = net.params["layer"][0].data.reshape(operand) if bias else 0
    close(run(net, x, gamma)["y"], x * gamma.reshape(operand) + beta)
    check_gradient(net, x, gamma)


@pytest.mark.parametrize("shape", [(6, 3, 2, 4), (8, 3)])
def test_batch_norm_over_several_batches(shape: tuple[int, ...]) -> None:
    """The running sums after four batches, and what a TEST net makes of them."""
    net = one_layer(
        'type: "BatchNorm" batch_norm_param { moving_average_fraction: 0.9 eps: 0.01 }', shape, phase=caffe.TRAIN
    )
    axes, view = tuple(i for i in range(len(shape)) if i != 1), (1, 3, *[1] * (len(shape) - 2))
    sums, total, count = np.zeros((2, 3)), 0.0, math.prod(shape) // 3
    for batch in range(4):
        x = (2 + 3 * normal(*shape, seed=batch)).astype(np.float32)
        mean, var = x.mean(axes, dtype=np.float64), x.var(axes, dtype=np.float64)
        close(run(net, x)["y"], (x - mean.reshape(view)) / np.sqrt(var.reshape(view) + 0.01))
        sums, total = 0.9 * sums + [mean, var * count / (count - 1)], 0.9 * total + 1
    for blob, expected in zip(net.params["layer"], (*sums, np.array([total])), strict=True):
        close(blob.data, expected)
    assert all(blob.lr_mult == 0 for blob in net.params["layer"])

    test = one_layer('type: "BatchNorm" batch_norm_param { eps: 0.01 }', shape)
    for ours, theirs in zip(test.params["layer"], net.params["layer"], strict=True):
        ours.data[...] = theirs.data
    before = [blob.data.copy() for blob in test.params["layer"]]
    mean, var = (s.reshape(view) / total for s in sums)
    close(run(test, x)["y"], (x - mean) / np.sqrt(var + 0.01))
    assert all(np.array_equal(b, blob.data) for b, blob in zip(before, test.params["layer"], strict=True))


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_batch_norm_before_a_scale_of_two_bottoms(phase: int) -> None:
    net = net_of(
        input_layer("x", 4, 3)
        + input_layer("s", 3)
        + 'layer { name: "norm" type: "BatchNorm" bottom: "x" top: "x" batch_norm_param { use_global_stats: true } } '
        'layer { name: "scale" type: "Scale" bottom: "x" bottom: "s" top: "x" }',
        phase=phase,
    )
    mean, var, total = net.params["norm"]
    mean.data[...], var.data[...], total.data[...] = [1, 2, 3], [4, 4, 9], 1
    x, s = normal(4, 3), normal(3, seed=1)
    expected = (x - [1, 2, 3]) / np.sqrt(np.array([4, 4, 9]) + 1e-5) * s
    close(net.forward(x=x, s=s)["x"], expected)
    close(net.infer(x=torch.from_numpy(x), s=torch.from_numpy(s))["x"].numpy(), expected)


def test_batch_norm_of_one_axis_is_of_one_channel() -> None:
    net = one_layer('type: "BatchNorm" batch_norm_param { eps: 0.01 }', (8,), phase=caffe.TRAIN)
    x = normal(8)
    close(run(net, x)["y"], (x - x.mean()) / np.sqrt(x.var() + 0.01))
    sums = [blob.data.tolist() for blob in net.params["layer"]]
    assert sums == [pytest.approx([value], rel=1e-5) for value in (x.mean(), x.var(ddof=1), 1)]


def test_batch_norm_gradient() -> None:
    x = normal(5, 2, 3, 2)
    check_gradient(one_layer('type: "BatchNorm"', x.shape, phase=caffe.TRAIN), x)


def test_batch_norm_with_global_statistics_while_training() -> None:
    net = one_layer(
        'type: "BatchNorm" batch_norm_param { use_global_stats: true eps: 0 }', (2, 1, 3), phase=caffe.TRAIN
    )
    for blob, value in zip(net.params["layer"], (8.0, 18.0, 2.0), strict=True):
        blob.data[...] = value
    assert run(net, np.full((2, 1, 3), 10.0))["y"].ravel().tolist() == [2.0] * 6  # (10 − 8/2) / sqrt(18/2)
    assert [float(blob.data[0]) for blob in net.params["layer"]] == [8.0, 18.0, 2.0]


# Layers that combine and rearrange


def test_eltwise_sum_with_coefficients() -> None:
    inputs = [normal(2, 3, 4, seed=i) for i in range(3)]
    net = one_layer(
        'type: "Eltwise" eltwise_param { operation: SUM coeff: 0.5 coeff: -2 coeff: 1 }', *[x.shape for x in inputs]
    )
    close(run(net, *inputs)["y"], 0.5 * inputs[0] - 2 * inputs[1] + inputs[2])
    check_gradient(net, *inputs)


@pytest.mark.parametrize(("operation", "reference"), [("PROD", np.multiply.reduce), ("MAX", np.maximum.reduce)])
def test_eltwise_of_three(operation: str, reference: np.ufunc) -> None:
    inputs = [normal(2, 3, 4, seed=i) for i in range(3)]
    net = one_layer(f'type: "Eltwise" eltwise_param {{ operation: {operation} }}', *[x.shape for x in inputs])
    close(run(net, *inputs)["y"], reference(inputs))
    check_gradient(net, *inputs, step=1e-4, tolerance=2e-2)


@pytest.mark.parametrize("count", [2, 3])
def test_of_equal_maxima_the_second_bottoms_takes_the_gradient(count: int) -> None:
    """As in Caffe, where the first must be more than the second, and a third more than both."""
    net = one_layer('type: "Eltwise" eltwise_param { operation: MAX }', *[(1, 2)] * count)
    run(net, *[np.array([[1, 2]])] * count)
    backward(net, y=np.array([[3, 4]]))
    assert [net.blobs[f"x{i}"].diff.ravel().tolist() for i in range(count)] == [[0, 0], [3, 4], [0, 0]][:count]


@pytest.mark.parametrize(
    ("settings", "axis", "cuts"),
    [
        ("slice_point: 1 slice_point: 4", 1, [1, 4]),
        ("axis: 0", 0, [1, 2]),
        ("axis: -1 slice_point: 2 slice_point: 3", 2, [2, 3]),
        ("slice_dim: 1", 1, [2, 4]),
    ],
)
def test_slice(settings: str, axis: int, cuts: list[int]) -> None:
    x = normal(3, 6, 4)
    net = one_layer(f'type: "Slice" slice_param {{ {settings} }}', x.shape, tops=("a", "b", "c"))
    out = run(net, x)
    for name, part in zip("abc", np.split(x, cuts, axis), strict=True):
        assert np.array_equal(out[name], part)
    diffs = {name: normal(*value.shape, seed=i) for i, (name, value) in enumerate(out.items())}
    backward(net, **diffs)
    assert np.array_equal(net.blobs["x0"].diff, np.concatenate([diffs[name] for name in "abc"], axis))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("axis: 2", r"axis 2 of bottom shape \(3, 6, 4\) does not divide into 3 tops"),
        ("slice_point: 1", "has 1 slice_point for 3 tops; expected 2"),
        ("slice_point: 2 slice_point: 2", r"slice_point \[2, 2\] must increase and stay below 6"),
        ("slice_point: 0 slice_point: 2", "must increase"),
        ("slice_point: 2 slice_point: 6", "must increase"),
        ("slice_dim: 1 axis: 1", "slice_dim and axis are both given"),
    ],
)
def test_slices_that_do_not_fit(settings: str, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=rf"layer 'layer' \(Slice\): .*{message}"):
        one_layer(f'type: "Slice" slice_param {{ {settings} }}', (3, 6, 4), tops=("a", "b", "c"))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    shapes = [[2, 3, 4] for _ in range(3)]
    for i, shape in enumerate(shapes):
        shape[axis] = i + 1
    inputs = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    net = one_layer(f'type: "Concat" concat_param {{ axis: {axis} }}', *shapes)
    assert np.array_equal(run(net, *inputs)["y"], np.concatenate(inputs, axis))
    check_gradient(net, *inputs)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ("shape { dim: 0 dim: -1 }", (2, 60)),
        ("shape { dim: -1 dim: 5 }", (24, 5)),
        ("shape { dim: 4 dim: 30 }", (4, 30)),
        ("shape { dim: 12 } axis: 1 num_axes: 2", (2, 12, 5)),
        ("shape { dim: 2 dim: 2 } axis: 2 num_axes: 1", (2, 3, 2, 2, 5)),
        ("shape { dim: 1 } axis: 0 num_axes: 0", (1, 2, 3, 4, 5)),
        ("shape { dim: 1 dim: 1 } axis: -1 num_axes: 0", (2, 3, 4, 5, 1, 1)),
        ("shape { dim: 0 dim: 10 dim: -1 } axis: 1", (2, 3, 10, 2)),
        ("shape { dim: 20 } axis: -3", (2, 3, 20)),
    ],
)
def test_reshape(settings: str, shape: tuple[int, ...]) -> None:
    x = normal(2, 3, 4, 5)
    net = one_layer(f'type: "Reshape" reshape_param {{ {settings} }}', x.shape)
    assert net.blobs["y"].shape == shape
    assert np.array_equal(run(net, x)["y"], x.reshape(shape))
    backward(net, y=normal(*shape, seed=1))
    assert np.array_equal(net.blobs["x0"].diff, normal(*shape, seed=1).reshape(x.shape))


@pytest.mark.parametrize(
    "settings",
    [
        "shape { dim: 7 dim: -1 }",
        "shape { dim: -1 dim: -1 }",
        "shape { dim: -2 }",
        "shape { dim: -4 dim: -6 }",
        "shape { dim: 9 }",
        "shape { dim: 6 dim: 4 dim: 1 dim: 0 }",
    ],
)
def test_reshape_that_does_not_fit(settings: str) -> None:
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer' \(Reshape\)"):
        one_layer(f'type: "Reshape" reshape_param {{ {settings} }}', (2, 3, 4))


@pytest.mark.parametrize("axis", [4, -5])
def test_reshape_from_no_axis_of_the_bottoms(axis: int) -> None:
    with pytest.raises(caffe.CaffeError, match=rf"axis {axis} is out of range for bottom shape \(2, 3, 4\)"):
        one_layer(f'type: "Reshape" reshape_param {{ shape {{ dim: 1 }} axis: {axis} }}', (2, 3, 4))


def test_reshape_of_no_values_infers_nothing() -> None:
    with pytest.raises(caffe.CaffeError, match=r"the dim of -1 cannot be inferred: 0 values do not divide by 0"):
        one_layer('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 } }', (0, 3))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax(axis: int) -> None:
    x = 4 * normal(3, 4, 5)
    net = one_layer(f'type: "Softmax" softmax_param {{ axis: {axis} }}', x.shape)
    powers = np.exp(x.astype(np.float64))
    close(run(net, x)["y"], powers / powers.sum(axis, keepdims=True))
    check_gradient(net, x)


def test_softmax_of_large_scores() -> None:
    net = one_layer('type: "Softmax"', (1, 3))
    assert run(net, np.array([[1e4, 1e4, -1e4]]))["y"].tolist() == [[0.5, 0.5, 0.0]]


# Activations


@pytest.mark.parametrize("shared", [False, True])
def test_prelu(shared: bool) -> None:
    net = one_layer(f'type: "PReLU" prelu_param {{ channel_shared: {str(shared).lower()} }}', (4, 3, 2, 5))
    (slope,) = net.params["layer"]
    assert slope.shape == (() if shared else (3,))
    assert (slope.data == 0.25).all()
    slope.data[...] = -0.5 if shared else [-0.5, 0.1, 2]
    x = normal(4, 3, 2, 5)
    x += np.sign(x) * 0.05  # away from the corner at 0, where differences are no gradient
    a = slope.data.reshape(1, -1, 1, 1)
    close(run(net, x)["y"], np.where(x > 0, x, a * x))
    check_gradient(net, x)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_prelu_of_a_large_image(order: torch.memory_format) -> None:
    """Without a gradient, values of few channels are taken by rows of the image."""
    net = one_layer('type: "PReLU"', (2, 3, 80, 90), backward=False)
    net.params["layer"][0].data[...] = [-0.5, 0.1, 2]
    x = normal(2, 3, 80, 90)
    y = net.infer(x0=torch.from_numpy(x).contiguous(memory_format=order))["y"]
    close(y, np.where(x > 0, x, np.reshape([-0.5, 0.1, 2], (3, 1, 1)) * x))
    assert y.is_contiguous(memory_format=order)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.5, 0.9])
def test_dropout(ratio: float) -> None:
    layer = f'type: "Dropout" dropout_param {{ dropout_ratio: {ratio} }}'
    net = one_layer(layer, (50, 20, 11, 9), phase=caffe.TRAIN)
    x = normal(50, 20, 11, 9)
    x[x == 0] = 1
    out, again = run(net, x)["y"], run(net, x)["y"]
    kept = again != 0
    assert not np.array_equal(kept, out != 0), "the same values are dropped in each pass"
    np.testing.assert_allclose(again[kept], x[kept] / (1 - ratio), rtol=2e-4)
    # a count of n independent draws: within five standard deviations, in all, by channel and by neighbours
    for sample in (kept, kept[:, 3], kept[:, :, :, ::2]):
        deviation = math.sqrt(sample.size * ratio * (1 - ratio))
        assert abs(sample.sum() - sample.size * (1 - ratio)) < 5 * deviation
    pairs = (kept[..., :-1] == kept[..., 1:]).mean()
    agree = ratio**2 + (1 - ratio) ** 2
    assert abs(pairs - agree) < 5 * math.sqrt(agree * (1 - agree) / (kept.size / 2))
    backward(net, y=np.ones(x.shape))
    np.testing.assert_allclose(net.blobs["x0"].diff, kept / (1 - ratio), rtol=2e-4)
    assert np.array_equal(run(one_layer(layer, x.shape), x)["y"], x), "TEST changes the values"


def test_dropout_of_nothing() -> None:
    x = normal(4, 5)
    net = one_layer('type: "Dropout" dropout_param { dropout_ratio: 0 }', x.shape, phase=caffe.TRAIN)
    assert np.array_equal(run(net, x)["y"], x)


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5])
def test_dropout_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(caffe.CaffeError, match=r"'layer'.*dropout_ratio"):
        one_layer(f'type: "Dropout" dropout_param {{ dropout_ratio: {ratio} }}', (2, 3))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def bent(above: np.ndarray, below: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, above, below)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("layer", "value", "slope"),
    [
        ('"ReLU" relu_param { negative_slope: 0.3 }', lambda x: bent(x, 0.3 * x, x), lambda x: bent(1, 0.3, x)),
        ('"ReLU" relu_param { negative_slope: -0.5 engine: CUDNN }',
         lambda x: bent(x, -0.5 * x, x), lambda x: bent(1, -0.5, x)),
        ('"ELU" elu_param { alpha: 0.7 }',
         lambda x: bent(x, 0.7 * np.expm1(x), x), lambda x: bent(1, 0.7 * np.exp(x), x)),
        ('"Clip" clip_param { min: -0.5 max: 0.8 }', lambda x: np.clip(x, -0.5, 0.8), lambda x: abs(x - 0.15) <= 0.65),
        ('"Exp"', np.exp, np.exp),
        ('"Exp" exp_param { base: 2 scale: -1.5 shift: 0.5 }',
         lambda x: 2 ** (0.5 - 1.5 * x), lambda x: -1.5 * np.log(2) * 2 ** (0.5 - 1.5 * x)),
        ('"Exp" exp_param { base: 1 }', np.ones_like, np.zeros_like),
        ('"Log" log_param { scale: 0.5 shift: 4 }', lambda x: np.log(4 + 0.5 * x), lambda x: 0.5 / (4 + 0.5 * x)),
        ('"Log" log_param { base: 10 shift: 5 }', lambda x: np.log10(5 + x), lambda x: 1 / (5 + x) / np.log(10)),
        ('"Power"', np.array, np.ones_like),
        ('"Power" power_param { scale: -2 shift: 1 }', lambda x: 1 - 2 * x, lambda x: np.full_like(x, -2)),
        ('"Power" power_param { power: 2 shift: 1 }', lambda x: (1 + x) ** 2, lambda x: 2 * (1 + x)),
        ('"Power" power_param { power: 3 scale: 0.5 }', lambda x: (x / 2) ** 3, lambda x: 3 / 2 * (x / 2) ** 2),
        ('"Power" power_param { power: -0.5 scale: 0.5 shift: 5 }',
         lambda x: (5 + x / 2) ** -0.5, lambda x: -0.25 * (5 + x / 2) ** -1.5),
        ('"Power" power_param { power: 0 }', np.ones_like, np.zeros_like),
        ('"Power" power_param { power: 0.5 scale: 0 shift: 4 }', lambda x: np.full_like(x, 2), np.zeros_like),
        ('"Power" power_param { power: 0.5 scale: 0 }', np.zeros_like, np.zeros_like),
        ('"Swish" swish_param { beta: 1.7 }', lambda x: x * sigmoid(1.7 * x),
         lambda x: sigmoid(1.7 * x) * (1 + 1.7 * x * sigmoid(-1.7 * x))),
        ('"Sigmoid" sigmoid_param { engine: CAFFE }', sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
        ('"TanH"', np.tanh, lambda x: 1 - np.tanh(x) ** 2),
        ('"AbsVal"', np.abs, np.sign),
        ('"BNLL"', lambda x: np.logaddexp(x, 0), sigmoid),
        ('"Threshold" threshold_param { threshold: 0.4 }', lambda x: x > 0.4, np.zeros_like),
    ],
)  # fmt: skip
def test_activation(layer: str, value: Callable, slope: Callable, in_place: bool) -> None:
    x = normal(3, 4, 5)
    x.reshape(-1)[:4] = [0, -0.5, 3, -3]
    # what stands in front keeps the input apart, so that a layer in place has one to change
    net = net_of(
        input_layer("x0", *x.shape)
        + 'layer { name: "front" type: "Power" bottom: "x0" top: "x" } '
        + f'layer {{ name: "layer" bottom: "x" top: "{"x" if in_place else "y"}" type: {layer} }}'
    )
    (out,) = run(net, x).values()
    double = x.astype(np.float64)
    close(out, np.float64(value(double)))
    diff = normal(*x.shape, seed=1)
    net.blobs[net.outputs[0]].diff[...] = diff
    net.backward()
    close(net.blobs["x0"].diff, slope(double) * diff)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ('"Log" log_param { base: 1 }', "base is 1"),
        ('"Log" log_param { base: -2 }', "base is -2"),
        ('"Exp" exp_param { base: 0 }', "base is 0"),
    ],
)
def test_bases_without_a_logarithm(layer: str, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=rf"layer 'layer'.*{message}"):
        one_layer(f"type: {layer}", (2, 3))


# Layers with values of their own


@pytest.mark.parametrize(
    ("axis", "num_axes", "operand"),
    [(0, 1, (2, 1, 1, 1)), (1, 1, (3, 1, 1)), (1, 2, (3, 4, 1)), (-2, -1, (4, 5)), (0, -1, (2, 3, 4, 5)), (1, 0, ())],
)
def test_bias(axis: int, num_axes: int, operand: tuple[int, ...]) -> None:
    layer = f'type: "Bias" bias_param {{ axis: {axis} num_axes: {num_axes} filler {{ type: "gaussian" }} }}'
    net, x = one_layer(layer, (2, 3, 4, 5)), normal(2, 3, 4, 5)
    (bias,) = net.params["layer"]
    assert bias.shape == tuple(n for n in operand if n > 1)
    close(run(net, x)["y"], x + bias.data.reshape(operand))
    check_gradient(net, x)


def test_bias_starts_as_the_identity() -> None:
    x = normal(2, 3, 4)
    assert np.array_equal(run(one_layer('type: "Bias"', x.shape), x)["y"], x)


@pytest.mark.parametrize(("axis", "shape"), [(0, (2, 3)), (1, (3,)), (2, (4, 5)), (3, ()), (-1, (5,))])
def test_bias_by_a_second_bottom(axis: int, shape: tuple[int, ...]) -> None:
    net = one_layer(f'type: "Bias" bias_param {{ axis: {axis} }}', (2, 3, 4, 5), shape)
    x, bias = normal(2, 3, 4, 5), normal(*shape, seed=1)
    lead = axis % 4 if shape else 0
    close(run(net, x, bias)["y"], x + bias.reshape((1,) * lead + shape + (1,) * (4 - lead - len(shape))))
    check_gradient(net, x, bias)
    assert not net.params


def test_parameter() -> None:
    net = net_of('layer { name: "layer" type: "Parameter" top: "y" parameter_param { shape { dim: 2 dim: 3 } } }')
    assert not net.forward()["y"].any()
    net.params["layer"][0].data[...] = normal(2, 3)
    assert np.array_equal(net.forward()["y"], normal(2, 3))
    backward(net, y=normal(2, 3, seed=1))
    assert np.array_equal(net.params["layer"][0].diff, normal(2, 3, seed=1))


# Mean and variance of images


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("eps", [1e-9, 0.3])
def test_mvn(across: bool, variance: bool, eps: float) -> None:
    net = one_layer(
        f'type: "MVN" mvn_param {{ across_channels: {str(across).lower()} '
        f"normalize_variance: {str(variance).lower()} eps: {eps} }}",
        (2, 3, 4, 5),
    )
    x, axes = 2 + 3 * normal(2, 3, 4, 5), (1, 2, 3) if across else (2, 3)
    centred = x - x.mean(axes, keepdims=True, dtype=np.float64)
    deviation = centred.std(axes, keepdims=True) + eps if variance else 1
    y = centred / deviation
    close(run(net, x)["y"], y)
    diff = normal(2, 3, 4, 5, seed=1)
    backward(net, y=diff)
    slope = (diff * y).mean(axes, keepdims=True) if variance else 0
    close(net.blobs["x0"].diff, (diff - diff.mean(axes, keepdims=True) - y * slope) / deviation)
    if eps < 0.1:  # with a large one Caffe's gradient is not quite the slope
        check_gradient(net, x)


def test_mvn_of_fewer_axes_and_of_a_constant() -> None:
    net, x = one_layer('type: "MVN" mvn_param { across_channels: true }', (4, 6)), normal(4, 6)
    assert net.blobs["y"].shape == (4, 6, 1, 1)
    close(run(net, x)["y"][..., 0, 0], (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True))
    assert not run(net, np.ones((4, 6)))["y"].any()
    backward(net, y=normal(4, 6, 1, 1))
    assert np.isfinite(net.blobs["x0"].diff).all()


def test_batch_norm_of_one_value_a_channel() -> None:
    """Caffe's variance is 0 there and not corrected for its single value."""
    net = one_layer('type: "BatchNorm" batch_norm_param { moving_average_fraction: 0.5 }', (1, 3), phase=caffe.TRAIN)
    for _ in range(2):
        assert run(net, np.array([[1, 2, 3]]))["y"].tolist() == [[0, 0, 0]]
    assert [blob.data.tolist() for blob in net.params["layer"]] == [[1.5, 3, 4.5], [0, 0, 0], [1.5]]
    backward(net, y=normal(1, 3))
    assert not net.blobs["x0"].diff.any()


def test_batch_norm_with_three_old_learning_rates() -> None:
    """Files from before 2017 give all three parameters a rate, which Caffe sets to 0; others must be 0."""
    net = one_layer(f'type: "BatchNorm" {3 * "param { lr_mult: 1 } "}', (4, 3), phase=caffe.TRAIN)
    assert [blob.lr_mult for blob in net.params["layer"]] == [0, 0, 0]
    one_layer('type: "BatchNorm" param { lr_mult: 0 }', (4, 3), phase=caffe.TRAIN)
    for params in ("param { lr_mult: 1 }", "param { decay_mult: 0 }"):
        with pytest.raises(caffe.CaffeError, match=r"layer 'layer'.*lr_mult is 1.0; expected 0"):
            one_layer(f'type: "BatchNorm" {params}', (4, 3))


# Sums, tiles and parts


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize(
    ("operation", "reference"),
    [
        ("SUM", lambda rows: rows.sum(-1)),
        ("ASUM", lambda rows: np.abs(rows).sum(-1)),
        ("SUMSQ", lambda rows: (rows**2).sum(-1)),
        ("MEAN", lambda rows: rows.mean(-1)),
    ],
)
def test_reduction(axis: int, operation: str, reference: Callable) -> None:
    net = one_layer(
        f'type: "Reduction" reduction_param {{ operation: {operation} axis: {axis} coeff: -2.5 }}', (2, 3, 4)
    )
    x = normal(2, 3, 4)
    rows = x.reshape(*x.shape[: axis % 3], -1).astype(np.float64)
    close(run(net, x)["y"], np.array(-2.5 * reference(rows)))
    check_gradient(net, x, step=1e-3)


def test_the_mean_of_one_value_is_itself() -> None:
    net = one_layer('type: "Reduction" reduction_param { operation: MEAN axis: 1 }', (3, 1))
    close(run(net, normal(3, 1))["y"], normal(3, 1)[:, 0])


def test_reduction_as_a_loss_and_at_0() -> None:
    net = one_layer('type: "Reduction" reduction_param { operation: ASUM } loss_weight: 3', (2, 2))
    run(net, np.array([[0, -2], [5, 0]]))
    net.backward()
    assert net.blobs["x0"].diff.tolist() == [[0, -3], [3, 0]]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_tile(axis: int) -> None:
    net, x = one_layer(f'type: "Tile" tile_param {{ axis: {axis} tiles: 3 }}', (2, 3, 4)), normal(2, 3, 4)
    assert np.array_equal(run(net, x)["y"], np.concatenate([x] * 3, axis))
    diff = normal(*net.blobs["y"].shape, seed=1)
    backward(net, y=diff)
    close(net.blobs["x0"].diff, sum(np.split(diff, 3, axis)))


@pytest.mark.parametrize(
    ("settings", "like", "part"),
    [
        ("", (9, 9, 3, 2), np.s_[:, :, :3, :2]),
        ("offset: 1", (9, 9, 3, 2), np.s_[:, :, 1:4, 1:3]),
        ("offset: 1 offset: 3", (9, 9, 3, 2), np.s_[:, :, 1:4, 3:5]),
        ("axis: 1 offset: 1 offset: 0 offset: 2", (9, 2, 4, 3), np.s_[:, 1:3, :, 2:5]),
        ("axis: -1 offset: 2", (9, 9, 9, 1), np.s_[:, :, :, 2:3]),
        ("axis: 0", (1, 3, 2, 2), np.s_[:1, :3, :2, :2]),
    ],
)
def test_crop(settings: str, like: tuple[int, ...], part: tuple[slice, ...]) -> None:
    net, x = one_layer(f'type: "Crop" crop_param {{ {settings} }}', (2, 3, 4, 5), like), normal(2, 3, 4, 5)
    assert np.array_equal(run(net, x, np.zeros(like))["y"], x[part])
    diff = normal(*net.blobs["y"].shape, seed=1)
    backward(net, y=diff)
    expected = np.zeros(x.shape)
    expected[part] = diff
    assert np.array_equal(net.blobs["x0"].diff, expected)
    assert not net.blobs["x1"].diff.any()


def test_silence() -> None:
    net = net_of(
        input_layer("x", 2, 3)
        + 'layer { name: "slice" type: "Slice" bottom: "x" top: "a" top: "b" slice_param { slice_point: 1 } } '
        'layer { name: "silence" type: "Silence" bottom: "b" bottom: "x" } '
        'layer { name: "sum" type: "Reduction" bottom: "a" top: "y" loss_weight: 1 }'
    )
    assert net.outputs == ["y"]
    net.forward()
    net.backward()
    assert net.blobs["x"].diff.tolist() == [[1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("axis", "end_axis", "shape"),
    [(1, -1, (2, 60)), (0, 1, (6, 4, 5)), (2, 2, (2, 3, 4, 5)), (-3, -2, (2, 12, 5)), (2, 1, (2, 3, 1, 4, 5))],
)
def test_flatten(axis: int, end_axis: int, shape: tuple[int, ...]) -> None:
    net = one_layer(f'type: "Flatten" flatten_param {{ axis: {axis} end_axis: {end_axis} }}', (2, 3, 4, 5))
    x = normal(2, 3, 4, 5)
    assert np.array_equal(run(net, x)["y"], x.reshape(shape))
    backward(net, y=normal(*shape, seed=1))
    assert np.array_equal(net.blobs["x0"].diff, normal(*shape, seed=1).reshape(x.shape))


@pytest.mark.parametrize("kind", ["Flatten", "Reshape", "Split"])
def test_layers_that_cannot_work_in_place(kind: str) -> None:
    with pytest.raises(caffe.CaffeError, match=rf"layer 'layer' \({kind}\): top 'x0' is its bottom"):
        one_layer(f'type: "{kind}"', (2, 3), tops=("x0",))


def test_eltwise_maximum_takes_coefficients_that_do_nothing() -> None:
    net = one_layer('type: "Eltwise" eltwise_param { operation: MAX coeff: 2 coeff: 3 }', (2, 3), (2, 3))
    a, b = normal(2, 3), normal(2, 3, seed=1)
    assert np.array_equal(run(net, a, b)["y"], np.maximum(a, b))
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer'.*coeff with operation: PROD"):
        one_layer('type: "Eltwise" eltwise_param { operation: PROD coeff: 2 coeff: 3 }', (2, 3), (2, 3))


@pytest.mark.parametrize("stable", ["true", "false"])
def test_gradient_of_a_product_with_a_factor_of_0(stable: str) -> None:
    net = one_layer(f'type: "Eltwise" eltwise_param {{ operation: PROD stable_prod_grad: {stable} }}', *[(1, 2)] * 3)
    run(net, np.array([[0, 2]]), np.array([[3, 5]]), np.array([[4, 7]]))
    backward(net, y=np.ones((1, 2)))
    assert [net.blobs[f"x{i}"].diff.tolist() for i in range(3)] == [[[12, 35]], [[0, 14]], [[0, 10]]]


def test_concat_dim_of_one_bottom() -> None:
    net = one_layer('type: "Concat" concat_param { concat_dim: 0 }', (2, 3))
    assert np.array_equal(run(net, normal(2, 3))["y"], normal(2, 3))
