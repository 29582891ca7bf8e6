"""Layers that work in windows, Convolution, Deconvolution, Im2col, Pooling and SPP, against loops over their taps."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from layer_checks import backward, check_gradient, close
from small_nets import normal, one_layer, run

import caffe

FLOAT_MIN = np.finfo(np.float32).min
quick = settings(max_examples=40, deadline=None, derandomize=True)


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


def pool(x: np.ndarray, kernel: tuple, stride: tuple, pad: tuple, maximum: bool, floor: bool = False) -> tuple:
    """Caffe's pooling: the top, where the maxima are, and what backward gives for a top diff of `normal(seed=2)`."""
    rows, columns = (
        windows(x.shape[2 + i], kernel[i], stride[i], pad[i], clip=max(pad) > 0, floor=floor) for i in (0, 1)
    )
    top = np.zeros((*x.shape[:2], len(rows), len(columns)))
    diff, bottom_diff, mask = normal(*top.shape, seed=2), np.zeros(x.shape), np.full(top.shape, -1)
    for n, c, i, j in np.ndindex(top.shape):
        (top_row, bottom_row, height), (left, right, width) = rows[i], columns[j]
        window = x[n, c, top_row:bottom_row, left:right]
        if not window.size:  # beyond the image: the stride is longer than the kernel
            top[n, c, i, j] = FLOAT_MIN if maximum else 0
        elif maximum:
            top[n, c, i, j] = window.max()
            y, z = np.unravel_index(window.argmax(), window.shape)
            bottom_diff[n, c, top_row + y, left + z] += diff[n, c, i, j]
            mask[n, c, i, j] = (top_row + y) * x.shape[3] + left + z
        else:
            top[n, c, i, j] = window.sum(dtype=np.float64) / (height * width)
            bottom_diff[n, c, top_row:bottom_row, left:right] += diff[n, c, i, j] / (height * width)
    return top, mask, diff, bottom_diff


axis_settings = st.tuples(
    st.integers(1, 11),  # size
    st.integers(1, 5),  # kernel
    st.integers(1, 4),  # stride
    st.integers(0, 4),  # pad
)


@quick
@given(
    vertical=axis_settings,
    horizontal=axis_settings,
    maximum=st.booleans(),
    floor=st.booleans(),
    mask=st.booleans(),
)
# a stride beyond the kernel, with a last window beyond the image; padding of more than half a kernel, which the last
# window reaches beyond
@example(vertical=(2, 1, 2, 0), horizontal=(5, 1, 2, 0), maximum=True, floor=False, mask=True)
@example(vertical=(5, 1, 2, 0), horizontal=(2, 1, 2, 0), maximum=True, floor=False, mask=True)
@example(vertical=(7, 5, 3, 3), horizontal=(7, 2, 3, 0), maximum=True, floor=False, mask=True)
@example(vertical=(7, 5, 3, 3), horizontal=(7, 2, 3, 0), maximum=False, floor=False, mask=False)
@example(vertical=(7, 2, 3, 0), horizontal=(7, 5, 3, 3), maximum=False, floor=False, mask=False)
def test_pooling(vertical: tuple, horizontal: tuple, maximum: bool, floor: bool, mask: bool) -> None:
    for size, kernel, _, pad in (vertical, horizontal):
        assume(pad < kernel <= size + 2 * pad)
    (height, width), kernel, stride, pad = zip(vertical, horizontal, strict=True)
    net = one_layer(
        f'type: "Pooling" pooling_param {{ pool: {"MAX" if maximum else "AVE"} '
        f"kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} "
        f"pad_h: {pad[0]} pad_w: {pad[1]} {'round_mode: FLOOR' if floor else ''} }}",
        (2, 3, height, width),
        tops=("y", "where") if mask and maximum else ("y",),
    )
    x = np.random.default_rng(1).permutation(2 * 3 * height * width).reshape(2, 3, height, width) / 10 - 9
    x = x.astype(np.float32)  # no two are equal: the maximum is one element
    top, where, diff, bottom_diff = pool(x, kernel, stride, pad, maximum, floor)
    out = run(net, x)
    close(out["y"], top)
    if "where" in out:
        assert np.array_equal(out["where"], where)
    backward(net, y=diff)
    close(net.blobs["x0"].diff, bottom_diff)


SLICED = [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 3), (1, 1)), ((2, 3), (2, 1)), ((1, 2), (1, 2)), ((3, 1), (3, 1))]


