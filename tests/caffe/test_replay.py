"""Replayed passes: on a CPU with a recording that computes as Python would, on a GPU with CUDA's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from small_training import write_problem, write_taught
from test_layers_golden import CASES, phase_of

import caffe
from caffe import replay
from caffe.io import read_net_parameter, read_solver_parameter
from caffe.layers.data import Input
from caffe.layers.lookup import deferred_checks, whole_numbers
from caffe.proto.caffe_pb2 import NetParameter
from caffe.replay import WARM_UP, Replay, can_replay


class Rerun:
    """What a CUDA graph does, by running the function again: its results come into the tensors of the first time."""

    def __init__(self, function: Callable[[], Any], owner: Replay) -> None:
        self.function, self.owner = function, owner
        sums = [blob.tensor().detach().clone() for blob in self.sums()]
        states = [(layer, state) for layer in owner.net.layers if (state := layer.state())]
        sides = [side for blob in owner.net.blobs.values() for side in (blob._data, blob._diff)]
        before = {id(side._tensor) for side in sides}
        function()  # recording computes nothing, and draws no numbers: what it makes holds anything
        for side in sides:
            if side._tensor is not None and id(side._tensor) not in before:
                side._tensor.detach().fill_(float("nan"))
        for blob, values in zip(self.sums(), sums, strict=True):
            blob.tensor().detach().copy_(values)
        for layer, state in states:
            layer.set_state(state)

    def sums(self) -> list[caffe.blob.Parameter]:
        return [blob for layer in self.owner.net.layers if layer.type == "BatchNorm" for blob in layer.blobs]

    def replay(self) -> None:
        owner, net = self.owner, self.owner.net
        loss, given = owner._loss, [(p, p.diff_tensor()) for p in net.learnable_params if p.has_diff]
        net.clear_param_diffs()
        for name, tensor in owner._inputs.items():
            net.blobs[name].set_tensor(tensor)
        states = [(layer, dict(vars(layer))) for layer in net.layers]
        diffs = [(blob, blob.diff_tensor().clone()) for blob in net.blobs.values() if blob.has_diff]
        self.function()
        for layer, state in states:  # a graph knows nothing of what Python keeps
            vars(layer).update(state)
        known = [blob for blob, _ in owner._diffs]
        for blob, diff in diffs:
            if not any(blob is other for other in known):
                blob.set_diff(diff)
        with torch.no_grad():
            loss.copy_(owner._loss)
            for blob, tensor in owner._values:
                tensor.copy_(blob.tensor())
            for blob, tensor in owner._diffs:
                tensor.copy_(blob.diff_tensor())
            for parameter, tensor in owner._gradients:
                tensor.copy_(parameter.diff_tensor())
        owner._loss = loss
        net.clear_param_diffs()
        for parameter, diff in given:
            parameter.set_diff(diff)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Rerun]:
    """The recordings made, where solvers of a CPU replay too."""
    made: list[Rerun] = []

    def record(function: Callable[[], Any], generators: list[torch.Generator], stream: None) -> Rerun:
        made.append(Rerun(function, function.__self__))  # type: ignore[attr-defined]
        return made[-1]

    monkeypatch.setattr(replay, "record", record)
    monkeypatch.setattr("caffe.solver.can_replay", lambda net: True)
    return made


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    """The solver prototxt of the small problem."""
    return write_problem(tmp_path)


@pytest.fixture
def taught(problem: Path) -> Path:
    """The same with images that are mixed, and a teacher."""
    deploy = write_taught(problem.parent)
    teacher = caffe.Net(deploy, caffe.TEST, seed=4)
    for blob in teacher.params["bn"][1:]:
        blob.data[...] = 1  # statistics, without which its answers would all be the same
    teacher.save(problem.parent / "teacher.caffemodel")
    return problem


def solver_of(problem: Path, changes: str = "", replayed: bool = True) -> caffe.Solver:
    """A solver of the small problem, with changed settings, and with no test before the training."""
    param = read_solver_parameter(problem)
    text_format.Merge(f"test_initialization: false {changes}", param)
    solver = caffe.get_solver(param)
    if not replayed:
        solver._replay = None
    return solver


def outcome(solver: caffe.Solver) -> dict[str, np.ndarray]:
    """All that can be seen behind an iteration: parameters, the blobs' values and diffs, the loss."""
    net = solver.net
    seen = {f"{name} {i}": blob.data.copy() for name, blobs in net.params.items() for i, blob in enumerate(blobs)}
    seen |= {f"{name} data": blob.data.copy() for name, blob in net.blobs.items()}
    seen |= {f"{name} diff": blob.diff.copy() for name, blob in net.blobs.items()}
    return seen | {"loss": np.array(solver.smoothed_loss())}


