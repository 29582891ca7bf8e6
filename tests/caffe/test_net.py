"""Net: pycaffe's interface, passes over part of the layers, weights from and to files, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from small_nets import input_layer, net_of, normal, one_layer, run
from torch.utils._python_dispatch import TorchDispatchMode

import caffe
from caffe.io import blobproto_to_array, read_binary
from caffe.layers.activation import RectifyInPlace
from caffe.proto.caffe_pb2 import NetParameter

ROOT = Path(__file__).resolve().parents[2]

XAVIER = 'weight_filler { type: "xavier" } bias_filler { type: "gaussian" std: 0.3 }'
# a chain with layers in place, two of them in a row on one blob
CHAIN = f"""
name: "chain"
{input_layer("data", 2, 3, 8, 7)}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{ num_output: 4 kernel_size: 3 {XAVIER} }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }}
layer {{ name: "scale" type: "Scale" bottom: "conv" top: "conv"
  scale_param {{ bias_term: true filler {{ type: "gaussian" mean: 1 std: 0.2 }} bias_filler {{ type: "gaussian" }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param {{ num_output: 5 {XAVIER} }} }}
layer {{ name: "tanh" type: "TanH" bottom: "fc" top: "fc" }}
layer {{ name: "prob" type: "Softmax" bottom: "fc" top: "prob" }}
"""
LAYERS = ["data", "conv", "bn", "scale", "relu", "pool", "fc", "tanh", "prob"]


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "chain.prototxt"
    path.write_text(CHAIN)
    return path


def filled(phase: int = caffe.TRAIN, backward: bool = True) -> caffe.Net:
    """The chain with its input, its running statistics and its output's diff filled in."""
    net = net_of(CHAIN, phase=phase, backward=backward)
    for blob, value in zip(net.params["bn"], (0.4, 6.0, 2.0), strict=True):
        blob.data[...] = value
    net.blobs["data"].data[...] = normal(2, 3, 8, 7)
    net.blobs["prob"].diff[...] = normal(2, 5, seed=1)
    return net


def close(ours: np.ndarray, theirs: np.ndarray, what: str = "") -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=what)


# Construction


def test_the_forms_of_the_constructor(chain: Path, tmp_path: Path) -> None:
    first = caffe.Net(str(chain), caffe.TEST)
    first.save(str(tmp_path / "weights.caffemodel"))
    weights = str(tmp_path / "weights.caffemodel")
    for net in (
        caffe.Net(str(chain), weights, caffe.TEST),
        caffe.Net(str(chain), caffe.TEST, weights=weights),
        caffe.Net(chain, phase=caffe.TEST, weights=tmp_path / "weights.caffemodel"),
        caffe.Net(text_format.Parse(CHAIN, NetParameter()), weights, caffe.TEST),
    ):
        assert net.name == "chain"
        assert net.inputs == ["data"]
        assert net.outputs == ["prob"]
        assert list(net.blobs) == ["data", "conv", "pool", "fc", "prob"]
        assert list(net.params) == ["conv", "bn", "scale", "fc"]
        assert list(net.layer_dict) == LAYERS
        assert [layer.type for layer in net.layers][:3] == ["Input", "Convolution", "BatchNorm"]
        for name, blobs in net.params.items():
            for ours, theirs in zip(blobs, first.params[name], strict=True):
                assert np.array_equal(ours.data, theirs.data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "phase is None"),
        (("w.caffemodel",), "phase is 'w.caffemodel'"),
        ((2,), "phase is 2"),
        ((1, 0, None, None, 3), "6 posit"),
    ],
)
def test_wrong_arguments_of_the_constructor(chain: Path, arguments: tuple, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=message):
        caffe.Net(str(chain), *arguments)