@pytest.mark.parametrize(("kernel", "stride"), SLICED)
@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("size", [(9, 8), (8, 7), (3, 3)])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_maxima_of_large_images(
    monkeypatch: pytest.MonkeyPatch, kernel: tuple, stride: tuple, floor: bool, size: tuple, order: torch.memory_format
) -> None:
    """Without a gradient they are found another way, from so many places on that here it is none."""
    module = sys.modules["caffe.layers.pooling"]
    monkeypatch.setattr(module, "SLICED_PLACES", 0)
    monkeypatch.setattr(module, "max_pool", None)
    x = normal(2, 3, *size)
    x[0, 1, 2, 1] = np.nan
    settings = f"kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]}"
    rounding = "round_mode: FLOOR" if floor else ""
    net = one_layer(f'type: "Pooling" pooling_param {{ {settings} {rounding} }}', x.shape, backward=False)
    y = net.infer(x0=torch.from_numpy(x).contiguous(memory_format=order))["y"]
    np.testing.assert_array_equal(y, pool(x, kernel, stride, (0, 0), maximum=True, floor=floor)[0])
    assert y.is_contiguous(memory_format=order)


@pytest.mark.parametrize("settings", ["kernel_size: 2 stride: 2", "global_pooling: true"])
def test_of_equal_maxima_the_first_takes_the_gradient(settings: str) -> None:
    net = one_layer(f'type: "Pooling" pooling_param {{ {settings} }}', (1, 1, 2, 2), tops=("y", "where"))
    assert run(net, np.ones((1, 1, 2, 2)))["where"].ravel().tolist() == [0]
    backward(net, y=np.full((1, 1, 1, 1), 3.0))
    assert net.blobs["x0"].diff.ravel().tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_global_pooling(method: str) -> None:
    net = one_layer(f'type: "Pooling" pooling_param {{ pool: {method} global_pooling: true }}', (2, 3, 5, 4))
    x = normal(2, 3, 5, 4)
    reduce = x.max if method == "MAX" else x.mean
    close(run(net, x)["y"], reduce((2, 3), keepdims=True))
    check_gradient(net, x, step=1e-3)


@pytest.mark.parametrize("method", ["MAX", "AVE", "STOCHASTIC"])
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_pooling_has_random_numbers_only_where_it_draws(method: str, phase: int) -> None:
    net = one_layer(f'type: "Pooling" pooling_param {{ pool: {method} kernel_size: 2 }}', (1, 1, 4, 4), phase=phase)
    assert bool(net.states()) == (method == "STOCHASTIC" and phase == caffe.TRAIN)


STOCHASTIC = 'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_h: 3 kernel_w: 2 stride: 2 }'


def test_stochastic_pooling_without_training_is_the_mean_weighted_by_size() -> None:
    x = np.abs(normal(2, 3, 6, 5))
    x[0, 0, :3, :2] = 0  # a window without a probability
    top = np.zeros((2, 3, 3, 3))  # the windows of the last row and column are cut off by the image's border
    for i, j in np.ndindex(3, 3):
        window = x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2].reshape(2, 3, -1).astype(np.float64)
        total = window.sum(2)
        top[:, :, i, j] = np.divide((window**2).sum(2), total, out=np.zeros_like(total), where=total > 0)
    net = one_layer(STOCHASTIC, x.shape)
    close(run(net, x)["y"], top)
    assert top[0, 0, 0, 0] == 0
    backward(net, y=normal(*top.shape, seed=2))
    assert np.isfinite(net.blobs["x0"].diff).all()
    x += 0.1
    check_gradient(net, x, step=1e-3)


def test_stochastic_pooling_draws_values_by_their_size() -> None:
    x = np.tile(np.array([[1, 0], [2, 5]], np.float32), (100, 50, 3, 4))
    net = one_layer(
        'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }', x.shape, phase=caffe.TRAIN
    )
    top = run(net, x)["y"]
    assert top.shape == (100, 50, 3, 4)
    for value, share in ((1, 1 / 8), (0, 0), (2, 2 / 8), (5, 5 / 8)):
        deviation = math.sqrt(top.size * share * (1 - share))
        assert abs((top == value).sum() - top.size * share) <= 5 * deviation
    left = top[..., :-1] == 5
    right = top[..., 1:] == 5  # neighbours are drawn apart from each other
    assert abs((left & right).mean() - 25 / 64) < 0.02
    assert not np.array_equal(top, run(net, x)["y"]), "the same values are drawn in each pass"


