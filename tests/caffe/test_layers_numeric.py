"""Layers with settings that the reference values leave out, against formulas written out in numpy.

Gradients are held against the reference's own where it has a short one, else against central differences along
random directions.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_nets import input_layer, net_of, normal, one_layer, run

import caffe

FLOAT_MIN = np.finfo(np.float32).min
quick = settings(max_examples=40, deadline=None, derandomize=True)


def close(ours: np.ndarray, reference: np.ndarray, tolerance: float = 1e-5) -> None:
    assert ours.shape == reference.shape
    np.testing.assert_allclose(ours, reference, rtol=tolerance, atol=tolerance)


def backward(net: caffe.Net, **diffs: np.ndarray) -> None:
    net.clear_param_diffs()
    net.backward(**diffs)


def check_gradient(net: caffe.Net, *inputs: np.ndarray, step: float = 1e-2, tolerance: float = 2e-3) -> None:
    """Backward's gradients of every input and parameter against differences of Σ w · y along random directions."""
    names = [f"x{i}" for i in range(len(inputs))]
    weights = {name: normal(*value.shape, seed=7) for name, value in run(net, *inputs).items()}
    backward(net, **weights)
    blobs = [net.blobs[name] for name in names]
    blobs += [blob for blob in net.learnable_params if blob.lr_mult]
    gradients = [blob.diff.copy() for blob in blobs]

    def value() -> float:
        return sum(float((out.astype(np.float64) * weights[name]).sum()) for name, out in net.forward().items())

    for seed, (blob, gradient) in enumerate(zip(blobs, gradients, strict=True)):
        direction = np.sign(normal(*blob.shape, seed=100 + seed))
        before = blob.data.copy()
        blob.data[...] = before + step * direction
        above = value()
        blob.data[...] = before - step * direction
        slope = (above - value()) / (2 * step)
        blob.data[...] = before
        expected = float((gradient.astype(np.float64) * direction).sum())
        scale = max(float(np.abs(gradient).sum()), 1.0)
        assert abs(slope - expected) <= tolerance * scale, (blob, slope, expected)


# Pooling


def windows(size: int, kernel: int, stride: int, pad: int, clip: bool, floor: bool) -> list[tuple[int, int, int]]:
    """Caffe's windows along an axis: first element, one past the last, and the extent that an average divides by."""
    count = (math.floor if floor else math.ceil)((size + 2 * pad - kernel) / stride) + 1
    if clip and (count - 1) * stride >= size + pad:
        count -= 1
    found = []
    for i in range(count):
        start = i * stride - pad
        end = min(start + kernel, size + pad)
        found.append((max(start, 0), min(end, size), end - start))
    return found


def pool(x: np.ndarray, diff_of: int, kernel: tuple, stride: tuple, pad: tuple, maximum: bool, floor: bool) -> tuple:
    """Caffe's pooling, forward, and backward for a top diff of `normal(seed=diff_of)`."""
    rows, columns = (
        windows(x.shape[2 + i], kernel[i], stride[i], pad[i], clip=max(pad) > 0, floor=floor) for i in (0, 1)
    )
    top = np.zeros((*x.shape[:2], len(rows), len(columns)))
    diff, bottom_diff = normal(*top.shape, seed=diff_of), np.zeros(x.shape)
    for n, c, i, j in np.ndindex(top.shape):
        (top_row, bottom_row, height), (left, right, width) = rows[i], columns[j]
        window = x[n, c, top_row:bottom_row, left:right]
        if not window.size:  # beyond the image: the stride is longer than the kernel
            top[n, c, i, j] = FLOAT_MIN if maximum else 0
        elif maximum:
            top[n, c, i, j] = window.max()
            y, z = np.unravel_index(window.argmax(), window.shape)
            bottom_diff[n, c, top_row + y, left + z] += diff[n, c, i, j]
        else:
            top[n, c, i, j] = window.sum(dtype=np.float64) / (height * width)
            bottom_diff[n, c, top_row:bottom_row, left:right] += diff[n, c, i, j] / (height * width)
    return top, diff, bottom_diff


