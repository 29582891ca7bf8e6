"""Losses and accuracy against formulas written out in numpy: normalisation, ignored labels, axes, odd gradients."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_checks import backward, check_gradient, close
from small_nets import input_layer, net_of, normal, one_layer, run

import caffe
from caffe.io import array_to_blobproto

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


@pytest.mark.parametrize("ignored", [0, 1])
def test_softmax_loss_of_one_label_is_over_one(ignored: int) -> None:
    labels = [0, 2][: 1 + ignored]
    net = loss_net("loss_param { ignore_label: 2 }", (len(labels), 3), (len(labels),))
    net.blobs["scores"].data[...] = 0
    net.blobs["labels"].data[...] = labels
    assert float(net.forward()["loss"]) == pytest.approx(math.log(3))


@pytest.mark.parametrize("score", [1e3, 1e10, 3e38])  # between the large ones float32 has no room for the loss
def test_softmax_loss_of_a_hopeless_score_is_finite(score: float) -> None:
    net = loss_net("", (1, 2), (1,))
    net.blobs["scores"].data[...] = [[score, -score]]
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


def test_labels_of_one_class_are_numbers_and_not_soft() -> None:
    net = one_layer('type: "SoftmaxWithLoss"', (2, 1), (2, 1))
    assert float(run(net, normal(2, 1), np.zeros((2, 1)))["y"]) == 0
    with pytest.raises(caffe.CaffeError, match=r"a label in 'x1' is outside 0\.\.0"):
        run(net, normal(2, 1), np.array([[0], [1]]))


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


def test_accuracy_of_one_row() -> None:
    net = one_layer('type: "Accuracy"', (1, 3), (1,))
    assert [float(run(net, np.array([[0, 1, 2]]), np.array([label]))["y"]) for label in range(3)] == [0, 0, 1]


def test_accuracy_along_an_axis() -> None:
    scores, labels = normal(3, 2, 5, 4), np.random.default_rng(1).integers(0, 5, (3, 2, 4))
    net = one_layer('type: "Accuracy" accuracy_param { axis: 2 }', scores.shape, labels.shape)
    close(run(net, scores, labels)["y"], np.array((scores.argmax(2) == labels).mean()))


def test_the_probabilities_of_a_softmax_loss_pass_no_gradient() -> None:
    net = net_of(
        input_layer("scores", 4, 3)
        + input_layer("labels", 4)
        + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "labels" top: "loss" top: "prob" } '
        'layer { name: "sum" type: "Reduction" bottom: "prob" top: "sum" loss_weight: 5 '
        "reduction_param { operation: SUMSQ } }"
    )
    net.blobs["scores"].data[...] = scores = normal(4, 3)
    net.forward()
    net.backward()
    powers = np.exp(scores.astype(np.float64))
    close(net.blobs["scores"].diff, (powers / powers.sum(1, keepdims=True) - [1, 0, 0]) / 4)


# Losses of distances


def test_euclidean_loss() -> None:
    net = one_layer('type: "EuclideanLoss" loss_weight: 3', (4, 2, 3), (4, 6))
    a, b = normal(4, 2, 3), normal(4, 6, seed=1)
    difference = a.reshape(4, 6).astype(np.float64) - b
    close(run(net, a, b)["y"], np.array((difference**2).sum() / 8))
    net.backward()
    close(net.blobs["x0"].diff, (3 * difference / 4).reshape(a.shape))
    close(net.blobs["x1"].diff, -3 * difference / 4)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("margin", [1.0, 1.8])
@pytest.mark.parametrize("shape", [(20, 3), (20, 3, 1, 1), (20,)])
def test_contrastive_loss(legacy: bool, margin: float, shape: tuple[int, ...]) -> None:
    net = one_layer(
        f'type: "ContrastiveLoss" contrastive_loss_param {{ margin: {margin} legacy_version: {str(legacy).lower()} }}',
        shape,
        shape,
        (20, 1),
    )
    a, b = normal(*shape), normal(*shape, seed=1)
    b[3] = a[3]  # a pair without a distance
    alike = np.random.default_rng(2).integers(0, 2, 20)
    alike[3] = 0
    difference = (a.astype(np.float64) - b).reshape(20, -1)
    squares = (difference**2).sum(1)
    distance = np.sqrt(squares)
    gap = margin - (squares if legacy else distance)
    assert 0 < (gap[alike == 0] > 0).mean() < 1, "all pairs on one side of the margin: the test says little"
    losses = np.where(alike, squares, np.maximum(gap, 0) ** (1 if legacy else 2))
    close(run(net, a, b, alike[:, None])["y"], np.array(losses.sum() / 40))
    slope = np.where(gap > 0, -1 if legacy else -gap / (distance + 1e-4), 0)
    expected = np.where(alike, 1, slope)[:, None] * difference / 20
    net.backward()
    close(net.blobs["x0"].diff, expected.reshape(shape))
    close(net.blobs["x1"].diff, -expected.reshape(shape))
    assert not net.blobs["x2"].diff.any()


# Losses of classes


@pytest.mark.parametrize("norm", ["L1", "L2"])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1, 1), (3, 2, 2)])
def test_hinge_loss(norm: str, shape: tuple[int, ...]) -> None:
    net = one_layer(f'type: "HingeLoss" hinge_loss_param {{ norm: {norm} }} loss_weight: 2', shape, (shape[0],))
    x, labels = normal(*shape), np.random.default_rng(3).integers(0, math.prod(shape[1:]), shape[0])
    x.reshape(-1)[:3] = [1, -1, 1]  # at the margin Caffe has no gradient
    rows = x.reshape(shape[0], -1).astype(np.float64)
    sign = np.where(np.arange(rows.shape[1]) == labels[:, None], -1, 1)
    violations = np.maximum(1 + sign * rows, 0)
    close(run(net, x, labels)["y"], np.array((violations if norm == "L1" else violations**2).sum() / shape[0]))
    net.backward()
    slope = np.sign(violations) if norm == "L1" else 2 * violations
    close(net.blobs["x0"].diff, (2 * sign * slope / shape[0]).reshape(shape))
    assert not net.blobs["x1"].diff.any()


def test_multinomial_logistic_loss() -> None:
    net = one_layer('type: "MultinomialLogisticLoss"', (4, 3, 1), (4, 1))
    p, labels = np.array([[0.2, 0.3, 0.5], [0.9, 0.1, 0], [1e-30, 0.5, 0.5], [0, 1, 0]]), np.array([2, 2, 0, 1])
    own = np.maximum(p[np.arange(4), labels], 1e-20)
    close(run(net, p[..., None], labels[:, None])["y"], np.array(-np.log(own).sum() / 4))
    net.backward()
    expected = np.zeros((4, 3))
    expected[np.arange(4), labels] = -1 / own / 4  # also below 1e-20, where the loss does not change any more
    np.testing.assert_allclose(net.blobs["x0"].diff[..., 0], expected, rtol=1e-5)


@pytest.mark.parametrize("ignore", [None, 2, 255, -1])
@pytest.mark.parametrize("normalization", ["", "VALID", "FULL", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("source", [False, True])
def test_infogain_loss(ignore: int | None, normalization: str, axis: int, source: bool, tmp_path: Path) -> None:
    shape = (5, 4, 2) if axis == 1 else (5, 2, 4)
    x, labels = 3 * normal(*shape), np.random.default_rng(3).integers(0, 4, (5, 2))
    if ignore is not None:
        labels[1::2, 0] = ignore
    matrix = normal(4, 4, seed=5)
    settings = f"axis: {axis}"
    shapes = [shape, (5, 2), (1, 1, 4, 4)]
    inputs = [x, labels, matrix[None, None]]
    if source:
        path = tmp_path / "H.binaryproto"
        path.write_bytes(array_to_blobproto(inputs.pop()).SerializeToString())
        settings += f' source: "{path}"'
        shapes.pop()
    loss_param = f"normalization: {normalization}" if normalization else ""
    loss_param += f" ignore_label: {ignore}" if ignore is not None else ""
    net = one_layer(
        f'type: "InfogainLoss" infogain_loss_param {{ {settings} }} loss_param {{ {loss_param} }} '
        "loss_weight: 0.5 loss_weight: 0",
        *shapes,
        tops=("loss", "prob"),
    )
    rows = np.moveaxis(x.astype(np.float64), axis, -1)
    prob = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    valid = np.ones(labels.shape, bool) if ignore is None else labels != ignore
    weights = matrix[np.where(valid, labels, 0)] * valid[..., None]
    normalizer = {"FULL": 10, "BATCH_SIZE": 5 if axis == 1 else 10, "NONE": 1}.get(normalization, valid.sum())
    out = run(net, *inputs)
    close(out["loss"], np.array(-(weights * np.log(prob)).sum() / normalizer))
    close(out["prob"], np.moveaxis(prob, -1, axis))
    net.backward()
    expected = 0.5 * (prob * weights.sum(-1, keepdims=True) - weights) / normalizer
    close(net.blobs["x0"].diff, np.moveaxis(expected, -1, axis))
    assert not any(net.blobs[f"x{i}"].diff.any() for i in range(1, len(inputs)))


def test_infogain_loss_of_a_hopeless_score() -> None:
    net = one_layer('type: "InfogainLoss"', (1, 2), (1,), (2, 2))
    assert run(net, np.array([[1000, -1000]]), np.array([1]), np.eye(2))["y"] == pytest.approx(-math.log(1e-20))
    net.backward()
    assert net.blobs["x0"].diff.tolist() == [[1, -1]]


def test_infogain_loss_without_its_matrix(tmp_path: Path) -> None:
    layer = 'type: "InfogainLoss"'
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer'.*no third bottom and infogain_loss_param no source"):
        one_layer(layer, (2, 3), (2,))
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer'.*nowhere.*No such file"):
        one_layer(layer + ' infogain_loss_param { source: "nowhere" }', (2, 3), (2,))
    path = tmp_path / "H.binaryproto"
    path.write_bytes(array_to_blobproto(np.eye(4, dtype=np.float32)).SerializeToString())
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer'.*H.binaryproto has shape \(4, 4\); expected 3×3"):
        one_layer(layer + f' infogain_loss_param {{ source: "{path}" }}', (2, 3), (2,))
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer'.*'x2' has shape \(2, 2\); expected 3×3"):
        one_layer(layer, (2, 3), (2,), (2, 2))
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer'.*has normalize; expected normalization"):
        one_layer(layer + " loss_param { normalize: true }", (2, 3), (2,), (3, 3))


@pytest.mark.parametrize("ignore", [None, -1, 0])
@pytest.mark.parametrize(
    ("setting", "normalizer"),
    [
        ("", "rows"),
        ("normalization: BATCH_SIZE", "rows"),
        ("normalize: false", "rows"),
        ("normalize: true", "valid"),
        ("normalization: VALID", "valid"),
        ("normalization: VALID normalize: false", "valid"),
        ("normalization: FULL", "all"),
        ("normalization: NONE", "one"),
    ],
)
def test_sigmoid_cross_entropy_loss(ignore: int | None, setting: str, normalizer: str) -> None:
    x, targets = 5 * normal(4, 3, 2), np.random.default_rng(3).choice([-1, 0, 0.4, 0.9, 1], (4, 3, 2))
    extra = "" if ignore is None else f"ignore_label: {ignore}"
    net = one_layer(
        f'type: "SigmoidCrossEntropyLoss" loss_weight: -2 loss_param {{ {setting} {extra} }}', x.shape, (4, 6)
    )
    valid = np.ones(x.shape, bool) if ignore is None else targets.astype(int) != ignore  # 0.4 and 0.9 are cut to 0
    sigmoid = 1 / (1 + np.exp(-x.astype(np.float64)))
    losses = -(targets * np.log(sigmoid) + (1 - targets) * np.log(1 - sigmoid))
    count = {"rows": 4, "valid": valid.sum(), "all": 24, "one": 1}[normalizer]
    close(run(net, x, targets.reshape(4, 6))["y"], np.array((losses * valid).sum() / count))
    net.backward()
    close(net.blobs["x0"].diff, -2 * (sigmoid - targets) * valid / count)
    assert not net.blobs["x1"].diff.any()


def test_sigmoid_cross_entropy_loss_of_large_scores_and_nothing_but_ignored() -> None:
    net = one_layer('type: "SigmoidCrossEntropyLoss"', (1, 3), (1, 3))
    assert float(run(net, np.array([[200, -200, 200]]), np.array([[1, 0, 0]]))["y"]) == 200
    net.backward()
    close(net.blobs["x0"].diff, np.array([[0, 0, 1]]))
    net = one_layer(
        'type: "SigmoidCrossEntropyLoss" loss_param { ignore_label: 1 normalization: VALID }', (2, 3), (2, 3)
    )
    assert float(run(net, normal(2, 3), np.ones((2, 3)))["y"]) == 0
    net.backward()
    assert not net.blobs["x0"].diff.any()


@pytest.mark.parametrize(
    ("kind", "shapes", "of"),
    [
        ("EuclideanLoss", ((4, 3), (4, 3)), (0, 1)),
        ("HingeLoss", ((4, 3), (4,)), (0,)),
        ("ContrastiveLoss", ((4, 3), (4, 3), (4,)), (0, 1)),
        ("SigmoidCrossEntropyLoss", ((4, 3), (4, 3)), (0,)),
        ("InfogainLoss", ((4, 3), (4,), (3, 3)), (0,)),
        ("SoftmaxWithLoss", ((4, 3), (4,)), (0,)),
    ],
)
@pytest.mark.parametrize("weight", [1, -0.5])
def test_gradients_of_losses(
    kind: str, shapes: tuple[tuple[int, ...], ...], of: tuple[int, ...], weight: float
) -> None:
    net = one_layer(f'type: "{kind}" loss_weight: {weight}', *shapes)
    inputs = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    inputs[1:] = [np.arange(4) % 2 if shape == (4,) else x for shape, x in zip(shapes[1:], inputs[1:], strict=True)]
    check_gradient(net, *inputs, of=of, step=1e-3)


@pytest.mark.parametrize("label", [-1, 3, np.nan])
@pytest.mark.parametrize("kind", ["HingeLoss", "MultinomialLogisticLoss", "InfogainLoss"])
def test_label_outside_the_classes(kind: str, label: float) -> None:
    net = one_layer(f'type: "{kind}"', (2, 3), (2,), *[(3, 3)] * (kind == "InfogainLoss"))
    net.blobs["x1"].data[...] = [1, label]
    with pytest.raises(caffe.CaffeError, match=r"layer 'layer'.*a label in 'x1' is outside 0\.\.2"):
        net.forward()


@pytest.mark.parametrize(("kind", "count"), [("NONE", 1), ("FULL", 12), ("BATCH_SIZE", 3)])
@pytest.mark.parametrize("soft", [False, True])
def test_what_smoothed_and_soft_losses_are_divided_by(kind: str, count: int, soft: bool) -> None:
    scores, labels = normal(3, 5, 2, 2), np.random.default_rng(1).integers(0, 5, (3, 2, 2))
    given = np.moveaxis(np.eye(5)[labels], -1, 1) if soft else labels
    settings = f"loss_param {{ label_smoothing: 0.2 normalization: {kind} }}"
    net = one_layer(f'type: "SoftmaxWithLoss" {settings}', scores.shape, given.shape, phase=caffe.TRAIN)
    total = F.cross_entropy(torch.tensor(scores), torch.tensor(labels), label_smoothing=0.2, reduction="sum")
    assert float(run(net, scores, given)["y"]) == pytest.approx(float(total) / count, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("Accuracy", ((0, 3), (0,))),
        ("EuclideanLoss", ((0, 3), (0, 3))),
        ("HingeLoss", ((0, 3), (0,))),
        ("ContrastiveLoss", ((0, 3), (0, 3), (0,))),
        ("MultinomialLogisticLoss", ((0, 3), (0,))),
        ("SigmoidCrossEntropyLoss", ((0, 3), (0, 3))),
        ("InfogainLoss", ((0, 3), (0,), (3, 3))),
        ("SoftmaxWithLoss", ((0, 3), (0,))),
        ("SoftmaxWithLoss loss_param { normalization: BATCH_SIZE }", ((0, 3), (0,))),
        ("SoftmaxWithLoss loss_param { normalization: BATCH_SIZE }", ((0, 3), (0, 3))),
        ("SoftmaxWithLoss loss_param { normalization: FULL }", ((0, 3), (0, 3))),
    ],
)
def test_a_batch_of_no_rows_loses_nothing(kind: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    """As behind a Filter that lets none through; not 0 / 0."""
    kind, _, settings = kind.partition(" ")
    assert float(one_layer(f'type: "{kind}" {settings}', *shapes).forward()["y"]) == 0


def test_a_loss_weight_of_0_and_no_weight_left() -> None:
    net = one_layer('type: "EuclideanLoss" loss_weight: 0', (2, 3), (2, 3))
    run(net, normal(2, 3), normal(2, 3, seed=1))
    backward(net, y=np.array(2.0))
    close(net.blobs["x0"].diff, normal(2, 3) - normal(2, 3, seed=1))


# Beyond Caffe: soft, smoothed and weighted labels, against PyTorch's cross entropy


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 2, 2)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 0.25]])
@pytest.mark.parametrize("kind", ["numbers", "ignored", "soft"])
def test_smoothed_weighted_and_soft_labels(
    shape: tuple[int, ...], smoothing: float, weights: list[float] | None, kind: str
) -> None:
    random, places = np.random.default_rng(0), (shape[0], *shape[2:])
    labels = random.dirichlet([1] * 4, places) if kind == "soft" else random.integers(0, 4, places)
    if kind == "soft":
        labels = np.moveaxis(labels, -1, 1)
    elif kind == "ignored":
        labels[0] = -1
    settings = f"label_smoothing: {smoothing} " + " ".join(f"class_weight: {weight}" for weight in weights or [])
    settings += " ignore_label: -1" if kind == "ignored" else ""
    net = one_layer(
        f'type: "SoftmaxWithLoss" loss_param {{ {settings} }} propagate_down: true propagate_down: false '
        "loss_weight: 1 loss_weight: 0",
        shape,
        labels.shape,
        tops=("y", "prob"),
        phase=caffe.TRAIN,
    )
    scores = 2 * normal(*shape)
    out = run(net, scores, labels)
    loss = out["y"]
    net.backward()
    x = torch.tensor(scores, requires_grad=True)
    close(out["prob"], x.detach().softmax(1).numpy())
    target = torch.tensor(labels, dtype=torch.float32 if kind == "soft" else torch.int64)
    expected = F.cross_entropy(
        x,
        target,
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
        reduction="none",
        ignore_index=-1,
    )
    if weights is not None and (smoothing or kind == "soft"):
        # PyTorch weights each class's share of a label by its own class; here a label counts as its classes do
        share = target if kind == "soft" else F.one_hot(target.clamp(min=0), 4).movedim(-1, 1).float()
        counts = torch.einsum("nk...,k->n...", share, torch.tensor(weights)) * (1.0 if kind == "soft" else target >= 0)
        plain = F.cross_entropy(x, share, label_smoothing=smoothing, reduction="none")
        expected = (counts * plain).sum() / counts.sum()
    elif weights is not None:
        counts = torch.tensor(weights)[target.clamp(min=0)] * (target >= 0)
        expected = expected.sum() / counts.sum()
    else:
        expected = expected.sum() / (target >= 0).sum() if kind != "soft" else expected.mean()
    close(loss, expected.detach().numpy())
    close(net.blobs["x0"].diff, torch.autograd.grad(expected, x)[0].numpy())


def test_smoothing_and_weights_are_for_training() -> None:
    settings = "label_smoothing: 0.2 class_weight: 1 class_weight: 5 class_weight: 1"
    net = one_layer(f'type: "SoftmaxWithLoss" loss_param {{ {settings} }}', (2, 3), (2,), phase=caffe.TEST)
    scores = normal(2, 3)
    expected = F.cross_entropy(torch.from_numpy(scores), torch.tensor([1, 0])).numpy()
    close(run(net, scores, np.array([1, 0]))["y"], expected)


def test_accuracy_of_soft_labels_is_that_of_the_most_probable_class() -> None:
    net = one_layer('type: "Accuracy"', (3, 3), (3, 3))
    labels = np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0, 0, 1]])
    assert run(net, np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]]), labels)["y"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("scores", "labels"), [((3, 4, 1, 1), (3, 4)), ((3, 4), (3, 4, 1)), ((3, 4, 1), (3, 4, 1, 1))])
def test_axes_of_one_value_at_the_end_do_not_matter(scores: tuple[int, ...], labels: tuple[int, ...]) -> None:
    """As global pooling leaves them behind the classes."""
    soft, values = np.random.default_rng(2).dirichlet([1] * 4, 3), normal(3, 4)
    expected = F.cross_entropy(torch.from_numpy(values).double(), torch.from_numpy(soft)).numpy()
    for kind, result in (("SoftmaxWithLoss", expected), ("Accuracy", (values.argmax(1) == soft.argmax(1)).mean())):
        net = one_layer(f'type: "{kind}"', scores, labels)
        close(run(net, values.reshape(scores), soft.reshape(labels))["y"], result)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("label_smoothing: 1", "label_smoothing is 1; expected at least 0 and less than 1"),
        ("class_weight: 1 class_weight: 2", r"class_weight is \[1.0, 2.0\]; expected 3 numbers"),
        ("class_weight: 1 class_weight: 2 class_weight: -1", "expected 3 numbers, one a class, 0 or more"),
    ],
)
def test_loss_settings_out_of_range(settings: str, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=rf"layer 'layer' \(SoftmaxWithLoss\): .*{message}"):
        one_layer(f'type: "SoftmaxWithLoss" loss_param {{ {settings} }}', (2, 3), (2,))


def test_a_label_that_is_no_class_is_an_error_with_smoothing_too() -> None:
    net = one_layer('type: "SoftmaxWithLoss" loss_param { label_smoothing: 0.1 }', (2, 3), (2,), phase=caffe.TRAIN)
    with pytest.raises(caffe.CaffeError, match=r"a label in .x1. is outside 0\.\.2: 3"):
        run(net, normal(2, 3), np.array([0, 3]))
