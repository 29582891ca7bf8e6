"""What holds for every layer type: bottoms that do not fit are named, and all passes compute the same.

The passes: forward, `infer`, autocast to bfloat16, and another batch size after a reshape.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from small_nets import normal, one_layer, run

import caffe
from caffe.layers import LAYERS

FILL = 'weight_filler { type: "gaussian" std: 0.3 } bias_filler { type: "gaussian" }'
IMAGE = (4, 6, 9, 8)
RNN = f"recurrent_param {{ num_output: 3 {FILL} }}"
# type and settings, bottoms (their axis 0 is the batch), and which of these hold whole numbers below how many
CASES: list[tuple[str, tuple[tuple[int, ...], ...], dict[int, int]]] = [
    ("AbsVal", (IMAGE,), {}),
    ("Accuracy", ((4, 6), (4,)), {1: 6}),
    ("ArgMax argmax_param { axis: 1 }", (IMAGE,), {}),
    ("ArgMax argmax_param { top_k: 3 out_max_val: true }", (IMAGE,), {}),
    ("BatchNorm", (IMAGE,), {}),
    ("BatchReindex", (IMAGE, (4,)), {1: 2}),
    ("Bias", (IMAGE,), {}),
    ("BNLL", (IMAGE,), {}),
    ("Clip clip_param { min: -1 max: 1 }", (IMAGE,), {}),
    ("Concat", (IMAGE, IMAGE), {}),
    ("ContrastiveLoss", ((4, 6), (4, 6), (4,)), {2: 2}),
    (f"Convolution convolution_param {{ num_output: 4 kernel_size: 3 {FILL} }}", (IMAGE,), {}),
    (f"Convolution convolution_param {{ num_output: 4 kernel_size: 2 axis: 2 {FILL} }}", ((4, 2, 3, 5, 6),), {}),
    (f"Convolution convolution_param {{ num_output: 4 kernel_size: 2 {FILL} }}", ((4, 2, 3, 2, 3, 3),), {}),
    ("Crop crop_param { offset: 1 }", (IMAGE, (4, 6, 5, 5)), {}),
    (f"Deconvolution convolution_param {{ num_output: 4 kernel_size: 3 stride: 2 {FILL} }}", (IMAGE,), {}),
    (f"Deconvolution convolution_param {{ num_output: 4 kernel_size: 2 {FILL} }}", ((4, 2, 3, 2, 3, 3),), {}),
    ("Dropout", (IMAGE,), {}),
    ("Eltwise", (IMAGE, IMAGE), {}),
    ("ELU", (IMAGE,), {}),
    (f"Embed embed_param {{ num_output: 3 input_dim: 5 {FILL} }}", ((4, 3),), {0: 5}),
    ("EuclideanLoss", ((4, 6), (4, 6)), {}),
    ("Exp", (IMAGE,), {}),
    ("Filter", (IMAGE, (4,)), {1: 2}),
    ("Flatten", (IMAGE,), {}),
    ("HingeLoss", ((4, 6), (4,)), {1: 6}),
    ("Im2col convolution_param { kernel_size: 3 }", (IMAGE,), {}),
    ("InfogainLoss", ((4, 6), (4,), (6, 6)), {1: 6}),
    (f"InnerProduct inner_product_param {{ num_output: 5 {FILL} }}", (IMAGE,), {}),
    ("Log log_param { shift: 9 }", (IMAGE,), {}),
    ("LRN", (IMAGE,), {}),
    ("MultinomialLogisticLoss", ((4, 6), (4,)), {1: 6}),
    ("MVN", (IMAGE,), {}),
    ("Pooling pooling_param { kernel_size: 3 stride: 2 }", (IMAGE,), {}),
    ("Pooling pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }", (IMAGE,), {}),
    ("Pooling pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }", (IMAGE,), {}),
    ("Power power_param { power: 2 }", (IMAGE,), {}),
    ("PReLU", (IMAGE,), {}),
    ("Reduction reduction_param { axis: 1 }", (IMAGE,), {}),
    ("ReLU", (IMAGE,), {}),
    ("Reshape reshape_param { shape { dim: 0 dim: -1 dim: 2 } }", (IMAGE,), {}),
    ("Scale scale_param { bias_term: true }", (IMAGE,), {}),
    ("Sigmoid", (IMAGE,), {}),
    ("SigmoidCrossEntropyLoss", ((4, 6), (4, 6)), {}),
    ("Softmax", (IMAGE,), {}),
    ("SoftmaxWithLoss", ((4, 6), (4,)), {1: 6}),
    ("SPP spp_param { pyramid_height: 2 }", (IMAGE,), {}),
    ("Swish", (IMAGE,), {}),
    ("TanH", (IMAGE,), {}),
    ("Threshold", (IMAGE,), {}),
    ("Tile tile_param { tiles: 2 }", (IMAGE,), {}),
]
# whose axis 0 is the time
RECURRENT = [
    (f"RNN {RNN}", ((5, 4, 6), (5, 4)), {1: 2}),
    (f"LSTM {RNN}", ((5, 4, 6), (5, 4)), {1: 2}),
    ("LSTMUnit", ((1, 4, 2), (1, 4, 8), (1, 4)), {2: 2}),
]
TOPS = {"LSTMUnit": 2}


def make(text: str, shapes: tuple[tuple[int, ...], ...], **settings: object) -> caffe.Net:
    kind, _, rest = text.partition(" ")
    tops = [f"y{i}" for i in range(TOPS.get(kind, 1))]
    return one_layer(f'type: "{kind}" {rest}', *shapes, tops=tops, **settings)


def values(shapes: tuple[tuple[int, ...], ...], numbers: dict[int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(4)
    return [
        random.integers(0, numbers[i], shape).astype(np.float32) if i in numbers else abs(normal(*shape, seed=i)) + 0.1
        for i, shape in enumerate(shapes)
    ]


def differences(net: caffe.Net) -> dict[str, np.ndarray]:
    return {name: normal(*net.blobs[name].shape, seed=9) for name in net.outputs if not net.blob_loss_weights[name]}


def test_the_cases_are_all_types() -> None:
    elsewhere = {
        # their bottoms or tops are none
        "Data", "DummyData", "HDF5Data", "HDF5Output", "ImageData", "Input", "MemoryData", "Parameter", "Python",
        "Silence", "WindowData",
        "Slice", "Split",  # several tops of their own number
        "Teacher",  # other nets' files decide its top
    }  # fmt: skip
    assert {text.split()[0] for text, _, _ in CASES + RECURRENT} == set(LAYERS) - elsewhere


@pytest.mark.parametrize(("text", "shapes", "numbers"), CASES + RECURRENT)
def test_infer_computes_what_forward_computes(
    text: str, shapes: tuple[tuple[int, ...], ...], numbers: dict[int, int]
) -> None:
    net, other, inputs = make(text, shapes), make(text, shapes), values(shapes, numbers)
    planned = {name: other.blobs[name].shape for name in other.outputs}
    out = net.infer(**{f"x{i}": torch.from_numpy(x) for i, x in enumerate(inputs)})
    for name, value in run(other, *inputs).items():
        np.testing.assert_allclose(out[name].numpy(), value, rtol=1e-5, atol=1e-5)
        assert value.shape == planned[name] or text == "Filter"  # which chooses among as many


@pytest.mark.parametrize(("text", "shapes", "numbers"), CASES + RECURRENT)
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_under_autocast(text: str, shapes: tuple[tuple[int, ...], ...], numbers: dict[int, int], phase: int) -> None:
    """In a net of precision bf16, tops and gradients are those of float32 but for what bfloat16 rounds."""
    net, plain = (make(text, shapes, phase=phase, precision=precision) for precision in ("bf16", "fp32"))
    inputs = values(shapes, numbers)
    results = []
    for one in (net, plain):
        outputs = run(one, *inputs)
        one.clear_param_diffs()
        one.backward(**differences(one))
        results.append([*outputs.values(), *(blob.diff for blob in one.learnable_params), one.blobs["x0"].diff])
    for ours, reference in zip(*results, strict=True):
        assert ours.dtype == np.float32
        scale = max(float(np.abs(reference).max()), 1e-3)
        np.testing.assert_allclose(ours / scale, reference / scale, atol=0.04)


@pytest.mark.parametrize(("text", "shapes", "numbers"), CASES)
def test_of_bfloat16_bottoms(text: str, shapes: tuple[tuple[int, ...], ...], numbers: dict[int, int]) -> None:
    """Bottoms as a convolution in such a net leaves them."""
    net = make(text, shapes)
    inputs = [torch.from_numpy(x) for x in values(shapes, numbers)]
    with torch.no_grad():
        exact = net.layer_dict["layer"].forward([x.bfloat16().float() for x in inputs])
    inputs = [x if i in numbers else x.bfloat16().requires_grad_() for i, x in enumerate(inputs)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tops = net.layer_dict["layer"].forward(inputs)
    for top, reference in zip(tops, exact, strict=True):
        scale = max(float(reference.abs().max()), 1e-3)
        np.testing.assert_allclose(top.detach().float() / scale, reference / scale, atol=0.03)
    if tops[0].requires_grad:
        tops[0].float().sum().backward()


@pytest.mark.parametrize(("text", "shapes", "numbers"), CASES)
def test_another_batch_size(text: str, shapes: tuple[tuple[int, ...], ...], numbers: dict[int, int]) -> None:
    """The first half of the rows alone gives the rows' own tops; those that are no rows it gives as a new net does."""
    net, inputs = make(text, shapes), values(shapes, numbers)
    run(net, *inputs)
    halves = [x if i == 2 and x.shape == (6, 6) else x[:2] for i, x in enumerate(inputs)]
    for i, x in enumerate(halves):
        net.blobs[f"x{i}"].reshape(*x.shape)
    net.reshape()
    fresh = make(text, tuple(x.shape for x in halves))
    if not text.startswith("Filter"):
        assert net.blobs["y0"].shape == fresh.blobs["y0"].shape
    assert np.array_equal(run(net, *halves)["y0"], run(fresh, *halves)["y0"])