def assert_alike(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], rtol=tolerance, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("changes", ["", "iter_size: 2", 'type: "Nesterov" ema_decay: 0.9', "clip_gradients: 0.1"])
def test_replayed_iterations_are_those_of_python(problem: Path, recordings: list[Rerun], changes: str) -> None:
    replayed, usual = solver_of(problem, changes), solver_of(problem, changes, replayed=False)
    for _ in range(WARM_UP + 5):
        replayed.step(1)
        usual.step(1)
        assert_alike(outcome(replayed), outcome(usual))
    assert len(recordings) == 1


def test_a_teacher_is_replayed(taught: Path, recordings: list[Rerun]) -> None:
    replayed, usual = (solver_of(taught, replayed=which) for which in (True, False))
    for _ in range(WARM_UP + 5):
        replayed.step(1)
        usual.step(1)
        assert_alike(outcome(replayed), outcome(usual))
    assert len(recordings) == 1
    assert usual.net.blobs["teacher"].data.std(0).min() > 1e-3, "its answers say nothing of the images"


def written_while_it_trains(solver: caffe.Solver) -> list[dict[str, np.ndarray]]:
    """What comes of iterations in which somebody changes what the loss counts, in its diff."""
    seen = []
    for number in range(WARM_UP + 6):
        if number in (1, WARM_UP + 2, WARM_UP + 4):
            solver.net.blobs["loss"].diff[...] = 0.25 * number
        solver.step(1)
        seen.append(outcome(solver))
    return seen


def test_what_a_loss_counts_may_be_written_between_replays(problem: Path, recordings: list[Rerun]) -> None:
    ours, theirs = (written_while_it_trains(solver_of(problem, replayed=which)) for which in (True, False))
    for mine, other in zip(ours, theirs, strict=True):
        assert_alike(mine, other)
    assert ours[-1]["loss diff"] == 0.25 * (WARM_UP + 4)
    assert len(recordings) == 1


def test_it_goes_on_from_a_snapshot(problem: Path, recordings: list[Rerun]) -> None:
    solver, usual = solver_of(problem), solver_of(problem, replayed=False)
    solver.step(6)
    state = solver.snapshot()
    solver.step(5)
    usual.step(11)
    assert_alike(outcome(solver), outcome(usual))
    other = solver_of(problem)
    other.restore(state)
    other.step(5)
    assert_alike(outcome(other) | {"loss": np.array(0)}, outcome(usual) | {"loss": np.array(0)})


def test_other_parameters_are_recorded_anew(problem: Path, recordings: list[Rerun]) -> None:
    solver = solver_of(problem)
    solver.step(WARM_UP + 1)
    other = solver_of(problem, "random_seed: 5")
    solver.net.share_with(other.net)
    solver.step(1)
    assert len(recordings) == 1
    solver.step(WARM_UP)
    assert len(recordings) == 2


