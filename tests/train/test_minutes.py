"""Training for a time, by a clock of the test's own: an iteration takes as long as the test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_training import train, write_problem, write_project

import caffe
from caffe.io import read_solver_parameter
from caffe.proto.caffe_pb2 import SolverParameter
from train.__main__ import rescale
from train.minutes import TimeLimit

EPOCH = 5


def limited(
    folder: Path, seconds: float, duration: Callable[[int], float], changes: str = ""
) -> tuple[caffe.Solver, TimeLimit]:
    """A solver that has a time, begins as if for three epochs, and whose iteration i takes duration(i) seconds."""
    path = folder / "solver.prototxt"
    if not path.exists():
        write_problem(folder)
        text = path.read_text()
        path.write_text((text.replace('"step"', '"multistep"') if "stepvalue" in changes else text) + changes)

    def settings(epochs: int) -> SolverParameter:
        param = read_solver_parameter(path)
        param.snapshot_after_train = False
        rescale(param, EPOCH, epochs)
        return param

    solver = caffe.get_solver(settings(3))
    now = 1000.0

    def tick() -> None:
        nonlocal now
        now += duration(solver.iter)

    limit = TimeLimit(solver, EPOCH, seconds, settings, folder / "time.json", lambda: now)
    solver.add_callback(lambda: None, tick)
    return solver, limit


@pytest.mark.parametrize(
    ("seconds", "each", "iterations"),
    [
        (103, 1.0, 100),  # 20 epochs of 5 s, and 3 s are too few for another
        (60, 2.0, 30),
        (4, 1.0, 5),  # no time for an epoch: one
        (1000, 100.0, 10),
        (3.3, 0.01, 330),
    ],
)
def test_as_many_epochs_as_fit(tmp_path: Path, seconds: float, each: float, iterations: int) -> None:
    solver, limit = limited(tmp_path, seconds, lambda _: each)
    solver.solve()
    assert (solver.iter, solver.param.max_iter) == (iterations, iterations)
    assert limit.used == pytest.approx(iterations * each)


def test_the_rate_falls_as_if_the_epochs_had_been_asked_for(tmp_path: Path) -> None:
    changes = "stepvalue: 6 stepvalue: 9 swa_start: 8 swa_interval: 1 warmup_iter: 3"
    solver, _ = limited(tmp_path, 205, lambda _: 1.0, changes)
    solver.solve()
    # of the prototxt's 12 iterations, in epochs of 4
    assert list(solver.param.stepvalue) == [102, 154]  # a half, three quarters of 205
    assert solver.param.swa_start == 137  # two thirds
    assert solver.param.warmup_iter == 4  # three quarters of an epoch
    assert solver.average is not None
    assert solver.average.count == 205 - 137 + 1


@pytest.mark.parametrize(
    ("before", "after"),
    [(1.0, 4.0), (4.0, 1.0)],
    ids=["slower", "faster"],
)
def test_another_speed_on_the_way_moves_the_end(tmp_path: Path, before: float, after: float) -> None:
    solver, limit = limited(tmp_path, 1000, lambda i: before if i < 100 else after)
    solver.solve()
    fit = 100 + (1000 - 100 * before) / after
    assert fit - 2 * EPOCH <= solver.iter <= fit
    assert solver.iter == solver.param.max_iter
    assert solver.iter % EPOCH == 0
    assert limit.used <= 1000


def test_a_stopped_training_has_the_rest_of_its_time(tmp_path: Path) -> None:
    solver, _ = limited(tmp_path, 200, lambda _: 1.0)
    solver.add_callback(lambda: setattr(solver, "requested", "stop" if solver.iter == 119 else None), lambda: None)
    solver.solve()  # the last snapshot is that of iteration 120
    assert solver.iter == 120
    states = sorted(tmp_path.glob("snap_iter_120.solverstate*"))
    assert json.loads((tmp_path / "time.json").read_text()) == {"seconds": pytest.approx(120), "epochs": 40}
    again, limit = limited(tmp_path, 200, lambda _: 2.0)
    limit.resume()
    assert again.param.max_iter == 200
    again.solve(states[0])
    assert again.iter == 160
    assert limit.used == pytest.approx(200)
    over, limit = limited(tmp_path, 200, lambda _: 1.0)
    limit.resume()
    over.solve(sorted(tmp_path.glob("snap_iter_160.solverstate*"))[0])
    assert over.iter == 160


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path / "p")
    assert train(monkeypatch, tmp_path / "p", "run", "--minutes", "0.02") == 0
    run = tmp_path / "p" / "run"
    manifest = json.loads((run / "manifest.json").read_text())
    counts, settings = manifest["counts"], manifest["settings"]
    assert counts["epochs"] == counts["iterations"] / 5 == int(counts["epochs"])
    assert not counts["stopped_early"]
    assert (settings["minutes"], settings["max_iter"]) == (0.02, counts["iterations"])
    solver = read_solver_parameter(run / "solver.prototxt")
    assert (solver.max_iter, solver.test_interval) == (counts["iterations"], 5)
    assert list(solver.stepvalue) == [max(round(share * solver.max_iter), 1) for share in (20 / 40, 35 / 40)]
    # the run is there: the command again trains no more
    weights = (run / "tiny net.caffemodel").read_bytes()
    assert train(monkeypatch, tmp_path / "p", "run", "--minutes", "0.02") == 0
    assert (run / "tiny net.caffemodel").read_bytes() == weights
    assert json.loads((run / "manifest.json").read_text())["counts"] == counts
    # another time is another training
    assert train(monkeypatch, tmp_path / "p", "run", "--minutes", "0.001") == 0
    assert json.loads((run / "time.json").read_text())["seconds"] < 0.02 * 60 + 1000
    assert json.loads((run / "manifest.json").read_text())["settings"]["minutes"] == 0.001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--minutes", "0"), "--minutes is 0.0; expected a number above 0"),
        (("--minutes", "nan"), "--minutes is nan; expected a number above 0"),
        (("--minutes", "inf"), "--minutes is inf; expected a number above 0"),
        (("--minutes", "5", "--epochs", "3"), "--minutes is 5 and --epochs 3; expected one of the two"),
    ],
)
def test_a_time_that_is_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    write_project(tmp_path / "p")
    assert train(monkeypatch, tmp_path / "p", "run", *options) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "p" / "run").exists()
