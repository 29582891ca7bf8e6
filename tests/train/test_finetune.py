"""Other classes, weights to start from, and frozen layers: what each layer of a run is, value by value."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from small_training import blobs, images, stop_after, train, write_project, write_recipe
from tiny_model import write_database

import caffe
from caffe.io import read_binary, read_net_parameter
from caffe.proto.caffe_pb2 import LayerParameter, NetParameter
from preprocessing.classes import write_classes
from preprocessing.network_input import FaceNetwork
from preprocessing.stage import StageError
from train import finetune

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = sorted(path.parent.name for path in ROOT.glob("prototxt/*/train_val.prototxt"))
FOUR = ("top", "middle", "bottom", "none of these")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_project(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a run on three classes, trained for an epoch."""
    folder = tmp_path_factory.mktemp("first")
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        assert train(patch, folder, "run", "--epochs", "1", "--seed", "21") == 0
    return folder / "run" / "tiny net.caffemodel"


def parameters(net: NetParameter, name: str) -> list[tuple[float, float]]:
    """lr_mult and decay_mult as a layer's prototxt states them."""
    return [(spec.lr_mult, spec.decay_mult) for layer in net.layer if layer.name == name for spec in layer.param]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


# The number of classes

CONVOLUTION_END = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 1 dim: 6 dim: 6 } } }
layer { name: "maps" type: "Convolution" bottom: "data" top: "maps" convolution_param { num_output: 3 kernel_size: 3 } }
layer { name: "bn" type: "BatchNorm" bottom: "maps" top: "maps" }
layer { name: "relu" type: "ReLU" bottom: "maps" top: "maps" }
layer { name: "pool" type: "Pooling" bottom: "maps" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "score" type: "Flatten" bottom: "pool" top: "score" }
layer { name: "side" type: "InnerProduct" bottom: "data" top: "side" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }
"""


def test_the_last_layer_is_what_the_softmax_comes_from() -> None:
    net = text_format.Parse(CONVOLUTION_END, NetParameter())
    last = finetune.last_layer(net, Path("x"))
    assert last.name == "maps"
    finetune.set_classes(net, last, 5)
    made = caffe.Net(net, caffe.TEST)
    assert made.blobs["prob"].shape == (2, 5)
    assert made.blobs["side"].shape == (2, 3), "a layer beside the way to the Softmax has changed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Softmax", "Sigmoid"), r"deploy: has no Softmax layer; expected a deploy net that ends in"),
        (('bottom: "score"', 'bottom: "data"'), r"deploy: the Softmax comes from layer 'data' \(Input\); expected"),
    ],
)
def test_nets_without_such_a_layer(change: tuple[str, str], message: str) -> None:
    net = text_format.Parse(CONVOLUTION_END.replace(*change), NetParameter())
    with pytest.raises(StageError, match=message):
        finetune.last_layer(net, Path("deploy"))


def test_soft_labels_follow_the_classes(tmp_path: Path) -> None:
    write_project(tmp_path)
    net = read_net_parameter(tmp_path / "tiny net/train_val.prototxt")
    net.layer[0].data_param.classes = 3
    last = LayerParameter(name="fc2", type="InnerProduct")
    finetune.set_classes(net, last, 9)
    assert [layer.data_param.classes for layer in net.layer[:2]] == [9, 0]
    with pytest.raises(StageError, match=r"net: no Convolution layer 'fc2'; expected one, since the deploy net's"):
        finetune.count_classes(net, LayerParameter(name="fc2", type="Convolution"), Path("net"))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_have_other_classes(name: str) -> None:
    """One layer has seven outputs fewer or more, the same in both nets, and in those that a recipe chooses."""
    folder = ROOT / "prototxt" / name
    deploy, net = (read_net_parameter(folder / f"{kind}.prototxt") for kind in ("deploy", "train_val"))
    last = finetune.last_layer(deploy, folder)
    assert finetune.count_classes(net, last, folder) == 7
    for of in (deploy, net):
        before = NetParameter()
        before.CopyFrom(of)
        finetune.set_classes(of, last, 8)
        changed = [new for old, new in zip(before.layer, of.layer, strict=True) if old != new]
        soft = [layer for layer in of.layer if layer.data_param.classes]  # soft labels go with the classes
        # a net of PAIRS has one in training and one in tests, of the same weights
        scores = [(layer.name, layer.type) for layer in before.layer if layer.name == last.name]
        assert [(layer.name, layer.type) for layer in changed if layer not in soft] == scores
        assert set(scores) == {(last.name, last.type)}
        assert {layer.data_param.classes for layer in soft} <= {8}
        assert finetune.count_classes(of, last, folder) == 8


@pytest.mark.parametrize("name", ["face_emotion_net", "mini_xception", "sequential_fcn"])
def test_networks_with_eight_classes_answer_with_eight(name: str) -> None:
    deploy = read_net_parameter(ROOT / "prototxt" / name / "deploy.prototxt")
    finetune.set_classes(deploy, finetune.last_layer(deploy, Path(name)), 8)
    net = caffe.Net(deploy, caffe.TEST)
    assert net.forward()["prob"].sum(1) == pytest.approx(1)
    assert net.blobs["prob"].shape == (1, 8)


def test_a_run_has_the_classes_of_its_data_set(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faces, labels = images(22, seed=0)
    shutil.rmtree(project / "train_lmdb")
    write_database(project / "train_lmdb", faces, [3 if i % 5 == 0 else label for i, label in enumerate(labels)])
    write_classes(project, FOUR)
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    run = project / "run"
    assert (run / "classes.txt").read_text().splitlines() == list(FOUR)
    network = FaceNetwork(run / "deploy.prototxt", run / "tiny net.caffemodel", run / "mean.binaryproto", "cpu")
    assert network.classes == FOUR
    assert network.probabilities(np.stack(faces)).shape == (22, 4)
    assert json.loads((run / "manifest.json").read_text())["settings"]["classes"] == list(FOUR)
    # a project of its own: Caffe's solver reads the run's files
    caffe.get_solver(str(run / "solver.prototxt")).step(1)

    # other names are another training, the same names in another order too
    best = (run / "best.json").stat().st_mtime_ns
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    assert (run / "best.json").stat().st_mtime_ns == best
    write_classes(project, FOUR[::-1])
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    assert (run / "best.json").stat().st_mtime_ns != best
    assert (run / "classes.txt").read_text().splitlines() == list(FOUR[::-1])

    (project / "elsewhere").mkdir()
    shutil.move(project / "test_lmdb", project / "elsewhere")
    write_classes(project / "elsewhere", FOUR)
    capsys.readouterr()
    assert train(monkeypatch, project, "other", "--val", f"{project}/elsewhere/test_lmdb") == 1
    assert re.search(r"elsewhere/classes\.txt: top, .*; expected none of these, .*top", capsys.readouterr().err)


# Weights to start from


def test_other_classes_rebuild_the_last_layer(
    project: Path, first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(project, FOUR)
    write_recipe(project, "still", "base_lr: 0")
    assert train(monkeypatch, project, "plain", "--solver", "still", "--epochs", "1") == 0
    capsys.readouterr()
    assert train(monkeypatch, project, "run", "--solver", "still", "--epochs", "1", "--init", str(first)) == 0
    given, plain, init = (
        blobs(p) for p in (first, project / "plain/tiny net.caffemodel", project / "run" / "init.caffemodel")
    )
    found = blobs(project / "run/tiny net.caffemodel")
    assert set(init) == {"conv", "bn", "scale", "fc1"}
    assert all(same(init[name], given[name]) for name in init)
    assert all(same(found[name], given[name]) for name in ("conv", "scale", "fc1"))
    assert found["fc2"][0].shape == (4, 8)
    assert same(found["fc2"], plain["fc2"]), "the last layer is not filled as without weights"

    net = read_net_parameter(project / "run/train_val.prototxt")
    assert parameters(net, "fc2") == [(10, 1), (10, 1)]
    assert parameters(net, "fc1") == [(1, 1), (2, 1)]
    solver = caffe.get_solver(str(project / "run/solver.prototxt"))
    assert [blob.lr_mult for blob in solver.net.params["fc2"]] == [10, 10]
    assert same([blob.data for blob in solver.net.params["bn"]], given["bn"]), "caffe train starts from other weights"

    report = json.loads((project / "run/manifest.json").read_text())["counts"]["init"]
    assert report["copied"] == {name: [list(array.shape) for array in given[name]] for name in init}
    assert report["rebuilt"] == {"fc2": "3×8, 3 in tiny net.caffemodel; 4×8, 4 here"}
    assert (report["passed_over"], report["frozen"]) == ({}, [])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"train: from {first}: 4 copied, 1 rebuilt, 0 passed over, 0 frozen"
    assert lines[1] == "  copied: conv 4×1×3×3; bn 4, 4, 1; scale 4, 4; fc1 8×16, 8"
    assert lines[2] == "  rebuilt: fc2 (3×8, 3 in tiny net.caffemodel; 4×8, 4 here)"


@pytest.mark.parametrize(
    ("theirs", "ours", "copied"),
    [
        (None, None, True),  # old weights have no classes.txt
        (None, ("class_0", "class_1", "class_2"), True),
        (("a", "b", "c"), ("a", "b", "c"), True),
        (("a", "b", "c"), ("b", "a", "c"), False),
        (None, ("a", "b", "c"), False),
        (("a", "b", "c"), None, False),
    ],
)
def test_the_last_layer_is_copied_where_the_classes_are_the_same(
    project: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    theirs: tuple[str, ...] | None, ours: tuple[str, ...] | None, copied: bool,
) -> None:  # fmt: skip
    shutil.copy(first, tmp_path / "start.caffemodel")
    for folder, names in ((tmp_path, theirs), (project, ours)):
        if names is not None:
            write_classes(folder, names)
    assert train(monkeypatch, project, "run", "--epochs", "1", "--init", f"{tmp_path}/start.caffemodel") == 0
    report = json.loads((project / "run/manifest.json").read_text())["counts"]["init"]
    assert ("fc2" in blobs(project / "run/init.caffemodel")) == ("fc2" in report["copied"]) == copied
    rates = parameters(read_net_parameter(project / "run/train_val.prototxt"), "fc2")
    assert rates == ([] if copied else [(10, 1), (10, 1)])
    if not copied:
        names = [", ".join(names or ("class_0", "class_1", "class_2")) for names in (theirs, ours)]
        assert report["rebuilt"]["fc2"] == f"classes {names[0]} in start.caffemodel; {names[1]} here"


def test_the_weights_of_a_stopped_training_have_their_classes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(project, ["a", "b", "c"])
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6)
        assert train(patch, project, "stopped one") == 130
    (project / "classes.txt").unlink()
    assert train(monkeypatch, project, "run", "--init", f"{project}/stopped one/best.caffemodel", "--epochs", "1") == 0
    rebuilt = json.loads((project / "run/manifest.json").read_text())["counts"]["init"]["rebuilt"]
    assert rebuilt == {"fc2": "classes a, b, c in best.caffemodel; class_0, class_1, class_2 here"}


def test_a_layer_of_another_shape_is_filled_anew_where_caffe_stops(
    project: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("train_val", "deploy"):
        file = project / f"tiny net/{kind}.prototxt"
        file.write_text(file.read_text().replace("num_output: 8", "num_output: 9"))
    assert train(monkeypatch, project, "run", "--epochs", "1", "--init", str(first)) == 0
    report = json.loads((project / "run/manifest.json").read_text())["counts"]["init"]
    assert set(report["copied"]) == {"conv", "bn", "scale"}
    assert report["rebuilt"]["fc1"] == "8×16, 8 in tiny net.caffemodel; 9×16, 9 here"
    net = read_net_parameter(project / "run/train_val.prototxt")
    assert parameters(net, "fc1") == [(1, 1), (2, 1)], "only the last layer learns faster"
    assert parameters(net, "fc2") == [(10, 1), (10, 1)]
    solver = caffe.get_solver(str(project / "run/solver.prototxt"))
    with pytest.raises(caffe.CaffeError, match=r"'fc1'.*tiny net\.caffemodel"):
        solver.net.copy_from(first)


def test_old_files_state_shapes_of_four_axes(
    project: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = read_binary(first, NetParameter())
    for layer in message.layer:
        for blob in layer.blobs:
            axes = (1,) * (4 - len(blob.shape.dim)) + tuple(blob.shape.dim)
            blob.ClearField("shape")
            blob.num, blob.channels, blob.height, blob.width = axes
    (tmp_path / "old.caffemodel").write_bytes(message.SerializeToString())
    write_recipe(project, "still", "base_lr: 0")
    more = ["--solver", "still", "--epochs", "1", "--init", f"{tmp_path}/old.caffemodel"]
    assert train(monkeypatch, project, "run", *more) == 0
    given, found = blobs(first), blobs(project / "run/tiny net.caffemodel")
    assert all(same(found[name], given[name]) for name in ("conv", "scale", "fc1", "fc2"))


def test_weights_of_which_nothing_fits(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = NetParameter()
    net.layer.add(name="conv").blobs.append(caffe.io.array_to_blobproto(np.ones((5, 1, 3, 3), np.float32)))
    (tmp_path / "start.caffemodel").write_bytes(net.SerializeToString())
    assert train(monkeypatch, project, "run", "--init", f"{tmp_path}/start.caffemodel") == 1
    message = r"no layer's parameters fit small \(conv: 5×1×3×3 in start\.caffemodel; 4×1×3×3 here\); expected"
    assert re.search(message, capsys.readouterr().err)
    assert not (project / "run").exists()


# Frozen layers


@pytest.mark.parametrize("average", ["ema_decay: 0.8", "swa_start: 6 swa_interval: 2 swa_bn_iter: 2"])
def test_frozen_layers_stay_bit_for_bit(
    project: Path, first: Path, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    write_recipe(project, "averaged", f"weight_decay: 0.01 {average}")
    more = ["--solver", "averaged", "--epochs", "3", "--init", str(first)]
    assert train(monkeypatch, project, "run", *more, "--freeze", "conv") == 0
    run, given = project / "run", blobs(first)
    files = [path for path in run.glob("*.caffemodel") if path.name != "init.caffemodel"]
    assert {path.name for path in files} >= {
        "tiny net.caffemodel", "best.caffemodel", "tiny net_iter_15.caffemodel", "tiny net_iter_15_averaged.caffemodel",
    }  # fmt: skip
    for path in files:
        found = blobs(path)
        assert all(same(found[name], given[name]) for name in ("conv", "bn", "scale")), path.name
        assert not any(same(found[name], given[name]) for name in ("fc1", "fc2")), path.name
    net = read_net_parameter(run / "train_val.prototxt")
    assert [len(parameters(net, name)) for name in ("conv", "bn", "scale")] == [1, 3, 2]
    assert {pair for name in ("conv", "bn", "scale") for pair in parameters(net, name)} == {(0, 0)}
    assert parameters(net, "fc1") == [(1, 1), (2, 1)]
    assert json.loads((run / "manifest.json").read_text())["counts"]["init"]["frozen"] == ["conv", "bn", "scale"]

    # without freezing they all move, the running sums as well
    assert train(monkeypatch, project, "free", *more) == 0
    found = blobs(project / "free/tiny net.caffemodel")
    assert not any(same(found[name], given[name]) for name in given)


def test_no_gradient_is_computed_for_frozen_layers(project: Path, first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(monkeypatch, project, "run", "--epochs", "1", "--init", str(first), "--freeze", "conv") == 0
    solver = caffe.get_solver(str(project / "run/solver.prototxt"))
    needed = dict(zip(solver.net._layer_names, solver.net.layer_needs_backward, strict=True))
    assert {name for name, needs in needed.items() if needs} == {"fc1", "drop", "fc2", "loss"}
    loss = solver.net.compute(gradient=True)
    assert float(loss) > 0
    assert not solver.net.blobs["pool"].tensor().requires_grad, "PyTorch keeps what a gradient of these layers needs"
    assert solver.net.blobs["fc1"].tensor().requires_grad
    solver.net.propagate()
    walked = [name for name, of in solver.net.params.items() if any(blob.has_diff for blob in of)]
    assert walked == ["fc1", "fc2"]


def test_layers_are_frozen_by_name(
    project: Path, first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--epochs", "1", "--init", str(first)]
    assert train(monkeypatch, project, "run", *more, "--freeze", "fc1, conv") == 0
    found, given = blobs(project / "run/tiny net.caffemodel"), blobs(first)
    assert {name: same(found[name], given[name]) for name in given} == {
        "conv": True, "bn": False, "scale": False, "fc1": True, "fc2": False,
    }  # fmt: skip
    assert "  frozen: conv; fc1\n" in capsys.readouterr().out
    # other layers are another training
    assert train(monkeypatch, project, "run", *more, "--freeze", "fc1") == 0
    assert not same(blobs(project / "run/tiny net.caffemodel")["conv"], given["conv"])


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (
            "conv1",
            r"--freeze names 'conv1', no layer of small with parameters; expected conv, or some of conv, bn, scale, ",
        ),
        ("conv,,bn", r"--freeze names '', no layer of small"),
        ("relu", r"--freeze names 'relu', no layer of small with parameters"),
        ("conv,bn,scale,fc1,fc2", r"--freeze is conv,bn,scale,fc1,fc2: no layer of small is left to learn"),
        ("fc2", r"--freeze: layer 'fc2' is not copied \(3×8, 3 in .*\) and would stay as it is filled"),
    ],
)
def test_layers_that_cannot_be_frozen(
    project: Path, first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    freeze: str, message: str,
) -> None:  # fmt: skip
    write_classes(project, FOUR)
    assert train(monkeypatch, project, "run", "--init", str(first), "--freeze", freeze) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (project / "run").exists()


def test_freezing_needs_weights_and_the_rate_a_number(
    project: Path, first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, project, "run", "--freeze", "conv") == 1
    assert "--freeze is conv without --init; expected weights that are worth keeping" in capsys.readouterr().err
    for rate in ("0", "-1", "nan", "inf"):
        assert train(monkeypatch, project, "run", "--lr", rate) == 1
        assert re.search(rf"--lr is {float(rate)}; expected a number above 0", capsys.readouterr().err)
    assert train(monkeypatch, project, "with, comma", "--init", str(first)) == 1
    assert "expected a path without a comma" in capsys.readouterr().err
    assert train(monkeypatch, project, "run", "--lr", "0.25", "--epochs", "1") == 0
    shutil.copytree(project / "run", project / "run/previous")  # which the run would take the place of
    for own in (project / "run" / "tiny net.caffemodel", project / "run/previous/tiny net.caffemodel"):
        assert train(monkeypatch, project, "run", "--init", str(own)) == 1
        assert "in the run's own folder; expected weights elsewhere" in capsys.readouterr().err
        assert own.is_file()
    assert "base_lr: 0.25" in (project / "run/solver.prototxt").read_text()
    assert "lr = 0.25" in (project / "run/train.log").read_text()


RESIDUAL = """
name: "residual"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 2 dim: 4 dim: 4 }} }} }}
layer {{ name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param {{ num_output: 2 kernel_size: 1 }} }}
layer {{ name: "a_bn" type: "BatchNorm" bottom: "a" top: "a" }}
layer {{ name: "b" type: "Convolution" bottom: "a" top: "b" convolution_param {{ num_output: 2 kernel_size: 1 }} }}
layer {{ name: "b_bn" type: "BatchNorm" bottom: "b" top: "b_bn" }}
layer {{ name: "b_scale" type: "Scale" bottom: "b_bn" top: "b_scale" }}
layer {{ name: "sum" type: "Eltwise" bottom: "a" bottom: "b_scale" top: "sum" }}
layer {{ name: "sum_bn" type: "BatchNorm" bottom: "sum" top: "sum" }}
layer {{ name: "end" type: "{end}" bottom: "sum" top: "end" {param} {{ num_output: 3 {kernel} }} }}
"""


@pytest.mark.parametrize("end", ["InnerProduct", "Convolution"])
def test_what_conv_means(end: str) -> None:
    """All up to the last convolution that is not the end, and the batch norm of its own, behind it."""
    param, kernel = finetune.SCORES[end], "kernel_size: 4" if end == "Convolution" else ""
    net = text_format.Parse(RESIDUAL.format(end=end, param=param, kernel=kernel), NetParameter())
    shapes = {name: [blob.shape for blob in of] for name, of in caffe.Net(net, caffe.TEST).params.items()}
    assert finetune.layers_to_freeze(net, "conv", shapes, "end") == ["a", "a_bn", "b", "b_bn", "b_scale"]
    for layer in net.layer[1:-1]:
        layer.type = "Deconvolution" if layer.type == "Convolution" else layer.type
    with pytest.raises(StageError, match="--freeze is conv, but residual has no Convolution before its last layer"):
        finetune.layers_to_freeze(net, "conv", shapes, "end")
