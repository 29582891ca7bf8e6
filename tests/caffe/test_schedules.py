"""Rates against PyTorch's schedulers and by their formulas; what is judged by tests: plateaus and early stopping."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from small_training import write_problem
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

import caffe
from caffe import glog as log
from caffe.io import read_solver_parameter
from caffe.proto.caffe_pb2 import SolverParameter
from caffe.schedules import Monitor, Progress, learning_rate


def settings(text: str) -> SolverParameter:
    return text_format.Parse(f"base_lr: 0.5 {text}", SolverParameter())


def rates(text: str, iterations: int) -> list[float]:
    return [learning_rate(settings(text), i) for i in range(iterations)]


def torch_rates(make: Callable[[torch.optim.Optimizer], LRScheduler], iterations: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler, found = make(optimizer), []
    for _ in range(iterations):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        if len(found) < iterations:
            scheduler.step()
    return found


@pytest.mark.parametrize("lowest", [0, 0.125])
def test_cosine_is_pytorchs(lowest: float) -> None:
    expected = torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, 20, lowest), 20)
    assert rates(f'lr_policy: "cosine" max_iter: 20 min_lr: {lowest}', 20) == pytest.approx(expected, rel=1e-6)
    # at its end it stays there, where PyTorch's would rise again
    assert rates(f'lr_policy: "cosine" max_iter: 20 min_lr: {lowest}', 99)[20:] == pytest.approx([lowest] * 79)


@pytest.mark.parametrize(("start", "first", "last"), [(0.3, 25, 10000), (0.25, 4, 8), (0.0625, 10, 2), (0.9, 10, 2)])
def test_one_cycle_is_pytorchs(start: float, first: float, last: float) -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        cycle = {"total_steps": 32, "pct_start": start, "div_factor": first, "final_div_factor": last}
        return OneCycleLR(optimizer, 0.5, cycle_momentum=False, **cycle)

    text = f'lr_policy: "onecycle" max_iter: 32 pct_start: {start} div_factor: {first} final_div_factor: {last}'
    ours = rates(text, 40)
    assert ours[:32] == pytest.approx(torch_rates(scheduler, 32), rel=1e-6)
    assert ours[32:] == pytest.approx([0.5 / first / last] * 8)  # where PyTorch's is an error


def test_one_cycle_without_a_rise_begins_at_the_top() -> None:
    ours = rates('lr_policy: "onecycle" max_iter: 10 pct_start: 0 div_factor: 1 final_div_factor: 1e6', 10)
    assert ours[0] > 0.95 * 0.5
    assert all(later < earlier for earlier, later in pairwise(ours))


def test_settings_at_the_ends_of_their_ranges() -> None:
    assert rates('lr_policy: "cosine" max_iter: 3 min_lr: 0.5', 3) == [0.5] * 3
    assert rates('lr_policy: "cosine" max_iter: 1', 2) == [0.5, 0]
    assert rates('lr_policy: "poly" power: 1 max_iter: 1', 2) == [0.5, 0]
    assert rates('lr_policy: "plateau" gamma: 0.1 min_lr: 0.5 patience: 1', 1) == [0.5]
    ends = "max_iter: 1 div_factor: 1 final_div_factor: 1"
    assert rates(f'lr_policy: "onecycle" {ends}', 1) == [0.5]
    assert rates('lr_policy: "onecycle" max_iter: 4 pct_start: 1', 4)[-1] == 0.5


POLICIES = [
    'lr_policy: "fixed"',
    'lr_policy: "step" gamma: 0.1 stepsize: 3',
    'lr_policy: "poly" power: 2 max_iter: 12',
    'lr_policy: "cosine" max_iter: 12',
    'lr_policy: "onecycle" max_iter: 12',
    'lr_policy: "plateau" gamma: 0.1',
]


@pytest.mark.parametrize("policy", POLICIES)
def test_warm_up_rises_to_the_policys_rate(policy: str) -> None:
    plain, warm = rates(policy, 12), rates(f"{policy} warmup_iter: 5", 12)
    assert warm[:5] == pytest.approx(
        [rate * share for rate, share in zip(plain, (0.2, 0.4, 0.6, 0.8, 1), strict=False)]
    )
    assert warm[5:] == plain[5:]


def test_plateau_by_its_formula() -> None:
    param = settings('lr_policy: "plateau" gamma: 0.5 min_lr: 0.1')
    assert [learning_rate(param, 7, n) for n in range(5)] == pytest.approx([0.5, 0.25, 0.125, 0.1, 0.1])


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("patience", [1, 3])
def test_plateaus_are_found_where_pytorch_finds_them(lower: bool, patience: int) -> None:
    values = np.cumsum(np.random.default_rng(patience).normal(size=60)).astype(np.float32)
    values[5] = np.nan
    mode = "min" if lower else "max"
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    # its patience is what it endures; ours, after which it acts
    theirs = ReduceLROnPlateau(optimizer, mode, factor=0.5, patience=patience - 1, threshold=0, eps=0)
    ours, param = Progress(), settings('lr_policy: "plateau" gamma: 0.5')
    for i, value in enumerate(values):
        ours.add(Monitor("x", lower), float(value), i)
        ours.reduce_rate(patience)
        theirs.step(float(value))
        assert learning_rate(param, i, ours.rate_reductions) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.best == (np.nanmin if lower else np.nanmax)(values)
    assert ours.rate_reductions > 3


def test_a_test_that_is_repeated_counts_once() -> None:
    progress, monitor = Progress(), Monitor("loss", lower=True)
    for iteration, value in ((0, 1.0), (10, 1.5), (10, 1.5), (20, 1.25)):
        progress.add(monitor, value, iteration)
    assert progress == Progress(best=1.0, tests_since_best=2, tests_waited=2, tested_iter=20)


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    return write_problem(tmp_path)


def solver_of(problem: Path, text: str) -> caffe.Solver:
    return caffe.get_solver(text_format.Merge(text, read_solver_parameter(problem)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('lr_policy: "cosine" max_iter: 0', "lr_policy cosine: max_iter is 0; expected at least 1"),
        ('lr_policy: "cosine" min_lr: 0.2', "min_lr is 0.2; expected 0 to base_lr, 0.05"),
        ('lr_policy: "cosine" min_lr: -0.1', "min_lr is -0.1; expected 0 to base_lr"),
        ('lr_policy: "onecycle" max_iter: 0', "lr_policy onecycle: max_iter is 0"),
        ('lr_policy: "onecycle" pct_start: 1.5', "pct_start is 1.5; expected 0 to 1"),
        ('lr_policy: "onecycle" pct_start: nan', "pct_start is nan; expected 0 to 1"),
        ('lr_policy: "onecycle" div_factor: 0', "div_factor is 0; expected at least 1"),
        ('lr_policy: "onecycle" final_div_factor: 0.5', "final_div_factor is 0.5; expected at least 1"),
        ('lr_policy: "plateau" gamma: 1', "lr_policy plateau: gamma is 1; expected more than 0 and less than 1"),
        ('lr_policy: "plateau" gamma: 0', "lr_policy plateau: gamma is 0; expected more than 0"),
        ('lr_policy: "plateau" patience: 0', "patience is 0; expected at least 1"),
        ("warmup_iter: -1", "lr_policy step: warmup_iter is -1; expected at least 0"),
        ('lr_policy: "cosines"', "'cosines' is not known; expected fixed.*cosine, onecycle or plateau"),
        ("early_stop: -1", "early_stop is -1; expected at least 0"),
        (
            'early_stop: 2 monitor: "top5"',
            "monitor 'top5' is no output of the first test net; its outputs are accuracy, loss",
        ),
        ('lr_policy: "plateau" monitor: "fc2"', "monitor 'fc2' is no output"),
    ],
)
def test_settings_out_of_range(problem: Path, text: str, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=message):
        solver_of(problem, text)


def test_plateaus_need_tests(problem: Path) -> None:
    param = read_solver_parameter(problem)
    param.ClearField("test_iter")
    param.ClearField("test_interval")
    assert caffe.get_solver(param).monitor is None
    with pytest.raises(caffe.CaffeError, match="early_stop 3 looks at tests, and there is no test net"):
        caffe.get_solver(text_format.Merge("early_stop: 3", param))


@pytest.mark.parametrize("count", [0, -2])
def test_a_test_of_no_batches_gives_nothing_to_monitor(problem: Path, count: int) -> None:
    solver = solver_of(problem, "")
    param = caffe.proto.caffe_pb2.SolverParameter()
    param.CopyFrom(solver.param)
    param.test_iter[:] = [count]
    assert caffe.get_solver(param).monitor is None
    with pytest.raises(caffe.CaffeError, match=f"early_stop 3 looks at tests, and test_iter is {count}; expected 1"):
        caffe.get_solver(text_format.Merge("early_stop: 3", param))


def test_the_monitor_knows_a_loss_from_an_accuracy(problem: Path) -> None:
    assert solver_of(problem, "").monitor == Monitor("accuracy", lower=False)
    assert solver_of(problem, 'monitor: "loss"').monitor == Monitor("loss", lower=True)
    assert solver_of(problem, 'monitor: "nothing that is needed"').monitor is None
    for lower in (True, False):
        assert not Monitor("x", lower).better(math.nan, None)
        assert not Monitor("x", lower).better(0.5, 0.5)


def logged(work: Callable[[], object]) -> str:
    stream = io.StringIO()
    handler = log.log_to(stream)
    try:
        work()
    finally:
        log.stop_logging(handler)
    return stream.getvalue()


# too small a rate for a test to become any better, where no running sums change it
STANDSTILL = "base_lr: 1e-12 test_interval: 2"


@pytest.fixture
def still_problem(problem: Path) -> Path:
    net = problem.parent / "net.prototxt"
    net.write_text(re.sub(r'layer \{ name: "bn".*\n', "", net.read_text()))
    return problem


def test_the_rate_falls_on_a_plateau(still_problem: Path) -> None:
    solver = solver_of(
        still_problem, f'{STANDSTILL} lr_policy: "plateau" gamma: 0.25 patience: 2 display: 1 max_iter: 11'
    )
    lines = logged(solver.solve)
    found = [float(rate) for rate in re.findall(r"Iteration \d+, lr = (\S+)", lines)]
    # tests in iterations 0 (the best), 2, 4 (falls), 6, 8 (falls), 10
    assert found == pytest.approx([1e-12 * 0.25 ** (i // 4) for i in range(11)], rel=1e-5)
    assert lines.count("2 tests without a better accuracy than") == 2
    assert solver.progress is not None
    assert solver.progress.rate_reductions == 2


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_early_stopping(still_problem: Path, form: str) -> None:
    text = f"{STANDSTILL} early_stop: 3 patience: 1 max_iter: 100 snapshot: 4 snapshot_format: {form}"
    solver, tests = solver_of(still_problem, text), []
    solver.on_test.append(lambda solver, number, outputs: tests.append(solver.iter))
    lines = logged(solver.solve)
    assert (solver.iter, solver.stopped_early, solver.requested) == (6, True, None)
    assert tests == [0, 2, 4, 6]
    assert "Early stopping: 3 tests without a better accuracy than" in lines
    assert "lr falls" not in lines  # its policy is another
    ending = ".h5" if form == "HDF5" else ""
    last = still_problem.parent / f"snap_iter_6.solverstate{ending}"
    assert last.is_file(), "no snapshot at the end"
    solver.step(10)
    assert (solver.iter, solver.stopped_early) == (6, True)
    for state in (still_problem.parent / f"snap_iter_4.solverstate{ending}", last):
        resumed = solver_of(still_problem, text)
        resumed.solve(state)
        assert (resumed.iter, resumed.stopped_early, resumed.progress) == (6, True, solver.progress)
    # with more patience it goes on from there, and the test that it repeats counts once
    patient = solver_of(still_problem, text + " early_stop: 5")
    patient.solve(last)
    assert (patient.iter, patient.stopped_early) == (10, True)


def test_early_stopping_of_a_training_that_has_only_nan(problem: Path) -> None:
    solver = solver_of(problem, 'early_stop: 2 monitor: "loss" snapshot_after_train: false')
    solver.net.params["fc2"][0].data[...] = math.nan
    assert "Early stopping: 2 tests without a better loss than none" in logged(solver.solve)
    assert (solver.iter, solver.stopped_early) == (4, True)


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("best", [None, 0.0, -0.1])
def test_what_the_tests_have_said_is_in_a_snapshot(problem: Path, form: str, best: float | None) -> None:
    """Without a best value, as where all were NaN, any number is better than what there was; 0 would be one."""
    text = f"early_stop: 9 snapshot_format: {form}"
    solver, resumed = (solver_of(problem, text) for _ in range(2))
    solver.progress = Progress(tests_since_best=3, tests_waited=2, rate_reductions=1, tested_iter=8)
    solver.progress.best = None if best is None else float(np.float32(best))
    resumed.restore(solver.snapshot())
    assert resumed.progress == solver.progress


def test_training_that_gets_better_does_not_stop(problem: Path) -> None:
    solver = solver_of(problem, 'early_stop: 1 monitor: "loss" max_iter: 8 test_interval: 4 base_lr: 0.02')
    losses: list[float] = []
    solver.on_test.append(lambda solver, number, outputs: losses.append(outputs["loss"]))
    solver.solve()
    assert losses == sorted(losses, reverse=True), "the training does not get better: the test says nothing"
    assert (solver.iter, solver.stopped_early) == (8, False)
