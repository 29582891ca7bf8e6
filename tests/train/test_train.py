"""The training driver on a data set of seconds: what a run leaves, what a kill leaves, and what is refused."""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from small_training import arguments, blobs, images, stop_after, train, write_project, write_recipe
from tiny_model import write_database

import caffe
from caffe.io import blobproto_to_array, datum_to_array, read_binary, read_solver_parameter
from caffe.proto.caffe_pb2 import Datum, NetParameter, SolverParameter
from caffe.tools.parse_log import parse_log
from preprocessing.network_input import FaceNetwork
from train.__main__ import Run, rescale, validation_batches

ROOT = Path(__file__).resolve().parents[2]
EPOCH = 5  # iterations: 22 images in batches of 5


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with spaces in its name."""
    write_project(tmp_path / "a project")
    return tmp_path / "a project"


def weights(path: Path) -> dict[str, list[bytes]]:
    message = read_binary(path, NetParameter())
    found = {layer.name: [blobproto_to_array(blob).tobytes() for blob in layer.blobs] for layer in message.layer}
    assert sum(map(len, found.values())) == 10
    return found


def records(path: Path) -> list[tuple[bytes, bytes]]:
    with caffe.io.open_lmdb(path).begin() as transaction:  # a process opens an LMDB once
        return [(bytes(key), bytes(value)) for key, value in transaction.cursor()]


# Hand-computed cases


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (3589, (97, 37)),  # 37 · 97
        (28709, (19, 1511)),  # 19 · 1511
        (1, (1, 1)),
        (7, (7, 1)),
        (12, (12, 1)),
        (512, (512, 1)),
        (513, (171, 3)),  # 3 · 171
        (1024, (512, 2)),
        (521, (261, 2)),  # a prime: 2 · 261 = 522 reads one twice
        (1042, (149, 7)),  # 2 · 521, and 2 is too few: 7 · 149 = 1043 reads one twice
    ],
)
def test_batches_that_read_the_validation_split_once(count: int, expected: tuple[int, int]) -> None:
    assert validation_batches(count) == expected


@pytest.mark.parametrize(
    ("settings", "epoch", "epochs", "expected"),
    [
        # the prototxt's own 4 epochs of 10 become 4 of 5
        ("max_iter: 40 test_interval: 10 stepvalue: 20 stepvalue: 35 display: 100", 5, None,
         {"max_iter": 20, "stepvalue": [10, 18], "display": 1}),
        ("max_iter: 40 test_interval: 10 stepvalue: 20 stepvalue: 35 display: 100", 5, 2,
         {"max_iter": 10, "stepvalue": [5, 9], "display": 1}),
        # FaceEmotionNet on FER2013, as it is, and on train and validation together
        ("max_iter: 67350 test_interval: 449 stepvalue: 40410 stepvalue: 57247 display: 100", 449, None,
         {"max_iter": 67350, "stepvalue": [40410, 57247], "display": 100}),
        ("max_iter: 67350 test_interval: 449 stepvalue: 40410 stepvalue: 57247 display: 100", 505, 2,
         {"max_iter": 1010, "stepvalue": [606, 858], "display": 100}),
        ("max_iter: 1000 test_interval: 100 stepsize: 300 display: 20", 50, 4,
         {"max_iter": 200, "stepsize": 60, "display": 12}),
        ("max_iter: 1000 test_interval: 100 stepvalue: 1 display: 20", 2, 1,
         {"max_iter": 2, "stepvalue": [1], "display": 1}),
        # 5 epochs of warm-up stay 5, averaging from three quarters on stays there, once an epoch
        ("max_iter: 67350 test_interval: 449 warmup_iter: 2245 swa_start: 50512 swa_interval: 449 early_stop: 20 "
         "patience: 7", 90, 20,
         {"max_iter": 1800, "warmup_iter": 450, "swa_start": 1350, "swa_interval": 90, "early_stop": 20,
          "patience": 7}),
        # no longer than the training; averaging from the start, or never, each iteration, is what it was
        ("max_iter: 1000 test_interval: 100 warmup_iter: 300 swa_start: 0", 10, 2,
         {"warmup_iter": 20, "swa_start": 0, "swa_interval": 1}),
        ("max_iter: 1000 test_interval: 100", 10, 2, {"warmup_iter": 0, "swa_start": -1, "display": 2}),
        # one at least
        ("max_iter: 30 test_interval: 100", 10, None, {"max_iter": 10}),
        # as long as can be; what lay behind the end for ever still does
        ("max_iter: 1000 test_interval: 100 stepvalue: 500 stepvalue: 2000 stepsize: 2000 swa_start: 2000", 1,
         2147483647, {"max_iter": 2147483647, "stepvalue": [1073741824, 2147483647], "stepsize": 2147483647,
                      "swa_start": 2147483647}),
        ("max_iter: 1000 test_interval: 1 swa_interval: 2000000000 warmup_iter: 2000000000", 10, 1,
         {"swa_interval": 2147483647, "warmup_iter": 10}),
    ],
)  # fmt: skip
def test_rescaling(settings: str, epoch: int, epochs: int | None, expected: dict[str, object]) -> None:
    solver = text_format.Parse(settings, SolverParameter())
    rescale(solver, epoch, epochs)
    assert {name: getattr(solver, name) for name in expected} == expected
    assert solver.test_interval == solver.snapshot == epoch
    assert solver.average_loss == solver.display


# A run


def test_a_run_leaves_a_complete_model(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and "lock" not in path.name}
    assert train(monkeypatch, project, "run one") == 0
    run, out = project / "run one", capsys.readouterr()
    assert {path.name for path in run.iterdir()} == {
        "tiny net.caffemodel", "deploy.prototxt", "mean.binaryproto", "manifest.json", "settings.json", "train.log",
        "solver.prototxt", "train_val.prototxt", "best.caffemodel", "best.json", "classes.txt", ".lock",
        *(f"tiny net_iter_{n}.{kind}" for n in (15, 20) for kind in ("caffemodel", "solverstate")),
    }  # fmt: skip
    assert all(path.read_bytes() == data for path, data in before.items()), "an input was changed"
    assert (run / "mean.binaryproto").read_bytes() == before[project / "mean.binaryproto"]

    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["stage"] == "train"
    assert manifest["settings"] == {
        "network": "tiny net", "solver": None, "train_on": "train", "device": "cpu", "seed": 3, "max_iter": 20,
        "classes": ["class_0", "class_1", "class_2"], "base_lr": pytest.approx(0.005), "init": None, "freeze": None,
        "minutes": None, "threads": torch.get_num_threads(),
    }  # fmt: skip
    counts = manifest["counts"]
    assert (counts["iterations"], counts["epochs"], counts["iterations_per_epoch"]) == (20, 4, EPOCH)

    train_rows, test_rows = parse_log(run / "train.log")
    assert [row["NumIters"] for row in test_rows] == [0, 5, 10, 15, 20]
    assert [row["NumIters"] for row in train_rows] == list(range(20))
    rates = [row["LearningRate"] for row in train_rows]
    assert rates == pytest.approx([0.005] * 10 + [0.0005] * 8 + [0.00005] * 2)
    best = max(test_rows[1:], key=lambda row: (row["accuracy"], -row["NumIters"]))
    assert counts["chosen"]["iteration"] == best["NumIters"]
    assert counts["chosen"]["accuracy"] == pytest.approx(best["accuracy"], abs=1e-5)

    # the model by itself, with the mean and the centre crop, has the accuracy that the log states
    network = FaceNetwork(run / "deploy.prototxt", run / "tiny net.caffemodel", run / "mean.binaryproto", "cpu")
    data = [Datum.FromString(value) for _, value in records(project / "test_lmdb")]
    answers = network.probabilities(np.stack([datum_to_array(datum) for datum in data])).argmax(1)
    assert (answers == [datum.label for datum in data]).mean() == pytest.approx(best["accuracy"], abs=1e-5)

    recipe = project / "tiny net" / "solver.prototxt"
    length, *lines = out.out.splitlines()
    assert length == f"train: 4 epochs of 5 iterations ({recipe}: max_iter 40 / test_interval 10)"
    assert [line.split()[1] for line in lines[:-1]] == ["1/4", "2/4", "3/4", "4/4"]
    assert re.fullmatch(
        rf"train: 20 iterations, best validation accuracy {best['accuracy']:.2%} in epoch {best['NumIters'] // 5} "
        rf"-> {re.escape(str(run))}/tiny net\.caffemodel \(\d+\.\d s\)",
        lines[-1],
    )
    assert out.err == ""

    solver = read_solver_parameter(run / "solver.prototxt")
    assert (list(solver.test_iter), solver.net) == ([1], f"{run}/train_val.prototxt")
    assert (run / "settings.json").stat().st_size > 0

    # again, the same command has nothing to do but to say so
    model = weights(run / "tiny net.caffemodel")
    assert train(monkeypatch, project, "run one") == 0
    assert weights(run / "tiny net.caffemodel") == model
    assert len(parse_log(run / "train.log")[0]) == 20


def test_the_solvers_test_interval_is_an_epoch_in_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test_interval that was changed alone makes a training of another length, which says so; EPOCHS does not."""
    write_recipe(project, "often", "test_interval: 4 max_iter: 6 random_seed: -1")
    assert train(monkeypatch, project, "runs/often", "--solver", "often") == 0
    recipe = project / "tiny net" / "solver_often.prototxt"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"train: 2 epochs of 5 iterations ({recipe}: max_iter 6 / test_interval 4)"
    manifest = json.loads((project / "runs/often/manifest.json").read_text())
    assert (manifest["counts"]["epochs"], manifest["settings"]["seed"]) == (2, 1)  # and without a seed it is 1
    assert train(monkeypatch, project, "runs/often", "--solver", "often", "--epochs", "1") == 0
    assert "max_iter" not in capsys.readouterr().out