def test_missing_files_are_named(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(caffe.CaffeError, match=r"nowhere\.prototxt: No such file"):
        caffe.Net(str(tmp_path / "nowhere.prototxt"), caffe.TEST)
    with pytest.raises(caffe.CaffeError, match=r"nowhere\.caffemodel: No such file"):
        caffe.Net(str(chain), str(tmp_path / "nowhere.caffemodel"), caffe.TEST)


@pytest.mark.parametrize(
    "form",
    [
        'input: "a" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 5',
        'input: "a" input_shape { dim: 2 dim: 3 dim: 4 dim: 5 }',
        input_layer("a", 2, 3, 4, 5),
    ],
)
def test_old_and_new_forms_of_the_input(form: str) -> None:
    net = net_of(form + ' layer { name: "relu" type: "ReLU" bottom: "a" top: "b" }')
    assert (net.inputs, net.outputs) == (["a"], ["b"])
    assert net.blobs["b"].shape == (2, 3, 4, 5)


def test_two_inputs_of_the_old_form() -> None:
    shapes = "".join(f"input_dim: {n} " for n in (1, 2, 3, 4, 5, 6, 7, 8))
    net = net_of(f'input: "a" input: "b" {shapes}')
    assert {name: net.blobs[name].shape for name in net.inputs} == {"a": (1, 2, 3, 4), "b": (5, 6, 7, 8)}
    with pytest.raises(caffe.CaffeError, match="2 input need as many input_shape or 8 input_dim, not 0 and 4"):
        net_of('input: "a" input: "b" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4')
    with pytest.raises(caffe.CaffeError, match="input_shape and input_dim"):
        net_of('input: "a" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4 input_shape { dim: 1 }')


def test_outputs_are_the_tops_that_nothing_reads_in_the_order_of_their_names() -> None:
    net = net_of(
        input_layer("x", 2, 6)
        + 'layer { name: "cut" type: "Slice" bottom: "x" top: "zebra" top: "middle" top: "ape" }'
        + 'layer { name: "use" type: "ReLU" bottom: "middle" top: "last" }'
    )
    assert net.outputs == ["ape", "last", "zebra"]
    assert list(net.forward()) == ["ape", "last", "zebra"]


# Rules

RULES = [
    ("", True, True),
    ("include { phase: TRAIN }", True, False),
    ("include { phase: TEST }", False, True),
    ("exclude { phase: TEST }", True, False),
    ("include { phase: TRAIN } include { phase: TEST }", True, True),
    ("exclude { phase: TRAIN } exclude { phase: TEST }", False, False),
]


@pytest.mark.parametrize(("rule", "train", "test"), RULES)
def test_layers_of_a_phase(rule: str, train: bool, test: bool) -> None:
    text = input_layer("x", 1) + f'layer {{ name: "relu" type: "ReLU" bottom: "x" top: "y" {rule} }}'
    assert ("relu" in net_of(text, phase=caffe.TRAIN).layer_dict) == train
    assert ("relu" in net_of(text, phase=caffe.TEST).layer_dict) == test


@pytest.mark.parametrize(
    ("rule", "level", "stages", "kept"),
    [
        ("include { min_level: 2 }", 1, [], False),
        ("include { min_level: 2 }", 2, [], True),
        ("include { min_level: 1 max_level: 2 }", 3, [], False),
        ("exclude { max_level: 2 }", 2, [], False),
        ("exclude { max_level: 2 }", 3, [], True),
        ('include { stage: "deploy" }', 0, [], False),
        ('include { stage: "deploy" }', 0, ["deploy", "fast"], True),
        ('include { stage: "deploy" stage: "fast" }', 0, ["deploy"], False),
        ('include { stage: "deploy" } include { stage: "fast" }', 0, ["fast"], True),
        ('include { not_stage: "deploy" }', 0, ["deploy"], False),
        ('include { not_stage: "deploy" }', 0, ["fast"], True),
        ('include { stage: "a" not_stage: "b" phase: TEST min_level: 1 }', 1, ["a"], True),
        ('include { stage: "a" not_stage: "b" phase: TEST min_level: 1 }', 1, ["a", "b"], False),
    ],
)
def test_layers_of_a_level_and_of_stages(rule: str, level: int, stages: list[str], kept: bool) -> None:
    text = input_layer("x", 1) + f'layer {{ name: "relu" type: "ReLU" bottom: "x" top: "y" {rule} }}'
    assert ("relu" in net_of(text, level=level, stages=stages).layer_dict) == kept


def test_include_and_exclude_together() -> None:
    with pytest.raises(caffe.CaffeError, match="layer 'relu': has include and exclude"):
        net_of(
            input_layer("x", 1)
            + 'layer { name: "relu" type: "ReLU" bottom: "x" top: "y" include { phase: TEST } exclude { stage: "a" } }'
        )


# Blobs


def test_blobs_are_written_and_read_as_arrays() -> None:
    net = one_layer('type: "Power" power_param { power: 2 }', (2, 3))
    x = net.blobs["x0"]
    assert (x.data.dtype, x.data.shape, x.count, x.num, x.channels, x.height, x.width) == (
        np.float32, (2, 3), 6, 2, 3, 1, 1,
    )  # fmt: skip
    assert not x.data.any()
    x.data[...] = [[1, 2, 3], [4, 5, 6]]
    x.data[0, 1] = -2
    assert net.forward()["y"].tolist() == [[1, 4, 9], [16, 25, 36]]
    x.data = np.zeros((2, 3))
    assert net.forward()["y"].tolist() == [[0] * 3] * 2
    x.data[...] = 3
    net.forward()
    net.blobs["y"].diff[...] = [[1, 0, 2], [0, 0, 0]]
    assert net.backward()["x0"].tolist() == [[6, 0, 12], [0, 0, 0]]
    with pytest.raises(ValueError, match="broadcast"):
        x.data[...] = np.zeros((3, 2))


def test_forward_with_arrays_and_further_blobs() -> None:
    net = net_of(CHAIN)
    x = normal(2, 3, 8, 7)
    out = net.forward(data=x, blobs=["pool", "fc"])
    assert list(out) == ["prob", "pool", "fc"]
    assert np.array_equal(net.blobs["data"].data, x)
    assert np.array_equal(out["pool"], net.blobs["pool"].data)
    with pytest.raises(caffe.CaffeError, match=r"inputs are \['image'\]; expected \['data'\]"):
        net.forward(image=x)
    with pytest.raises(caffe.CaffeError, match=r"'data' has shape \(1, 3, 8, 7\); expected \(2, 3, 8, 7\)"):
        net.forward(data=x[:1])
    with pytest.raises(caffe.CaffeError, match="no layer 'nose'; expected one of data, conv"):
        net.forward(start="nose")


def test_backward_with_arrays_and_further_diffs() -> None:
    net = filled()
    net.forward()
    out = net.backward(prob=normal(2, 5, seed=4), diffs=["pool"])
    assert list(out) == ["data", "pool"]
    assert out["data"].any()
    expected = out["data"].copy()
    net.blobs["prob"].diff[...] = normal(2, 5, seed=4)
    assert np.array_equal(net.backward()["data"], expected)
    with pytest.raises(caffe.CaffeError, match=r"'pool' is given a diff; expected one of \['prob'\]"):
        net.backward(pool=np.zeros((2, 4, 3, 3)))
    with pytest.raises(caffe.CaffeError, match=r"'prob' has shape \(5,\); expected \(2, 5\)"):
        net.backward(prob=np.zeros(5))


def test_reshape_goes_through_the_net() -> None:
    net = net_of(CHAIN)
    net.blobs["data"].reshape(5, 3, 8, 7)
    assert net.blobs["pool"].shape[0] == 2
    net.reshape()
    assert [net.blobs[name].shape for name in ("conv", "pool", "prob")] == [(5, 4, 6, 5), (5, 4, 3, 3), (5, 5)]
    x = normal(5, 3, 8, 7)
    net.blobs["data"].data[...] = x
    whole = net.forward()["prob"].copy()
    net.blobs["data"].reshape(1, 3, 8, 7)  # forward alone follows the new shape too
    net.blobs["data"].data[...] = x[3:4]
    close(net.forward()["prob"], whole[3:4])
    net.blobs["data"].reshape(1, 3, 9, 7)
    with pytest.raises(caffe.CaffeError, match=r"layer 'fc'.*expected 36 values from axis 1"):
        net.reshape()
    with pytest.raises(caffe.CaffeError, match="layer 'fc'"):
        net.forward()


def test_writing_to_a_data_layers_blobs_leaves_the_data_set_alone(tmp_path: Path) -> None:
    from tiny_model import write_database

    write_database(tmp_path / "lmdb", [np.full((2, 2), i, np.uint8) for i in range(4)], [0, 1, 2, 3])
    net = net_of(
        f'layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "{tmp_path}/lmdb" '
        "backend: LMDB batch_size: 2 } }"
    )
    for _ in range(4):
        out = net.forward()
        assert out["label"].tolist() in ([0, 1], [2, 3])
        assert out["data"][:, 0, 0, 0].tolist() == out["label"].tolist()
        net.blobs["label"].data[...] = 7
        net.blobs["data"].data[...] = 7


# Part of a pass


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
@pytest.mark.parametrize("cut", range(1, len(LAYERS)))
def test_two_halves_are_the_whole(cut: int, phase: int) -> None:
    """Forward and backward in two parts, cut anywhere, also between layers that share a blob."""
    whole, parts = filled(phase), filled(phase)
    whole.forward()
    parts.forward(end=LAYERS[cut - 1])
    parts.forward(start=LAYERS[cut])
    for name, blob in whole.blobs.items():
        close(parts.blobs[name].data, blob.data, name)
    whole.backward()
    parts.backward(end=LAYERS[cut])
    parts.backward(start=LAYERS[cut - 1])
    assert whole.blobs["data"].diff.any()
    for name, blob in whole.blobs.items():
        close(parts.blobs[name].diff, blob.diff, name)
    for name, blobs in whole.params.items():
        for i, blob in enumerate(blobs):
            close(parts.params[name][i].data, blob.data, f"{name} {i}")
            close(parts.params[name][i].diff, blob.diff, f"{name} {i}")


def test_layer_by_layer() -> None:
    whole, steps = filled(), filled()
    whole.forward()
    whole.backward()
    for name in LAYERS:
        steps.forward(start=name, end=name)
    for name in reversed(LAYERS):
        steps.backward(start=name, end=name)
    for name, blob in whole.blobs.items():
        close(steps.blobs[name].data, blob.data, name)
        close(steps.blobs[name].diff, blob.diff, name)
    for name, blobs in whole.params.items():
        for i, blob in enumerate(blobs):
            close(steps.params[name][i].diff, blob.diff, f"{name} {i}")


def test_a_blob_in_place_holds_what_the_last_layer_left_there() -> None:
    net = filled(caffe.TEST)
    out = {name: net.forward(start=name, end=name)["conv"].copy() for name in ("conv", "bn", "scale", "relu")}
    close(out["bn"], (out["conv"] - 0.2) / np.sqrt(3 + 1e-5))
    gamma, beta = (blob.data.reshape(-1, 1, 1) for blob in net.params["scale"])
    close(out["scale"], gamma * out["bn"] + beta)
    assert np.array_equal(out["relu"], np.maximum(out["scale"], 0))
    for first in ("conv", "bn", "scale", "relu"):
        net.forward(start="conv", end=first)
        assert np.array_equal(net.blobs["conv"].data, out[first]), first


@pytest.mark.parametrize(("blob", "behind"), [("pool", "fc"), ("conv", "relu"), ("data", "conv")])
def test_the_first_pass_of_all_begins_in_between(blob: str, behind: str) -> None:
    """With no pass before it, the gradient reaches what its layers read, also where the first works in place."""
    net, other = filled(caffe.TEST), filled(caffe.TEST)
    other.forward(end=LAYERS[LAYERS.index(behind) - 1])
    for one in (net, other):
        one.blobs[blob].data[...] = normal(*one.blobs[blob].shape, seed=9)
        for _ in range(2):
            one.forward(start=behind)
            one.blobs["prob"].diff[...] = normal(*one.blobs["prob"].shape, seed=4)
            one.backward(end=behind)
    assert net.blobs[blob].diff.any()
    close(net.blobs[blob].diff, other.blobs[blob].diff)


def test_a_first_pass_in_between_gives_no_gradient_to_data() -> None:
    """Without force_backward nobody asks for it, as where the pass begins with the data layer."""
    net = net_of(CHAIN.replace('top: "prob"', 'top: "prob" loss_weight: 1'), phase=caffe.TRAIN, backward=False)
    net.blobs["data"].data[...] = normal(*net.blobs["data"].shape, seed=9)
    net.blobs["prob"].diff[...] = normal(*net.blobs["prob"].shape, seed=4)
    net.forward(start="conv")
    net.backward()
    assert net.params["conv"][0].diff.any()
    assert not net.blobs["data"].diff.any()


@pytest.mark.parametrize(
    ("blob", "behind"), [("conv", "pool"), ("conv", "bn"), ("pool", "fc"), ("fc", "tanh"), ("data", "conv")]
)
def test_values_that_the_user_put_in_between(blob: str, behind: str) -> None:
    """The later layers see them, and the gradient goes on through the layers that computed the old ones."""
    net = filled(caffe.TEST)
    net.forward(end=LAYERS[LAYERS.index(behind) - 1])
    value = (1e3 * normal(*net.blobs[blob].shape, seed=9)).astype(np.float32)
    net.blobs[blob].data[...] = value
    net.forward(start=behind)
    other = net_of(  # the same later layers with that value as their input
        input_layer(blob, *value.shape) + CHAIN[CHAIN.index(f'layer {{ name: "{behind}"') :], phase=caffe.TEST
    )
    for name in other.params:
        for ours, theirs in zip(other.params[name], net.params[name], strict=True):
            ours.data[...] = theirs.data
    other.blobs[blob].data[...] = value
    other.forward()
    assert np.array_equal(net.blobs["prob"].data, other.blobs["prob"].data)
    other.blobs["prob"].diff[...] = net.blobs["prob"].diff
    net.backward(end=behind)
    other.backward()
    close(net.blobs[blob].diff, other.blobs[blob].diff)
    if behind == "pool":
        return  # the gradient of the ReLU in front looks at its own output, which is what was overwritten
    diff = net.blobs[blob].diff.copy()
    before = LAYERS[LAYERS.index(behind) - 1]
    net.backward(start=before)
    alone = filled(caffe.TEST)  # what the earlier layers make of that diff
    alone.forward(end=before)
    alone.blobs[blob].diff[...] = diff
    alone.backward(start=before)
    close(net.blobs["data"].diff, alone.blobs["data"].diff)


def test_diffs_that_the_user_put_in_between() -> None:
    net = filled(caffe.TEST)
    net.forward()
    net.backward(end="fc")
    net.blobs["pool"].diff[...] = 0
    net.blobs["pool"].diff[0, 2, 1, 1] = 5
    net.backward(start="pool")
    assert (net.blobs["conv"].diff != 0).any((1, 2, 3)).tolist() == [True, False]
    channels = (net.blobs["conv"].diff != 0).any((0, 2, 3))
    assert channels.tolist() == [False, False, True, False]


def test_backward_from_the_middle_alone() -> None:
    """As for pictures of what a unit sees: forward to a layer, a diff there, and back to the input."""
    net = filled(caffe.TEST)
    net.forward(end="relu")
    net.blobs["conv"].diff[...] = net.blobs["conv"].data
    out = net.backward(start="relu")
    full = net_of(CHAIN[: CHAIN.index('layer { name: "pool"')], phase=caffe.TEST)
    full.share_with(net)
    full.blobs["data"].data[...] = net.blobs["data"].data
    full.forward()
    full.blobs["conv"].diff[...] = full.blobs["conv"].data
    close(out["data"], full.backward()["data"])
    assert out["data"].any()


# The gradient


def test_parameter_diffs_add_up_until_they_are_cleared() -> None:
    net = filled()
    net.forward()
    net.backward()
    once = net.params["fc"][0].diff.copy()
    net.backward()
    close(net.params["fc"][0].diff, 2 * once)
    net.clear_param_diffs()
    assert not net.params["fc"][0].diff.any()


LOSSES = (
    input_layer("x", 4, 3)
    + input_layer("label", 4)
    + 'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param { num_output: 3 '
    'weight_filler { type: "gaussian" std: 1 } } }'
    'layer { name: "first" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "first" FIRST }'
    'layer { name: "second" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "second" SECOND }'
)


def test_loss_weights() -> None:
    def gradient(first: str, second: str) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
        net = net_of(LOSSES.replace("FIRST", first).replace("SECOND", second), backward=False)
        net.blobs["x"].data[...] = normal(4, 3)
        net.blobs["label"].data[...] = [0, 1, 2, 0]
        loss = float(net.compute())
        net.backward()
        return net.params["fc"][0].diff.copy(), loss, {name: net.blobs[name].data for name in net.outputs}

    base, loss, outputs = gradient("loss_weight: 0", "")
    assert loss == float(outputs["second"]) == float(outputs["first"])  # what a loss reports is not weighted
    for first, second, factor in (("", "", 2), ("loss_weight: 3", "loss_weight: 0.5", 3.5), ("loss_weight: -1", "", 0)):
        weighted, total, outputs = gradient(first, second)
        np.testing.assert_allclose(weighted, factor * base, rtol=1e-5, atol=1e-6)
        assert total == pytest.approx(factor * loss, abs=1e-6)
        assert float(outputs["first"]) == loss


def test_any_blob_can_be_a_loss() -> None:
    net = net_of(input_layer("x", 2, 2) + 'layer { name: "l" type: "Power" bottom: "x" top: "y" loss_weight: 4 }')
    net.blobs["x"].data[...] = [[1, 2], [3, 4]]
    assert float(net.compute()) == 40
    net.backward()
    assert net.blobs["x"].diff.tolist() == [[4, 4], [4, 4]]


SIAMESE = (
    (
        input_layer("a", 2, 3)
        + input_layer("b", 2, 3)
        + "".join(
            f'layer {{ name: "fc_{i}" type: "InnerProduct" bottom: "{i}" top: "fc_{i}" '
            f'param {{ name: "w" {{}} }} inner_product_param {{ num_output: 4 bias_term: false {XAVIER} }} }}\n'
            for i in "ab"
        )
    )
    .replace("{}", "LR", 1)
    .replace("{}", "OTHER", 1)
)


def test_shared_parameters() -> None:
    net = net_of(SIAMESE.replace("LR", "lr_mult: 3").replace("OTHER", ""))
    (a,), (b,) = net.params["fc_a"], net.params["fc_b"]
    assert a is b
    assert net.learnable_params == [a]
    assert a.lr_mult == 3
    xs = {name: normal(2, 3, seed=i) for i, name in enumerate("ab")}
    diffs = {f"fc_{name}": normal(2, 4, seed=5 + i) for i, name in enumerate("ab")}
    out = net.forward(**xs)
    for name in "ab":
        close(out[f"fc_{name}"], xs[name] @ a.data.T)
    net.backward(**diffs)
    close(a.diff, sum(diffs[f"fc_{name}"].T @ xs[name] for name in "ab"))
    a.data[...] = 0
    assert not net.forward()["fc_b"].any()


def test_shared_parameters_in_a_part_of_a_pass() -> None:
    """The same weights twice in a row: a pass through the second layer alone gives its part of the gradient."""
    inner = f"inner_product_param {{ num_output: 3 bias_term: false {XAVIER} }}"
    net = net_of(
        input_layer("x", 2, 3)
        + f'layer {{ name: "a" type: "InnerProduct" bottom: "x" top: "a" param {{ name: "w" }} {inner} }}'
        + f'layer {{ name: "b" type: "InnerProduct" bottom: "a" top: "b" param {{ name: "w" }} {inner} }}'
    )
    x, diff, w = normal(2, 3), normal(2, 3, seed=1), net.params["a"][0].data
    net.forward(x=x)
    net.backward(b=diff, end="b")
    close(net.params["b"][0].diff, diff.T @ (x @ w.T))
    net.backward(start="a")
    close(net.params["b"][0].diff, diff.T @ (x @ w.T) + (diff @ w).T @ x)


def test_a_sharers_rate_is_the_owners() -> None:
    for owner, sharer, rate in (("", "lr_mult: 3", 3), ("lr_mult: 3", "lr_mult: 3", 3), ("lr_mult: 2", "", 2)):
        net = net_of(SIAMESE.replace("LR", owner).replace("OTHER", sharer))
        assert [blob.lr_mult for blob in net.learnable_params] == [rate]
    with pytest.raises(caffe.CaffeError, match=r"'fc_b'.*'w': lr_mult is 3.*owner's is 2"):
        net_of(SIAMESE.replace("LR", "lr_mult: 2").replace("OTHER", "lr_mult: 3"))


def test_shared_parameters_of_different_shapes() -> None:
    text = SIAMESE.replace("LR", "").replace("OTHER", "").replace(input_layer("b", 2, 3), input_layer("b", 2, 5))
    with pytest.raises(caffe.CaffeError, match=r"'fc_b'.*'w' has shape \(4, 5\).*\(4, 3\)"):
        net_of(text)


def test_permissive_sharing_keeps_each_layers_shape(tmp_path: Path) -> None:
    """As many values in another shape: not transposed, but read in the same order."""
    text = input_layer("x", 2, 3) + "".join(
        f'layer {{ name: "{top}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" param {{ name: "w" {mode} }} '
        f"inner_product_param {{ num_output: {outputs} bias_term: false {XAVIER} }} }}\n"
        for bottom, top, outputs, mode in (("x", "a", 2, ""), ("a", "b", 3, "share_mode: PERMISSIVE"))
    )
    with pytest.raises(caffe.CaffeError, match=r"'b'.*'w' has shape \(3, 2\).*\(2, 3\)"):
        net_of(text.replace("share_mode: PERMISSIVE", ""))
    net = net_of(text, phase=caffe.TRAIN)
    (a,), (b,) = net.params["a"], net.params["b"]
    assert (a.shape, b.shape, net.learnable_params) == ((2, 3), (3, 2), [a])
    w, x, diff = a.data.copy(), normal(2, 3), normal(2, 3, seed=1)
    close(net.forward(x=x)["b"], x @ w.T @ w.reshape(3, 2).T)
    close(net.infer(x=torch.from_numpy(x))["b"].numpy(), x @ w.T @ w.reshape(3, 2).T)
    net.backward(b=diff)
    whole = (diff @ w.reshape(3, 2)).T @ x + (diff.T @ (x @ w.T)).reshape(2, 3)
    close(a.diff, whole)
    close(b.diff, whole.reshape(3, 2))
    b.data[...] = np.arange(6).reshape(3, 2)
    assert a.data.tolist() == [[0, 1, 2], [3, 4, 5]]
    net.save(tmp_path / "w.caffemodel")
    net.save_hdf5(tmp_path / "w.caffemodel.h5")
    for path in tmp_path.iterdir():
        other = net_of(text, seed=7)
        other.copy_from(path)
        assert other.params["b"][0].data.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_shared_parameters_in_a_file(tmp_path: Path) -> None:
    net = net_of(SIAMESE.replace("LR", "").replace("OTHER", ""))
    net.save(tmp_path / "shared.caffemodel")
    stored = read_binary(tmp_path / "shared.caffemodel", NetParameter())
    assert [len(layer.blobs) for layer in stored.layer] == [0, 0, 1, 1]
    other = net_of(SIAMESE.replace("LR", "").replace("OTHER", ""), seed=9)
    assert not np.array_equal(other.params["fc_a"][0].data, net.params["fc_a"][0].data)
    other.copy_from(tmp_path / "shared.caffemodel")
    assert np.array_equal(other.params["fc_a"][0].data, net.params["fc_a"][0].data)
    assert other.params["fc_a"][0] is other.params["fc_b"][0]


def test_propagate_down_stops_the_gradient() -> None:
    text = (
        input_layer("x", 2, 3)
        + 'layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 3 FILL } }'
        'layer { name: "b" type: "InnerProduct" bottom: "x" top: "b" inner_product_param { num_output: 3 FILL } }'
        'layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" loss_weight: 1 PROPAGATE }'
    ).replace("FILL", XAVIER)
    seen = {}
    for setting in ("", "propagate_down: true propagate_down: false", "propagate_down: false propagate_down: true"):
        for forced in (False, True):
            net = net_of(text.replace("PROPAGATE", setting), backward=forced)
            net.blobs["x"].data[...] = normal(2, 3)
            net.forward()
            net.backward()
            flows = [net.blobs[name].diff.any() for name in ("a", "b", "x")]
            seen[setting, forced] = [*flows, *(net.params[name][0].diff.any() for name in ("a", "b"))]
    assert [flows for (_, forced), flows in seen.items() if not forced] == [
        [True, True, False, True, True],
        [True, False, False, True, False],
        [False, True, False, False, True],
    ]
    # as in Caffe, where force_backward has the last word
    assert [flows for (_, forced), flows in seen.items() if forced] == [[True] * 5] * 3
    with pytest.raises(caffe.CaffeError, match=r"'sum'.*1 propagate_down for 2 bottoms"):
        net_of(text.replace("PROPAGATE", "propagate_down: true"))


def test_without_force_backward_the_inputs_have_no_gradient() -> None:
    text = LOSSES.replace("FIRST", "").replace("SECOND", "loss_weight: 0")
    for force in (False, True):
        net = net_of(text, backward=force)
        net.blobs["x"].data[...] = normal(4, 3)
        net.forward()
        net.backward()
        assert net.blobs["x"].diff.any() == force
        assert net.params["fc"][0].diff.any()


def test_parameters_with_a_rate_of_0_get_no_gradient() -> None:
    text = LOSSES.replace("FIRST", "").replace("SECOND", "").replace('top: "fc"', 'top: "fc" param { lr_mult: 0 }')
    net = net_of(text, backward=False)
    net.blobs["x"].data[...] = normal(4, 3)
    net.forward()
    net.backward()
    weight, bias = net.params["fc"]
    assert not weight.diff.any()
    assert bias.diff.any()


# BatchNorm and Scale in one pass


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 3)])
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
@pytest.mark.parametrize("tops", [("x", "x", "x"), ("n", "n", "n"), ("x", "s", "s"), ("n", "s", "s")])
def test_batch_norm_and_scale_together_and_apart(shape: tuple[int, ...], phase: int, tops: tuple[str, ...]) -> None:
    """In place or not, the two are what they are when a layer between keeps them from being computed as one."""
    norm, scale, last = tops
    text = (
        input_layer("data", *shape)
        + 'layer { name: "in" type: "Power" bottom: "data" top: "x" }'
        + f'layer {{ name: "bn" type: "BatchNorm" bottom: "x" top: "{norm}" }} MIDDLE'
        + f'layer {{ name: "scale" type: "Scale" bottom: "{norm}" top: "{scale}" scale_param {{ bias_term: true '
        'filler { type: "gaussian" } bias_filler { type: "gaussian" } } }'
        + f'layer {{ name: "out" type: "TanH" bottom: "{last}" top: "out" }}'
    )
    between = f'layer {{ name: "between" type: "Power" bottom: "{norm}" top: "{norm}" }}'
    together, apart = (net_of(text.replace("MIDDLE", middle), phase=phase) for middle in ("", between))
    for step in range(3):
        for net in (together, apart):
            for blob, value in zip(net.params["bn"], (0.5, 3.0, 2.0), strict=True):
                blob.data[...] = value if step == 0 else blob.data
            net.blobs["data"].data[...] = normal(*shape, seed=step)
            net.blobs["out"].diff[...] = normal(*shape, seed=9)
            net.clear_param_diffs()
        together.compute()
        apart.compute()
        together.propagate()
        apart.propagate()
        for name in {"out", scale}:
            close(together.blobs[name].data, apart.blobs[name].data, name)
        close(together.blobs["data"].diff, apart.blobs["data"].diff)
        for name in ("bn", "scale"):
            for a, b in zip(together.params[name], apart.params[name], strict=True):
                close(a.data, b.data, name)
                close(a.diff, b.diff, name)
        assert together.blobs["data"].diff.any()
        assert together.params["scale"][0].diff.any()


