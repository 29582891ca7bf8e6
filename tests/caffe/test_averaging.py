"""Averaged weights: their values, what tests and saves see of them, that the training is not touched, and resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from small_training import write_problem
from torch.optim.swa_utils import AveragedModel, update_bn

import caffe
from caffe.files import replace_bytes
from caffe.io import read_binary, read_solver_parameter
from caffe.proto.caffe_pb2 import SolverParameter, SolverState

EMA = "ema_decay: 0.5"
SWA = "swa_start: 3 swa_interval: 2 swa_bn_iter: 3"


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    return write_problem(tmp_path)


def solver_of(problem: Path, text: str) -> caffe.Solver:
    return caffe.get_solver(text_format.Merge(text, read_solver_parameter(problem)))


def weights(net: caffe.Net) -> list[np.ndarray]:
    return [blob.data.copy() for blob in net.learnable_params]


def followed(solver: caffe.Solver, iterations: int) -> list[list[np.ndarray]]:
    """The weights after each iteration."""
    found = []
    for _ in range(iterations):
        solver.step(1)
        found.append(weights(solver.net))
    return found


def average(solver: caffe.Solver) -> list[np.ndarray]:
    assert solver.average is not None
    return [value.numpy() for value in solver.average.values]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)


def test_the_exponential_average_by_its_formula(problem: Path) -> None:
    solver = solver_of(problem, "ema_decay: 0.4 test_interval: 100")
    history = followed(solver, 9)
    expected, decays = history[0], []
    for n, current in enumerate(history[1:], 1):
        decays.append(min(0.4, (1 + n) / (10 + n)))
        expected = [decays[-1] * a + (1 - decays[-1]) * w for a, w in zip(expected, current, strict=True)]
    assert decays[0] < 0.2 < decays[-1] == 0.4, "both parts of the formula are used"
    assert_close(average(solver), expected)
    # BatchNorm's running sums are averaged like all else
    norm = solver.net.params["bn"][2]
    at = next(i for i, blob in enumerate(solver.net.learnable_params) if blob is norm)
    assert average(solver)[at] < norm.data


def test_the_stochastic_average_is_pytorchs(problem: Path) -> None:
    """AveragedModel and update_bn on the same weights and the same batches."""
    solver = solver_of(problem, f"{SWA} test_interval: 100")
    conv = torch.nn.Conv2d(1, 4, 3, bias=False)
    model = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(4, affine=False))
    theirs = AveragedModel(model)
    taken = []
    for iteration, current in enumerate(followed(solver, 9), 1):
        if iteration in (3, 5, 7, 9):
            taken.append(current)
            conv.weight.data = torch.tensor(current[0])
            theirs.update_parameters(model)
    assert_close(average(solver), [np.mean(values, 0) for values in zip(*taken, strict=True)])
    twin = caffe.Net(str(problem.parent / "net.prototxt"), caffe.TRAIN)
    for layer in twin.layers:
        if state := solver.net.states().get(layer.name):
            layer.set_state(state)
    batches = []
    for _ in range(3):
        twin.forward(end="data")
        batches.append(torch.tensor(twin.blobs["data"].data))
    update_bn(batches, theirs)
    solver.save_weights(problem.parent / "average.caffemodel")
    saved = caffe.Net(str(problem.parent / "net.prototxt"), caffe.TEST, weights=problem.parent / "average.caffemodel")
    np.testing.assert_allclose(saved.params["conv"][0].data, theirs.module[0].weight.detach().numpy(), rtol=1e-5)
    mean, var, count = (blob.data for blob in saved.params["bn"])
    assert count == 3
    np.testing.assert_allclose(mean / count, theirs.module[1].running_mean.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var / count, theirs.module[1].running_var.numpy(), rtol=1e-4)


def training_state(solver: caffe.Solver) -> tuple[object, ...]:
    history = [value.numpy().tobytes() for value in solver.history]
    parameters = [value.tobytes() for value in weights(solver.net)]
    return (
        solver.iter,
        parameters,
        history,
        solver.smoothed_loss(),
        [net.states() for net in (solver.net, *solver.test_nets)],
    )


@pytest.mark.parametrize("averaging", [EMA, SWA])
def test_the_training_does_not_notice(problem: Path, averaging: str) -> None:
    plain, averaged = solver_of(problem, ""), solver_of(problem, averaging)
    plain.step(11)
    averaged.step(7)
    averaged.snapshot()
    averaged.step(4)
    assert training_state(averaged) == training_state(plain)


@pytest.mark.parametrize("averaging", [EMA, SWA])
@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_tests_and_saves_have_the_average(problem: Path, averaging: str, form: str) -> None:
    solver = solver_of(problem, f"{averaging} snapshot_format: {form} test_interval: 100")
    prefix, ending = f"{problem.parent}/snap_iter_9", ".h5" if form == "HDF5" else ""
    solver.step(9)
    means = solver.test()
    solver.snapshot()
    assert solver.test() == means
    reader = caffe.Net(str(problem.parent / "net.prototxt"), caffe.TEST)
    for name, same in ((f"{prefix}_averaged.caffemodel{ending}", True), (f"{prefix}.caffemodel{ending}", False)):
        reader.copy_from(name)
        batches = [float(reader.forward()["loss"]) for _ in range(2)]
        assert (np.mean(batches) == pytest.approx(means["loss"][0], rel=1e-6)) == same
    plain = caffe.Net(str(problem.parent / "net.prototxt"), caffe.TRAIN, weights=f"{prefix}.caffemodel{ending}")
    assert all(np.array_equal(*pair) for pair in zip(weights(plain), weights(solver.net), strict=True))
    given = [tensor.numpy() for tensor in solver.weights()]
    solver.save_weights(problem.parent / f"again.caffemodel{ending}")
    again, averaged = (
        caffe.Net(str(problem.parent / "net.prototxt"), caffe.TRAIN, weights=path)
        for path in (problem.parent / f"again.caffemodel{ending}", f"{prefix}_averaged.caffemodel{ending}")
    )
    assert all(np.array_equal(*pair) for pair in zip(weights(again), weights(averaged), strict=True))
    assert all(np.array_equal(*pair) for pair in zip(given, weights(averaged), strict=True))


@pytest.mark.parametrize("averaging", [EMA, SWA])
def test_before_the_first_set_the_weights_are_the_nets(problem: Path, averaging: str) -> None:
    plain, averaged = solver_of(problem, ""), solver_of(problem, averaging)
    assert averaged.test() == plain.test()
    averaged.snapshot()
    averaged.save_weights(problem.parent / "start.caffemodel")
    names = {path.name for path in problem.parent.glob("*.caffemodel")}
    assert names == {"snap_iter_0.caffemodel", "start.caffemodel"}
    start = (problem.parent / "start.caffemodel").read_bytes()
    assert start == (problem.parent / "snap_iter_0.caffemodel").read_bytes()


def test_a_solver_that_averages_nothing_saves_its_weights(problem: Path) -> None:
    solver = solver_of(problem, "")
    solver.step(1)
    solver.save_weights(problem.parent / "w.caffemodel")
    solver.net.save(problem.parent / "n.caffemodel")
    assert (problem.parent / "w.caffemodel").read_bytes() == (problem.parent / "n.caffemodel").read_bytes()


def test_test_nets_that_a_script_has_shared_do_not_reach_the_training(problem: Path) -> None:
    solver = solver_of(problem, EMA)
    solver.step(2)
    solver.test_nets[0].share_with(solver.net)
    before = weights(solver.net)
    solver.test()
    assert all(np.array_equal(*pair) for pair in zip(weights(solver.net), before, strict=True))
    assert not np.array_equal(solver.test_nets[0].params["fc1"][0].data, solver.net.params["fc1"][0].data)


def test_parameters_that_layers_share_in_two_shapes() -> None:
    """The average is one for both layers, each in its own shape."""
    net = """
      layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
      layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
        inner_product_param { num_output: 2 bias_term: false weight_filler { type: "gaussian" std: 1 } } }
      layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" share_mode: PERMISSIVE }
        inner_product_param { num_output: 3 bias_term: false } }
      layer { name: "loss" type: "Power" bottom: "b" top: "loss" power_param { power: 2 } loss_weight: 1 } """
    text = 'base_lr: 0.01 lr_policy: "fixed" ema_decay: 0.5 random_seed: 1 test_iter: 1 test_interval: 9'
    solver = caffe.get_solver(text_format.Parse(f"{text} net_param {{ {net} }}", SolverParameter()))
    for tested in (solver.net, *solver.test_nets):
        tested.blobs["x"].data[...] = 1
    solver.step(3)
    solver.test()
    (values,) = average(solver)
    first, second = (solver.test_nets[0].params[name][0].data for name in "ab")
    np.testing.assert_array_equal(first, values)
    np.testing.assert_array_equal(second, values.reshape(3, 2))
    assert not np.array_equal(values, solver.net.params["a"][0].data)


STEERED = "test_interval: 2 monitor: 'loss' base_lr: 0.2"
FEATURES = {
    "EMA": EMA,
    "SWA": SWA,
    "plateau": f'{STEERED} lr_policy: "plateau" gamma: 0.5 patience: 1',
    "early stopping": f"{STEERED} early_stop: 2",
    "cosine": 'lr_policy: "cosine" warmup_iter: 7',
    "SAM": "sam_rho: 0.1 iter_size: 2",
    "AdamW": 'type: "AdamW" momentum2: 0.99 base_lr: 0.01 lr_policy: "onecycle"',
    "all": f'{STEERED} {EMA} sam_rho: 0.1 lr_policy: "plateau" gamma: 0.5 patience: 1 early_stop: 4',
}


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("feature", FEATURES)
def test_restored_it_goes_on_as_if_never_stopped(problem: Path, feature: str, form: str) -> None:
    text = f"{FEATURES[feature]} snapshot_format: {form}"
    tests: dict[str, list[object]] = {"straight": [], "resumed": []}
    straight = solver_of(problem, text)
    straight.on_test.append(lambda solver, number, means: tests["straight"].append((solver.iter, means)))
    straight.step(6)
    file = straight.snapshot()
    straight.step(2)
    straight.snapshot()  # what is made only for a snapshot must not show either
    straight.step(4)
    resumed = solver_of(problem, f"{text} random_seed: 99")
    resumed.on_test.append(lambda solver, number, means: tests["resumed"].append((solver.iter, means)))
    resumed.restore(file)
    resumed.step(12 - resumed.iter)
    assert training_state(resumed) == training_state(straight)
    assert (resumed.progress, resumed.stopped_early) == (straight.progress, straight.stopped_early)
    if straight.average is not None:
        assert resumed.average is not None
        assert resumed.average.count == straight.average.count > 1
        assert all(np.array_equal(*pair) for pair in zip(average(resumed), average(straight), strict=True))
    assert tests["resumed"] == tests["straight"][-len(tests["resumed"]) :]
    assert tests["resumed"], "nothing was tested"


def test_the_features_above_are_at_work(problem: Path) -> None:
    plateau, stopping = (solver_of(problem, FEATURES[name]) for name in ("plateau", "early stopping"))
    plateau.step(12)
    stopping.step(12)
    assert plateau.progress is not None
    assert plateau.progress.rate_reductions > 0
    assert stopping.progress is not None
    assert stopping.progress.best is not None


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_averaging_may_begin_and_end_with_a_resumed_run(problem: Path, form: str) -> None:
    plain, averaged = (solver_of(problem, f"{text} snapshot_format: {form}") for text in ("", EMA))
    plain.step(2)
    averaged.restore(plain.snapshot())
    averaged.step(1)
    assert averaged.average is not None
    assert averaged.average.count == 1
    plain.restore(averaged.snapshot())
    assert plain.iter == 3


def test_damaged_averages(problem: Path) -> None:
    solver = solver_of(problem, EMA)
    solver.step(2)
    file = Path(solver.snapshot())
    whole = read_binary(file, SolverState())
    for damage, message in (
        (lambda state: state.average.pop(), r"has 9 averages; this solver and net need 10"),
        (lambda state: state.average[0].data.append(1), "average 0"),
        (lambda state: setattr(state, "averaged", -9), "averaged is -9; expected at least 1"),
        (lambda state: setattr(state, "tested_iter", 3) or setattr(state, "tests_waited", -1), "tests_waited is -1"),
    ):
        state = SolverState()
        state.CopyFrom(whole)
        damage(state)
        replace_bytes(file, state.SerializeToString())
        before = average(solver)
        with pytest.raises(caffe.CaffeError, match=rf"snap_iter_2\.solverstate: {message}"):
            solver.restore(file)
        assert all(np.array_equal(*pair) for pair in zip(average(solver), before, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ema_decay: 1", "ema_decay is 1; expected at least 0 and less than 1"),
        ("ema_decay: -0.1", "ema_decay is -0.1"),
        ("ema_decay: nan", "ema_decay is nan"),
        ("ema_decay: 0.9 swa_start: 3", "ema_decay is 0.9 and swa_start 3; expected one of the two"),
        ("swa_start: 3 swa_interval: 0", "swa_interval is 0; expected at least 1"),
        ("swa_start: 3 swa_bn_iter: 0", "swa_bn_iter is 0; expected at least 1"),
        ("swa_start: 13", "swa_start is 13; expected at most max_iter, 12"),
    ],
)
def test_settings_out_of_range(problem: Path, text: str, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=message):
        solver_of(problem, text)


def test_nothing_is_averaged_unless_asked_for() -> None:
    param = SolverParameter()
    assert (param.ema_decay, param.swa_start, param.sam_rho) == (0, -1, 0)