axis_settings = st.tuples(
    st.integers(1, 11),  # size
    st.integers(1, 5),  # kernel
    st.integers(1, 4),  # stride
    st.integers(0, 4),  # pad
)


@quick
@given(vertical=axis_settings, horizontal=axis_settings, maximum=st.booleans(), floor=st.booleans())
def test_pooling(vertical: tuple, horizontal: tuple, maximum: bool, floor: bool) -> None:
    for size, kernel, _, pad in (vertical, horizontal):
        assume(pad < kernel <= size + 2 * pad)
    (height, width), kernel, stride, pad = zip(vertical, horizontal, strict=True)
    net = one_layer(
        f'type: "Pooling" pooling_param {{ pool: {"MAX" if maximum else "AVE"} '
        f"kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} "
        f"pad_h: {pad[0]} pad_w: {pad[1]} {'round_mode: FLOOR' if floor else ''} }}",
        (2, 3, height, width),
    )
    x = np.random.default_rng(1).permutation(2 * 3 * height * width).reshape(2, 3, height, width) / 10 - 9
    x = x.astype(np.float32)  # no two are equal: the maximum is one element
    top, diff, bottom_diff = pool(x, 2, kernel, stride, pad, maximum, floor)
    close(run(net, x)["y"], top)
    backward(net, y=diff)
    close(net.blobs["x0"].diff, bottom_diff)


def test_of_equal_maxima_the_first_takes_the_gradient() -> None:
    net = one_layer('type: "Pooling" pooling_param { kernel_size: 2 stride: 2 }', (1, 1, 2, 2))
    run(net, np.ones((1, 1, 2, 2)))
    backward(net, y=np.full((1, 1, 1, 1), 3.0))
    assert net.blobs["x0"].diff.ravel().tolist() == [3, 0, 0, 0]


# Convolution and inner product


def convolve(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, stride: tuple, pad: tuple, dilation: tuple, group: int
) -> np.ndarray:
    """Cross-correlation over any number of axes, tap by tap."""
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *((p, p) for p in pad)])
    kernel = w.shape[2:]
    sizes = [
        (n - (d * (k - 1) + 1)) // s + 1 for n, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    out = np.zeros((x.shape[0], w.shape[0], *sizes))
    inputs, outputs = w.shape[1], w.shape[0] // group
    for tap in np.ndindex(kernel):
        cut = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in zip(tap, dilation, stride, sizes, strict=True)
        )
        seen = padded[(slice(None), slice(None), *cut)]
        for g in range(group):
            part = np.einsum(
                "nc...,oc->no...",
                seen[:, g * inputs : (g + 1) * inputs],
                w[(slice(g * outputs, (g + 1) * outputs), slice(None), *tap)],
            )
            out[:, g * outputs : (g + 1) * outputs] += part
    return out if b is None else out + b.reshape(1, -1, *[1] * len(sizes))


@quick
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pad=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.integers(1, 3),
    group=st.sampled_from([1, 2, 4]),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 2),
    bias=st.booleans(),
)
def test_convolution(
    kernel: tuple, stride: tuple, pad: tuple, dilation: int, group: int, channels: int, outputs: int, bias: bool
) -> None:
    assume(all(dilation * (k - 1) + 1 <= n + 2 * p for k, n, p in zip(kernel, (7, 8), pad, strict=True)))
    net = one_layer(
        f'type: "Convolution" convolution_param {{ num_output: {group * outputs} group: {group} '
        f"kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} "
        f"pad_h: {pad[0]} pad_w: {pad[1]} dilation: {dilation} bias_term: {str(bias).lower()} "
        'weight_filler { type: "xavier" } bias_filler { type: "gaussian" } }',
        (2, group * channels, 7, 8),
    )
    assert net.params["layer"][0].shape == (group * outputs, channels, *kernel)
    x, parameters = normal(2, group * channels, 7, 8), [blob.data for blob in net.params["layer"]]
    b = parameters[1] if bias else None
    close(run(net, x)["y"], convolve(x, parameters[0], b, stride, pad, (dilation, dilation), group))
    check_gradient(net, x)