# ReLU in place

GAUSSIAN = 'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" }'


@pytest.mark.parametrize(
    ("makes", "relu", "in_place"),
    [
        (f'type: "Convolution" convolution_param {{ num_output: 3 kernel_size: 1 {GAUSSIAN} }}', "", True),
        (f'type: "InnerProduct" inner_product_param {{ num_output: 6 {GAUSSIAN} }}', "", True),
        ('type: "BatchNorm"', "", True),
        ('type: "Scale" scale_param { filler { type: "gaussian" } }', "", True),
        ('type: "Eltwise" bottom: "x"', "", True),
        ('type: "Eltwise" bottom: "x" bottom: "x" eltwise_param { operation: PROD }', "", True),
        ('type: "TanH"', "", False),  # keeps its top for the way back
        ('type: "Eltwise" bottom: "x"', "relu_param { negative_slope: 0.5 }", False),
        # views, of what their makers compute
        (f'type: "InnerProduct" inner_product_param {{ num_output: 6 axis: 2 {GAUSSIAN} }}', "", False),
        (f'type: "Convolution" convolution_param {{ num_output: 3 kernel_size: 1 axis: 2 {GAUSSIAN} }}', "", False),
    ],
)
def test_relu_in_place_and_apart(makes: str, relu: str, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs and diffs, those of the blob in place too, are what they are when each layer runs alone."""
    text = (
        input_layer("x", 4, 3, 5, 5)
        + 'layer { name: "first" type: "Power" bottom: "x" top: "a" power_param { scale: 2 } }'
        + f'layer {{ name: "made" bottom: "a" top: "b" {makes} }}'
        + f'layer {{ name: "relu" type: "ReLU" bottom: "b" top: "b" {relu} }}'
        + 'layer { name: "out" type: "Power" bottom: "b" top: "out" power_param { power: 2 } }'
    )
    check_in_place(text, in_place, monkeypatch)


CHAIN_OF_TWO = (
    input_layer("x", 4, 3, 5, 5)
    + 'layer { name: "conv" type: "Convolution" bottom: "x" top: "b" '
    + f"convolution_param {{ num_output: 3 kernel_size: 1 {GAUSSIAN} }} }}"
    + 'layer { name: "relu" type: "ReLU" bottom: "b" top: "b" }'
    + 'layer { name: "out" type: "Power" bottom: "b" top: "out" power_param { power: 2 } }'
)


def check_in_place(text: str, in_place: bool, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    calls: list[object] = []
    monkeypatch.setattr(RectifyInPlace, "apply", lambda x, apply=RectifyInPlace.apply: calls.append(x) or apply(x))
    together, apart = (net_of(text, phase=caffe.TRAIN, **settings) for _ in range(2))
    for net in (together, apart):
        net.blobs["x"].data[...] = normal(4, 3, 5, 5)
        net.compute(fuse=net is together)
        assert len(calls) == in_place
        net.blobs["out"].diff[...] = normal(*net.blobs["out"].shape, seed=9)
        net.propagate()
    assert together.blobs["b"].data.min() == 0 or not in_place
    for name, blob in together.blobs.items():
        close(blob.data, apart.blobs[name].data, name)
        close(blob.diff, apart.blobs[name].diff, name)
        assert blob.diff.any(), name
    for name, blobs in together.params.items():
        for ours, theirs in zip(blobs, apart.params[name], strict=True):
            close(ours.diff, theirs.diff, name)


def test_relu_is_not_in_place_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    check_in_place(CHAIN_OF_TWO, True, monkeypatch)
    check_in_place(CHAIN_OF_TWO, False, monkeypatch, precision="bf16")


def test_a_pass_that_begins_with_a_relu_leaves_what_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    check_in_place(CHAIN_OF_TWO, True, monkeypatch)
    together, apart = (net_of(CHAIN_OF_TWO, phase=caffe.TRAIN) for _ in range(2))
    for net in (together, apart):
        net.blobs["x"].data[...] = normal(4, 3, 5, 5)
        net.compute(fuse=net is together)
        net.blobs["b"].data[...] = written = normal(4, 3, 5, 5, seed=2)
        mine = net.blobs["b"].data
        net.compute(start=2, fuse=net is together)
        close(mine, written)
        net.blobs["out"].diff[...] = normal(4, 3, 5, 5, seed=9)
        net.propagate()
    for name in ("x", "b", "out"):
        close(together.blobs[name].data, apart.blobs[name].data, name)
        close(together.blobs[name].diff, apart.blobs[name].diff, name)


def test_relu_is_not_in_place_where_another_layer_has_read_its_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        input_layer("x", 4, 3, 5, 5)
        + f'layer {{ name: "conv" type: "Convolution" bottom: "x" top: "b" convolution_param {{ num_output: 3 '
        f"kernel_size: 1 {GAUSSIAN} }} }}"
        + 'layer { name: "reads" type: "Power" bottom: "b" top: "c" power_param { power: 2 } }'
        + 'layer { name: "relu" type: "ReLU" bottom: "b" top: "b" }'
        + 'layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "c" top: "out" }'
    )
    check_in_place(text, False, monkeypatch)


def test_relu_behind_batch_norm_and_scale_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        input_layer("x", 4, 3, 5, 5)
        + 'layer { name: "first" type: "Power" bottom: "x" top: "b" power_param { scale: 2 } }'
        + 'layer { name: "norm" type: "BatchNorm" bottom: "b" top: "b" }'
        + 'layer { name: "scale" type: "Scale" bottom: "b" top: "b" scale_param { filler { type: "gaussian" } } }'
        + 'layer { name: "relu" type: "ReLU" bottom: "b" top: "b" }'
        + 'layer { name: "out" type: "Power" bottom: "b" top: "out" power_param { power: 2 } }'
    )
    check_in_place(text, True, monkeypatch)


# infer


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_infer_is_forward(phase: int) -> None:
    import torch

    net = filled(phase)
    x = normal(5, 3, 8, 7)
    out = net.infer(data=torch.from_numpy(x))
    assert list(out) == ["prob"]
    assert out["prob"].dtype == torch.float32
    assert not net.blobs["prob"].data.any(), "infer left something in the blobs"
    net.blobs["data"].reshape(*x.shape)
    net.blobs["data"].data[...] = x
    close(net.forward()["prob"], out["prob"].numpy())
    with pytest.raises(caffe.CaffeError, match=r"inputs are \['image'\]; expected \['data'\]"):
        net.infer(image=torch.zeros(1))
    with pytest.raises(caffe.CaffeError, match=r"layer 'conv'.*'data'"):
        net.infer(data=torch.zeros(1, 2, 8, 7))


def test_infer_of_any_size() -> None:
    import torch

    net = net_of(CHAIN[: CHAIN.index('layer { name: "fc"')], phase=caffe.TEST)
    x = normal(1, 3, 19, 23)
    net.blobs["data"].reshape(*x.shape)
    net.blobs["data"].data[...] = x
    out = net.infer(data=torch.from_numpy(x))["pool"].numpy()
    assert out.shape == (1, 4, 9, 11)
    expected = net.forward()["pool"]
    # folded into the convolution, a batch norm rounds otherwise: to the precision of the largest values
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


# Weights


def test_params_are_views() -> None:
    net = filled(caffe.TEST)
    before = net.forward()["prob"].copy()
    weight = net.params["fc"][0].data
    weight *= 2
    net.params["fc"][1].data[:] += 1
    assert np.array_equal(net.params["fc"][0].data, weight)
    assert not np.allclose(net.forward()["prob"], before)
    net.params["fc"][0].data[...] = 0
    assert not weight.any()


def test_save_and_load_bit_for_bit(chain: Path, tmp_path: Path) -> None:
    net = filled()
    odd = np.array([np.pi, 1e-45, -0.0, np.inf, 3.4e38], np.float32)
    net.params["fc"][1].data[...] = odd
    net.forward()  # BatchNorm's running sums move
    net.save(tmp_path / "a.caffemodel")
    other = caffe.Net(str(chain), str(tmp_path / "a.caffemodel"), caffe.TEST)
    count = 0
    for name, blobs in net.params.items():
        for ours, theirs in zip(blobs, other.params[name], strict=True):
            assert ours.data.tobytes() == theirs.data.tobytes()
            assert ours.data.shape == theirs.data.shape
            count += 1
    assert count == 9
    other.save(tmp_path / "b.caffemodel")
    a, b = (read_binary(tmp_path / f"{name}.caffemodel", NetParameter()) for name in "ab")
    assert [layer.blobs for layer in a.layer] == [layer.blobs for layer in b.layer]
    assert a.layer[1].blobs[0].shape.dim == [4, 3, 3, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.caffemodel", "b.caffemodel", "chain.prototxt"]


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> bytes:
        return b"".join(blob.data.tobytes() for blob in net_of(CHAIN, seed=seed).learnable_params)

    assert weights(1) == weights(1) != weights(2)
    caffe.set_random_seed(5)
    first = [caffe.Net(text_format.Parse(CHAIN, NetParameter()), caffe.TEST).params["fc"][0].data for _ in range(2)]
    caffe.set_random_seed(5)
    again = caffe.Net(text_format.Parse(CHAIN, NetParameter()), caffe.TEST).params["fc"][0].data
    assert np.array_equal(first[0], again)
    assert not np.array_equal(first[0], first[1])


def test_weights_go_by_name(tmp_path: Path) -> None:
    """As when a net is tuned further for other classes: the last layer is new, the others come from the file."""
    net = net_of(CHAIN)
    net.save(tmp_path / "old.caffemodel")
    tuned = CHAIN.replace('"fc"', '"new"').replace("num_output: 5", "num_output: 2")
    other, untouched = net_of(tuned, seed=2), net_of(tuned, seed=2)
    other.copy_from(tmp_path / "old.caffemodel")
    for name in ("conv", "scale"):
        assert np.array_equal(other.params[name][0].data, net.params[name][0].data)
        assert not np.array_equal(other.params[name][0].data, untouched.params[name][0].data)
    assert np.array_equal(other.params["new"][0].data, untouched.params["new"][0].data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("num_output: 5", "num_output: 2"),
            r"layer 'fc'.*old\.caffemodel.*parameter 0.*\(5, 36\); expected \(2, 36\)",
        ),
        (("num_output: 5", "num_output: 5 bias_term: false"), r"layer 'fc'.*has 2 parameters.*expected 1"),
        (("num_output: 5", "num_output: 5 transpose: true"), r"layer 'fc'.*\(5, 36\); expected \(36, 5\)"),
        (("bias_term: true", "bias_term: false"), r"layer 'scale'.*has 2 parameters.*expected 1"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    net_of(CHAIN).save(tmp_path / "old.caffemodel")
    other = net_of(CHAIN.replace(*change), seed=2)
    before = {name: [blob.data.copy() for blob in blobs] for name, blobs in other.params.items()}
    with pytest.raises(caffe.CaffeError, match=message):
        other.copy_from(tmp_path / "old.caffemodel")
    for name, blobs in other.params.items():
        for blob, old in zip(blobs, before[name], strict=True):
            assert np.array_equal(blob.data, old), f"{name} was copied although the file does not fit"


def test_a_parameter_of_too_few_values(tmp_path: Path) -> None:
    proto, net = net_of(CHAIN).to_proto(), net_of(CHAIN, seed=2)
    next(layer for layer in proto.layer if layer.name == "fc").blobs[1].data.pop()
    (tmp_path / "few.caffemodel").write_bytes(proto.SerializeToString())
    before = [blob.data.copy() for blob in net.learnable_params]
    with pytest.raises(caffe.CaffeError, match=r"layer 'fc'.*few\.caffemodel: parameter 1: .*4 values"):
        net.copy_from(tmp_path / "few.caffemodel")
    assert all(np.array_equal(blob.data, old) for blob, old in zip(net.learnable_params, before, strict=True))


def test_weights_of_an_old_file(tmp_path: Path) -> None:
    """Files from before 2014 state every blob by four axes: num, channels, height, width."""
    net = net_of(CHAIN)
    proto = net.to_proto()
    for layer in proto.layer:
        for blob in layer.blobs:
            dims = [1] * (4 - len(blob.shape.dim)) + list(blob.shape.dim)
            blob.ClearField("shape")
            blob.num, blob.channels, blob.height, blob.width = dims
    (tmp_path / "old.caffemodel").write_bytes(proto.SerializeToString())
    other = net_of(CHAIN, seed=2)
    other.copy_from(tmp_path / "old.caffemodel")
    for ours, theirs in zip(other.learnable_params, net.learnable_params, strict=True):
        assert np.array_equal(ours.data, theirs.data)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_cut_off_caffemodel(tmp_path: Path, keep: float) -> None:
    net_of(CHAIN).save(tmp_path / "whole.caffemodel")
    data = (tmp_path / "whole.caffemodel").read_bytes()
    (tmp_path / "cut.caffemodel").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(caffe.CaffeError, match=r"cut\.caffemodel: "):
        net_of(CHAIN).copy_from(tmp_path / "cut.caffemodel")


def test_files_that_are_no_caffemodel(chain: Path, tmp_path: Path) -> None:
    caffe.io.save_mean(tmp_path / "mean.binaryproto", np.ones((1, 4, 4), np.float32))
    (tmp_path / "noise.caffemodel").write_bytes(np.random.default_rng(0).bytes(3000))
    for name in ("mean.binaryproto", "noise.caffemodel", "chain.prototxt"):
        with pytest.raises(caffe.CaffeError, match=re.escape(name)):
            net_of(CHAIN).copy_from(tmp_path / name)


def test_saving_where_it_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    net = net_of(CHAIN)
    with pytest.raises(OSError):  # noqa: PT011 (which error it is depends on the system)
        net.save(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_weights_in_the_prototxt() -> None:
    text = input_layer("x", 1, 2) + (
        'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 } '
        "blobs { shape { dim: 1 dim: 2 } data: 3 data: 4 } blobs { shape { dim: 1 } data: 5 } }"
    )
    net = net_of(text)
    assert net.forward(x=np.array([[1, 2]]))["y"].tolist() == [[16]]
    assert [blobproto_to_array(blob).tolist() for blob in net.to_proto().layer[1].blobs] == [[[3, 4]], [5]]


def test_share_with() -> None:
    owner, reader = net_of(CHAIN), net_of(CHAIN, seed=2)
    reader.share_with(owner)
    assert np.array_equal(reader.params["fc"][0].data, owner.params["fc"][0].data)
    owner.params["fc"][0].data[...] = 3
    assert (reader.params["fc"][0].data == 3).all()
    reader.params["fc"][0].data[...] = 4
    assert (owner.params["fc"][0].data == 4).all()
    with pytest.raises(caffe.CaffeError, match=r"layer 'fc'.*\(2, 36\)"):
        net_of(CHAIN.replace("num_output: 5", "num_output: 2")).share_with(owner)


def test_nets_that_share_values_have_diffs_of_their_own() -> None:
    """As Caffe's ShareTrainedLayersWith: one net's backward pass leaves the other's diffs, and multipliers, alone."""
    text = input_layer("x", 2, 3) + (
        'layer { name: "a" type: "InnerProduct" bottom: "x" top: "h" RATE '
        'inner_product_param { num_output: 4 weight_filler { type: "gaussian" } } }'
        'layer { name: "b" type: "InnerProduct" bottom: "h" top: "y" loss_weight: 1 '
        'inner_product_param { num_output: 2 weight_filler { type: "gaussian" } } }'
    )
    alone, one = (net_of(text.replace("RATE", "")) for _ in range(2))
    other = net_of(text.replace("RATE", "param { lr_mult: 0 }"), seed=2, backward=False)
    other.share_with(one)
    assert [net.params["a"][0].lr_mult for net in (one, other)] == [1, 0]
    for net in (alone, one, other):
        net.forward(x=normal(2, 3))
        net.backward(y=normal(2, 2, seed=1))
    assert alone.params["a"][0].diff.any()
    for name, blobs in alone.params.items():
        for i, blob in enumerate(blobs):
            close(one.params[name][i].diff, blob.diff, name)
    assert not other.params["a"][0].diff.any()
    close(other.params["b"][0].diff, one.params["b"][0].diff)
    other.clear_param_diffs()
    assert one.params["b"][0].diff.any()
    assert not other.params["b"][0].diff.any()


def test_a_parameter_of_another_shape_shares_too() -> None:
    """Two layers with one parameter, of another shape in the second: a net that shares its values has them in both."""
    text = input_layer("x", 2, 3) + (
        'layer { name: "a" type: "InnerProduct" bottom: "x" top: "h" param { name: "w" } '
        'inner_product_param { num_output: 2 bias_term: false weight_filler { type: "gaussian" } } }'
        'layer { name: "b" type: "InnerProduct" bottom: "h" top: "y" param { name: "w" share_mode: PERMISSIVE } '
        "inner_product_param { num_output: 3 bias_term: false } }"
    )
    one, other = net_of(text), net_of(text, seed=2)
    other.share_with(one)
    x, top = normal(2, 3), normal(2, 3, seed=1)
    for net in (one, other):
        net.forward(x=x)
        net.backward(y=top)
    close(other.blobs["y"].data, one.blobs["y"].data)
    close(other.params["b"][0].diff, one.params["b"][0].diff)
    one.params["b"][0].data[...] = 1
    assert (other.params["a"][0].data == 1).all()


@pytest.mark.parametrize("ending", ["", ".h5"])
def test_layers_of_one_name_share_all_parameters(tmp_path: Path, ending: str) -> None:
    """As the two branches of old Siamese nets do; named apart they compute the same."""
    text = input_layer("x", 2, 3) + "".join(
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" param {{ name: "w" }} '
        'param { name: "b" } inner_product_param { num_output: 3 weight_filler { type: "gaussian" } } }'
        for name, bottom, top in (("a", "x", "h"), ("NAME", "h", "y"))
    )
    one, apart = net_of(text.replace("NAME", "a")), net_of(text.replace("NAME", "b"))
    for net in (one, apart):
        net.forward(x=normal(2, 3))
        net.backward(y=normal(2, 3, seed=1))
    close(one.blobs["y"].data, apart.blobs["y"].data)
    for ours, theirs in zip(one.params["a"], apart.params["a"], strict=True):
        close(ours.diff, theirs.diff)
    file = str(tmp_path / f"net.caffemodel{ending}")
    (one.save_hdf5 if ending else one.save)(file)
    again = net_of(text.replace("NAME", "a"), seed=2)
    again.copy_from(file)
    np.testing.assert_array_equal(again.params["a"][0].data, one.params["a"][0].data)
    half = text.replace('param { name: "b" }', "", 1).replace("NAME", "a")
    with pytest.raises(caffe.CaffeError, match=r"layer 'a' \(InnerProduct\): the name is taken"):
        net_of(half)


def test_a_blob_of_another_shape_does_not_fit_a_layer() -> None:
    net = net_of(
        input_layer("x", 2, 3) + 'layer { name: "a" type: "InnerProduct" bottom: "x" top: "y" '
        "inner_product_param { num_output: 3 } }"
    )
    net.blobs["x"].reshape(2, 4)
    with pytest.raises(caffe.CaffeError, match=r"layer 'a' .*bottom 'x' has shape \(2, 4\); expected 3 values"):
        net.forward()


def test_layers_that_share_a_parameter_in_one_net_alone() -> None:
    text = input_layer("x", 2, 3) + "".join(
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "x" top: "{name}" TIE '
        'inner_product_param { num_output: 3 bias_term: false weight_filler { type: "gaussian" } } }'
        for name in "ab"
    )
    tied, free = net_of(text.replace("TIE", 'param { name: "w" }')), net_of(text.replace("TIE", ""), seed=2)
    before = tied.params["a"][0].data.copy()
    with pytest.raises(caffe.CaffeError, match=r"layer 'b'.*parameter 0 is an earlier layer's here"):
        tied.share_with(free)
    close(tied.params["a"][0].data, before)
    free.share_with(tied)
    free.forward(x=normal(2, 3))
    close(free.blobs["a"].data, free.blobs["b"].data)


def test_a_parameter_that_takes_another_shape_shares_no_more() -> None:
    one, other = net_of(CHAIN), net_of(CHAIN, seed=2)
    other.share_with(one)
    values = one.params["fc"][0].data.copy()
    for net in (other, one):
        again = net_of(CHAIN, seed=3)
        again.share_with(one)
        net.params["fc"][0].reshape(*net.params["fc"][0].shape)  # the shape that it has: no other
        assert net.params["fc"][0].shares_with(again.params["fc"][0])
        net.params["fc"][0].reshape(10, values.size // 10)
        net.params["fc"][0].data[...] = 7
        assert np.array_equal(again.params["fc"][0].data, values)
        assert again.forward()["prob"].shape == (2, 5)
        one = again


# How far the gradient goes

FED = (
    'layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 3 } '
    'data_filler { type: "gaussian" } } }'
    'layer { name: "twice" type: "Power" bottom: "x" top: "h" power_param { scale: 2 } }'
    'layer { name: "fc" type: "InnerProduct" bottom: "h" top: "y" FC inner_product_param { num_output: 1 '
    'weight_filler { type: "gaussian" std: 1 } } }'
    'layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 }'
)


def test_the_gradient_of_data_by_force_backward() -> None:
    """loss = Σ w · 2x: a data layer's top has the gradient 2w, and a weight that does not learn has one too."""
    net = net_of(FED.replace("FC", "param { lr_mult: 0 }"), backward=True)
    net.forward()
    net.backward()
    w = net.params["fc"][0].data
    close(net.blobs["x"].diff, np.repeat(2 * w, 2, 0))
    close(net.params["fc"][0].diff, net.blobs["h"].data.sum(0, keepdims=True))
    plain = net_of(FED.replace("FC", "param { lr_mult: 0 }"), backward=False)
    plain.forward()
    plain.backward()
    assert not plain.blobs["x"].diff.any()
    assert not plain.params["fc"][0].diff.any()


@pytest.mark.parametrize("source", ["DummyData", "Input"])
def test_the_gradient_of_a_bottom_by_propagate_down(source: str) -> None:
    """As in Caffe, where `propagate_down: true` asks for the gradient of a bottom that nothing learned has made."""
    text = FED.replace("FC", "propagate_down: true")
    if source == "Input":
        text = input_layer("x", 2, 3) + text[text.index('layer { name: "twice"') :]
    net = net_of(text, backward=False)
    net.forward()
    net.backward()
    close(net.blobs["h"].diff, np.repeat(net.params["fc"][0].data, 2, 0))
    assert not net.blobs["x"].diff.any()
    text = text.replace('top: "h"', 'top: "h" propagate_down: true')
    net = net_of(text, backward=False)
    net.forward()
    net.backward()
    close(net.blobs["x"].diff, np.repeat(2 * net.params["fc"][0].data, 2, 0))


def test_propagate_down_asks_for_one_reader_alone() -> None:
    """x goes through 2x, which asks for its gradient, and through 5x, which does not: in Caffe a Split parts them."""
    text = FED.replace("FC", "").replace('top: "h" power', 'top: "h" propagate_down: true power')
    text = text.replace(
        'layer { name: "fc"',
        'layer { name: "five" type: "Power" bottom: "x" top: "f" power_param { scale: 5 } }'
        'layer { name: "sum" type: "Eltwise" bottom: "h" bottom: "f" top: "s" } layer { name: "fc"',
    ).replace('bottom: "h" top: "y"', 'bottom: "s" top: "y"')
    net = net_of(text, backward=False)
    net.forward()
    net.backward()
    close(net.blobs["x"].diff, np.repeat(2 * net.params["fc"][0].data, 2, 0))
    assert not net.blobs["f"].diff.any()
    assert not net.layer_needs_backward[2]


def test_a_weight_in_sixteen_bits_stays_as_it_is_written() -> None:
    text = LOSS[: LOSS.index('layer { name: "loss"')].replace('top: "y"', 'top: "y" loss_weight: 0.1')
    net = net_of(text, precision="bf16", phase=caffe.TRAIN)
    losses = []
    for _ in range(3):
        net.blobs["x"].data[...] = normal(2, 3)
        losses.append(float(net.compute()))
        net.propagate()
    assert losses[0] == losses[1] == losses[2]
    assert (net.blobs["y"].diff == np.float32(0.1)).all()


# What a loss counts

LOSS = input_layer("x", 2, 3) + (
    'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 '
    'weight_filler { type: "gaussian" std: 1 } } }'
    'layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 2.5 }'
)


def test_the_diff_of_a_loss_is_its_weight_until_it_is_written() -> None:
    net, x = net_of(LOSS), normal(2, 3)
    assert net.blobs["loss"].diff == 2.5
    net.forward(x=x)
    assert net.backward()["x"] == pytest.approx(2.5 * np.repeat(net.params["fc"][0].data, 2, 0))
    assert net.blobs["loss"].diff == 2.5
    net.blobs["loss"].diff[...] = 5
    for _ in range(2):  # it stays
        net.forward()
        assert net.backward()["x"] == pytest.approx(5 * np.repeat(net.params["fc"][0].data, 2, 0))
    assert float(net.compute()) == pytest.approx(5 * float(net.blobs["loss"].data))
    assert net.backward(loss=np.float32(-1))["x"] == pytest.approx(-np.repeat(net.params["fc"][0].data, 2, 0))


def test_a_loss_that_is_read_counts_by_its_weight() -> None:
    """Σ 2.5 y + Σ y²: y has the gradient 2.5 + 2y, which is no weight of the next pass."""
    net = net_of(
        LOSS[: LOSS.index('layer { name: "loss"')].replace('top: "y"', 'top: "y" loss_weight: 2.5')
        + 'layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 '
        "reduction_param { operation: SUMSQ } }"
    )
    for _ in range(2):
        net.forward(x=normal(2, 3))
        net.backward()
        close(net.blobs["y"].diff, 2.5 + 2 * net.blobs["y"].data)


def test_inputs_that_lack_axes_of_one_value() -> None:
    net, x = net_of(CHAIN), normal(*net_of(CHAIN).blobs["data"].shape)
    expected = net.forward(data=x)["prob"].copy()
    close(net.forward(data=x[..., None])["prob"], expected)
    close(net.forward(data=x.tolist())["prob"], expected)
    grey = x[:, :1]  # for all channels, as numpy takes it on assignment
    close(net.forward(data=grey)["prob"], net.forward(data=np.repeat(grey, 3, 1))["prob"].copy())
    for other in (x.reshape(3, -1), x.reshape(2, -1), x.transpose(0, 2, 3, 1)):  # the last: channels at the end
        with pytest.raises(caffe.CaffeError, match=r"'data' has shape \(\d.*expected \(2, 3"):
            net.forward(data=other)


# Errors of the prototxt


def test_nets_for_another_caffe_name_the_layers_that_are_not_known(tmp_path: Path) -> None:
    """Whose settings are what does not parse."""
    foreign = [f'layer {{ name: "roi{i}" type: "ROIPooling" top: "r{i}" roi_pooling_param {{ }} }}' for i in range(5)]
    path = tmp_path / "net.prototxt"
    path.write_text("\n".join([input_layer("x", 2, 3), *foreign[:1]]))
    message = r'net.prototxt:3:\d+: .*no field named "roi_pooling_param"\. .*that Caffe 1.0 has not: \'roi0\' \(ROIPool'
    with pytest.raises(caffe.CaffeError, match=message):
        caffe.Net(path, caffe.TEST)
    path.write_text("\n".join([input_layer("x", 2, 3), *foreign]))
    with pytest.raises(
        caffe.CaffeError, match=r"'roi2' \(ROIPooling\) and 2 more\. .*can be written as a Python layer"
    ):
        caffe.Net(path, caffe.TEST)
    path.write_text('layer { name: "c" type: "Convolution" convolution_param { hole: 2 } }')
    with pytest.raises(caffe.CaffeError, match=r'no field named "hole"\.$'):
        caffe.Net(path, caffe.TEST)


X = input_layer("x", 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (X + 'layer { name: "a" type: "Relu" bottom: "x" top: "y" }', "layer 'a': type 'Relu' is not known.*ReLU"),
        (X + 'layer { name: "a" type: "ReLU6" bottom: "x" top: "y" }', "'ReLU6' is not known.*as a Python layer"),
        (X + 'layer { name: "a" bottom: "x" top: "y" }', "layer 'a': type '' is not known"),
        (X + 'layer { name: "a" type: "ReLU" bottom: "z" top: "y" }', "layer 'a'.*bottom 'z' is no top.*there are x"),
        (X + 'layer { name: "a" type: "ReLU" bottom: "x" }', "layer 'a'.*has 0 tops.*expected 1"),
        (X + 'layer { name: "a" type: "ReLU" top: "y" }', "layer 'a'.*has 0 bottoms.*expected 1"),
        (X + 'layer { name: "a" type: "ReLU" bottom: "x" bottom: "x" top: "y" }', r"layer 'a'.*has 2 bottoms \(x, x\)"),
        (X + 'layer { name: "a" type: "Eltwise" bottom: "x" top: "y" }', "layer 'a'.*1 bottoms.*expected 2 or more"),
        (X + 2 * 'layer { name: "a" type: "Bias" bottom: "x" top: "x" }', r"layer 'a' \(Bias\): the name is taken"),
        (X + 'layer { name: "a" type: "ReLU" bottom: "x" top: "y" }'
         'layer { name: "b" type: "TanH" bottom: "x" top: "y" }', "layer 'b'.*top 'y' is already the top"),
        (X + 'layer { name: "a" type: "Slice" bottom: "x" top: "y" top: "y" slice_param { axis: 0 } }',
         "layer 'a'.*top 'y' is already"),
        (X + 'layer { name: "a" type: "Slice" bottom: "x" top: "y" top: "z" }', r"layer 'a'.*\(2, 3\).*2 tops"),
        (X + 'layer { name: "a" type: "ReLU" bottom: "x" top: "y" loss_weight: 1 loss_weight: 2 }',
         "2 loss_weight for 1"),
        (X + 'layer { name: "a" type: "ReLU" bottom: "x" top: "y" param { lr_mult: 1 } }', "'a'.*1 param for 0"),
        (X + 'layer { name: "a" type: "Softmax" bottom: "x" top: "y" softmax_param { axis: 2 } }', "axis 2.*'x'.*2, 3"),
        (X + input_layer("z", 3, 2) + 'layer { name: "a" type: "Eltwise" bottom: "x" bottom: "z" top: "y" }',
         r"layer 'a'.*bottom 'z' has shape \(3, 2\); expected \(2, 3\)"),
        (X + 'layer { name: "a" type: "InnerProduct" bottom: "x" top: "y" }', "'a'.*num_output is 0"),
        (X + 'layer { name: "a" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 '
         'weight_filler { type: "xaver" } } }', "layer 'a'.*'xaver' is not known"),
        (input_layer("i", 1, 2, 5, 5) + 'layer { name: "a" type: "Convolution" bottom: "i" top: "y" '
         "convolution_param { num_output: 3 kernel_size: 3 group: 2 } }", "'a'.*group 2 does not divide"),
        (input_layer("i", 1, 2, 5, 5) + 'layer { name: "a" type: "Convolution" bottom: "i" top: "y" '
         "convolution_param { num_output: 3 kernel_size: 7 } }", r"'a'.*'i' of shape \(1, 2, 5, 5\) is smaller"),
        (input_layer("i", 1, 2, 5, 5) + 'layer { name: "a" type: "Pooling" bottom: "i" top: "y" '
         "pooling_param { kernel_size: 3 pad: 3 } }", r"'a'.*pad \(3, 3\) is not smaller than the kernel"),
    ],
)  # fmt: skip
def test_nets_that_do_not_fit_together(text: str, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=message):
        net_of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "a"\nlayer {\n  name: "x"\n  typo: "ReLU"\n}\n', r"bad\.prototxt:4:3: .*typo"),
        ('name: "a"\nlayer {\n  relu_param { slope: 1 }\n}\n', r"bad\.prototxt:3:16: .*slope"),
        ('layer {\n  include { phase: TRIAN }\n}\n', r"bad\.prototxt:2:\d+: .*TRIAN"),
        ('layer {\n  name: "x"\n', r"bad\.prototxt:\d+:\d+: "),
        ('layer {\n  name: 3\n}', r"bad\.prototxt:2:\d+: "),
    ],
)  # fmt: skip
def test_prototxts_that_do_not_parse(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.prototxt").write_text(text)
    with pytest.raises(caffe.CaffeError, match=message):
        caffe.Net(str(tmp_path / "bad.prototxt"), caffe.TEST)


def test_a_prototxt_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "bad.prototxt").write_bytes(b"\x0a\xff\xfe\x00" * 50)
    with pytest.raises(caffe.CaffeError, match=r"bad\.prototxt: not a text file"):
        caffe.Net(str(tmp_path / "bad.prototxt"), caffe.TEST)