def test_the_gradient_of_stochastic_pooling_goes_to_what_was_drawn() -> None:
    x = np.random.default_rng(1).permutation(2 * 3 * 6 * 5).reshape(2, 3, 6, 5).astype(np.float32)
    net = one_layer(STOCHASTIC, x.shape, phase=caffe.TRAIN)
    top = run(net, x)["y"]
    diff = normal(*top.shape, seed=2)
    backward(net, y=diff)
    expected = np.zeros(x.shape)
    for n, c, i, j in np.ndindex(top.shape):
        window = x[n, c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2]
        (place,) = np.argwhere(window == top[n, c, i, j])
        expected[n, c, 2 * i + place[0], 2 * j + place[1]] += diff[n, c, i, j]
    close(net.blobs["x0"].diff, expected)


def test_stochastic_pooling_goes_on_with_its_own_numbers_after_a_resume() -> None:
    x = np.abs(normal(4, 3, 6, 5))
    net = one_layer(STOCHASTIC, x.shape, phase=caffe.TRAIN)
    run(net, x)
    state = net.layer_dict["layer"].state()
    following = run(net, x)["y"]
    other = one_layer(STOCHASTIC, x.shape, phase=caffe.TRAIN, seed=99)
    other.layer_dict["layer"].set_state(state)
    assert np.array_equal(run(other, x)["y"], following)
    assert one_layer(STOCHASTIC, x.shape).layer_dict["layer"].state() == {}


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize(("height", "size"), [(1, (5, 4)), (2, (9, 7)), (3, (9, 12)), (3, (20, 21))])
def test_spatial_pyramid(method: str, height: int, size: tuple[int, int]) -> None:
    net = one_layer(f'type: "SPP" spp_param {{ pyramid_height: {height} pool: {method} }}', (2, 3, *size))
    x = np.random.default_rng(1).permutation(6 * math.prod(size)).reshape(2, 3, *size).astype(np.float32) / 10
    parts = []
    for level in range(height):
        kernel = tuple(math.ceil(n / 2**level) for n in size)
        pad = tuple((k * 2**level - n + 1) // 2 for k, n in zip(kernel, size, strict=True))
        parts.append(pool(x, kernel, kernel, pad, method == "MAX")[0])
    top = parts[0] if height == 1 else np.concatenate([part.reshape(2, -1) for part in parts], 1)
    close(run(net, x)["y"], top)
    if height > 1 and size == (20, 21):
        assert top.shape == (2, 3 * (1 + 4 + 16))
    check_gradient(net, x, step=1e-3, tolerance=5e-3)


def test_a_stochastic_pyramid_draws_and_averages() -> None:
    x = np.abs(normal(2, 3, 8, 4)) + 0.1
    layer = 'type: "SPP" spp_param { pyramid_height: 2 pool: STOCHASTIC }'
    drawn = run(one_layer(layer, x.shape, phase=caffe.TRAIN), x)["y"]
    mean = run(one_layer(layer, x.shape), x)["y"]
    windows = x.reshape(2, 3, 2, 4, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(2, 12, 8)
    expected = (windows.astype(np.float64) ** 2).sum(2) / windows.sum(2)
    close(mean[:, 3:], expected.reshape(2, 12))
    assert (drawn[:, 3:, None] == windows).any(2).all()


# Convolution and its transpose


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


# the gradients are computed in other ways on small maps, and in 16 bits with groups of one channel
@pytest.mark.parametrize("side", [3, 6, 8])
@pytest.mark.parametrize("group", [1, 4, 20])
@pytest.mark.parametrize("kernel", [(3, 2), (3, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_gradients_of_a_convolution_as_in_pytorch(
    side: int, group: int, kernel: tuple[int, int], stride: int, precision: str, tolerance: float
) -> None:
    net = one_layer(
        f'type: "Convolution" convolution_param {{ num_output: 40 group: {group} stride: {stride} pad_h: 1 pad_w: 2 '
        f'kernel_h: {kernel[0]} kernel_w: {kernel[1]} weight_filler {{ type: "xavier" }} }}',
        (4, 20, stride * side, stride * side),
        precision=precision,
    )
    x = torch.tensor(normal(4, 20, stride * side, stride * side), dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.tensor(blob.data, dtype=torch.float64).requires_grad_() for blob in net.params["layer"])
    top = F.conv2d(x, weight, bias, stride, (1, 2), groups=group)
    gradient = normal(*top.shape, seed=1)
    top.backward(torch.tensor(gradient, dtype=torch.float64))
    run(net, x.detach().numpy())
    backward(net, y=gradient)
    for ours, theirs in zip([net.blobs["x0"], *net.params["layer"]], (x, weight, bias), strict=True):
        assert np.abs(ours.diff - theirs.grad.numpy()).max() <= tolerance * np.abs(theirs.grad.numpy()).max()


def deconvolve(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, stride: tuple, pad: tuple, dilation: tuple, group: int
) -> np.ndarray:
    """Each value of x adds its multiple of the kernel to the top, whose borders `pad` cuts off."""
    kernel, inputs, outputs = w.shape[2:], w.shape[0] // group, w.shape[1]
    axes = list(zip(x.shape[2:], kernel, stride, pad, dilation, strict=True))
    whole = np.zeros((x.shape[0], group * outputs, *(s * (n - 1) + d * (k - 1) + 1 for n, k, s, _, d in axes)))
    for tap in np.ndindex(kernel):
        cut = tuple(slice(t * d, t * d + s * (n - 1) + 1, s) for t, (n, _, s, _, d) in zip(tap, axes, strict=True))
        for g in range(group):
            part = np.einsum(
                "nc...,co->no...",
                x[:, g * inputs : (g + 1) * inputs].astype(np.float64),
                w[(slice(g * inputs, (g + 1) * inputs), slice(None), *tap)],
            )
            whole[(slice(None), slice(g * outputs, (g + 1) * outputs), *cut)] += part
    out = whole[(..., *(slice(p, n - p) for n, p in zip(whole.shape[2:], pad, strict=True)))]
    return out if b is None else out + b.reshape(1, -1, *[1] * len(kernel))


WINDOWED = {"Convolution": convolve, "Deconvolution": deconvolve}


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("sizes", [(), (9,), (5, 4, 6), (3, 4, 3, 5), (2, 3, 2, 2, 3)])
@pytest.mark.parametrize("group", [1, 2])
def test_any_number_of_axes(kind: str, sizes: tuple[int, ...], group: int) -> None:
    axes = len(sizes)
    kernel, stride, dilation = ([a + i % 2 for i in range(axes)] for a in (2, 1, 1))
    pad = [1 + i % 2 for i in range(axes)]
    fields = "".join(
        f"{field}: {value} "
        for field, values in (("kernel_size", kernel), ("stride", stride), ("pad", pad), ("dilation", dilation))
        for value in values
    )
    net = one_layer(
        f'type: "{kind}" convolution_param {{ num_output: 6 group: {group} {fields} '
        'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" } }',
        (2, 4, *sizes),
    )
    x, (w, b) = normal(2, 4, *sizes), (blob.data for blob in net.params["layer"])
    assert w.shape == ((6, 4 // group, *kernel) if kind == "Convolution" else (4, 6 // group, *kernel))
    close(run(net, x)["y"], WINDOWED[kind](x, w, b, stride, pad, dilation, group), tolerance=2e-5)
    check_gradient(net, x)


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize(
    ("axis", "shape"), [(0, (4, 6, 5)), (2, (2, 3, 4, 6, 5)), (-2, (2, 3, 4, 6)), (3, (2, 3, 2, 4))]
)
def test_channels_on_another_axis(kind: str, axis: int, shape: tuple[int, ...]) -> None:
    lead = shape[: axis % len(shape)]
    axes = len(shape) - len(lead) - 1
    net = one_layer(
        f'type: "{kind}" convolution_param {{ num_output: 3 kernel_size: 3 pad: 1 axis: {axis} '
        'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" } }',
        shape,
    )
    x, (w, b) = normal(*shape), (blob.data for blob in net.params["layer"])
    ones = (1,) * axes
    expected = WINDOWED[kind](x.reshape(-1, *shape[len(lead) :]), w, b, ones, ones, ones, 1)
    close(run(net, x)["y"], expected.reshape(*lead, *expected.shape[1:]))
    check_gradient(net, x)


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("setting", ["force_nd_im2col: true", "engine: CAFFE", "engine: CUDNN"])
def test_settings_that_choose_how_to_compute_the_same(kind: str, setting: str) -> None:
    layer = f'type: "{kind}" convolution_param {{ num_output: 3 kernel_size: 3 weight_filler {{ type: "xavier" }} '
    x = normal(2, 4, 6, 5)
    plain, other = (run(one_layer(layer + text + "}", x.shape), x)["y"] for text in ("", setting))
    assert np.array_equal(plain, other)


@quick
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pad=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.integers(1, 3),
    group=st.sampled_from([1, 2, 4]),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 2),
    bias=st.booleans(),
)
def test_deconvolution(
    kernel: tuple, stride: tuple, pad: tuple, dilation: int, group: int, channels: int, outputs: int, bias: bool
) -> None:
    assume(
        all(
            s * (n - 1) + dilation * (k - 1) + 1 > 2 * p for n, k, s, p in zip((4, 5), kernel, stride, pad, strict=True)
        )
    )
    net = one_layer(
        f'type: "Deconvolution" convolution_param {{ num_output: {group * outputs} group: {group} '
        f"kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} "
        f"pad_h: {pad[0]} pad_w: {pad[1]} dilation: {dilation} bias_term: {str(bias).lower()} "
        'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" } }',
        (2, group * channels, 4, 5),
    )
    assert net.params["layer"][0].shape == (group * channels, outputs, *kernel)
    x, parameters = normal(2, group * channels, 4, 5), [blob.data for blob in net.params["layer"]]
    b = parameters[1] if bias else None
    close(run(net, x)["y"], deconvolve(x, parameters[0], b, stride, pad, (dilation, dilation), group))
    check_gradient(net, x)


def test_deconvolution_enlarges_with_the_bilinear_filler() -> None:
    """What segmentation nets use it for: factor 2, a group a channel, weights that interpolate."""
    net = one_layer(
        'type: "Deconvolution" convolution_param { num_output: 3 group: 3 kernel_size: 4 stride: 2 pad: 1 '
        'bias_term: false weight_filler { type: "bilinear" } }',
        (1, 3, 5, 6),
    )
    rows, columns = np.mgrid[0:5, 0:6]
    x = np.stack([rows, columns, np.ones((5, 6))])[None].astype(np.float32)
    y = run(net, x)["y"]
    rows, columns = np.mgrid[0:10, 0:12] / 2 - 0.25
    inside = (slice(1, -1), slice(1, -1))
    for channel, expected in enumerate((rows, columns, np.ones((10, 12)))):
        np.testing.assert_allclose(y[0, channel][inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "settings", "kernel", "stride", "pad", "dilation", "axis"),
    [
        ((2, 3, 7, 6), "kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 1", (3, 2), (2, 1), (1, 0), (1, 1), 1),
        ((2, 3, 7, 6), "kernel_size: 2 dilation: 2 pad: 1 force_nd_im2col: true", (2, 2), (1, 1), (1, 1), (2, 2), 1),
        ((2, 3, 8), "kernel_size: 3 stride: 2", (3,), (2,), (0,), (1,), 1),
        ((2, 3, 4, 3, 5), "kernel_size: 2 pad: 1 pad: 0 pad: 1", (2, 2, 2), (1, 1, 1), (1, 0, 1), (1, 1, 1), 1),
        ((2, 2, 3, 5, 4), "kernel_size: 2 axis: 2", (2, 2), (1, 1), (0, 0), (1, 1), 2),
        ((3, 5, 4), "kernel_size: 2 axis: 0", (2, 2), (1, 1), (0, 0), (1, 1), 0),
    ],
)  # fmt: skip
def test_im2col(
    shape: tuple, settings: str, kernel: tuple, stride: tuple, pad: tuple, dilation: tuple, axis: int
) -> None:
    net = one_layer(f'type: "Im2col" convolution_param {{ {settings} }}', shape)
    x = normal(*shape)
    batch = x.reshape(-1, *shape[axis:])
    channels = shape[axis]
    taps = list(itertools.product(*(range(k) for k in kernel)))
    # a convolution with a weight of 1 at one tap of one channel gives that row
    weight = np.zeros((channels * len(taps), channels, *kernel))
    for row, (c, tap) in enumerate(itertools.product(range(channels), taps)):
        weight[(row, c, *tap)] = 1
    expected = convolve(batch, weight, None, stride, pad, dilation, 1)
    close(run(net, x)["y"], expected.reshape(*shape[:axis], *expected.shape[1:]))
    check_gradient(net, x)