def test_a_terminal_shows_how_far_a_training_has_come(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        assert train(patch, project, "run") == 130
    shown = capsys.readouterr().err.splitlines()[-2].split("\r")[-1]
    assert re.match(r"tiny net:  40%\|.*\| 8/20 \[.*, epoch 1/4  training loss \d", shown)
    assert train(monkeypatch, project, "run") == 0
    out = capsys.readouterr()
    assert re.match(r"tiny net: 100%\|.*\| 20/20 \[.*, epoch 4/4  training loss \d", out.err.split("\r")[-1])
    assert len(out.out.splitlines()) == 2, "the lines an epoch are for where there is no bar"


def test_epochs_seed_and_precision(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(monkeypatch, project, "run", "--epochs", "2", "--seed", "8", "--precision", "bf16") == 0
    solver = read_solver_parameter(project / "run" / "solver.prototxt")
    assert (solver.max_iter, list(solver.stepvalue), solver.random_seed) == (10, [5, 9], 8)
    assert solver.precision == SolverParameter.BF16
    assert json.loads((project / "run/manifest.json").read_text())["counts"]["epochs"] == 2


def test_training_on_both_splits(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace, placed = os.replace, []
    monkeypatch.setattr(
        os, "replace", lambda source, target: (placed.append(Path(target).name), replace(source, target))
    )
    assert train(monkeypatch, project, "run", "--train-on", "train+val", "--epochs", "1") == 0
    assert "tiny net.caffemodel" in placed
    assert not any(name.startswith(".") for name in placed), "what a kill leaves of such a file nobody clears away"
    printed = capsys.readouterr().out
    assert "7 iterations, the last weights, trained on both splits -> " in printed
    assert not re.search("validation (accuracy|loss)|best", printed)
    merged = records(project / "run" / "trainval_lmdb")
    both = records(project / "train_lmdb") + records(project / "test_lmdb")
    assert len(merged) == 34
    assert [int(key[:8]) for key, _ in merged] == list(range(34))
    assert sorted(value for _, value in merged) == sorted(value for _, value in both)
    assert [value for _, value in merged] != [value for _, value in both], "the splits are not mixed"
    counts = json.loads((project / "run/manifest.json").read_text())["counts"]
    assert counts["iterations"] == counts["iterations_per_epoch"] == 7  # 34 images in batches of 5
    assert counts["chosen"] == {"iteration": 7}, "there is no split left to choose on"
    again = records(project / "run" / "trainval_lmdb")
    shutil.rmtree(project / "run")
    assert train(monkeypatch, project, "run", "--train-on", "train+val", "--epochs", "1") == 0
    assert records(project / "run" / "trainval_lmdb") == again
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    assert (project / "run/previous/tiny net.caffemodel").is_file()
    assert not list(project.glob("run/**/trainval_lmdb")), "as large as the data set, and made again where it is needed"


@pytest.mark.parametrize(
    ("settings", "what"),
    [("early_stop: 2", "early_stop 2"), ('lr_policy: "plateau" gamma: 0.5', 'lr_policy "plateau"')],
)
def test_what_is_trained_on_does_not_steer_the_training(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: str, what: str
) -> None:
    write_recipe(project, "steered", settings)
    options = ["--solver", "steered", "--epochs", "1"]
    assert train(monkeypatch, project, "run", *options, "--train-on", "train+val") == 1
    assert f"solver_steered.prototxt: {what} goes by validation images, which --train-on" in capsys.readouterr().err
    assert not (project / "run").exists()
    assert train(monkeypatch, project, "run", *options) == 0


def test_a_net_that_is_never_right(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation images of a class that training has never seen: accuracy 0 in every epoch."""
    for name, label in (("train_lmdb", 0), ("test_lmdb", 2)):
        faces, _ = images(11, seed=4)
        shutil.rmtree(project / name)
        write_database(project / name, faces, [label] * 11)
    solver = project / "tiny net" / "solver.prototxt"
    solver.write_text(solver.read_text().replace("base_lr: 0.005", "base_lr: 0.3"))
    assert train(monkeypatch, project, "run", "--epochs", "2") == 0
    chosen = json.loads((project / "run/manifest.json").read_text())["counts"]["chosen"]
    assert chosen["accuracy"] == 0
    weights(project / "run" / "tiny net.caffemodel")


# Stopping and going on

STOPPER = """
import os, runpy, signal, sys
import caffe.solver

what, number, share = sys.argv.pop(1), int(sys.argv.pop(1)), float(sys.argv.pop(1))
if share < 1:
    caffe.solver.QUICK_SNAPSHOT = 0
    caffe.solver.Solver.snapshot_share = property(lambda self: share, lambda self, value: None)
update, replace = caffe.solver.Solver.apply_update, os.replace

def stopping_update(solver, display=False):
    if what == "SIGKILL" and solver.iter == number or what == "SIGINT" and solver.iter == number:
        os.kill(os.getpid(), getattr(signal, what))
    update(solver, display)

def stopping_replace(source, target):
    if os.path.basename(target) == what:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

caffe.solver.Solver.apply_update = stopping_update
os.replace = stopping_replace
runpy.run_module("train", run_name="__main__", alter_sys=True)
"""


def stopped(
    project: Path,
    what: str,
    number: int = 0,
    output: str = "stopped",
    more: tuple[str, ...] = (),
    share: float = 1,
) -> subprocess.CompletedProcess[str]:
    """The command in a process that stops itself: by a signal at an iteration, or killed before a file is renamed."""
    command = [sys.executable, "-c", STOPPER, what, str(number), str(share), *arguments(project, output, *more)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_snapshots_that_are_left_out_do_not_matter_to_what_comes_out(project: Path) -> None:
    run = project / "stopped"
    for what, number, last in (("SIGKILL", 13, 5), ("SIGINT", 17, 18)):  # the snapshots at 10 and 15 came too early
        assert stopped(project, what, number, share=1e-6).returncode in (-9, 130)
        assert max(int(path.stem.rsplit("_", 1)[1]) for path in run.glob("tiny*.solverstate")) == last, what
    assert stopped(project, "nothing", share=1e-6).returncode == 0
    assert stopped(project, "nothing", output="straight").returncode == 0
    for name in ("tiny net.caffemodel", "tiny net_iter_20.caffemodel", "best.caffemodel"):
        assert weights(run / name) == weights(project / "straight" / name), name
    assert (run / "best.json").read_text() == (project / "straight" / "best.json").read_text()


def test_killed_and_stopped_again_and_again(project: Path) -> None:
    run = project / "stopped"
    for what, number, last in (
        ("settings.json", 0, None),
        ("SIGKILL", 3, None),  # before the first snapshot
        ("SIGKILL", 8, 5),
        ("SIGINT", 7, 8),  # stopped in the middle of an epoch, with a snapshot there
        ("tiny net_iter_10.solverstate", 0, 8),  # weights without their state
        ("tiny net_iter_15.caffemodel", 0, 10),
        ("best.json", 0, 15),
        ("manifest.json", 0, 20),
        ("tiny net.caffemodel", 0, 20),
    ):
        done = stopped(project, what, number)
        assert done.returncode == (130 if what == "SIGINT" else -9), (what, done.stderr)
        assert "Traceback" not in done.stderr
        if what == "SIGINT":
            assert done.stderr.strip() == "train: stopped at iteration 8; run it again to go on"
        assert not (run / "tiny net.caffemodel").exists(), "the model stands there before it is made"
        states = [int(path.stem.rsplit("_", 1)[1]) for path in run.glob("tiny*.solverstate")]
        assert max(states, default=None) == last, what
        assert len(states) <= 2
    done = stopped(project, "nothing")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in run.iterdir() if path.name.startswith(".")} == {".lock"}, "a partial file is left"

    # in a process of its own as well: this one's number of threads may be another's, and with it the rounding
    assert stopped(project, "nothing", output="straight").returncode == 0
    for name in ("tiny net.caffemodel", "tiny net_iter_20.caffemodel", "best.caffemodel"):
        assert weights(run / name) == weights(project / "straight" / name), name
    manifests = [json.loads((project / name / "manifest.json").read_text()) for name in ("stopped", "straight")]
    assert manifests[0]["counts"] == manifests[1]["counts"]
    logs = [parse_log(project / name / "train.log") for name in ("stopped", "straight")]
    for ours, theirs in zip(*logs, strict=True):
        for row in [*ours, *theirs]:
            row.pop("Seconds")
        assert ours == theirs


def test_any_name_of_a_network_and_somebodys_copies(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is a pattern of files' names as well, and a copy of a snapshot is none of the training's."""
    name, run = "[tiny] net*", project / "run"
    (project / "tiny net").rename(project / name)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        assert train(patch, project, "run", network=name) == 130
    shutil.copy(run / f"{name}_iter_8.solverstate", run / f"{name}_iter_8 (copy).solverstate")
    assert train(monkeypatch, project, "run", network=name) == 0
    assert f"status from {run}/{name}_iter_8.solverstate" in (run / "train.log").read_text()
    assert {path.name for path in run.iterdir() if "_iter_" in path.name} == {
        f"{name}_iter_8 (copy).solverstate",
        *(f"{name}_iter_{n}.{kind}" for n in (15, 20) for kind in ("caffemodel", "solverstate")),
    }
    assert train(monkeypatch, project, "run", "--epochs", "1", network=name) == 0
    assert (run / "previous" / f"{name}.caffemodel").is_file()
    assert {path.name for path in run.glob("*.solverstate")} == {f"{name}_iter_5.solverstate"}


@pytest.mark.parametrize("number", [5, 10])  # one that goes on the way, and the one that goes at the end
def test_a_kill_while_old_snapshots_are_removed_leaves_none_of_their_files(
    project: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    unlink = Path.unlink

    def killed_unlink(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if f"_iter_{number}." in path.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_unlink)
        assert train(patch, project, "run") == 130
    assert train(monkeypatch, project, "run") == 0
    assert {path.name for path in (project / "run").glob("*_iter_*")} == {
        f"tiny net_iter_{n}.{kind}" for n in (15, 20) for kind in ("caffemodel", "solverstate")
    }


@pytest.mark.parametrize("lost", ["best.json", "best.caffemodel"])
def test_where_the_best_epoch_is_lost_no_later_one_stands_for_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    run = project / "run"
    assert train(monkeypatch, project, "run") == 0
    model = (run / "tiny net.caffemodel").read_bytes()
    (run / lost).unlink()
    assert train(monkeypatch, project, "run") == 1
    assert (
        f"{run}/{lost}: no such file; expected that of the best epoch so far, beside tiny net_iter_20.solverstate"
        in capsys.readouterr().err
    )
    assert (run / "tiny net.caffemodel").read_bytes() == model
    (run / "settings.json").unlink()  # as the error says
    assert train(monkeypatch, project, "run") == 0
    assert (run / "tiny net.caffemodel").read_bytes() == model


FULL_DISK = """
import resource, runpy, signal, sys

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond it is an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv.pop(1)),))
runpy.run_module("train", run_name="__main__", alter_sys=True)
"""


def test_a_full_disk_is_one_line_and_leaves_no_gap(project: Path) -> None:
    """A log that is not written goes on as if nothing were, and its plot would lack what was trained meanwhile."""
    command = [sys.executable, "-c", FULL_DISK, "9000", *arguments(project, "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (1, f"error: {project}/run/train.log: File too large\n")
    for output in ("run", "straight"):
        assert stopped(project, "nothing", output=output).returncode == 0
    assert weights(project / "run/tiny net.caffemodel") == weights(project / "straight/tiny net.caffemodel")
    train_rows, test_rows = parse_log(project / "run/train.log")
    assert [row["NumIters"] for row in train_rows] == list(range(20))
    assert [row["NumIters"] for row in test_rows] == [0, 5, 10, 15, 20]


def test_a_stopped_training_goes_on_from_snapshots_in_hdf5(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(project, "hdf5", "snapshot_format: HDF5 ema_decay: 0.8 display: 1")
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        assert train(patch, project, "stopped", "--solver", "hdf5") == 130
    for output in ("stopped", "straight"):
        assert train(monkeypatch, project, output, "--solver", "hdf5") == 0
    run = project / "stopped"
    log = (run / "train.log").read_text()
    assert f"Restoring previous solver status from {run}/tiny net_iter_8.solverstate.h5" in log
    for name in ("tiny net.caffemodel", "best.caffemodel"):
        assert weights(run / name) == weights(project / "straight" / name), name
    assert (run / "best.json").read_text() == (project / "straight" / "best.json").read_text()
    ours, theirs = (parse_log(project / name / "train.log")[0] for name in ("stopped", "straight"))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]
    # of 5, 8, 10 and 20, and where they come quickly 15, the last two are kept, each with its weights
    kept = sorted(path.name.split(".")[0] for path in run.glob("*.solverstate.h5"))
    assert len(kept) == 2
    assert {path.name for path in run.glob("tiny net_iter_*")} == {
        f"{name}{ending}.h5" for name in kept for ending in (".solverstate", ".caffemodel", "_averaged.caffemodel")
    }


def test_early_stopping_ends_the_run_and_says_when(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(project, "early", "early_stop: 2")
    assert train(monkeypatch, project, "run", "--solver", "early", "--epochs", "40") == 0
    _, rows = parse_log(project / "run" / "train.log")
    accuracies = [row["accuracy"] for row in rows]
    last = len(accuracies) - 1  # the epoch, since the first test is before the first
    assert 2 <= last < 40
    for epoch in range(len(accuracies)):  # it goes on as long as one of the last two tests was better than all before
        better = [i for i in range(epoch + 1) if accuracies[i] > max(accuracies[:i], default=-1)]
        assert (epoch - better[-1] >= 2) == (epoch == last)
    counts = json.loads((project / "run/manifest.json").read_text())["counts"]
    assert (counts["stopped_early"], counts["epochs"], counts["iterations"]) == (True, last, EPOCH * last)
    best = max(range(1, last + 1), key=lambda epoch: accuracies[epoch])
    assert counts["chosen"]["epoch"] == best
    assert f"{EPOCH * last} iterations (stopped early, after epoch {last} of 40), best" in capsys.readouterr().out
    model = weights(project / "run" / "tiny net.caffemodel")
    assert train(monkeypatch, project, "run", "--solver", "early", "--epochs", "40") == 0
    assert weights(project / "run" / "tiny net.caffemodel") == model
    assert json.loads((project / "run/manifest.json").read_text())["counts"] == counts


def test_averaged_weights_are_what_is_kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(project, "averaged", "ema_decay: 0.8")
    assert train(monkeypatch, project, "run", "--solver", "averaged") == 0
    run = project / "run"
    chosen = json.loads((run / "manifest.json").read_text())["counts"]["chosen"]
    files = FaceNetwork(run / "deploy.prototxt", run / "tiny net.caffemodel", run / "mean.binaryproto", "cpu")
    data = [Datum.FromString(value) for _, value in records(project / "test_lmdb")]
    answers = files.probabilities(np.stack([datum_to_array(datum) for datum in data])).argmax(1)
    assert (answers == [datum.label for datum in data]).mean() == pytest.approx(chosen["accuracy"], abs=1e-5)
    averaged = sorted(run.glob("*_averaged.caffemodel"))
    assert [path.name for path in averaged] == [f"tiny net_iter_{n}_averaged.caffemodel" for n in (15, 20)]
    assert weights(averaged[1]) != weights(run / "tiny net_iter_20.caffemodel")
    assert train(monkeypatch, project, "last", "--solver", "averaged", "--train-on", "train+val", "--epochs", "1") == 0
    assert weights(project / "last/tiny net.caffemodel") == weights(
        project / "last/tiny net_iter_7_averaged.caffemodel"
    )


def test_the_epoch_is_chosen_by_what_the_solver_monitors(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(project, "loss", 'monitor: "loss" base_lr: 0.1')
    assert train(monkeypatch, project, "run", "--solver", "loss", "--epochs", "12") == 0
    _, rows = parse_log(project / "run" / "train.log")
    counts = json.loads((project / "run/manifest.json").read_text())["counts"]
    best = min(rows[1:], key=lambda row: row["loss"])
    assert counts["chosen"]["iteration"] == best["NumIters"]
    *_, epoch, summary = capsys.readouterr().out.splitlines()
    assert epoch.endswith(f"  best loss {best['loss']:.4g}")
    assert (
        f" best validation loss {best['loss']:.4g} in epoch {best['NumIters'] / EPOCH:.0f}, "
        f"accuracy {best['accuracy']:.2%} -> " in summary
    )


def test_a_monitored_output_that_is_no_number_chooses_no_epoch(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(project, "root", 'monitor: "root"')
    with open(project / "tiny net" / "train_val.prototxt", "a") as file:  # the square root of -1
        for layer in (
            'name: "sum" type: "Reduction" bottom: "fc2" top: "sum"',
            'name: "root" type: "Power" bottom: "sum" top: "root" power_param { power: 0.5 scale: 0 shift: -1 }',
        ):
            file.write(f"layer {{ {layer} include {{ phase: TEST }} }}\n")
    assert train(monkeypatch, project, "run", "--solver", "root", "--epochs", "1") == 1
    assert "run: root was no number in any test; no epoch is the best" in capsys.readouterr().err
    assert not (project / "run/tiny net.caffemodel").exists()


# Recipes and weights to start from


def test_a_second_recipe_with_a_net_of_its_own(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = project / "tiny net"
    assert train(monkeypatch, project, "run", "--solver", "modern") == 1
    assert re.search(
        r"--solver is modern, but there is no .*solver_modern\.prototxt; .*tiny net has solver\.prototxt alone",
        capsys.readouterr().err,
    )
    write_recipe(project, "modern", 'base_lr: 0.02 lr_policy: "fixed"', net="train_val_modern.prototxt")
    text = (network / "train_val.prototxt").read_text()
    (network / "train_val_modern.prototxt").write_text(text.replace("num_output: 8", "num_output: 9"))
    (network / "train_val.prototxt").unlink()  # the recipe does without
    assert train(monkeypatch, project, "run", "--solver", "modern", "--epochs", "1") == 0
    solver = read_solver_parameter(project / "run" / "solver.prototxt")
    assert (solver.base_lr, solver.lr_policy) == (pytest.approx(0.02), "fixed")
    assert blobs(project / "run" / "tiny net.caffemodel")["fc1"][0].shape[0] == 9
    assert json.loads((project / "run/manifest.json").read_text())["settings"]["solver"] == "modern"
    assert train(monkeypatch, project, "run", "--solver", "plain") == 1
    assert "solver_plain.prototxt; expected one of modern, or no --solver" in capsys.readouterr().err


def test_a_recipe_may_choose_its_data_layer_by_a_stage(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = project / "tiny net" / "train_val.prototxt"
    head, plain, rest = re.split(
        r'(layer \{ name: "data".*?batch_size: 5 \}\s*\})', net.read_text(), maxsplit=1, flags=re.DOTALL
    )
    large = plain.replace("phase: TRAIN", 'phase: TRAIN stage: "large"').replace("batch_size: 5", "batch_size: 11")
    either = head + plain.replace("phase: TRAIN", 'phase: TRAIN not_stage: "large"') + large + rest
    net.write_text(either)
    write_recipe(project, "large", 'train_state { stage: "large" }')
    for recipe, iterations in (([], 5), (["--solver", "large"], 2)):  # 22 images in batches of 5, or of 11
        assert train(monkeypatch, project, f"run{iterations}", "--epochs", "1", *recipe) == 0
        counts = json.loads((project / f"run{iterations}/manifest.json").read_text())["counts"]
        assert counts["iterations"] == iterations
    net.write_text(f'state {{ stage: "large" }} {either}')  # asked for by the net itself
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    assert json.loads((project / "run/manifest.json").read_text())["counts"]["iterations"] == 2
    net.write_text(head + plain + large + rest)
    assert train(monkeypatch, project, "run", "--solver", "large") == 1
    expected = "2 Data layers with include { phase: TRAIN } and the stages large; expected one"
    assert expected in capsys.readouterr().err


def rename_layer(source: Path, target: Path, old: str, new: str) -> None:
    message = read_binary(source, NetParameter())
    for layer in message.layer:
        layer.name = new if layer.name == old else layer.name
    target.write_bytes(message.SerializeToString())


def test_a_training_starts_from_weights_by_layer_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(monkeypatch, project, "first", "--epochs", "1", "--seed", "21") == 0
    start = project / "start.caffemodel"
    rename_layer(project / "first" / "tiny net.caffemodel", start, "fc2", "another")
    write_recipe(project, "still", "base_lr: 0")
    assert train(monkeypatch, project, "plain", "--solver", "still", "--epochs", "1") == 0
    assert train(monkeypatch, project, "run", "--solver", "still", "--epochs", "1", "--init", str(start)) == 0
    given, plain, found = (
        blobs(path) for path in (start, project / "plain/tiny net.caffemodel", project / "run/tiny net.caffemodel")
    )
    for layer in ("conv", "fc1"):
        assert all(map(np.array_equal, found[layer], given[layer])), layer
        assert not all(map(np.array_equal, found[layer], plain[layer])), layer
    assert all(map(np.array_equal, found["fc2"], plain["fc2"])), "no layer of that name in the weights"
    shapes = [list(array.shape) for array in given["another"]]
    assert json.loads((project / "run/manifest.json").read_text())["counts"]["init"]["passed_over"] == {
        "another": shapes
    }
    assert set(blobs(project / "run/init.caffemodel")) == {"conv", "bn", "scale", "fc1"}

    digest = hashlib.sha256(start.read_bytes()).hexdigest()
    assert json.loads((project / "run/settings.json").read_text())["data"][str(start)] == digest
    assert {"file": str(start), "sha256": digest} in json.loads((project / "run/manifest.json").read_text())["inputs"]
    assert list(read_solver_parameter(project / "run/solver.prototxt").weights) == [f"{project}/run/init.caffemodel"]


def test_a_stopped_training_from_weights_goes_on_from_its_snapshot(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(monkeypatch, project, "first", "--epochs", "1", "--seed", "21") == 0
    more = ("--init", f"{project}/first/tiny net.caffemodel")
    assert stopped(project, "SIGKILL", 8, more=more).returncode == -9
    assert [path.name for path in (project / "stopped").glob("tiny*.solverstate")] == ["tiny net_iter_5.solverstate"]
    for output in ("stopped", "straight"):
        assert stopped(project, "nothing", output=output, more=more).returncode == 0
    assert weights(project / "stopped/tiny net.caffemodel") == weights(project / "straight/tiny net.caffemodel")
    # other weights under the same name are another training
    shutil.copy(project / "straight/tiny net.caffemodel", project / "first/tiny net.caffemodel")
    done = stopped(project, "SIGKILL", 3, more=more)
    assert done.returncode == -9
    assert not list((project / "stopped").glob("tiny*"))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"start\.caffemodel: no such file; expected a \.caffemodel to start from"),
        ("text", r"start\.caffemodel: .*"),
        ("strange", r"start\.caffemodel: has parameters of .*_, .*; expected some of the layers of small, by name"),
    ],
)
def test_weights_to_start_from_that_do_not_fit(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str, message: str
) -> None:
    start = project / "start.caffemodel"
    if what == "strange":
        net = NetParameter()
        for name in ("conv_", "fc_"):
            net.layer.add(name=name).blobs.append(caffe.io.array_to_blobproto(np.ones(3, np.float32)))
        start.write_bytes(net.SerializeToString())
    elif what == "text":
        start.write_text("no weights")
    assert train(monkeypatch, project, "run", "--init", str(start)) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (project / "run").exists()


@pytest.mark.parametrize("change", ["seed", "epochs", "train_val", "solver", "records", "mean", "train-on"])
def test_other_settings_or_data_start_anew(project: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    run = project / "run"
    first, best = weights(run / "tiny net_iter_5.caffemodel"), weights(run / "tiny net.caffemodel")
    (run / "mine.txt").write_text("not the driver's")
    more = ["--epochs", "1"]
    if change == "seed":
        more += ["--seed", "11"]
    elif change == "epochs":
        more = ["--epochs", "2"]
    elif change == "train-on":
        more += ["--train-on", "train+val"]
    elif change in ("train_val", "solver"):
        file = project / "tiny net" / f"{change}.prototxt"
        old, new = ("lr_mult: 2", "lr_mult: 1") if change == "train_val" else ("momentum: 0.9", "momentum: 0.8")
        file.write_text(file.read_text().replace(old, new))
    elif change == "mean":
        caffe.io.save_mean(project / "mean.binaryproto", np.full((1, 8, 8), 70, np.float32))
    else:
        shutil.rmtree(project / "train_lmdb")
        write_database(project / "train_lmdb", *images(22, seed=9))
    assert train(monkeypatch, project, "run", *more) == 0
    rows, _ = parse_log(run / "train.log")
    assert [row["NumIters"] for row in rows] == list(range({"epochs": 10, "train-on": 7}.get(change, 5)))
    assert (run / "train.log").read_text().count("Initializing solver") == 1, "the old run's log goes on"
    later = run / f"tiny net_iter_{rows[-1]['NumIters'] + 1:.0f}.caffemodel"
    assert weights(later) != first
    assert (run / "mine.txt").exists()
    # the finished one is kept, with what belongs to it, until another takes its place
    kept = run / "previous"
    assert {"settings.json", "manifest.json", "train.log", "tiny net.caffemodel", "solver.prototxt"} <= {
        path.name for path in kept.iterdir()
    }
    assert weights(kept / "tiny net.caffemodel") == best
    assert not list(kept.glob("*_iter_*"))


def test_a_finished_run_without_its_settings_is_kept_as_a_whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removed settings.json to have it trained anew, and an earlier run is there."""
    run = project / "run"
    for seed in ("1", "2"):
        assert train(monkeypatch, project, "run", "--epochs", "1", "--seed", seed) == 0
        (run / "evaluation").mkdir()
        (run / "evaluation" / seed).touch()
    (run / "settings.json").unlink()
    second = weights(run / "tiny net.caffemodel")
    assert train(monkeypatch, project, "run", "--epochs", "1", "--seed", "3") == 0
    assert weights(run / "previous/tiny net.caffemodel") == second
    assert [path.name for path in (run / "previous/evaluation").iterdir()] == ["2"]
    assert not (run / "previous/settings.json").exists()


def test_a_stopped_training_is_not_lost_to_a_forgotten_setting(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, kept = project / "run", project / "run/stopped"
    for number, seed in ((8, "3"), (7, "11")):  # the second is a mistake
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, number)
            assert train(patch, project, "run", "--seed", seed) == 130
    assert f"it is in {kept} now, and goes on when they are given again" in capsys.readouterr().out
    assert {path.name for path in kept.glob("*iter_8*")} == {
        "tiny net_iter_8.caffemodel",
        "tiny net_iter_8.solverstate",
    }
    # each goes on, in turns, from where it was stopped
    for seed, number in (("3", 8), ("11", 7)):
        assert train(monkeypatch, project, "run", "--seed", seed) == 0
        text = (run / "train.log").read_text()
        assert text.count("Restoring previous solver status") == 1
        assert f"tiny net_iter_{number}.solverstate" in text
        assert train(monkeypatch, project, "straight", "--seed", seed) == 0
        assert weights(run / "tiny net.caffemodel") == weights(project / "straight/tiny net.caffemodel")
    assert not kept.exists()
    assert weights(run / "previous/tiny net.caffemodel") == weights(project / "straight/previous/tiny net.caffemodel")


def test_a_kill_while_stopped_trainings_change_places_loses_none(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = project / "run"

    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}

    held = []
    for seed in ("1", "2"):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 6)
            assert train(patch, project, "run", "--seed", seed) == 130
        held.append(content(run))
    # from here on nothing is trained, and the settings come in turns
    monkeypatch.setattr(Run, "train", lambda self: setattr(self, "solver", argparse.Namespace(iter=0)))
    rename = Path.rename
    to_come = 0

    def killed_rename(self: Path, target: Path) -> Path:
        nonlocal to_come
        to_come -= 1
        if to_come < 0:
            raise KeyboardInterrupt
        return rename(self, target)

    for number in range(50):  # the second is in the folder, and the first is asked for
        to_come = number
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "rename", killed_rename)
            assert train(patch, project, "run", "--seed", "1") == 130
        killed = to_come < 0
        asked = number % 2 if killed else 0  # after the kill, one or the other
        assert train(monkeypatch, project, "run", "--seed", str(asked + 1)) == 130
        assert content(run) == held[asked], number
        assert content(run / "stopped") == held[1 - asked], number
        assert train(monkeypatch, project, "run", "--seed", "2") == 130
        if not killed:
            break
    assert not killed
    assert number > 10


def test_a_kill_while_a_stopped_training_is_removed_leaves_nothing_to_go_on_with(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third training that is stopped takes the place of the first, which is asked for afterwards."""
    for seed in ("1", "2"):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 6)
            assert train(patch, project, "run", "--seed", seed) == 130

    def killed_rmtree(folder: Path, ignore_errors: bool = False) -> None:
        (folder / "train_val.prototxt").unlink()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_rmtree)
        assert train(patch, project, "run", "--seed", "3") == 130
    assert train(monkeypatch, project, "run", "--seed", "1") == 0


def test_two_trainings_do_not_write_into_one_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = project / "run"
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    with open(run / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert train(monkeypatch, project, "run", "--epochs", "2") == 1
        assert capsys.readouterr().err == (
            f"error: {run}: another process trains there; expected it to end first, or another folder\n"
        )
        assert {path: path.read_bytes() for path in run.iterdir()} == before

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)  # of such a file system
    assert train(monkeypatch, project, "run", "--epochs", "2") == 0
    said = f"train: {run}: No locks available: nothing keeps a second training from it\n"
    assert capsys.readouterr().err == said


def test_what_is_written_anew_meanwhile_is_not_what_was_trained_with(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(monkeypatch, project, "first", "--epochs", "1") == 0
    start, mean = project / "first/tiny net.caffemodel", project / "mean.binaryproto"
    deploy = project / "tiny net/deploy.prototxt"
    before = [path.read_bytes() for path in (mean, start, deploy)]
    update = caffe.Solver.apply_update

    def update_while_stages_run(solver: caffe.Solver, display: bool = False) -> None:
        if solver.iter == 3:
            caffe.io.save_mean(mean, np.zeros((1, 8, 8), np.float32))
            start.unlink()
            deploy.write_text("# of the next experiment")
        update(solver, display)

    monkeypatch.setattr(caffe.Solver, "apply_update", update_while_stages_run)
    assert train(monkeypatch, project, "run", "--init", str(start)) == 0
    assert (project / "run/mean.binaryproto").read_bytes() == before[0]
    assert (project / "run/deploy.prototxt").read_bytes() == before[2]
    inputs = json.loads((project / "run/manifest.json").read_text())["inputs"]
    assert [entry["sha256"] for entry in inputs if entry["file"] in (str(mean), str(start))] == [
        hashlib.sha256(content).hexdigest() for content in before[:2]
    ]


def test_what_was_evaluated_does_not_stand_for_other_weights(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = project / "run"
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    for _ in range(2):  # the second time a previous run is there
        (run / "evaluation").mkdir()
        (run / "evaluation/evaluation.json").touch()
        assert train(monkeypatch, project, "run", "--epochs", "1", "--lr", "0.5") == 0
        assert not (run / "evaluation").exists()
        assert (run / "previous/evaluation/evaluation.json").is_file()
        (run / "evaluation").mkdir()
        assert train(monkeypatch, project, "run", "--epochs", "1", "--lr", "0.6") == 0
        assert not (run / "evaluation").exists()
        assert not (run / "previous/evaluation/evaluation.json").exists()


def test_the_same_data_written_again_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest beside the LMDBs changes with every run of the stages; what counts is the data."""
    (project / "manifest.json").write_text('{"seconds": 1}')
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    (project / "manifest.json").write_text('{"seconds": 2}')
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    assert "Restoring previous solver status" in (project / "run" / "train.log").read_text()


# What is refused


def spoil(project: Path, what: str) -> None:
    network = project / "tiny net"
    if what in ("train_lmdb", "test_lmdb"):
        shutil.rmtree(project / what)
    elif what == "mean.binaryproto":
        (project / what).unlink()
    elif what == "network":
        shutil.rmtree(network)
    elif what.endswith(".prototxt"):
        (network / what).unlink()
    elif what == "mean of another size":
        caffe.io.save_mean(project / "mean.binaryproto", np.zeros((1, 9, 9), np.float32))
    elif what == "mean of two channels":
        caffe.io.save_mean(project / "mean.binaryproto", np.zeros((2, 8, 8), np.float32))
    elif what == "cut off":
        data = project / "train_lmdb" / "data.mdb"
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif what == "label":
        shutil.rmtree(project / "train_lmdb")
        write_database(project / "train_lmdb", images(22, seed=0)[0], [3] * 22)
    else:
        text = (network / "train_val.prototxt").read_text()
        if what == "one data layer":
            text = text.replace("include { phase: TRAIN }", "", 1)
        elif what == "no accuracy":
            text = text[: text.index('layer { name: "accuracy"')]
        elif what == "unknown field":
            text = text.replace("num_output: 8", "num_outputs: 8")
        elif what == "no batch_size":
            text = text.replace("batch_size: 5", "")
        (network / "train_val.prototxt").write_text(text)
        text = (network / "solver.prototxt").read_text()
        if what == "diverges":
            text = text.replace("base_lr: 0.005", "base_lr: 1e30")
        elif what == "no max_iter":
            text = text.replace("max_iter: 40", "")
        elif what == "no test_interval":
            text = text.replace("test_interval: 10", "")
        elif what == "no iter_size":
            text += " iter_size: 0"
        (network / "solver.prototxt").write_text(text)


def test_a_deep_net_whose_first_test_overflows_trains(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm without statistics divides by the root of eps: 24 of them make the largest float32 of anything."""
    path = project / "tiny net" / "train_val.prototxt"
    norms = "".join(f'layer {{ name: "norm{i}" type: "BatchNorm" bottom: "pool" top: "pool" }}\n' for i in range(24))
    path.write_text(path.read_text().replace('layer { name: "fc1"', norms + 'layer { name: "fc1"'))
    assert train(monkeypatch, project, "run") == 0
    log = (project / "run" / "train.log").read_text()
    assert re.search(r"Test net output #\d+: loss = -?nan", log)
    assert math.isfinite(json.loads((project / "run" / "best.json").read_text())["loss"])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("train_lmdb", r"train_lmdb: not an LMDB"),
        ("test_lmdb", r"test_lmdb: not an LMDB"),
        ("mean.binaryproto", r"mean\.binaryproto: No such file"),
        ("network", r"tiny net/solver\.prototxt: No such file"),
        ("solver.prototxt", r"tiny net/solver\.prototxt: No such file"),
        ("train_val.prototxt", r"tiny net/train_val\.prototxt: No such file"),
        ("deploy.prototxt", r"tiny net/deploy\.prototxt: No such file"),
        ("mean of another size", r"mean\.binaryproto: the mean's shape is \(1, 9, 9\); the images' is \(1, 8, 8\)"),
        (
            "mean of two channels",
            r"its input has 1 channel, .*mean\.binaryproto 2; expected as many: it sees a face once",
        ),
        ("cut off", r"train_lmdb: its data\.mdb is cut off"),
        ("label", r"layer 'loss'.*a label in 'label' is outside 0\.\.2"),
        ("one data layer", r"0 Data layers with include \{ phase: TRAIN \}; expected one"),
        ("no accuracy", r"train_val\.prototxt: .*accuracy"),
        ("unknown field", r"tiny net/train_val\.prototxt:\d+:\d+: .*num_outputs"),
        ("diverges", r"training diverged: at iteration \d+ .*try a lower base_lr"),
        ("no max_iter", r"solver\.prototxt: max_iter is 0; expected"),
        ("no test_interval", r"solver\.prototxt: test_interval is 0; expected"),
        ("no batch_size", r"train_val\.prototxt: Data layer 'data' of phase TRAIN: batch_size is 0; expected"),
        ("no iter_size", r"solver\.prototxt: iter_size is 0; expected at least 1"),
    ],
)
def test_errors(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str, message: str
) -> None:
    spoil(project, what)
    assert train(monkeypatch, project, "run") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert not (project / "run" / "tiny net.caffemodel").exists()
    if what not in ("diverges", "label"):
        assert not list(project.glob("run/*.solverstate")), "it trained before it looked"


def test_a_run_stays_where_another_cannot_begin(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that the solver refuses is found before the finished run is put away."""
    assert train(monkeypatch, project, "run", "--epochs", "1") == 0
    before = {path: path.read_bytes() for path in (project / "run").iterdir()}
    net = project / "tiny net/train_val.prototxt"
    text = net.read_text()
    write_recipe(project, "falling", 'lr_policy: "cosine" min_lr: 0.001')
    write_recipe(project, "classes", 'monitor: "by class"')
    write_recipe(project, "weights", f'weights: "{project}/none.caffemodel"')
    monkeypatch.setattr("caffe.context._cpu_flag", lambda *_: False)
    by_class = text.replace('top: "accuracy"', 'top: "accuracy" top: "by class"')
    for options, of_net, message in (
        (("--device", "tpu"), text, "device 'tpu' is not known; expected auto, cpu, cuda"),
        (("--precision", "fp16"), text, "precision fp16: this processor has no float16 arithmetic"),
        (("--solver", "falling", "--lr", "0.0001"), text, "min_lr is 0.001; expected 0 to base_lr, 0.0001"),
        (("--solver", "weights"), text, "none.caffemodel: no such file; expected a .caffemodel to start from"),
        (("--solver", "classes"), by_class, "the outputs in phase TEST are accuracy, by class, loss; expected loss, "),
        ((), text.replace('"fc2" bottom: "label" top: "accuracy"', '"fc3" bottom: "label" top: "accuracy"'), "'fc3'"),
    ):
        net.write_text(of_net)
        assert train(monkeypatch, project, "run", "--epochs", "1", *options) == 1
        assert message in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (project / "run").iterdir()} == before


@pytest.mark.parametrize("name", ["best", "init", "small_iter_5"])
def test_a_network_is_not_called_as_other_weights_of_a_run_are(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (project / "tiny net").rename(project / name)
    assert train(monkeypatch, project, "run", network=name) == 1
    assert f"{project}/{name}: the network is called {name!r}; expected another name" in capsys.readouterr().err
    assert not (project / "run").exists()


def test_a_batch_of_another_size(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(monkeypatch, project, "run", "--epochs", "2", "--batch", "11") == 0
    manifest = json.loads((project / "run/manifest.json").read_text())
    assert manifest["counts"]["iterations_per_epoch"] == 2  # of 22 images
    assert manifest["counts"]["iterations"] == 4
    layers = caffe.io.read_net_parameter(project / "run/train_val.prototxt").layer
    assert [layer.data_param.batch_size for layer in layers if layer.type == "Data"] == [11, 12]


def test_an_iteration_of_several_batches(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By iter_size 2 an epoch of 22 images in batches of 5 is three iterations, and so is all that counts in epochs."""
    write_recipe(project, "large", "iter_size: 2 warmup_iter: 10 swa_start: 20 swa_interval: 10 display: 1")
    assert train(monkeypatch, project, "run", "--solver", "large") == 0
    run = project / "run"
    counts = json.loads((run / "manifest.json").read_text())["counts"]
    assert (counts["iterations"], counts["epochs"], counts["iterations_per_epoch"]) == (12, 4, 3)
    assert [row["NumIters"] for row in parse_log(run / "train.log")[1]] == [0, 3, 6, 9, 12]
    # one that would come too soon after another is left out
    assert {int(path.stem.rsplit("_", 1)[1]) for path in run.glob("*.solverstate")} <= {3, 6, 9, 12}
    solver = read_solver_parameter(run / "solver.prototxt")
    assert (solver.max_iter, solver.test_interval, solver.snapshot, solver.iter_size) == (12, 3, 3, 2)
    assert (list(solver.stepvalue), solver.warmup_iter, solver.swa_start, solver.swa_interval) == ([6, 10], 3, 6, 3)


@pytest.mark.parametrize("option", ["--epochs", "--batch"])
def test_epochs_and_batches_below_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert train(monkeypatch, project, "run", option, "0") == 1
    assert f"{option} is 0; expected 1 or more" in capsys.readouterr().err
    assert train(monkeypatch, project, "run", "--epochs", "1", option, "1") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "-1"), "--seed is -1; expected 0 to 9223372036854775807"),
        (("--seed", "9223372036854775808"), "--seed is 9223372036854775808; expected 0 to 9223372036854775807"),
        (("--batch", "5000000000"), "--batch is 5000000000; expected at most 2147483647"),
        (
            ("--epochs", "429496730"),  # 2147483650 iterations
            "--epochs is 429496730; expected at most 429496729, since an epoch is 5 iterations here and max_iter at "
            "most 2147483647",
        ),
        (
            ("--solver", "long"),
            "max_iter 2000000000 / test_interval 1 is 2000000000 epochs; expected at most 429496729, since an epoch "
            "is 5 iterations here and max_iter at most 2147483647",
        ),
    ],
)
def test_numbers_that_no_field_holds(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    write_recipe(project, "long", "max_iter: 2000000000 test_interval: 1")
    assert train(monkeypatch, project, "run", *options) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (project / "run").exists()


def test_the_first_and_the_last_seed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both splits, which are shuffled by it; each gives weights of its own."""
    found = []
    for seed in (0, 1, 2**63 - 1):
        assert train(monkeypatch, project, "run", "--seed", str(seed), "--train-on", "train+val", "--epochs", "1") == 0
        found.append(weights(project / "run/tiny net.caffemodel"))
        assert json.loads((project / "run/manifest.json").read_text())["settings"]["seed"] == seed
    assert found[0] != found[1] != found[2] != found[0]


def test_the_command_shows_no_traceback(project: Path) -> None:
    command = [sys.executable, "-m", "train", *arguments(project, "run")]
    shutil.rmtree(project / "train_lmdb")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .*train_lmdb: not an LMDB.*\n", done.stderr)
