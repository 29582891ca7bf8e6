"""SGD by its formulas, resuming bit for bit, Caffe's log, and damaged files."""

from __future__ import annotations

import io
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from small_nets import input_layer, normal
from small_training import blobs, write_problem
from tiny_model import write_database

import caffe
from caffe import glog as log
from caffe.io import read_binary, read_solver_parameter
from caffe.proto.caffe_pb2 import SolverParameter, SolverState
from caffe.tools.parse_log import parse_log

PROTOTXT = Path(__file__).resolve().parents[2] / "prototxt"

# loss = Σ (x · w + b) over the units: the gradient of w is x for each unit, that of b is 1
LINEAR = input_layer("x", 1, 3) + (
    'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" loss_weight: 1 '
    "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 } "
    'inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } bias_filler { type: "gaussian" } } }'
)


FIXED = 'base_lr: 0.1 lr_policy: "fixed"'


def linear_solver(settings: str) -> caffe.Solver:
    param = text_format.Parse(f"random_seed: 1 {settings} net_param {{ {LINEAR} }}", SolverParameter())
    return caffe.get_solver(param)


def rates(settings: str, iterations: int) -> list[float]:
    """The learning rate of each iteration, read off the bias: its gradient is 1 and its lr_mult 2."""
    solver = linear_solver(f"base_lr: 0.5 {settings}")
    steps = []
    for _ in range(iterations):
        before = float(solver.net.params["fc"][1].data[0])
        solver.net.params["fc"][1].data[0] = 0
        solver.step(1)
        steps.append(-float(solver.net.params["fc"][1].data[0]) / 2)
        assert math.isfinite(before)
    return steps


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('lr_policy: "fixed"', [0.5] * 6),
        ('lr_policy: "step" gamma: 0.1 stepsize: 2', [0.5, 0.5, 0.05, 0.05, 0.005, 0.005]),
        ('lr_policy: "multistep" gamma: 0.1 stepvalue: 1 stepvalue: 4', [0.5, 0.05, 0.05, 0.05, 0.005, 0.005]),
        ('lr_policy: "exp" gamma: 0.5', [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]),
        ('lr_policy: "inv" gamma: 1 power: 2', [0.5, 0.5 / 4, 0.5 / 9, 0.5 / 16, 0.5 / 25, 0.5 / 36]),
        ('lr_policy: "poly" power: 2 max_iter: 5', [0.5, 0.32, 0.18, 0.08, 0.02, 0.0]),
        ('lr_policy: "poly" power: 0.5 max_iter: 4', [0.5, 0.5 * 0.75**0.5, 0.5 * 0.5**0.5, 0.25, 0.0, 0.0]),
        (
            'lr_policy: "sigmoid" gamma: -2 stepsize: 3',
            [0.5 / (1 + math.exp(2 * (i - 3))) for i in range(6)],
        ),
    ],
)
def test_learning_rates(settings: str, expected: list[float]) -> None:
    assert rates(settings, len(expected)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("regularization", ["L1", "L2"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("clip", [-1.0, 2.0])
@pytest.mark.parametrize("iter_size", [1, 3])
def test_sgd_by_its_formula(regularization: str, momentum: float, clip: float, iter_size: int) -> None:
    """V ← momentum · V + rate · (∇ + decay · r(w)), w ← w − V, with r(w) = w (L2) or its sign (L1)."""
    solver = linear_solver(
        f'base_lr: 0.1 lr_policy: "exp" gamma: 0.7 momentum: {momentum} weight_decay: 0.2 clip_gradients: {clip} '
        f'regularization_type: "{regularization}" iter_size: {iter_size}'
    )
    blobs = solver.net.params["fc"]
    w, b = (blob.data.astype(np.float64) for blob in blobs)
    speed_w, speed_b = np.zeros_like(w), np.zeros_like(b)
    regular = np.sign if regularization == "L1" else lambda value: value
    clipped = 0
    for i in range(6):
        x = normal(1, 3, seed=i) * 1.5
        solver.net.blobs["x"].data[...] = x
        solver.step(1)
        gradient_w, gradient_b = iter_size * np.repeat(x, 2, 0).astype(np.float64), iter_size * np.ones(2)
        norm = math.sqrt((gradient_w**2).sum() + (gradient_b**2).sum())
        factor = min(1.0, clip / norm) if clip > 0 else 1.0
        clipped += factor < 1
        rate = 0.1 * 0.7**i
        speed_w = momentum * speed_w + rate * (factor * gradient_w / iter_size + 0.2 * regular(w))
        speed_b = momentum * speed_b + 2 * rate * factor * gradient_b / iter_size
        w, b = w - speed_w, b - speed_b
        np.testing.assert_allclose(blobs[0].data, w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(blobs[1].data, b, rtol=1e-4, atol=1e-6)
    assert (clipped > 0) == (clip > 0), "nothing is clipped: the test says nothing of it"


@pytest.mark.parametrize("waits", [True, False])
def test_the_log_says_what_was_clipped(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """A line for each iteration whose norm is above the limit; on a GPU they come together."""
    solver = linear_solver('base_lr: 0.1 lr_policy: "fixed" clip_gradients: 2')
    log_clipping = solver._log_clipping
    if not waits:
        monkeypatch.setattr(solver, "_log_clipping", lambda: None)
    norms = []
    caplog.set_level("INFO", log.logger.name)
    log.logger.addHandler(caplog.handler)
    try:
        for scale in (0.1, 3, 5, 0.2, 4):
            x = normal(1, 3) * scale
            norms.append(math.sqrt(2 * (float((x**2).sum()) + 1)))
            solver.net.blobs["x"].data[...] = x
            solver.step(1)
        log_clipping()
        log_clipping()
    finally:
        log.logger.removeHandler(caplog.handler)
    said = re.findall(r"scaling down gradients \(L2 norm (\S+) > 2\) by scale factor (\S+)", caplog.text)
    clipped = [norm for norm in norms if norm > 2]
    assert 0 < len(clipped) < len(norms)
    assert [float(text) for line in said for text in line] == pytest.approx(
        [number for norm in clipped for number in (norm, 2 / norm)], rel=1e-4
    )


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "Adam", "AdaGrad"])
def test_solvers_that_share_weights_take_turns(kind: str) -> None:
    """Each has its own gradients and history, and both move the same weights."""
    momentum = "momentum: 0.9" if kind != "AdaGrad" else ""
    one, other = (linear_solver(f'base_lr: 0.1 lr_policy: "fixed" type: "{kind}" {momentum}') for _ in range(2))
    one.share_weights(other.net)
    for solver, x in [(one, normal(1, 3)), (other, normal(1, 3, seed=1)), (one, normal(1, 3, seed=2))]:
        before = solver.net.params["fc"][0].data.copy()
        solver.net.blobs["x"].data[...] = x
        solver.step(1)
        assert (one.net.params["fc"][0].data != before).all()
        np.testing.assert_array_equal(one.net.params["fc"][0].data, other.net.params["fc"][0].data)
    if kind == "SGD":  # history: one's two gradients; other's one
        expected = 0.9 * 0.1 * normal(1, 3) + 0.1 * normal(1, 3, seed=2)
        np.testing.assert_allclose(one.history[0].numpy(), np.repeat(expected, 2, 0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(other.history[0].numpy(), np.repeat(0.1 * normal(1, 3, seed=1), 2, 0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "Adam"])
@pytest.mark.parametrize("weight", [0, 1])
def test_what_has_no_gradient_decays_all_the_same(kind: str, weight: int) -> None:
    """A head whose loss counts nothing: Caffe's update goes through all parameters, with a gradient of 0."""
    param = text_format.Parse(
        f'random_seed: 1 base_lr: 0.1 lr_policy: "fixed" weight_decay: 0.5 type: "{kind}" net_param {{ {LINEAR} '
        'layer { name: "head" type: "InnerProduct" bottom: "x" top: "z" inner_product_param { num_output: 1 '
        'bias_term: false weight_filler { type: "constant" value: 1 } } } '
        f'layer {{ name: "aux" type: "Reduction" bottom: "z" top: "aux" loss_weight: {weight} }} }}',
        SolverParameter(),
    )
    solver = caffe.get_solver(param)
    solver.net.blobs["x"].data[...] = 2
    solver.step(1)
    gradient = 0.5 + 2 * weight
    moved = 0.1 if kind == "Adam" else 0.1 * gradient  # Adam's first step is the rate, whatever the gradient
    np.testing.assert_allclose(solver.net.params["head"][0].data, 1 - moved, rtol=1e-4)


def test_what_a_loss_counts_may_be_written_before_a_step() -> None:
    solver = linear_solver('base_lr: 0.1 lr_policy: "fixed"')
    solver.net.blobs["x"].data[...] = x = normal(1, 3)
    before = solver.net.params["fc"][0].data.copy()
    solver.net.blobs["y"].diff[...] = 0
    solver.step(2)
    np.testing.assert_array_equal(solver.net.params["fc"][0].data, before)
    solver.net.blobs["y"].diff[...] = [[1, -3]]
    solver.step(1)
    np.testing.assert_allclose(before - solver.net.params["fc"][0].data, 0.1 * np.array([[1], [-3]]) * x, rtol=1e-4)


def test_an_interval_of_tests_without_a_test_net(caplog: pytest.LogCaptureFixture) -> None:
    """As in Caffe, whose users take test_iter out to do without tests: it trains, and says so."""
    log.logger.addHandler(caplog.handler)
    try:
        solver = linear_solver(
            'base_lr: 0.1 lr_policy: "fixed" test_interval: 2 max_iter: 4 snapshot_after_train: false'
        )
    finally:
        log.logger.removeHandler(caplog.handler)
    assert "test_interval is 2" in caplog.text
    solver.solve()
    assert solver.iter == 4
    with pytest.raises(caffe.CaffeError, match="early_stop 3 looks at tests, and there is no test net"):
        linear_solver('base_lr: 0.1 lr_policy: "fixed" test_interval: 2 early_stop: 3')


def test_a_net_for_the_tests_beside_the_one_for_all(problem: Path) -> None:
    """Caffe's order: the `test_net`s first, then `net` for each test_iter that is left."""
    other = problem.parent / "other.prototxt"
    other.write_text((problem.parent / "net.prototxt").read_text().replace('name: "small"', 'name: "other"'))
    for settings, names in (("", ["other"]), ("test_iter: 1", ["other", "small"])):
        solver = solver_of(problem, f'test_net: "{other}" {settings}')
        assert [net.name for net in solver.test_nets] == names


def plain_problem(folder: Path, batch: int, settings: str = "") -> caffe.Solver:
    """The small training without its random layers and its batch statistics."""
    write_problem(folder, batch)
    text = (folder / "net.prototxt").read_text()
    text = re.sub(r'layer \{ name: "(bn|scale|drop)".*\n', "", text).replace("mirror: true", "")
    text = text.replace("crop_size: 6", "crop_size: 8")
    (folder / "net.prototxt").write_text(text)
    return caffe.get_solver(text_format.Parse(settings, read_solver_parameter(folder / "solver.prototxt")))


def weights(solver: caffe.Solver) -> bytes:
    return b"".join(blob.data.tobytes() for blob in solver.net.learnable_params)


def test_two_half_batches_are_one(tmp_path: Path) -> None:
    whole = plain_problem(tmp_path / "whole", 6)
    halves = plain_problem(tmp_path / "halves", 3, "iter_size: 2")
    start = weights(whole)
    assert weights(halves) == start
    for _ in range(8):
        whole.step(1)
        halves.step(1)
        assert whole.smoothed_loss() == pytest.approx(halves.smoothed_loss(), rel=1e-4)
    for ours, theirs in zip(whole.net.learnable_params, halves.net.learnable_params, strict=True):
        np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-3, atol=1e-5)
    assert np.abs(np.frombuffer(start, np.float32) - np.frombuffer(weights(whole), np.float32)).max() > 0.01


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    return write_problem(tmp_path)


def solver_of(problem: Path, settings: str = "") -> caffe.Solver:
    param = read_solver_parameter(problem)
    return caffe.get_solver(text_format.Merge(settings, param))


def state(solver: caffe.Solver) -> tuple[object, ...]:
    """All that decides how training goes on."""
    return (
        solver.iter,
        weights(solver),
        [history.numpy().tobytes() for history in solver.history],
        solver.smoothed_loss(),
        [net.states() for net in (solver.net, *solver.test_nets)],
    )


def test_the_seed_decides_everything(problem: Path) -> None:
    runs = []
    for settings in ("", "", "random_seed: 4"):
        solver = solver_of(problem, settings)
        solver.step(7)
        runs.append(state(solver))
    assert runs[0] == runs[1]
    assert runs[0][1] != runs[2][1]
    assert weights(solver_of(problem, "random_seed: 0")) == weights(solver_of(problem, "random_seed: 0"))
    assert weights(solver_of(problem, "random_seed: -1")) != weights(solver_of(problem, "random_seed: -1"))


def test_it_learns(problem: Path) -> None:
    solver = solver_of(problem, "test_interval: 1000 display: 0")
    before = solver.test()
    solver.step(60)
    after = solver.test()
    assert after["loss"][0] < 0.5 * before["loss"][0]
    assert after["accuracy"][0] >= 0.9


def test_outputs_of_several_values_are_averaged_each(problem: Path) -> None:
    net = problem.parent / "net.prototxt"
    net.write_text(net.read_text().replace('top: "accuracy"', 'top: "accuracy" top: "each"'))
    solver = solver_of(problem)
    found, again = solver.test(), []  # of two batches, which are all images: the next two are the same
    for _ in range(2):
        again.append({name: values.copy() for name, values in solver.test_nets[0].forward().items()})
    assert len(found["each"]) == 3
    for name, values in found.items():
        np.testing.assert_allclose(values, np.mean([out[name].ravel() for out in again], 0), rtol=1e-5)


@pytest.mark.parametrize("stop", [1, 6, 8])
def test_restored_it_goes_on_as_if_never_stopped(problem: Path, stop: int) -> None:
    straight = solver_of(problem)
    straight.step(stop)
    straight.step(11 - stop)
    stopped = solver_of(problem)
    stopped.step(stop)
    file = stopped.snapshot()
    assert file == f"{problem.parent}/snap_iter_{stop}.solverstate"
    stopped.step(2)  # what happens after the snapshot leaves no trace in it
    resumed = solver_of(problem, "random_seed: 99")
    assert weights(resumed) != weights(stopped)
    resumed.restore(file)
    assert resumed.iter == stop
    resumed.step(11 - stop)
    assert state(resumed) == state(straight)
    names = {path.name for path in problem.parent.glob("snap*")}
    assert names == {f"snap_iter_{stop}.solverstate", f"snap_iter_{stop}.caffemodel"}


def test_snapshots_on_an_interval_and_at_the_end(problem: Path) -> None:
    solver = solver_of(problem, "snapshot: 5 max_iter: 12")
    solver.solve()
    assert {path.name for path in problem.parent.glob("*.solverstate")} == {
        "snap_iter_5.solverstate", "snap_iter_10.solverstate", "snap_iter_12.solverstate",
    }  # fmt: skip
    message = read_binary(problem.parent / "snap_iter_12.solverstate", SolverState())
    assert (message.iter, message.learned_net, message.current_step) == (
        12,
        f"{problem.parent}/snap_iter_12.caffemodel",
        2,
    )
    again = solver_of(problem, "snapshot: 5 max_iter: 12")
    again.solve(problem.parent / "snap_iter_10.solverstate")
    assert state(again) == state(solver)


def test_without_tests_or_an_interval_of_any_kind() -> None:
    solver = linear_solver(f"{FIXED} max_iter: 2 snapshot_after_train: false")
    solver.solve()
    assert solver.iter == 2


def test_without_a_snapshot_after_training(problem: Path) -> None:
    solver_of(problem, "snapshot_after_train: false max_iter: 2").solve()
    assert not list(problem.parent.glob("snap*"))


@pytest.mark.parametrize(
    ("seconds", "share", "expected"),
    [
        (10, 1.0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (10, 0.25, [1, 4, 7, 10, 12]),  # 3 times as long as a snapshot from one to the next, and one at the end
        (0.01, 0.25, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),  # no time worth to speak of
    ],
)
def test_snapshots_take_no_more_than_their_share_of_the_time(
    problem: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, share: float, expected: list[int]
) -> None:
    """An iteration takes as long as a snapshot."""
    now = [0.0]

    def pass_time(duration: float) -> None:
        now[0] += duration

    monkeypatch.setattr("caffe.solver.time.perf_counter", lambda: now[0])
    param = read_solver_parameter(problem)
    param.snapshot = 1
    solver = caffe.get_solver(param)
    solver.snapshot_share = share
    solver.add_callback(lambda: pass_time(seconds), lambda: None)
    solver.before_snapshot.append(lambda _: pass_time(seconds))
    found: list[int] = []
    solver.on_snapshot.append(lambda solver, path: found.append(solver.iter))
    solver.solve()
    assert found == expected


def test_weights_that_were_kept_are_written_later(problem: Path, tmp_path: Path) -> None:
    solver = caffe.get_solver(str(problem))
    solver.step(3)
    kept, then = solver.weights(), solver.net.params["fc1"][0].data.copy()
    solver.step(3)
    now = solver.net.params["fc1"][0].data.copy()
    solver.save_weights(tmp_path / "kept.caffemodel", kept)
    solver.save_weights(tmp_path / "now.caffemodel")
    for name, expected in (("kept", then), ("now", now)):
        np.testing.assert_array_equal(blobs(tmp_path / f"{name}.caffemodel")["fc1"][0], expected)
    np.testing.assert_array_equal(solver.net.params["fc1"][0].data, now)
    assert (then != now).any()


def test_snapshots_with_gradients(problem: Path) -> None:
    solver = solver_of(problem, "snapshot_diff: true")
    solver.step(1)
    solver.snapshot()
    stored = caffe.proto.caffe_pb2.NetParameter.FromString((problem.parent / "snap_iter_1.caffemodel").read_bytes())
    blobs = {layer.name: layer.blobs for layer in stored.layer}
    assert len(blobs["fc2"][0].diff) == len(blobs["fc2"][0].data) == 24
    assert any(blobs["fc2"][0].diff)


def test_a_moved_folder_still_resumes(problem: Path, tmp_path: Path) -> None:
    solver = solver_of(problem)
    solver.step(3)
    file = Path(solver.snapshot())
    (tmp_path / "moved").mkdir()
    for path in (file, file.with_suffix(".caffemodel")):
        path.rename(tmp_path / "moved" / path.name)
    other = solver_of(problem, "random_seed: 9")
    other.restore(tmp_path / "moved" / file.name)
    assert weights(other) == weights(solver)
    (tmp_path / "moved" / file.with_suffix(".caffemodel").name).unlink()
    with pytest.raises(
        caffe.CaffeError, match=r"snap_iter_3\.solverstate: its weights .*snap_iter_3\.caffemodel are neither"
    ):
        other.restore(tmp_path / "moved" / file.name)


def test_requests_are_obeyed_after_the_running_iteration(problem: Path) -> None:
    solver = solver_of(problem)

    def ask() -> None:
        if solver.iter == 3:
            solver.requested = "snapshot"
        if solver.iter == 6:
            solver.requested = "stop"

    solver.add_callback(ask, lambda: None)
    solver.solve()
    assert solver.iter == 7
    assert {path.stem for path in problem.parent.glob("*.solverstate")} == {"snap_iter_4", "snap_iter_7"}
    solver.solve()  # asked again, it goes on to the end
    assert solver.iter == 12


def test_callbacks_and_tests(problem: Path) -> None:
    solver, events = solver_of(problem, "test_initialization: false"), []
    solver.add_callback(lambda: events.append("start"), lambda: events.append("gradients"))
    solver.on_test.append(lambda s, number, outputs: events.append((s.iter, number, sorted(outputs))))
    solver.step(5)
    assert events[:2] == ["start", "gradients"]
    assert [event for event in events if isinstance(event, tuple)] == [(4, 0, ["accuracy", "loss"])]
    assert events.count("start") == events.count("gradients") == 5


def test_the_test_net_reads_all_its_batches_with_the_trained_weights(problem: Path) -> None:
    solver = solver_of(problem)
    solver.step(5)
    means = solver.test()
    net = caffe.Net(str(problem.parent / "net.prototxt"), caffe.TEST)
    net.share_with(solver.net)
    batches = [net.forward(blobs=["loss"]) for _ in range(2)]
    batches = [{name: float(value) for name, value in batch.items()} for batch in batches]
    for name in ("loss", "accuracy"):
        assert means[name][0] == pytest.approx((batches[0][name] + batches[1][name]) / 2, rel=1e-5)
    assert batches[0]["loss"] != batches[1]["loss"]


def test_bfloat16_trains_close_to_float32(problem: Path) -> None:
    losses = {}
    for precision in ("FP32", "BF16"):
        solver = solver_of(problem, f"precision: {precision} average_loss: 25 base_lr: 0.02 test_interval: 1000")
        solver.step(25)
        losses[precision] = [float(loss) for loss in solver._losses]
        assert all(blob.data.dtype == np.float32 for blob in solver.net.learnable_params)
    full, half = (np.array(losses[name]) for name in ("FP32", "BF16"))
    assert not np.array_equal(full, half), "bfloat16 was not used"
    np.testing.assert_allclose(half[:5], full[:5], rtol=0.05)
    assert half[-8:].mean() == pytest.approx(full[-8:].mean(), rel=0.2)
    assert half[-8:].mean() < 0.9 * half[:4].mean()


# The log


def logged(work: Callable[[], object]) -> list[str]:
    stream = io.StringIO()
    handler = log.log_to(stream)
    try:
        work()
    finally:
        log.stop_logging(handler)
    return stream.getvalue().splitlines()


def shape(lines: list[str]) -> list[str]:
    """What stands where, from the start of the training on, without the numbers that differ between runs."""
    place = re.compile(r"^I\d{8} \d\d:\d\d:\d\d\.\d{6} +\d+ ([a-z_]+\.cpp:\d+\] .*)$")
    found = [match[1] for line in lines if (match := place.match(line))]
    start = next(i for i, line in enumerate(found) if "] Solving" in line)
    other = ("data_layer.cpp", "blocking_queue.cpp", "caffe.cpp")  # Caffe's reading threads; the caffe command
    lines = [line for line in found[start:] if not line.startswith(other)]
    lines = [re.sub(r"\(.* iter/s, .*s/(\d+) iters\)", r"(\1 iters)", line) for line in lines]
    return [re.sub(r"((loss|accuracy) = )[0-9.e-]+( \(\* 1 = )?[0-9.e-]*", r"\1N\3", line) for line in lines]


def test_the_log_has_the_lines_of_caffes(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = tmp_path / "golden"
    shutil.copytree(shared / "caffe_golden", golden, ignore=shutil.ignore_patterns("layers", "images", "solver"))
    monkeypatch.chdir(golden)
    ours = logged(lambda: caffe.get_solver("resume/solver.prototxt").solve())
    theirs = (golden / "resume" / "full.log").read_text().splitlines()
    assert len(shape(theirs)) > 20
    # the speed of 0 iterations is the one thing that Caffe's build prints in another way
    assert [re.sub(r"\(\d iters\)", "(n iters)", line) for line in shape(ours)] == [
        re.sub(r"\(\d iters\)", "(n iters)", line) for line in shape(theirs)
    ]
    (tmp_path / "ours.log").write_text("\n".join(ours) + "\n")
    for mine, caffes in zip(parse_log(tmp_path / "ours.log"), parse_log(golden / "resume" / "full.log"), strict=True):
        assert [list(row) for row in mine] == [list(row) for row in caffes]
        assert [row["NumIters"] for row in mine] == [row["NumIters"] for row in caffes]
        assert [row["LearningRate"] for row in mine] == [row["LearningRate"] for row in caffes]
        for row in mine:
            assert math.isfinite(row["loss"])


def test_the_logged_loss_is_the_mean_of_the_last(problem: Path) -> None:
    solver, losses = solver_of(problem, "test_interval: 1000"), []
    solver.add_callback(lambda: None, lambda: losses.append(float(solver.net.blobs["loss"].data)))
    lines = logged(lambda: solver.step(7))
    shown = dict(re.findall(r"Iteration (\d+) \(.*loss = ([0-9.]+)", "\n".join(lines)))
    assert list(shown) == ["0", "2", "4", "6"]
    for iteration, loss in shown.items():
        last = losses[max(int(iteration) - 2, 0) : int(iteration) + 1]
        assert float(loss) == pytest.approx(sum(last) / len(last), rel=1e-4)


# What does not fit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('type: "Sgd"', "'Sgd' is not known; expected one of .*SGD"),
        ('lr_policy: "stp"', "lr_policy 'stp' is not known; expected fixed, step"),
        ("stepsize: 0", "stepsize is 0; expected at least 1"),
        ('lr_policy: "poly" max_iter: 0', "lr_policy poly: max_iter is 0; expected at least 1"),
        ('regularization_type: "L3"', "regularization_type is 'L3'; expected L1 or L2"),
        ("iter_size: 0", "iter_size is 0"),
        ("test_iter: 3", "2 test_iter|test_interval|test nets"),
        ("test_interval: 0", "test_interval is 0 with 1 test nets"),
        ('snapshot: 3 snapshot_prefix: ""', "snapshot is set without a snapshot_prefix"),
        ('train_net: "x.prototxt"', "has net, train_net of"),
        ('net: "nowhere.prototxt"', r"nowhere\.prototxt: No such file"),
        ("test_state { stage: 'a' } test_state { stage: 'b' }", "2 test_state for 1 test nets"),
    ],
)
def test_settings_that_do_not_fit(problem: Path, settings: str, message: str) -> None:
    if settings == "test_iter: 3":  # a second test of the same net is fine
        assert len(solver_of(problem, settings).test_nets) == 2
        return
    with pytest.raises(caffe.CaffeError, match=message):
        solver_of(problem, settings)


def test_files_that_are_no_solver(problem: Path) -> None:
    bad = problem.parent / "bad.prototxt"
    for text, message in (
        ("base_lr: 0.1\nbase_rate: 1\n", r"bad\.prototxt:2:1: .*base_rate"),
        ('base_lr: "x"\n', r"bad\.prototxt:1:\d+: "),
        ("base_lr: 0.1\n", "none of net, net_param, train_net|lr_policy"),
        ('base_lr: 0.1 lr_policy: "fixed"\n', "has none of net, net_param"),
    ):
        bad.write_text(text)
        with pytest.raises(caffe.CaffeError, match=message):
            caffe.get_solver(str(bad))
    with pytest.raises(caffe.CaffeError, match=r"nowhere\.prototxt: No such file"):
        caffe.get_solver(problem.parent / "nowhere.prototxt")


def test_a_state_that_names_no_weights_leaves_them(problem: Path) -> None:
    """As Caffe's, where it was written without them."""
    solver, other = (
        linear_solver(f'{FIXED} momentum: 0.9 snapshot_prefix: "{problem.parent}/new/x"'),
        linear_solver(FIXED),
    )
    solver.net.blobs["x"].data[...] = 1
    solver.step(2)
    file = Path(solver.snapshot())
    message = read_binary(file, SolverState())
    message.ClearField("learned_net")
    file.write_bytes(message.SerializeToString())
    before = weights(other)
    other.restore(file)
    assert (other.iter, weights(other)) == (2, before)
    np.testing.assert_array_equal(other.history[0], solver.history[0])


def test_states_that_do_not_fit(problem: Path) -> None:
    solver = solver_of(problem)
    solver.step(2)
    file = Path(solver.snapshot())
    before = state(solver)
    whole = file.read_bytes()
    bad = problem.parent / "bad.solverstate"
    for data in (b"", whole[:1], whole[: len(whole) // 3], whole[:-1], np.random.default_rng(0).bytes(500)):
        bad.write_bytes(data)
        with pytest.raises(caffe.CaffeError, match=r"bad\.solverstate: "):
            solver.restore(bad)
        assert state(solver) == before, "something was restored from a damaged file"
    with pytest.raises(caffe.CaffeError, match=r"snap_iter_2\.caffemodel: expected a \.solverstate"):
        solver.restore(file.with_suffix(".caffemodel"))
    with pytest.raises(caffe.CaffeError, match=r"missing\.solverstate: No such file"):
        solver.restore(problem.parent / "missing.solverstate")
    other = linear_solver('base_lr: 1 lr_policy: "fixed"')
    with pytest.raises(caffe.CaffeError, match=r"snap_iter_2\.solverstate: has 10 histories; .* need 2"):
        other.restore(file)
    model = file.with_suffix(".caffemodel")
    model.write_bytes(model.read_bytes()[:-200])
    with pytest.raises(caffe.CaffeError, match=r"snap_iter_2\.caffemodel: "):
        solver.restore(file)
    assert state(solver) == before


@pytest.mark.parametrize(
    "damage", ["missing", "empty folder", "a file", "noise", "cut off", "nothing", "a cut off record"]
)
def test_databases_that_are_none(problem: Path, damage: str) -> None:
    folder = problem.parent / "train_lmdb"
    data = folder / "data.mdb"
    if damage in ("missing", "empty folder", "a file"):
        shutil.rmtree(folder)
        if damage == "empty folder":
            folder.mkdir()
        elif damage == "a file":
            folder.write_text("x")
    elif damage == "noise":
        data.write_bytes(np.random.default_rng(0).bytes(50_000))
    elif damage == "cut off":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif damage == "nothing":
        data.write_bytes(b"")
    else:
        import lmdb

        with lmdb.open(str(folder), map_size=1 << 26) as env, env.begin(write=True) as transaction:
            transaction.put(b"00000005", transaction.get(b"00000005")[:-10])
    with pytest.raises(caffe.CaffeError, match=r"layer 'data'.*train_lmdb: ") as caught:
        solver_of(problem)
    if damage == "a cut off record":
        assert "record '00000005'" in str(caught.value)


def test_a_mean_that_does_not_fit(problem: Path) -> None:
    net, mean = problem.parent / "net.prototxt", problem.parent / "mean.binaryproto"
    net.write_text(net.read_text().replace("mean_value: 60", f'mean_file: "{mean}"'))
    with pytest.raises(caffe.CaffeError, match=r"layer 'data'.*mean\.binaryproto: No such file"):
        solver_of(problem)
    caffe.io.save_mean(mean, np.ones((1, 8, 9), np.float32))
    with pytest.raises(
        caffe.CaffeError, match=r"mean\.binaryproto: the mean's shape is \(1, 8, 9\); the images' is \(1, 8, 8\)"
    ):
        solver_of(problem)
    for data in (b"", mean.read_bytes()[:-3], b"P5 8 8 255"):
        mean.write_bytes(data)
        with pytest.raises(caffe.CaffeError, match=r"layer 'data'.*mean\.binaryproto: "):
            solver_of(problem)
    caffe.io.save_mean(mean, np.full((1, 8, 8), 60, np.float32))
    solver_of(problem).step(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("network", ["face_emotion_net", "mini_xception"])
@pytest.mark.parametrize("precision", ["FP32", "AUTO"])  # AUTO: where bfloat16 is imitated it takes minutes
def test_the_shipped_networks_resume_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None, network: str, precision: str
) -> None:
    """At their own size, by several threads, which is where the order of a sum could differ."""
    random = np.random.default_rng(0)
    faces = list(random.integers(0, 256, (70, 48, 48), dtype=np.uint8))
    for split in ("train", "val"):
        write_database(tmp_path / f"data/fer2013/lmdb/{split}_lmdb", faces, random.integers(0, 7, 70).tolist())
    caffe.io.save_mean(tmp_path / "data/fer2013/mean.binaryproto", np.full((1, 48, 48), 128, np.float32))
    shutil.copytree(PROTOTXT / network, tmp_path / "prototxt" / network)
    monkeypatch.chdir(tmp_path)
    solver_file = tmp_path / "prototxt" / network / "solver.prototxt"
    settings = f"precision: {precision} test_initialization: false snapshot_prefix: '{tmp_path}/snap'"
    straight = solver_of(solver_file, settings)
    straight.step(2)
    file = straight.snapshot()
    straight.step(2)
    resumed = solver_of(solver_file, f"{settings} random_seed: 99")
    resumed.restore(file)
    resumed.step(2)
    assert state(resumed) == state(straight)
