"""`python -m train --teachers`: what the run's net is, that it learns from the teachers, and what cannot teach."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_training import blobs, images, stop_after, train, write_project
from tiny_model import write_database

import caffe
from caffe.io import load_mean, read_net_parameter, save_mean
from caffe.proto.caffe_pb2 import LayerParameter, NetState
from caffe.tools.parse_log import read_log
from preprocessing.classes import default_classes, write_classes
from preprocessing.stage import StageError
from train.distill import Teachers
from train.plot import read_curves


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The small project, and the folder `taught` with a net that it trained for two epochs."""
    write_project(tmp_path / "project")
    with pytest.MonkeyPatch.context() as patch:
        assert train(patch, tmp_path / "project", "taught", "--epochs", "2", "--seed", "21") == 0
    return tmp_path / "project"


def layers(path: Path) -> dict[str, LayerParameter]:
    """The layers of a run's net in phase TRAIN, by name."""
    return {layer.name: layer for layer in caffe.Net(path, caffe.TRAIN).param.layer}


def test_the_runs_net_has_the_teachers_and_what_they_weigh(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--epochs", "1", "--teachers", str(project / "taught"), "--temperature", "4", "--teacher-share", "0.75"]
    assert train(monkeypatch, project, "run", *more) == 0
    made = layers(project / "run/train_val.prototxt")
    assert list(made["loss"].loss_weight) == [0.25]
    assert list(made["distillation"].loss_weight) == [0.75 * 16]
    assert made["softened_score"].power_param.scale == 0.25
    assert made["softened_score"].bottom == ["fc2"]
    assert list(made["distillation"].bottom) == ["softened_score", "teacher"]
    assert made["teacher"].teacher_param.temperature == 4
    assert list(made["teacher"].teacher_param.weights) == [str(project / "taught/tiny net.caffemodel")]
    # the deploy net and the weights are a net's as without teachers
    assert (project / "run/deploy.prototxt").read_text() == (project / "tiny net/deploy.prototxt").read_text()
    assert set(blobs(project / "run/tiny net.caffemodel")) == set(blobs(project / "taught/tiny net.caffemodel"))
    manifest = json.loads((project / "run/manifest.json").read_text())
    taught = project / "taught/tiny net.caffemodel"
    assert (manifest["settings"]["temperature"], manifest["settings"]["teacher_share"]) == (4, 0.75)
    assert manifest["settings"]["teachers"][str(taught)] == hashlib.sha256(taught.read_bytes()).hexdigest()
    # the teacher stands before anything that could work in place on the data
    assert list(made).index("teacher") == list(made).index("data") + 1


def test_the_objective_is_the_weighted_sum(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both losses worked out from the run's own scores and the teacher's answers, in numpy."""
    more = ["--epochs", "1", "--teachers", str(project / "taught")]
    assert train(monkeypatch, project, "run", *more) == 0
    net = caffe.Net(project / "run/train_val.prototxt", project / "run/tiny net.caffemodel", caffe.TRAIN)
    net.forward()
    scores, labels = net.blobs["fc2"].data.astype(np.float64), net.blobs["label"].data.astype(int)
    taught = caffe.Net(project / "taught/deploy.prototxt", project / "taught/tiny net.caffemodel", caffe.TEST)
    taught.blobs["data"].reshape(*net.blobs["data"].shape)
    taught.blobs["data"].data[...] = net.blobs["data"].data
    answers = taught.forward()["prob"].astype(np.float64)
    soft = np.sqrt(answers) / np.sqrt(answers).sum(1, keepdims=True)  # temperature 2

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    hard_loss = -log_softmax(scores)[np.arange(len(labels)), labels].mean()
    soft_loss = -(soft * log_softmax(scores / 2)).sum(1).mean()
    np.testing.assert_allclose(net.blobs["loss"].data, hard_loss, rtol=1e-4)
    np.testing.assert_allclose(net.blobs["distillation"].data, soft_loss, rtol=1e-4)
    assert net.blob_loss_weights["loss"] * 10 == pytest.approx(1)
    assert net.blob_loss_weights["distillation"] == pytest.approx(0.9 * 4)


def test_tests_have_the_labels_loss_alone_and_plots_compare_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--epochs", "1", "--teachers", str(project / "taught")]
    assert train(monkeypatch, project, "run", *more) == 0
    log = read_log(project / "run/train.log")
    assert log.weights == {"distillation": pytest.approx(3.6), "loss": 1}
    curves = read_curves(log)
    assert curves.val_loss == {int(row["NumIters"]): row["loss"] for row in log.test}
    assert curves.train_loss == {int(row["NumIters"]): row["loss"] for row in log.train}
    assert sorted(curves.train_loss) == sorted(log.loss)[:-1], "the last is a line without outputs"


@pytest.mark.parametrize(
    ("rules", "tested"),
    [
        ("", True),
        ("include { phase: TRAIN }", False),
        ("include { phase: TRAIN } include { phase: TEST }", True),
        ('include { not_stage: "other" }', True),
        ('exclude { stage: "other" }', True),
        ("exclude { phase: TEST }", False),
    ],
)
def test_a_loss_of_any_rules_is_split_by_phase(project: Path, rules: str, tested: bool) -> None:
    path = project / "tiny net/train_val.prototxt"
    text = path.read_text().replace('top: "loss"', f'top: "loss" {rules}').replace("/nowhere/", f"{project}/")
    of_tests = 'layer { name: "b" type: "SoftmaxWithLoss" bottom: "fc2" bottom: "label" include { phase: TEST } }'
    path.write_text(text + of_tests)
    net = read_net_parameter(path)
    Teachers([project / "taught"]).join(net, NetState(), net.layer[0], path)
    data = [layer for layer in net.layer if layer.type == "Data"]
    for layer, source in zip(data, ("train_lmdb", "test_lmdb"), strict=True):
        layer.data_param.source = str(project / source)
        layer.transform_param.mean_file = str(project / "mean.binaryproto")
    found = {phase: caffe.Net(net, phase).blob_loss_weights for phase in (caffe.TRAIN, caffe.TEST)}
    assert (found[caffe.TRAIN]["loss"], found[caffe.TRAIN]["distillation"]) == pytest.approx((0.1, 3.6))
    assert found[caffe.TEST].get("loss") == (1 if tested else None)
    assert "distillation" not in found[caffe.TEST]


def test_the_channels_that_a_teacher_sees_are_those_of_its_mean(project: Path) -> None:
    """Of faces in two channels, whose means lie 20 grey levels apart."""
    own = load_mean(project / "mean.binaryproto")
    classes = default_classes(3)
    for others, expected in (([own + 20, own], [1]), ([own, own + 20], [0]), ([own + 4, own + 3], [1])):
        save_mean(project / "both.binaryproto", np.concatenate(others))
        teachers = Teachers([project / "taught"])
        teachers.check(project / "both.binaryproto", classes, [project / "run"])
        assert teachers.channels == expected
    teachers.check(project / "mean.binaryproto", classes, [project / "run"])
    assert teachers.channels == [], "it sees all that there is"
    save_mean(project / "both.binaryproto", np.concatenate([own + 20, own + 30]))
    with pytest.raises(StageError, match=r"differs by up to 20\.0 grey levels"):
        Teachers([project / "taught"]).check(project / "both.binaryproto", classes, [project / "run"])


def test_what_is_done_to_the_labels_is_done_to_the_answers(project: Path) -> None:
    """Scores of two halves of a batch one behind the other, and the labels twice: so are the teacher's answers.

    By way of two layers, of which the second changes nothing.
    """
    path = project / "tiny net/train_val.prototxt"
    text = path.read_text().replace("/nowhere/", f"{project}/")
    both = """
      layer { name: "mirror" type: "Power" bottom: "data" top: "mirror" power_param { scale: -1 } }
      layer { name: "twice" type: "Concat" bottom: "data" bottom: "mirror" top: "twice" concat_param { axis: 0 } }
      layer { name: "labels" type: "Concat" bottom: "label" bottom: "label" top: "labels" concat_param { axis: 0 } }
      layer { name: "same" type: "Power" bottom: "labels" top: "same" }
      layer { name: "conv" """
    text = text.replace('layer { name: "conv"', both).replace(
        'bottom: "data" top: "conv"', 'bottom: "twice" top: "conv"'
    )
    path.write_text(text.replace('bottom: "fc2" bottom: "label"', 'bottom: "fc2" bottom: "same"'))
    net = read_net_parameter(path)
    Teachers([project / "taught"]).join(net, NetState(), net.layer[0], path)
    for layer, source in zip(net.layer, ("train_lmdb",), strict=False):
        layer.data_param.source = str(project / source)
        layer.transform_param.mean_file = str(project / "mean.binaryproto")
    made = caffe.Net(net, caffe.TRAIN)
    made.forward()
    answers = made.blobs["teacher"].data
    assert answers.shape == (5, 3)
    np.testing.assert_array_equal(made.blobs["teacher_same"].data, np.concatenate([answers, answers]))
    assert list(made.layer_dict["distillation"].param.bottom) == ["softened_score", "teacher_same"]


def test_another_teacher_is_another_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for and done is gone on with, at its end; another temperature or other weights begin anew."""
    more = ["--epochs", "1", "--teachers", str(project / "taught")]

    def trained(*change: str) -> tuple[np.ndarray, float]:
        assert train(monkeypatch, project, "run", *more, *change) == 0
        snapshot = project / "run/tiny net_iter_5.caffemodel"
        return blobs(project / "run/tiny net.caffemodel")["fc2"][0], snapshot.stat().st_mtime_ns

    first, written = trained()
    again, kept = trained()
    assert kept == written
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, trained("--temperature", "3")[0])
    again, anew = trained()
    assert anew > written
    np.testing.assert_array_equal(first, again)
    assert train(monkeypatch, project, "taught", "--epochs", "1", "--seed", "5") == 0
    assert not np.array_equal(first, trained()[0])


def test_a_stopped_run_goes_on_to_the_same_weights(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [
        "--epochs",
        "3",
        "--teachers",
        str(project / "taught"),
        "--init",
        str(project / "taught/tiny net.caffemodel"),
    ]
    assert train(monkeypatch, project, "whole", *more) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        assert train(patch, project, "parts", *more) == 130
    assert train(monkeypatch, project, "parts", *more) == 0
    whole, parts = (blobs(project / f"{name}/tiny net.caffemodel") for name in ("whole", "parts"))
    for name, arrays in whole.items():
        for a, b in zip(arrays, parts[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_with_share_1_the_labels_do_not_matter(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two teachers that have all of the loss, and other labels: the same weights after the last iteration."""
    shutil.copytree(project / "taught", project / "second")
    more = ["--epochs", "1", "--teacher-share", "1", "--teachers", str(project / "taught"), str(project / "second")]
    found = []
    for labels in (None, [0] * 22):
        if labels:
            shutil.rmtree(project / "train_lmdb")
            write_database(project / "train_lmdb", images(22, seed=0)[0], labels)
        assert train(monkeypatch, project, "run", *more) == 0
        found.append(blobs(project / "run/tiny net_iter_5.caffemodel")["fc2"][0])
    np.testing.assert_array_equal(*found)
    made = layers(project / "run/train_val.prototxt")
    assert len(made["teacher"].teacher_param.net) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--temperature", "3"], r"--temperature is 3\.0 without --teachers; expected trained nets"),
        (["--teacher-share", "0.5"], r"--teacher-share is 0\.5 without --teachers"),
        (["--teachers", "{project}/taught", "--temperature", "0"], r"--temperature is 0\.0; expected a number above 0"),
        (["--teachers", "{project}/taught", "--temperature", "nan"], r"--temperature is nan; expected"),
        (["--teachers", "{project}/taught", "--temperature", "inf"], r"--temperature is inf; expected"),
        (
            ["--teachers", "{project}/taught", "--teacher-share", "1.5"],
            r"--teacher-share is 1\.5; expected .* at most 1",
        ),
        (["--teachers", "{project}/taught", "--teacher-share", "0"], r"--teacher-share is 0\.0; expected"),
        (["--teachers", "{project}/none"], r"none: no such folder; expected the folder of a finished run"),
        (["--teachers", "{project}/tiny net"], r"tiny net: no weights"),
        (["--teachers", "{project}/run"], r"run, the run's own folder; expected a trained net elsewhere"),
        # where the finished run that is in the folder goes, in place of it
        (["--teachers", "{project}/run/previous"], r"previous, the run's own folder; expected a trained net elsewhere"),
        # found out when the net is put together, still before the run is cleared
        (
            ["--teachers", "{project}/broken"],
            r"layer 'teacher' \(Teacher\): a teacher is none: .*broken/tiny net\.caffemodel",
        ),
        (
            ["--teachers", "{project}/wide"],
            r"\(Teacher\): .*wide/tiny net\.caffemodel.*shape \(3, 8\); expected \(4, 8\)",
        ),
    ],
)
def test_what_cannot_teach(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    for name in ("run", "broken", "wide", "run/previous"):
        shutil.copytree(project / "taught", project / name)
    (project / "broken/tiny net.caffemodel").write_bytes(b"nothing")
    wide = project / "wide/deploy.prototxt"
    wide.write_text(wide.read_text().replace("num_output: 3", "num_output: 4"))
    write_classes(project / "wide", default_classes(3))
    before = {path: path.read_bytes() for path in (project / "run").rglob("*") if path.is_file()}
    assert train(monkeypatch, project, "run", *[text.format(project=project) for text in more]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert {path: path.read_bytes() for path in (project / "run").rglob("*") if path.is_file()} == before


def test_teachers_of_other_faces_or_classes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--epochs", "1", "--teachers", str(project / "taught")]
    mean = load_mean(project / "taught/mean.binaryproto")
    save_mean(project / "taught/mean.binaryproto", mean + np.float32(1.5))
    assert train(monkeypatch, project, "run", *more) == 0
    save_mean(project / "taught/mean.binaryproto", mean + np.float32(7))
    assert train(monkeypatch, project, "run", *more) == 1
    assert "differs by up to 7.0 grey levels from" in capsys.readouterr().err
    save_mean(project / "taught/mean.binaryproto", np.zeros((1, 9, 9), np.float32))
    assert train(monkeypatch, project, "run", *more) == 1
    assert "differs in size from" in capsys.readouterr().err
    save_mean(project / "taught/mean.binaryproto", mean)
    (project / "taught/classes.txt").unlink()  # as old models have none: the names are the default ones
    assert train(monkeypatch, project, "run", *more) == 0
    write_classes(project / "taught", ("left", "middle", "right"))
    assert train(monkeypatch, project, "run", *more) == 1
    assert re.search(r"whose classes are left, middle, right; expected ", capsys.readouterr().err)


@pytest.mark.parametrize(("given", "weight"), [("loss_weight: 3 loss_weight: 0", 3), ("", 1)])
def test_a_loss_of_its_own_weight_and_tops_keeps_them(
    project: Path, monkeypatch: pytest.MonkeyPatch, given: str, weight: int
) -> None:
    path = project / "tiny net/train_val.prototxt"
    text = path.read_text()
    tail = 'layer { name: "seen" type: "Silence" bottom: "p" }'
    path.write_text(text.replace('top: "loss"', f'top: "loss" top: "p" {given}') + tail)
    assert train(monkeypatch, project, "run", "--epochs", "1", "--teachers", str(project / "taught")) == 0
    weights = [caffe.Net(project / "run/train_val.prototxt", p).blob_loss_weights for p in (caffe.TRAIN, caffe.TEST)]
    assert [net["loss"] for net in weights] == pytest.approx([0.1 * weight, weight])
    assert [net["p"] for net in weights] == [0, 0]


def test_nets_that_cannot_be_taught(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "tiny net/train_val.prototxt"
    text = path.read_text()
    second = 'layer { name: "loss2" type: "SoftmaxWithLoss" bottom: "fc2" bottom: "label" top: "loss2" }'
    more = ["--teachers", str(project / "taught")]
    for change, message in (
        (text + second, "2 SoftmaxWithLoss in phase TRAIN; expected one beside --teachers"),
        (text.replace('name: "fc1"', 'name: "teacher"'), "the name 'teacher' is taken"),
        (text.replace("crop_size: 6", "crop_size: 6 scale: 0.5"), "layer 'data' has scale 0.5; expected 1 beside"),
    ):
        path.write_text(change)
        assert train(monkeypatch, project, "run", *more) == 1
        assert message in capsys.readouterr().err
        assert not (project / "run").exists()