@pytest.mark.parametrize(
    ("layer", "shapes", "message"),
    [
        ("ArgMax argmax_param { axis: 4 }", [IMAGE], "axis 4 is out of range for bottom 'x0'"),
        ("ArgMax argmax_param { axis: 1 top_k: 7 }", [IMAGE], "top_k is 7; expected 1 to 6, .* 'x0'"),
        ("ArgMax argmax_param { top_k: 0 }", [IMAGE], "top_k is 0"),
        ("ArgMax", [()], "'x0' is a scalar"),
        ("BatchNorm", [(4, 3), (4, 3)], r"has 2 bottoms \(x0, x1\); expected 1"),
        ("BatchReindex", [IMAGE, (4, 1)], r"'x0' and 'x1' have shapes .*\(4, 1\); expected"),
        ("Bias", [IMAGE, (5,)], r"'x1' of shape \(5,\) does not fit bottom 'x0'.*axis 1"),
        ("Bias bias_param { num_axes: 4 }", [IMAGE], "num_axes 4 from axis 1 does not fit bottom 'x0'"),
        ("Bias bias_param { num_axes: -2 }", [IMAGE], "num_axes -2"),
        ("Scale", [IMAGE, (6, 8)], r"'x1' of shape \(6, 8\) does not fit bottom 'x0'"),
        ("Scale scale_param { axis: 5 }", [IMAGE], "axis 5 is out of range for bottom 'x0'"),
        ("Concat", [(2, 3), (3, 3)], r"bottom 'x1' has shape \(3, 3\), which differs"),
        ("ContrastiveLoss", [(4, 3), (4, 2), (4,)], r"bottom 'x1' has shape \(4, 2\)"),
        ("ContrastiveLoss", [(4, 3, 2), (4, 3, 2), (4,)], r"bottom 'x0' has shape \(4, 3, 2\)"),
        ("ContrastiveLoss", [(4, 3), (4, 3), (3,)], r"bottom 'x2' has shape \(3,\); expected 4 values"),
        ("ContrastiveLoss", [(4, 3), (4, 3)], r"has 2 bottoms \(x0, x1\); expected 3"),
        ("Convolution convolution_param { num_output: 2 kernel_size: 10 }", [IMAGE], "'x0' .* smaller than the kernel"),
        ("Convolution convolution_param { num_output: 2 }", [IMAGE], "kernel_size is missing"),
        ("Convolution convolution_param { num_output: 2 kernel_size: 2 axis: 4 }", [IMAGE], "axis 4.* 'x0'"),
        ("Convolution convolution_param { num_output: 2 kernel_size: 2 }", [IMAGE, IMAGE], "2 bottoms and 1 tops"),
        ("Convolution convolution_param { num_output: 2 kernel_size: 2 stride: 0 }", [IMAGE], r"stride is \(0, 0\)"),
        ("Convolution convolution_param { num_output: 2 kernel_h: 2 }", [(4, 6, 9)], "are for two spatial axes"),
        ("Deconvolution convolution_param { num_output: 2 kernel_size: 2 pad: 9 }", [IMAGE], "leaves nothing .* 'x0'"),
        ("Deconvolution convolution_param { num_output: 3 kernel_size: 2 group: 2 }", [IMAGE], "group 2 does not"),
        ("Deconvolution convolution_param { kernel_size: 2 }", [IMAGE], "num_output is 0"),
        ("Im2col convolution_param { kernel_size: 10 }", [IMAGE], "'x0' .* smaller than the kernel"),
        ("Im2col convolution_param { kernel_size: 2 axis: 3 }", [IMAGE], "'x0' .* expected axes behind"),
        ("Im2col convolution_param { kernel_size: 2 kernel_size: 2 kernel_size: 2 }", [IMAGE], "given 3 times"),
        ("Crop", [IMAGE, (4, 6, 10, 8)], r"'x0' .* and 'x1' .*10, 8.*axis 2"),
        ("Crop crop_param { offset: 1 }", [IMAGE, IMAGE], "'x0' .* and 'x1' .* offset 1 .* axis 2"),
        ("Crop", [IMAGE, (4, 6, 3)], "'x0' .* and 'x1' .* axis 3"),
        ("Crop crop_param { axis: 1 offset: 1 offset: 2 }", [IMAGE, IMAGE], "has 2 offset for 3 axes"),
        ("Crop crop_param { axis: 4 }", [IMAGE, IMAGE], "axis 4 is out of range for bottom 'x0'"),
        ("Eltwise", [(2, 3), (3, 2)], r"bottom 'x1' has shape \(3, 2\)"),
        ("Embed embed_param { num_output: 2 }", [(4,)], "input_dim is 0"),
        ("Embed embed_param { input_dim: 2 }", [(4,)], "num_output is 0"),
        ("EuclideanLoss", [(4, 3), (4, 2)], r"'x0' \(4, 3\) and 'x1' \(4, 2\) differ in their number"),
        ("EuclideanLoss", [(4, 3), (3, 4)], r"'x0' \(4, 3\) and 'x1' \(3, 4\) differ in axis 0"),
        ("EuclideanLoss", [(), ()], r"'x0' \(\) and 'x1' \(\) differ in axis 0"),
        ("Filter", [IMAGE, (3,)], r"bottom 'x0' has shape .* expected 3 rows"),
        ("Filter", [IMAGE, (4, 2)], r"selector 'x1' has shape \(4, 2\)"),
        ("Filter", [IMAGE, IMAGE, (4,)], "has 3 bottoms and 1 tops"),
        ("Flatten flatten_param { axis: 3 end_axis: 1 }", [IMAGE], "axis 3 is behind end_axis 1 for bottom 'x0'"),
        ("HingeLoss", [(4, 3), (4, 2)], r"bottom 'x1' has shape \(4, 2\); expected 4 values"),
        ("HingeLoss", [(4, 3), (3,)], "'x0' .* and 'x1' .* differ in axis 0"),
        ("InfogainLoss", [(4, 3), (4, 2), (3, 3)], "'x1' of shape .* holds 8 labels; 'x0' .* needs 4"),
        ("InfogainLoss infogain_loss_param { axis: 2 }", [(4, 3), (4,), (3, 3)], "axis 2 .* 'x0'"),
        ("InnerProduct", [IMAGE], "num_output is 0; expected at least 1"),
        ("LRN", [(4, 3)], r"bottom 'x0' has shape \(4, 3\); expected N×C×H×W"),
        ("LRN lrn_param { local_size: 4 }", [IMAGE], "local_size is 4"),
        ("MultinomialLogisticLoss", [(4, 3), (4, 2)], r"bottom 'x1' has shape \(4, 2\)"),
        ("MVN", [(4, 3, 2, 2, 2)], "bottom 'x0' has shape"),
        (
            "Pooling pooling_param { kernel_size: 2 }",
            [(4, 3, 5)],
            r"bottom 'x0' has shape \(4, 3, 5\); expected N×C×H×W",
        ),
        ("Pooling pooling_param { kernel_size: 2 pad: 1 pool: STOCHASTIC }", [IMAGE], r"pad is \(1, 1\).*STOCHASTIC"),
        ("Pooling pooling_param { kernel_size: 2 global_pooling: true }", [IMAGE], "global_pooling excludes"),
        ("Pooling pooling_param { kernel_w: 2 global_pooling: true }", [IMAGE], "global_pooling excludes"),
        ("Pooling pooling_param { pad: 1 global_pooling: true }", [IMAGE], r"needs pad 0 .* not \(1, 1\) and \(1, 1\)"),
        ("Pooling pooling_param { stride: 2 global_pooling: true }", [IMAGE], r"not \(0, 0\) and \(2, 2\)"),
        ("Pooling pooling_param { kernel_size: 12 }", [IMAGE], "bottom 'x0' .* smaller than the kernel"),
        ("Pooling pooling_param { global_pooling: true }", [(4, 3, 0, 5)], r"bottom 'x0' has shape \(4, 3, 0, 5\)"),
        ("Pooling pooling_param { kernel_size: 0 }", [IMAGE], r"kernel is \(0, 0\) and stride \(1, 1\)"),
        ("Pooling pooling_param { kernel_size: 2 stride: 0 }", [IMAGE], r"kernel is \(2, 2\) and stride \(0, 0\)"),
        ("PReLU", [(4,)], r"bottom 'x0' has shape \(4,\)"),
        ("Reduction reduction_param { axis: 4 }", [IMAGE], "axis 4 is out of range for bottom 'x0'"),
        ("SigmoidCrossEntropyLoss", [(4, 3), (4, 2)], "'x0' .* and 'x1' .* differ in their number"),
        ("SigmoidCrossEntropyLoss", [(4, 3), (3, 4)], "'x0' .* and 'x1' .* differ in axis 0"),
        ("SoftmaxWithLoss", [(1, 4, 3), (3,)], "'x0' .* and 'x1' .* differ in axis 0"),
        ("SPP spp_param { pyramid_height: 3 }", [(1, 2, 5, 9)], r"pad \(2, .* is not smaller than the kernel \(2, 3\)"),
        ("SPP spp_param { pyramid_height: 1 }", [(1, 2, 5)], r"bottom 'x0' has shape \(1, 2, 5\)"),
        ("SPP", [IMAGE], "pyramid_height is 0"),
        ("SPP spp_param { pyramid_height: 2 pool: STOCHASTIC }", [IMAGE], "pad is .* with pool: STOCHASTIC"),
        ("Tile", [IMAGE], "tiles is 0"),
        ("Tile tile_param { tiles: 2 axis: 4 }", [IMAGE], "axis 4 is out of range for bottom 'x0'"),
        (f"RNN {RNN}", [(5, 4), (5, 4)], r"bottom 'x0' has shape \(5, 4\); expected at least 3 axes"),
        (f"RNN {RNN}", [(5, 4, 6), (4, 5)], r"bottom 'x1' has shape \(4, 5\); expected \(5, 4\)"),
        (f"RNN {RNN}", [(5, 4, 6), (5, 4), (3, 2)], r"bottom 'x2' has shape \(3, 2\); expected 4×…"),
        (f"LSTM {RNN}", [(5, 4, 6)], r"has 1 bottoms \(x0\); expected 2 or more"),
        (f"LSTM {RNN}", [(5, 4, 6), (5, 4), (4, 2), (4, 2)], "has 4 bottoms and 1 tops; expected 2 or 3 bottoms"),
        ("LSTM recurrent_param { num_output: 3 expose_hidden: true }", [(5, 4, 6), (5, 4)], "expected 4 or 5 bottoms"),
        ("LSTM", [(5, 4, 6), (5, 4)], "num_output is 0"),
    ],
)
def test_what_does_not_fit_is_named(layer: str, shapes: list[tuple[int, ...]], message: str) -> None:
    kind, _, rest = layer.partition(" ")
    with pytest.raises(caffe.CaffeError, match=rf"layer 'layer' \({kind}\): .*{message}"):
        one_layer(f'type: "{kind}" {rest}', *shapes)