def test_which_nets_are_replayed(problem: Path) -> None:
    net = solver_of(problem).net
    assert not can_replay(net)  # on a CPU
    net.device = torch.device("cuda")
    assert can_replay(net)
    for text in (
        'type: "Accuracy" bottom: "fc2" bottom: "label" top: "accuracy" accuracy_param { ignore_label: 1 }',
        'type: "Accuracy" bottom: "fc2" bottom: "label" top: "accuracy" top: "of each class"',
        'type: "Filter" bottom: "fc2" bottom: "label" top: "chosen"',
        'type: "RNN" bottom: "steps" bottom: "begin" top: "states" recurrent_param { num_output: 2 }',
        'type: "DummyData" top: "other" dummy_data_param { shape { dim: 1 } }',  # data behind the net's beginning
    ):
        param = NetParameter()
        param.CopyFrom(net.param)
        steps = 'type: "Reshape" bottom: "fc2" top: "steps" reshape_param { shape { dim: 5 dim: 1 dim: 3 } }'
        begin = 'type: "Reshape" bottom: "label" top: "begin" reshape_param { shape { dim: 5 dim: 1 } }'
        text_format.Parse(f"name: 'steps' {steps}", param.layer.add())
        text_format.Parse(f"name: 'begin' {begin}", param.layer.add())
        text_format.Parse(f"name: 'more' {text}", param.layer.add())
        other = caffe.Net(param, caffe.TRAIN)
        other.device = torch.device("cuda")
        assert not can_replay(other), text
    param = NetParameter(force_backward=True)
    param.MergeFrom(net.param)
    other = caffe.Net(param, caffe.TRAIN)
    other.device = torch.device("cuda")
    assert not can_replay(other)


def test_checks_are_asked_afterwards() -> None:
    layer = caffe.Net(
        text_format.Parse(
            'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 } } }'
            'layer { name: "rows" type: "Embed" bottom: "x" top: "y" embed_param { input_dim: 4 num_output: 2 } }',
            NetParameter(),
        ),
        caffe.TEST,
    ).layer_dict["rows"]
    with deferred_checks(torch.device("cpu")) as checks:
        assert whole_numbers(layer, 0, torch.tensor([1.0, 9.0, -2.0]), 4, "a number").tolist() == [1, 3, 0]
        assert whole_numbers(layer, 0, torch.tensor([]), 4, "a number").tolist() == []
    with pytest.raises(caffe.CaffeError, match=r"layer 'rows' \(Embed\): a number in 'x' is outside 0\.\.3: -2"):
        checks.ask()
    checks.ask()  # none since then


# without what gives no gradient or takes no batch, and the layers that are not recorded
RECORDED = [case for case in CASES if case not in ("accuracy", "parameter", "infogainloss", "rnn")]


def passes_of(folder: Path, replayed: bool) -> list[dict[str, np.ndarray]]:
    """What is seen behind each of several passes of a reference net, every pass with another first input, and with
    the sum of squares of what it gives as its loss."""
    values = np.load(folder / "values.npz")
    param = read_net_parameter(folder / "net.prototxt")
    param.force_backward = False
    phase = phase_of(folder)
    net = caffe.Net(param, phase)
    for name in net.outputs:
        if not any(layer.type.endswith("Loss") and name in layer.param.top for layer in net.layers):
            loss = f'name: "{name} loss" type: "Reduction" bottom: "{name}" top: "{name} loss" loss_weight: 1'
            text_format.Parse(f"{loss} reduction_param {{ operation: SUMSQ }}", param.layer.add())
    net = caffe.Net(param, phase)
    for key in values.files:
        if key.startswith("param/"):
            _, layer, i = key.split("/")
            net.params[layer][int(i)].data[...] = values[key]
    assert net.device.type != "cuda" or can_replay(net)
    replay = Replay(net)
    seen = []
    for turn in range(WARM_UP + 3):
        for name in net.inputs:
            net.blobs[name].data[...] = values[f"in/{name}"]
        first = net.blobs[net.inputs[0]].data
        scale = 1 if (first == first.round()).all() else 1 + turn / 8  # whole numbers choose rows
        first[...] = np.roll(first, turn, axis=0) * scale
        net.clear_param_diffs()
        loss = replay.compute() if replayed else net.compute(gradient=True).detach()
        if not replayed:
            net.propagate(keep=False)
        seen.append({f"{name} data": blob.data.copy() for name, blob in net.blobs.items()})
        for name, blobs in net.params.items():
            for i, blob in enumerate(blobs):
                seen[-1] |= {f"{name} {i}": blob.data.copy(), f"{name} {i} diff": blob.diff.copy()}
        seen[-1]["loss"] = loss.cpu().numpy()
    assert not replayed or replay._graph is not None
    return seen


