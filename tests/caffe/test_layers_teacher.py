"""The Teacher layer: what it answers worked out by hand, and that nothing of it learns or is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tiny_model import band_probabilities, make_model

import caffe
from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

STUDENT = """
layer {{ name: "data" type: "Input" top: "data" top: "label"
  input_param {{ shape {{ dim: 2 dim: 1 dim: {size} dim: {size} }} shape {{ dim: 2 }} }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
  inner_product_param {{ num_output: 7 weight_filler {{ type: "gaussian" std: 0.001 }} }} }}
layer {{ name: "teacher" type: "Teacher" bottom: "data" top: "teacher" include {{ phase: TRAIN }}
  teacher_param {{ {teachers} {temperature} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "{labels}" top: "loss" }}
"""


def teacher(folder: Path, **settings: int) -> str:
    deploy, weights, _ = make_model(folder, **settings)
    return f'net: "{deploy}" weights: "{weights}" '


def student(teachers: str, temperature: str = "", size: int = 42, labels: str = "teacher") -> NetParameter:
    text = STUDENT.format(teachers=teachers, temperature=temperature, size=size, labels=labels)
    return text_format.Parse(text, NetParameter())


def bands(levels: list[list[float]], size: int = 42) -> np.ndarray:
    """Images whose 42 centre columns are seven bands of those grey levels; what is around is 999."""
    images = np.full((len(levels), 1, size, size), 999, np.float32)
    edge = (size - 42) // 2
    for image, row in zip(images, levels, strict=True):
        for k, level in enumerate(row):
            image[0, edge : edge + 42, edge + 6 * k : edge + 6 * k + 6] = level
    return images


LEVELS = [[10.0, 20, 30, 40, 50, 60, 70], [90.0, 0, 0, 45, 0, 0, 3]]


@pytest.mark.parametrize("size", [42, 44, 45])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_its_answer_is_that_of_the_scores_over_the_temperature(tmp_path: Path, size: int, temperature: float) -> None:
    net = caffe.Net(student(teacher(tmp_path), f"temperature: {temperature}", size), caffe.TRAIN)
    net.blobs["data"].data[...] = bands(LEVELS, size)
    net.forward()
    expected = [band_probabilities([level / temperature for level in row]) for row in LEVELS]
    np.testing.assert_allclose(net.blobs["teacher"].data, expected, rtol=1e-4)


def test_several_answer_by_their_mean(tmp_path: Path) -> None:
    first, second = teacher(tmp_path / "a"), teacher(tmp_path / "b")
    net = caffe.Net(tmp_path / "b/deploy.prototxt", tmp_path / "b/bands.caffemodel", caffe.TEST)
    net.params["score"][0].data[...] *= 2  # as if the grey levels were twice as high
    net.save(tmp_path / "b/bands.caffemodel")
    both = caffe.Net(student(first + second), caffe.TRAIN)
    both.blobs["data"].data[...] = bands(LEVELS)
    both.forward()
    expected = [(band_probabilities(row) + band_probabilities([2 * level for level in row])) / 2 for row in LEVELS]
    np.testing.assert_allclose(both.blobs["teacher"].data, expected, rtol=1e-4)


def test_each_sees_its_channel(tmp_path: Path) -> None:
    """Two nets of one channel and images of two, the second a constant, which makes all classes equally likely."""
    param = student(teacher(tmp_path / "a") + teacher(tmp_path / "b") + "channel: 0 channel: 1")
    param.layer[0].input_param.shape[0].dim[1] = 2
    net = caffe.Net(param, caffe.TRAIN)
    net.blobs["data"].data[:, :1] = bands(LEVELS)
    net.blobs["data"].data[:, 1] = 30
    net.forward()
    expected = [(band_probabilities(row) + 1 / 7) / 2 for row in LEVELS]
    np.testing.assert_allclose(net.blobs["teacher"].data, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ("", r"bottom 'data' has shape \(2, 2, 42, 42\); expected N×1×H×W"),
        ("channel: 2", r"expected at least 3 channels, for "),
        ("channel: 0 channel: 1", r"teacher_param has 2 channel; expected none, or one each of 1 net"),
    ],
)
def test_channels_that_are_not_there(tmp_path: Path, channels: str, message: str) -> None:
    param = student(teacher(tmp_path) + channels)
    param.layer[0].input_param.shape[0].dim[1] = 2
    with pytest.raises(caffe.CaffeError, match=message):
        caffe.Net(param, caffe.TRAIN)


def test_a_net_learns_the_answers_and_keeps_nothing_of_the_teacher(tmp_path: Path) -> None:
    """A student of the teacher's kind comes to the teacher's probabilities; its file has its own layers alone."""
    solver = SolverParameter(base_lr=1e-6, lr_policy="fixed", max_iter=400, snapshot_prefix=str(tmp_path / "snap"))
    solver.net_param.CopyFrom(student(teacher(tmp_path), "temperature: 1"))
    trained = caffe.get_solver(solver)
    trained.net.blobs["data"].data[...] = bands(LEVELS)
    trained.step(400)
    answers = caffe.Net(student(teacher(tmp_path), labels="label"), caffe.TEST)
    trained.net.save(tmp_path / "student.caffemodel")
    answers.copy_from(tmp_path / "student.caffemodel")
    answers.blobs["data"].data[...] = bands(LEVELS)
    answers.forward()
    scores = answers.blobs["fc"].data
    powers = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(
        powers / powers.sum(1, keepdims=True), [band_probabilities(row) for row in LEVELS], atol=0.02
    )
    saved = caffe.io.read_net_binary(tmp_path / "student.caffemodel")
    assert [layer.name for layer in saved.layer if layer.blobs] == ["fc"]
    assert list(trained.net.params) == ["fc"]
    assert "teacher" not in answers.layer_dict


def test_no_gradient_comes_through(tmp_path: Path) -> None:
    param = student(teacher(tmp_path), labels="label")
    param.force_backward = True
    param.layer.add(name="sum", type="Reduction", bottom=["teacher"], top=["sum"], loss_weight=[1])
    net = caffe.Net(param, caffe.TRAIN)
    net.blobs["data"].data[...] = bands(LEVELS)
    net.forward()
    net.backward()
    weights = net.params["fc"][0].data
    shares = np.exp(net.blobs["fc"].data - net.blobs["fc"].data.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    shares[:, 0] -= 1  # labels are 0
    np.testing.assert_allclose(net.blobs["data"].diff.reshape(2, -1), shares @ weights / 2, rtol=1e-3, atol=1e-8)


def test_sharpness_aware_minimization_asks_once_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second pass is by other weights of the net; the teacher would answer the same again."""
    solver = SolverParameter(base_lr=1e-6, lr_policy="fixed", max_iter=3, sam_rho=0.05)
    solver.net_param.CopyFrom(student(teacher(tmp_path)))
    trained = caffe.get_solver(solver)
    trained.net.blobs["data"].data[...] = bands(LEVELS)
    layer, calls = trained.net.layer_dict["teacher"], []
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda bottoms: calls.append(1) or forward(bottoms))
    trained.step(3)
    assert len(calls) == 3


def test_it_computes_in_the_nets_precision(tmp_path: Path) -> None:
    net = caffe.Net(student(teacher(tmp_path)), caffe.TRAIN, precision="bf16")
    assert net.layer_dict["teacher"].nets[0].precision == "bf16"  # type: ignore[attr-defined]
    net.blobs["data"].data[...] = bands(LEVELS)
    net.forward()
    np.testing.assert_allclose(net.blobs["teacher"].data, [band_probabilities(row) for row in LEVELS], atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: "", "teacher_param has 0 net and 0 weights; expected one of each a teacher"),
        (lambda t: t + 'net: "more.prototxt"', "has 2 net and 1 weights"),
        (lambda t: t + "temperature: 0", "temperature is 0; expected a number above 0"),
        (lambda t: t + "temperature: inf", "temperature is inf"),
        (lambda t: t.replace("deploy.prototxt", "none.prototxt"), r"none\.prototxt"),
        (lambda t: t.replace("bands.caffemodel", "none.caffemodel"), r"none\.caffemodel"),
    ],
)
def test_teachers_that_cannot_be(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(caffe.CaffeError, match=message):
        caffe.Net(student(change(teacher(tmp_path))), caffe.TRAIN)


def test_a_teacher_that_takes_any_size_sees_small_images_whole(tmp_path: Path) -> None:
    """A teacher of global averages: the probabilities are those of the averages of the whole 5×5 images."""
    text = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 6 } } }
    layer { name: "maps" type: "Convolution" bottom: "data" top: "maps" convolution_param { num_output: 2 kernel_size: 1
      weight_filler { type: "constant" value: 1 } } }
    layer { name: "pool" type: "Pooling" bottom: "maps" top: "pool" pooling_param { pool: AVE global_pooling: true } }
    layer { name: "prob" type: "Softmax" bottom: "pool" top: "prob" }
    """
    (tmp_path / "any.prototxt").write_text(text)
    net = caffe.Net(tmp_path / "any.prototxt", caffe.TEST)
    net.params["maps"][0].data[1] = -1
    net.save(tmp_path / "any.caffemodel")
    taught = f'net: "{tmp_path}/any.prototxt" weights: "{tmp_path}/any.caffemodel"'
    images = np.random.default_rng(0).normal(0, 3, (2, 1, 5, 5)).astype(np.float32)
    made = caffe.Net(student(taught, size=5, labels="label"), caffe.TRAIN)
    made.blobs["data"].data[...] = images
    made.forward()
    first = 1 / (1 + np.exp(-2 * images.mean((1, 2, 3))))
    np.testing.assert_allclose(made.blobs["teacher"].data, np.stack([first, 1 - first], 1), rtol=1e-4)


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(caffe.CaffeError, match=r"deploy\.prototxt takes no images of 40×40 but 42×42: layer 'score'"):
        caffe.Net(student(teacher(tmp_path / "a"), size=40), caffe.TRAIN)
    both = teacher(tmp_path / "a") + teacher(tmp_path / "b", classes=5)
    with pytest.raises(caffe.CaffeError, match=r"b/deploy\.prototxt has 5 outputs; expected 7, as .*a/deploy"):
        caffe.Net(student(both), caffe.TRAIN)
    raw = tmp_path / "raw/deploy.prototxt"
    made = teacher(tmp_path / "raw")
    raw.write_text(raw.read_text().split('layer { name: "prob"')[0])
    with pytest.raises(
        caffe.CaffeError, match=r"raw/deploy\.prototxt ends in layer 'score' \(InnerProduct\); expected a S"
    ):
        caffe.Net(student(made), caffe.TRAIN)
    lone = tmp_path / "lone.prototxt"
    lone.write_text('layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 } } }')
    made = teacher(tmp_path / "a").replace(str(tmp_path / "a/deploy.prototxt"), str(lone))
    with pytest.raises(caffe.CaffeError, match=r"lone\.prototxt has the inputs \[\] and the outputs"):
        caffe.Net(student(made), caffe.TRAIN)