def test_importing_caffe_is_quiet_and_does_not_touch_the_system(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import caffe; print(caffe.layer_type_list()[:2])"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("['AbsVal', 'Accuracy']")


def test_a_scalar_shared_by_all_channels_is_not_taken_for_one_of_batch_norms() -> None:
    """A Scale over one axis of another place behind a BatchNorm: the two cannot be one pass."""
    x = normal(3, 3, 3, 3)
    text = (
        input_layer("x0", 3, 3, 3, 3)
        + 'layer { name: "bn" type: "BatchNorm" bottom: "x0" top: "y" }'
        + 'layer { name: "scale" type: "Scale" bottom: "y" top: "y" '
        'scale_param { axis: 2 filler { type: "gaussian" } } }'
    )
    net = net_of(text, phase=caffe.TRAIN)
    normed = run(one_layer('type: "BatchNorm"', x.shape, phase=caffe.TRAIN), x)["y"]
    close(run(net, x)["y"], normed * net.params["scale"][0].data.reshape(1, 1, 3, 1))


# Blobs that several layers read: each adds its part to the gradient, in whatever pieces the pass goes
BRANCHES = f"""
{input_layer("data", 2, 3, 6, 6)}
layer {{ name: "stem" type: "Convolution" bottom: "data" top: "stem"
  convolution_param {{ num_output: 4 kernel_size: 3 {XAVIER} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "stem" top: "stem" }}
layer {{ name: "left" type: "Convolution" bottom: "stem" top: "left"
  convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 {XAVIER} }} }}
layer {{ name: "left_relu" type: "ReLU" bottom: "left" top: "left" }}
layer {{ name: "right" type: "TanH" bottom: "stem" top: "right" }}
layer {{ name: "sum" type: "Eltwise" bottom: "left" bottom: "right" bottom: "stem" top: "sum" }}
layer {{ name: "out" type: "InnerProduct" bottom: "sum" top: "out" inner_product_param {{ num_output: 3 {XAVIER} }} }}
"""
BRANCH_LAYERS = re.findall(r'layer { name: "(\w+)"', BRANCHES)


@pytest.mark.parametrize("cuts", [[i] for i in range(1, len(BRANCH_LAYERS))] + [list(range(1, len(BRANCH_LAYERS)))])
def test_backward_in_pieces_through_branches(cuts: list[int]) -> None:
    whole, pieces = net_of(BRANCHES), net_of(BRANCHES)
    for net in (whole, pieces):
        net.forward(data=normal(2, 3, 6, 6))
        net.blobs["out"].diff[...] = normal(2, 3, seed=1)
    whole.backward()
    for _ in range(2):  # a second round on the same forward pass is no different
        pieces.clear_param_diffs()
        edges = [0, *cuts, len(BRANCH_LAYERS)]
        for i in reversed(range(len(cuts) + 1)):
            pieces.backward(start=BRANCH_LAYERS[edges[i + 1] - 1], end=BRANCH_LAYERS[edges[i]])
        for name in ("data", "stem", "left", "right", "sum"):
            close(pieces.blobs[name].diff, whole.blobs[name].diff, name)
        for name, blobs in whole.params.items():
            for i, blob in enumerate(blobs):
                close(pieces.params[name][i].diff, blob.diff, f"{name} {i}")
    assert whole.blobs["data"].diff.any()


def test_backward_through_one_branch_alone() -> None:
    net = net_of(BRANCHES)
    net.forward(data=normal(2, 3, 6, 6))
    net.backward(out=normal(2, 3, seed=1))
    for _ in range(2):
        net.blobs["left"].diff[...] = normal(2, 4, 4, 4, seed=5)
        ours = net.backward(start="left_relu")["data"].copy()
    alone = net_of(BRANCHES[: BRANCHES.index('layer { name: "right"')])
    alone.share_with(net)
    alone.forward(data=normal(2, 3, 6, 6))
    close(ours, alone.backward(left=normal(2, 4, 4, 4, seed=5))["data"])


def test_backward_needs_a_forward_pass() -> None:
    net = net_of(CHAIN)
    with pytest.raises(caffe.CaffeError, match="backward: there is no forward pass"):
        net.backward()
    net.forward()
    net.propagate(keep=False)  # as the solver does
    with pytest.raises(caffe.CaffeError, match="backward: there is no forward pass"):
        net.backward()


def test_backward_begins_where_the_forward_pass_ended() -> None:
    """Not above, where no gradient would begin: all diffs would stay 0 without a word."""
    net = net_of(BRANCHES)
    net.forward(data=normal(2, 3, 6, 6))
    net.forward(end="right")
    with pytest.raises(caffe.CaffeError, match=r"ended before layer 'sum'; expected forward\(start='sum'\) before it"):
        net.backward(out=normal(2, 3, seed=1))
    net.blobs["right"].diff[...] = normal(2, 4, 4, 4)
    assert net.backward(start="right")["data"].any()
    net.forward(start="sum")
    pieces = net.backward(out=normal(2, 3, seed=1))["data"].copy()
    net.forward()
    close(pieces, net.backward(out=normal(2, 3, seed=1))["data"])


def test_constant_dummy_data_is_there_before_the_first_pass() -> None:
    layer = (
        'layer { name: "d" type: "DummyData" top: "a" top: "b" dummy_data_param { shape { dim: 2 dim: 3 } '
        'data_filler { type: "constant" value: 7 } data_filler { type: "uniform" } } }'
    )
    net = net_of(layer)
    np.testing.assert_array_equal(net.blobs["a"].data, np.full((2, 3), 7))
    np.testing.assert_array_equal(net.forward()["a"], np.full((2, 3), 7))


def test_a_loss_without_a_top_counts() -> None:
    text = (
        input_layer("a", 2, 3)
        + input_layer("b", 2, 3)
        + 'layer { name: "one" type: "EuclideanLoss" bottom: "a" bottom: "b" }'
        + 'layer { name: "two" type: "EuclideanLoss" bottom: "a" bottom: "b" loss_weight: 0.5 }'
    )
    net, a, b = net_of(text), normal(2, 3), normal(2, 3, seed=1)
    net.blobs["a"].data[...], net.blobs["b"].data[...] = a, b
    loss = ((a - b) ** 2).sum() / 4
    assert net._forward(0, 3) == pytest.approx(1.5 * loss, rel=1e-5)
    assert net.outputs == []
    assert dict(net.blob_loss_weights) == {"a": 0, "b": 0, "(automatic)": 1, "(automatic) 2": 0.5}
    net.backward()
    np.testing.assert_allclose(net.blobs["a"].diff, 1.5 * (a - b) / 2, rtol=1e-5)
    assert [list(layer.top) for layer in net.to_proto().layer] == [["a"], ["b"], [], []]


def test_layers_without_weights_may_share_a_name() -> None:
    text = input_layer("x", 2, 3) + "".join(
        f'layer {{ name: "same" type: "Power" bottom: "x" top: "{top}" power_param {{ scale: {scale} }} }}'
        for top, scale in (("y", 2), ("z", 3))
    )
    net, x = net_of(text), normal(2, 3)
    net.blobs["x"].data[...] = x
    out = net.forward()
    np.testing.assert_allclose(out["y"], 2 * x)
    np.testing.assert_allclose(out["z"], 3 * x)
    np.testing.assert_allclose(net.forward(end="same")["y"], 2 * x)  # the first of that name


def test_float16_needs_a_processor_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caffe.context, "_cpu_flag", lambda *flags: False)
    with pytest.raises(caffe.CaffeError, match="precision fp16: this processor has no float16"):
        net_of(input_layer("x", 1, 2), precision="fp16")