@pytest.mark.parametrize("sizes", [(9,), (5, 4, 6)])
def test_convolution_over_one_and_three_axes(sizes: tuple[int, ...]) -> None:
    axes = len(sizes)
    fields = "".join(
        f"{field}: {value} "
        for i in range(axes)
        for field, value in (("kernel_size", 2 + i % 2), ("stride", 1 + i % 2), ("pad", i), ("dilation", 2 - i % 2))
    )
    net = one_layer(
        f'type: "Convolution" convolution_param {{ num_output: 3 {fields} weight_filler {{ type: "xavier" }} }}',
        (2, 4, *sizes),
    )
    x, w = normal(2, 4, *sizes), net.params["layer"][0].data
    assert w.shape == (3, 4, *[2 + i % 2 for i in range(axes)])
    reference = convolve(
        x,
        w,
        None,
        tuple(1 + i % 2 for i in range(axes)),
        tuple(range(axes)),
        tuple(2 - i % 2 for i in range(axes)),
        1,
    )
    close(run(net, x)["y"], reference)


def test_convolution_of_two_bottoms_with_the_same_weights() -> None:
    net = one_layer(
        'type: "Convolution" convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } }',
        (1, 2, 5, 6),
        (3, 2, 4, 4),
        tops=("y0", "y1"),
    )
    inputs = normal(1, 2, 5, 6), normal(3, 2, 4, 4, seed=1)
    out, w = run(net, *inputs), net.params["layer"][0].data
    for i, x in enumerate(inputs):
        close(out[f"y{i}"], convolve(x, w, None, (1, 1), (0, 0), (1, 1), 1))
    check_gradient(net, *inputs)


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
    "settings", ["shape { dim: 7 dim: -1 }", "shape { dim: -1 dim: -1 }", "shape { dim: -2 }", "shape { dim: 9 }"]
)
def test_reshape_that_does_not_fit(settings: str) -> None:
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer' \(Reshape\)"):
        one_layer(f'type: "Reshape" reshape_param {{ {settings} }}', (2, 3, 4))


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


# Loss and accuracy


def loss_net(settings: str, scores: tuple[int, ...], labels: tuple[int, ...], tops: str = 'top: "loss"') -> caffe.Net:
    return net_of(
        input_layer("scores", *scores)
        + input_layer("labels", *labels)
        + f'layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "labels" {tops} {settings} }}'
    )


@pytest.mark.parametrize("ignore", [None, 2, -1, 255])
@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("", "VALID"),
        ("normalization: VALID", "VALID"),
        ("normalization: FULL", "FULL"),
        ("normalization: BATCH_SIZE", "BATCH_SIZE"),
        ("normalization: NONE", "NONE"),
        ("normalize: true", "VALID"),
        ("normalize: false", "BATCH_SIZE"),
    ],
)
@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_loss(ignore: int | None, setting: str, kind: str, axis: int) -> None:
    scores_shape = [5, 2, 3]
    scores_shape.insert(axis, 4)
    labels_shape = (5, 2, 3)
    scores = 3 * normal(*scores_shape)
    labels = np.random.default_rng(3).integers(0, 4, labels_shape)
    if ignore is not None:
        labels[1::2, 0] = ignore
    extra = "" if ignore is None else f"ignore_label: {ignore}"
    net = loss_net(
        f"softmax_param {{ axis: {axis} }} loss_param {{ {setting} {extra} }} loss_weight: 0.5 loss_weight: 0",
        tuple(scores_shape),
        labels_shape,
        tops='top: "loss" top: "prob"',
    )
    net.blobs["scores"].data[...] = scores
    net.blobs["labels"].data[...] = labels
    net.forward()
    powers = np.exp(scores.astype(np.float64))
    prob = powers / powers.sum(axis, keepdims=True)
    valid = np.ones(labels_shape, bool) if ignore is None else labels != ignore
    own = np.take_along_axis(prob, np.expand_dims(np.where(valid, labels, 0), axis), axis).squeeze(axis)
    normalizer = {"VALID": valid.sum(), "FULL": valid.size, "NONE": 1}.get(kind, math.prod(scores_shape[:axis]))
    close(net.blobs["loss"].data, np.array(-np.log(own)[valid].sum() / normalizer))
    close(net.blobs["prob"].data, prob)
    net.backward()
    one_hot = np.moveaxis(np.eye(4)[np.where(valid, labels, 0)], -1, axis)
    close(net.blobs["scores"].diff, 0.5 * (prob - one_hot) * np.expand_dims(valid, axis) / normalizer)