@pytest.mark.parametrize(
    ("tops", "shapes", "message"),
    [
        (("y",), [(1, 4, 2), (1, 4, 8), (1, 4)], "has 1 tops"),
        (("c", "h"), [(2, 4, 2), (1, 4, 8), (1, 4)], r"bottom 'x0' has shape \(2, 4, 2\)"),
        (("c", "h"), [(1, 4, 2), (1, 4, 6), (1, 4)], r"bottom 'x1' has shape \(1, 4, 6\); expected \(1, 4, 8\)"),
        (("c", "h"), [(1, 4, 2), (1, 4, 8), (4,)], r"bottom 'x2' has shape \(4,\); expected \(1, 4\)"),
    ],
)
def test_what_does_not_fit_an_lstm_unit(tops: tuple[str, ...], shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=rf"layer 'layer' \(LSTMUnit\): .*{message}"):
        one_layer('type: "LSTMUnit"', *shapes, tops=tops)


@pytest.mark.parametrize("state", [(1, 4, 2), (4, 3)])
def test_exposed_states_of_another_shape(state: tuple[int, ...]) -> None:
    layer = 'type: "RNN" recurrent_param { num_output: 3 expose_hidden: true }'
    message = f"layer 'layer' (RNN): bottom 'x2' has shape {state}; expected (1, 4, 3)"
    with pytest.raises(caffe.CaffeError, match=re.escape(message)):
        one_layer(layer, (5, 4, 6), (5, 4), state, tops=("y", "h"))


def test_a_mask_of_averages() -> None:
    layer = 'type: "Pooling" pooling_param { pool: AVE kernel_size: 2 }'
    with pytest.raises(caffe.CaffeError, match=re.escape("layer 'layer' (Pooling): has 2 tops with pool: AVE")):
        one_layer(layer, IMAGE, tops=("y", "mask"))


def test_a_bottom_that_grew_an_axis() -> None:
    net = one_layer('type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 }', IMAGE)
    net.blobs["x0"].reshape(4, 6, 9, 8, 1)
    with pytest.raises(
        caffe.CaffeError, match=r"layer 'layer'.*bottom 'x0' has shape .*; expected 4 axes and 6 channels"
    ):
        net.reshape()
