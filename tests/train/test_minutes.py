"""Training for a time, by a clock of the test's own: an iteration takes as long as the test says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from small_training import stop_after, train, write_problem, write_project, write_recipe

import caffe
import train.__main__ as command
from caffe.averaging import StochasticAverage
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


def test_a_time_of_many_times_the_prototxts_epochs(tmp_path: Path) -> None:
    """Its 15 iterations are over in a two-hundredth of the time, and the rest of it is slower."""
    solver, limit = limited(tmp_path, 300, lambda i: 0.1 if i < 20 else 2.0)
    solver.solve()
    assert (solver.iter, solver.param.max_iter) == (165, 165)
    assert limit.used == pytest.approx(2 + 145 * 2)


def test_a_time_of_more_iterations_than_can_be_counted(tmp_path: Path) -> None:
    """Ten million iterations pass as one, at one a second, and the time is good for ten thousand million."""
    solver, limit = limited(tmp_path, 1e10, lambda _: 1e7)
    solver.add_callback(lambda: None, lambda: setattr(solver, "iter", solver.iter + 9_999_999))
    solver.param.max_iter = 1_000_000_000  # until the speed is known
    solver.on_test.append(lambda *_: setattr(solver, "requested", "stop" if solver.iter > 150_000_000 else None))
    solver.solve()
    assert solver.param.max_iter == 2147483645  # the whole epochs of five iterations below 2^31
    assert limit.used == pytest.approx(17e7)


@pytest.mark.parametrize(
    ("seconds", "each", "when", "stands", "iterations"),
    [(1000, 2.0, 100, 300.0, 350), (1000, 2.0, 102, 300.0, 350), (100, 1.0, 0, 60.0, 40)],
    ids=["between epochs", "in an epoch", "the first"],
)
def test_a_machine_that_stands_still_for_a_while(
    tmp_path: Path, seconds: float, each: float, when: int, stands: float, iterations: int
) -> None:
    solver, limit = limited(tmp_path, seconds, lambda i: each + stands * (i == when))
    solver.solve()
    assert iterations - EPOCH <= solver.iter <= iterations
    assert limit.used <= seconds


def test_the_warm_up_is_no_longer_than_the_training(tmp_path: Path) -> None:
    solver, _ = limited(tmp_path, 4, lambda _: 1.0, "warmup_iter: 6")  # one and a half epochs
    assert solver.param.warmup_iter == 8
    solver.solve()
    assert (solver.iter, solver.param.warmup_iter) == (5, 5)


def test_weights_are_averaged_from_where_the_last_plan_says(tmp_path: Path) -> None:
    """The average that began by a shorter plan begins anew; a stopped training goes on with the one that it had."""
    changes = "swa_start: 8 swa_interval: 1"
    solver, _ = limited(tmp_path, 1000, lambda i: 4.0 if i < 180 else 1.0, changes)
    average, begun = solver.average, []
    assert isinstance(average, StochasticAverage)
    solver.add_callback(lambda: begun.append(average.count), lambda: None)
    solver.solve()
    assert begun[175] > 0  # by the plan of 250 iterations
    assert solver.iter > 400
    assert solver.param.swa_start == average.start == pytest.approx(solver.iter * 2 / 3, abs=2 * EPOCH)
    assert average.count == solver.iter - average.start + 1

    (tmp_path / "b").mkdir()
    solver, _ = limited(tmp_path / "b", 100, lambda _: 1.0, changes)
    solver.add_callback(lambda: setattr(solver, "requested", "stop" if solver.iter == 79 else None), lambda: None)
    solver.solve()
    assert (solver.iter, solver.param.swa_start) == (80, 67)
    again, limit = limited(tmp_path / "b", 100, lambda _: 0.5, changes)
    limit.resume()
    again.solve(tmp_path / "b/snap_iter_80.solverstate")
    assert (again.iter, again.param.swa_start) == (120, 67)
    assert again.average is not None
    assert again.average.count == 120 - 67 + 1


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
    assert json.loads((tmp_path / "time.json").read_text()) == {
        "seconds": pytest.approx(120), "epochs": 40, "swa_start": -1,
    }  # fmt: skip
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


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's clock: an iteration takes a second."""
    now, update = 0.0, caffe.Solver.apply_update

    def tick(solver: caffe.Solver, display: bool = False) -> None:
        nonlocal now
        now += 1.0
        update(solver, display)

    monkeypatch.setattr(caffe.Solver, "apply_update", tick)
    monkeypatch.setattr(command, "TimeLimit", partial(TimeLimit, clock=lambda: now))


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: None
) -> None:
    write_project(tmp_path / "p")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert train(monkeypatch, tmp_path / "p", "run", "--minutes", "0.55") == 0
    assert "| 30/30 [" in capsys.readouterr().err.split("\r")[-1]
    run = tmp_path / "p" / "run"
    manifest = json.loads((run / "manifest.json").read_text())
    counts, settings = manifest["counts"], manifest["settings"]
    assert (counts["iterations"], counts["epochs"], counts["stopped_early"]) == (30, 6, False)
    assert (settings["minutes"], settings["max_iter"]) == (0.55, 30)
    solver = read_solver_parameter(run / "solver.prototxt")
    assert (solver.max_iter, solver.test_interval) == (30, 5)
    assert list(solver.stepvalue) == [15, 26]  # a half and seven eighths
    # the run is there: the command again trains no more
    weights = (run / "tiny net.caffemodel").read_bytes()
    assert train(monkeypatch, tmp_path / "p", "run", "--minutes", "0.55") == 0
    assert (run / "tiny net.caffemodel").read_bytes() == weights
    assert json.loads((run / "manifest.json").read_text())["counts"] == counts
    # another time is another training, and so are epochs
    assert train(monkeypatch, tmp_path / "p", "run", "--minutes", "0.4") == 0
    assert json.loads((run / "manifest.json").read_text())["counts"]["iterations"] == 20
    assert json.loads((run / "time.json").read_text())["seconds"] == 20
    assert train(monkeypatch, tmp_path / "p", "run", "--epochs", "1") == 0
    assert not (run / "time.json").exists()


def test_an_iteration_of_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: None) -> None:
    """By iter_size 2 an epoch of 22 images in batches of 5 takes three seconds."""
    write_project(tmp_path / "p")
    write_recipe(tmp_path / "p", "large", "iter_size: 2")
    assert train(monkeypatch, tmp_path / "p", "run", "--minutes", "0.55", "--solver", "large") == 0
    counts = json.loads((tmp_path / "p/run/manifest.json").read_text())["counts"]
    assert (counts["iterations"], counts["epochs"]) == (33, 11)


def test_a_command_that_was_stopped_has_the_rest_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: None
) -> None:
    write_project(tmp_path / "p")
    with monkeypatch.context() as patch:
        stop_after(patch, 17)
        assert train(patch, tmp_path / "p", "run", "--minutes", "0.7") == 130
    state = json.loads((tmp_path / "p/run/time.json").read_text())
    assert (state["seconds"], state["epochs"]) == (17, 8)
    assert train(monkeypatch, tmp_path / "p", "run", "--minutes", "0.7") == 0
    counts = json.loads((tmp_path / "p/run/manifest.json").read_text())["counts"]
    assert (counts["iterations"], counts["epochs"]) == (40, 8)


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