@pytest.fixture
def inputs_are_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input layers count as those that the batch comes from."""
    monkeypatch.setattr(Input, "reads_data", True)


def assert_replayed(folder: Path) -> None:
    ours, theirs = passes_of(folder, replayed=True), passes_of(folder, replayed=False)
    for one, other in zip(ours, theirs, strict=True):
        assert_alike(one, other, 1e-4)


@pytest.mark.parametrize("case", RECORDED)
def test_every_layer_is_replayed(shared: Path, recordings: list[Rerun], inputs_are_data: None, case: str) -> None:
    assert_replayed(shared / "caffe_golden" / "layers" / case)
    assert len(recordings) == 1


# On a GPU


@pytest.mark.parametrize("case", RECORDED)
def test_every_layer_is_replayed_on_a_gpu(shared: Path, case: str, inputs_are_data: None, on_gpu: None) -> None:
    assert_replayed(shared / "caffe_golden" / "layers" / case)


@pytest.mark.parametrize("changes", ["", "iter_size: 2", 'type: "Nesterov" ema_decay: 0.9', "precision: BF16"])
def test_a_cuda_graph_computes_what_the_layers_do(problem: Path, on_gpu: None, changes: str) -> None:
    replayed, usual = solver_of(problem, changes), solver_of(problem, changes, replayed=False)
    tolerance = 2e-2 if "BF16" in changes else 1e-4
    for _ in range(WARM_UP + 5):
        replayed.step(1)
        usual.step(1)
        assert_alike(outcome(replayed), outcome(usual), tolerance)
    assert replayed._replay is not None
    assert replayed._replay._graph is not None


@pytest.mark.parametrize("changes", ["", "precision: BF16"])
def test_a_cuda_graph_holds_a_teacher(taught: Path, on_gpu: None, changes: str) -> None:
    replayed, usual = (solver_of(taught, changes, replayed=which) for which in (True, False))
    for _ in range(WARM_UP + 5):
        replayed.step(1)
        usual.step(1)
        assert_alike(outcome(replayed), outcome(usual), 2e-2 if changes else 1e-4)
    assert replayed._replay is not None
    assert replayed._replay._graph is not None


def test_what_a_loss_counts_may_be_written_between_replays_on_a_gpu(problem: Path, on_gpu: None) -> None:
    ours, theirs = (written_while_it_trains(solver_of(problem, replayed=which)) for which in (True, False))
    for mine, other in zip(ours, theirs, strict=True):
        assert_alike(mine, other, 1e-3)


def test_a_gpu_goes_on_from_a_snapshot(problem: Path, on_gpu: None) -> None:
    solver, usual = solver_of(problem), solver_of(problem)
    solver.step(6)
    state = solver.snapshot()
    usual.step(11)
    other = solver_of(problem)
    other.restore(state)
    other.step(5)
    assert_alike(outcome(other) | {"loss": np.array(0)}, outcome(usual) | {"loss": np.array(0)}, 1e-4)


def test_a_label_out_of_range_is_an_error_of_its_layer(problem: Path, on_gpu: None) -> None:
    solver = solver_of(problem, "test_interval: 1000")
    solver.step(WARM_UP + 2)
    data = solver.net.layers[0]
    data.labels[:] = 7  # type: ignore[attr-defined]
    with pytest.raises(caffe.CaffeError, match=r"a label in 'label' is outside 0\.\.2: 7"):
        solver.step(5)


def test_a_cpu_and_a_gpu_learn_alike(problem: Path, on_gpu: None) -> None:
    losses = []
    for mode in (caffe.set_mode_cpu, caffe.set_mode_gpu):
        mode()
        solver = solver_of(problem)
        layer = solver.net.layer_dict["drop"]
        layer.threshold = -32768  # type: ignore[attr-defined]  # keeps all: the devices draw other masks
        losses.append([])
        for _ in range(10):
            solver.step(1)
            losses[-1].append(solver.smoothed_loss())
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_what_cannot_be_recorded_says_so(problem: Path, on_gpu: None) -> None:
    solver = solver_of(problem)
    layer = solver.net.layer_dict["fc1"]
    forward = layer.forward
    layer.forward = lambda bottoms: [top * float(top.sum()) for top in forward(bottoms)]  # type: ignore[method-assign]
    with pytest.raises(caffe.CaffeError, match=r"expected cuda_graph: false in the solver: layer 'fc1'"):
        solver.step(WARM_UP + 1)
