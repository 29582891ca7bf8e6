"""`python -m train --teachers`: what the run's net is, that it learns from the teachers, and what cannot teach."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_training import blobs, train, write_project

import caffe
from caffe.io import load_mean, read_net_parameter, save_mean
from caffe.proto.caffe_pb2 import LayerParameter, NetState
from caffe.tools.parse_log import read_log
from preprocessing.classes import write_classes
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
    assert str(project / "taught/tiny net.caffemodel") in json.dumps(manifest["inputs"])


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
    path.write_text(path.read_text().replace('top: "loss"', f'top: "loss" {rules}').replace("/nowhere/", f"{project}/"))
    net = read_net_parameter(path)
    Teachers([project / "taught"]).join(net, NetState(), net.layer[0], path)
    for layer, source in zip(net.layer[:2], ("train_lmdb", "test_lmdb"), strict=True):
        layer.data_param.source = str(project / source)
        layer.transform_param.mean_file = str(project / "mean.binaryproto")
    found = {phase: caffe.Net(net, phase).blob_loss_weights for phase in (caffe.TRAIN, caffe.TEST)}
    assert (found[caffe.TRAIN]["loss"], found[caffe.TRAIN]["distillation"]) == pytest.approx((0.1, 3.6))
    assert found[caffe.TEST].get("loss") == (1 if tested else None)
    assert "distillation" not in found[caffe.TEST]


def test_another_teacher_is_another_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--epochs", "1", "--teachers", str(project / "taught")]
    results = []
    for change in ([], [], ["--temperature", "3"]):
        assert train(monkeypatch, project, "run", *more, *change) == 0
        results.append(blobs(project / "run/tiny net.caffemodel")["fc2"][0])
    assert train(monkeypatch, project, "taught", "--epochs", "1", "--seed", "5") == 0
    assert train(monkeypatch, project, "run", *more) == 0
    results.append(blobs(project / "run/tiny net.caffemodel")["fc2"][0])
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], results[3])


def test_two_teachers_by_themselves_decide(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With share 1 the labels do not matter: the objective is that of the teachers alone, of which there may be two."""
    shutil.copytree(project / "taught", project / "second")
    more = ["--epochs", "1", "--teacher-share", "1", "--teachers", str(project / "taught"), str(project / "second")]
    assert train(monkeypatch, project, "run", *more) == 0
    made = layers(project / "run/train_val.prototxt")
    assert list(made["loss"].loss_weight) == [0]
    assert len(made["teacher"].teacher_param.net) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--temperature", "3"], r"--temperature is 3\.0 without --teachers; expected trained nets"),
        (["--teacher-share", "0.5"], r"--teacher-share is 0\.5 without --teachers"),
        (["--teachers", "{project}/taught", "--temperature", "0"], r"--temperature is 0\.0; expected a number above 0"),
        (["--teachers", "{project}/taught", "--temperature", "nan"], r"--temperature is nan; expected"),
        (
            ["--teachers", "{project}/taught", "--teacher-share", "1.5"],
            r"--teacher-share is 1\.5; expected .* at most 1",
        ),
        (["--teachers", "{project}/taught", "--teacher-share", "0"], r"--teacher-share is 0\.0; expected"),
        (["--teachers", "{project}/none"], r"none: no such folder; expected the folder of a finished run"),
        (["--teachers", "{project}/tiny net"], r"tiny net: no weights"),
        (["--teachers", "{project}/run"], r"run, the run's own folder; expected a trained net elsewhere"),
    ],
)
def test_what_cannot_teach(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    shutil.copytree(project / "taught", project / "run")
    before = {path: path.read_bytes() for path in (project / "run").iterdir()}
    assert train(monkeypatch, project, "run", *[text.format(project=project) for text in more]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert {path: path.read_bytes() for path in (project / "run").iterdir()} == before


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
    write_classes(project / "taught", ("left", "middle", "right"))
    assert train(monkeypatch, project, "run", *more) == 1
    assert re.search(r"its classes are left, middle, right; expected ", capsys.readouterr().err)


def test_nets_that_cannot_be_taught(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "tiny net/train_val.prototxt"
    text = path.read_text()
    second = 'layer { name: "loss2" type: "SoftmaxWithLoss" bottom: "fc2" bottom: "label" top: "loss2" }'
    more = ["--teachers", str(project / "taught")]
    for change, message in (
        (text + second, "2 SoftmaxWithLoss in phase TRAIN; expected one beside teachers"),
        (text.replace('name: "fc1"', 'name: "teacher"'), "the name 'teacher' is taken"),
    ):
        path.write_text(change)
        assert train(monkeypatch, project, "run", *more) == 1
        assert message in capsys.readouterr().err
        assert not (project / "run").exists()
