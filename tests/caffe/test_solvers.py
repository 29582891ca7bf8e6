"""The update rules against their formulas in float64, by hand; HDF5 snapshots; weights to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from google.protobuf import text_format

import caffe
from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

NET = """
  layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 4 } } }
  layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
    inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } }
  layer { name: "power" type: "Power" bottom: "y" top: "loss" power_param { power: 2 } loss_weight: 0.5 }
"""
"""loss = 0.5 · Σ (W x + b)²: its gradient is (W x + b) xᵀ."""


def solver_of(settings: str, seed: int = 3) -> caffe.Solver:
    text = f"base_lr: 0.05 lr_policy: 'exp' gamma: 0.9 max_iter: 6 random_seed: {seed} {settings} net_param {{ {NET} }}"
    solver = caffe.get_solver(text_format.Parse(text, SolverParameter()))
    solver.net.blobs["x"].data[...] = np.random.default_rng(0).normal(size=(3, 4))
    return solver


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "Adam"])
def test_a_net_that_shares_the_weights_answers_with_those_of_now(kind: str) -> None:
    solver = solver_of(f'type: "{kind}" momentum: 0.9')
    deploy = caffe.Net(text_format.Parse(NET.split('layer { name: "power"')[0], NetParameter()), caffe.TEST)
    deploy.share_with(solver.net)
    deploy.blobs["x"].data[...] = solver.net.blobs["x"].data
    for _ in range(3):
        # not as arrays: where somebody takes one, nets look at their weights anew
        weight, bias = (blob.tensor().detach().numpy() for blob in solver.net.params["fc"])
        expected = deploy.blobs["x"].data @ weight.T + bias
        np.testing.assert_allclose(deploy.forward()["y"], expected, rtol=1e-5)
        solver.step(2)


class ByHand:
    """The same training in float64, with a rule that is written as in its paper."""

    def __init__(self, solver: caffe.Solver) -> None:
        self.x = solver.net.blobs["x"].data.astype(np.float64)
        self.values = [blob.data.astype(np.float64) for blob in solver.net.params["fc"]]
        self.first = [np.zeros_like(value) for value in self.values]
        self.second = [np.zeros_like(value) for value in self.values]

    def train(self, name: str, p: SolverParameter, iterations: int) -> None:
        for t in range(iterations):
            y = self.x @ self.values[0].T + self.values[1]
            gradients = [y.T @ self.x, y.sum(0)]
            if p.clip_gradients > 0:
                norm = np.sqrt(sum((g**2).sum() for g in gradients))
                gradients = [g * min(1, p.clip_gradients / norm) for g in gradients]
            for i, g in enumerate(gradients):
                decay = p.weight_decay if i == 0 else 0
                g = g + decay * (self.values[i] if p.regularization_type == "L2" else np.sign(self.values[i]))
                rate = 0.05 * 0.9**t * (i + 1)
                self.values[i] = self.values[i] - getattr(self, name.lower())(i, g, rate, p, t + 1)

    def sgd(self, i: int, g: np.ndarray, rate: float, p: Any, t: int) -> np.ndarray:
        self.first[i] = p.momentum * self.first[i] + rate * g
        return self.first[i]

    def nesterov(self, i: int, g: np.ndarray, rate: float, p: Any, t: int) -> np.ndarray:
        before = self.first[i]
        self.first[i] = p.momentum * before + rate * g
        return (1 + p.momentum) * self.first[i] - p.momentum * before

    def adagrad(self, i: int, g: np.ndarray, rate: float, p: Any, t: int) -> np.ndarray:
        self.first[i] = self.first[i] + g**2
        return rate * g / (np.sqrt(self.first[i]) + p.delta)

    def rmsprop(self, i: int, g: np.ndarray, rate: float, p: Any, t: int) -> np.ndarray:
        self.first[i] = p.rms_decay * self.first[i] + (1 - p.rms_decay) * g**2
        return rate * g / (np.sqrt(self.first[i]) + p.delta)

    def adadelta(self, i: int, g: np.ndarray, rate: float, p: Any, t: int) -> np.ndarray:
        self.first[i] = p.momentum * self.first[i] + (1 - p.momentum) * g**2
        step = g * np.sqrt(self.second[i] + p.delta) / np.sqrt(self.first[i] + p.delta)
        self.second[i] = p.momentum * self.second[i] + (1 - p.momentum) * step**2
        return rate * step

    def adam(self, i: int, g: np.ndarray, rate: float, p: Any, t: int) -> np.ndarray:
        self.first[i] = p.momentum * self.first[i] + (1 - p.momentum) * g
        self.second[i] = p.momentum2 * self.second[i] + (1 - p.momentum2) * g**2
        correction = np.sqrt(1 - p.momentum2**t) / (1 - p.momentum**t)
        return rate * correction * self.first[i] / (np.sqrt(self.second[i]) + p.delta)


RULES = {
    "SGD": "momentum: 0.9",
    "Nesterov": "momentum: 0.8",
    "AdaGrad": "delta: 0.001",
    "RMSProp": "rms_decay: 0.7 delta: 0.001",
    "AdaDelta": "momentum: 0.95 delta: 0.01",
    "Adam": "momentum: 0.9 momentum2: 0.99 delta: 0.001",
}


@pytest.mark.parametrize("decay", ["", "weight_decay: 0.1", 'weight_decay: 0.1 regularization_type: "L1"'])
@pytest.mark.parametrize("name", RULES)
def test_rules_by_hand(name: str, decay: str) -> None:
    solver = solver_of(f'type: "{name}" {RULES[name]} {decay} clip_gradients: 4')
    by_hand = ByHand(solver)
    start = [value.copy() for value in by_hand.values]
    solver.step(6)
    by_hand.train(name, solver.param, 6)
    for blob, value, before in zip(solver.net.params["fc"], by_hand.values, start, strict=True):
        assert np.abs(value - before).max() > 0.01
        np.testing.assert_allclose(blob.data, value, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("delta", [1e-8, 0.01])
def test_adamw_is_pytorchs(delta: float) -> None:
    """But for where `delta` is added, which makes no difference while it is small."""
    solver = solver_of(f'type: "AdamW" momentum: 0.9 momentum2: 0.99 weight_decay: 0.3 delta: {delta}')
    x = torch.tensor(solver.net.blobs["x"].data)
    weight, bias = (torch.tensor(blob.data, requires_grad=True) for blob in solver.net.params["fc"])
    groups = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.3)
    for t in range(6):
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = 0.05 * 0.9**t * (number + 1)
            group["eps"] = delta / (1 - 0.99 ** (t + 1)) ** 0.5  # Caffe's place for it, in PyTorch's terms
        optimizer.zero_grad()
        (0.5 * (x @ weight.T + bias).square().sum()).backward()
        optimizer.step()
    solver.step(6)
    for blob, expected in zip(solver.net.params["fc"], (weight, bias), strict=True):
        np.testing.assert_allclose(blob.data, expected.detach().numpy(), rtol=2e-5, atol=1e-6)


def test_adamw_without_decay_is_adam() -> None:
    found = []
    for name in ("Adam", "AdamW"):
        solver = solver_of(f'type: "{name}" momentum: 0.9 iter_size: 2')
        solver.step(3)
        found.append([blob.data.copy() for blob in solver.net.params["fc"]])
    for adam, adamw in zip(*found, strict=True):
        np.testing.assert_array_equal(adamw, adam)


@pytest.mark.parametrize("name", [*RULES, "AdamW"])
@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_snapshots_go_on_as_if_never_stopped(name: str, form: str, tmp_path: Path) -> None:
    settings = (
        f'type: "{name}" {RULES.get(name, RULES["Adam"])} snapshot_prefix: "{tmp_path}/s" snapshot_format: {form}'
    )
    whole = solver_of(settings)
    whole.step(3)
    state = whole.snapshot()
    assert state.endswith(".solverstate.h5" if form == "HDF5" else ".solverstate")
    whole.step(3)
    resumed = solver_of(settings, seed=4)
    resumed.restore(state)
    assert resumed.iter == 3
    resumed.step(3)
    for ours, theirs in zip(resumed.net.params["fc"], whole.net.params["fc"], strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data)


def test_an_hdf5_snapshot_has_caffes_layout(tmp_path: Path) -> None:
    solver = solver_of(f'type: "Adam" {RULES["Adam"]} snapshot_prefix: "{tmp_path}/s" snapshot_format: HDF5')
    solver.step(2)
    solver.snapshot()
    with h5py.File(tmp_path / "s_iter_2.solverstate.h5") as state:
        assert state["iter"][()] == 2
        assert sorted(state["history"]) == ["0", "1", "2", "3"]
        np.testing.assert_array_equal(state["history/2"][()], solver.history[2].numpy())
    with h5py.File(tmp_path / "s_iter_2.caffemodel.h5") as model:
        np.testing.assert_array_equal(model["data/fc/0"][()], solver.net.params["fc"][0].data)


@pytest.mark.parametrize("ending", [".caffemodel", ".caffemodel.h5"])
def test_a_solver_starts_from_the_weights_that_it_names(tmp_path: Path, ending: str) -> None:
    source = solver_of("momentum: 0.9")
    path = tmp_path / f"w{ending}"
    (source.net.save_hdf5 if ending.endswith("h5") else source.net.save)(path)
    solver = solver_of(f'momentum: 0.9 weights: "{path}"', seed=9)
    for ours, theirs in zip(solver.net.params["fc"], source.net.params["fc"], strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data)


def test_the_type_may_be_the_enum_of_older_files() -> None:
    assert isinstance(solver_of("momentum: 0.9 solver_type: ADAM"), caffe.AdamSolver)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('type: "AdaGrad" momentum: 0.9', "momentum is 0.9.*AdaGrad has none"),
        ('type: "RMSProp" momentum: 0.9', "momentum is 0.9.*RMSProp has none"),
        ('type: "RMSProp" rms_decay: 1', "rms_decay is 1.0; expected at least 0 and less than 1"),
        ('type: "AdamW" regularization_type: "L1"', "regularization_type is 'L1'; AdamW's weight decay is L2"),
        ('type: "Adamax"', "'Adamax' is not known; expected one of SGD, Nesterov"),
        ('weights: "nowhere.caffemodel"', "nowhere.caffemodel: No such file"),
    ],
)
def test_settings_that_do_not_fit(settings: str, message: str) -> None:
    with pytest.raises(caffe.CaffeError, match=message):
        solver_of(settings)