def test_small_gradients_survive_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of 1e-8 is 0 in float16; those that pass through layers are kept larger on the way."""
    monkeypatch.setattr(caffe.context, "_cpu_flag", lambda *flags: True)
    text = input_layer("x", 4, 8) + (
        'layer { name: "a" type: "InnerProduct" bottom: "x" top: "h" inner_product_param { num_output: 8 '
        'weight_filler { type: "gaussian" std: 0.1 } } }'
        'layer { name: "b" type: "InnerProduct" bottom: "h" top: "y" inner_product_param { num_output: 1 '
        'weight_filler { type: "gaussian" std: 0.1 } } }'
        'layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1e-6 }'
    )
    half, full = (net_of(text, precision=precision) for precision in ("fp16", "fp32"))
    for net in (half, full):
        net.blobs["x"].data[...] = normal(4, 8) * 0.01
        net.forward()
        net.backward()
    for name in ("a", "b"):
        for ours, wanted in zip(half.params[name], full.params[name], strict=True):
            assert 0 < np.abs(wanted.diff).max() < 1e-5
            np.testing.assert_allclose(ours.diff, wanted.diff, rtol=0.02, atol=1e-10)
    np.testing.assert_allclose(half.blobs["x"].diff, full.blobs["x"].diff, rtol=0.02, atol=1e-10)


def test_a_batch_norm_before_a_concat_gets_its_gradient_in_its_own_order(tmp_path: Path) -> None:
    """PyTorch's BatchNorm takes ten times as long for a gradient that is a slice of another."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.native_batch_norm_backward.default:
                orders.append((args[0].stride(), args[1].stride()))
            return function(*args, **(kwargs or {}))

    text = f"force_backward: true\n{input_layer('data', 2, 3, 6, 5)}\n"
    for name in "ab":
        text += (
            f'layer {{ name: "{name}" type: "Convolution" bottom: "data" top: "{name}" '
            'convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }\n'
            f'layer {{ name: "norm_{name}" type: "BatchNorm" bottom: "{name}" top: "{name}" }}\n'
        )
    text += 'layer { name: "both" type: "Concat" bottom: "a" bottom: "b" top: "both" }\n'
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    net = caffe.Net(str(path), caffe.TRAIN, seed=1)
    orders: list[tuple[Any, Any]] = []
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(size=(2, 3, 6, 5))
    net.forward()
    net.blobs["both"].diff[...] = np.random.default_rng(1).normal(size=net.blobs["both"].shape)
    with Seen():
        net.backward()
    assert len(orders) == 2
    assert all(gradient == values for gradient, values in orders)