def test_softmax_loss_of_nothing_but_ignored_labels() -> None:
    net = loss_net("loss_param { ignore_label: 1 }", (2, 3), (2,))
    net.blobs["scores"].data[...] = normal(2, 3)
    net.blobs["labels"].data[...] = 1
    assert float(net.forward()["loss"]) == 0
    net.backward()
    assert not net.blobs["scores"].diff.any()


def test_softmax_loss_of_a_hopeless_score_is_finite() -> None:
    net = loss_net("", (1, 2), (1,))
    net.blobs["scores"].data[...] = [[1000, -1000]]
    net.blobs["labels"].data[...] = 1
    assert float(net.forward()["loss"]) == pytest.approx(-math.log(np.finfo(np.float32).tiny))
    net.backward()
    assert net.blobs["scores"].diff.tolist() == [[1, -1]]


@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "Accuracy"])
@pytest.mark.parametrize("label", [-1, 3, -100, 1e9])
def test_label_out_of_range(kind: str, label: float) -> None:
    net = one_layer(f'type: "{kind}"', (2, 3), (2,))
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer'.*a label in 'x1' is outside 0\.\.2"):
        run(net, normal(2, 3), np.array([1, label]))


@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "Accuracy"])
def test_wrong_count_of_labels(kind: str) -> None:
    with pytest.raises(caffe.CaffeError, match=r"'x1' of shape \(3,\) holds 3 labels; 'x0' of shape \(4, 5\) needs 4"):
        one_layer(f'type: "{kind}"', (4, 5), (3,))


def accuracy(scores: np.ndarray, labels: np.ndarray, top_k: int) -> np.ndarray:
    """Caffe's rule, row by row: a hit if fewer than top_k other scores are at least the label's."""
    hits = []
    for row, label in zip(scores, labels, strict=True):
        better = sum(1 for i, score in enumerate(row) if i != label and score >= row[label])
        hits.append(better < top_k)
    return np.array(hits)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("ignore", [None, 2])
def test_accuracy_with_ties(top_k: int, ignore: int | None) -> None:
    random = np.random.default_rng(5)
    scores = random.integers(0, 3, (60, 4)).astype(np.float32)  # of three values, so most rows have ties
    labels = random.integers(0, 4, 60)
    labels[labels == 3] = 0  # a class without labels
    extra = "" if ignore is None else f"ignore_label: {ignore}"
    net = one_layer(
        f'type: "Accuracy" accuracy_param {{ top_k: {top_k} {extra} }}', (60, 4), (60,), tops=("all", "each")
    )
    out = run(net, scores, labels)
    hits = accuracy(scores, labels, top_k)
    counted = np.ones(60, bool) if ignore is None else labels != ignore
    close(out["all"], np.array(hits[counted].mean()))
    for k in range(4):
        own = counted & (labels == k)
        assert out["each"][k] == pytest.approx(hits[own].mean() if own.any() else 0)
    if top_k == 1:
        assert 0 < hits.sum() < (scores.argmax(1) == labels).sum(), "no tie decides: the test says nothing"


def test_accuracy_along_an_axis() -> None:
    scores, labels = normal(3, 2, 5, 4), np.random.default_rng(1).integers(0, 5, (3, 2, 4))
    net = one_layer('type: "Accuracy" accuracy_param { axis: 2 }', scores.shape, labels.shape)
    close(run(net, scores, labels)["y"], np.array((scores.argmax(2) == labels).mean()))
