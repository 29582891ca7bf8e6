"""Sharpness-aware minimization: steps by hand, one batch for both passes, and what the second pass must not touch."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from small_nets import normal
from small_training import write_problem

import caffe
from caffe.io import read_solver_parameter
from caffe.proto.caffe_pb2 import SolverParameter

ROWS = 8
# loss = 0.5 · Σ (W (2 x + 0.5) + b)², x of 3 numbers a row; other layers may stand before W, in place of BEFORE
NET = """
  layer { name: "x" type: "MemoryData" top: "x" top: "label"
    memory_data_param { batch_size: 2 channels: 3 height: 1 width: 1 } }
  layer { name: "drop_label" type: "Silence" bottom: "label" }
  layer { name: "double" type: "Power" bottom: "x" top: "x" power_param { scale: 2 shift: 0.5 } }
  BEFORE
  layer { name: "fc" type: "InnerProduct" bottom: "INPUT" top: "y"
    param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
    inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } }
  layer { name: "power" type: "Power" bottom: "y" top: "loss" power_param { power: 2 } loss_weight: 0.5 }
"""
SETTINGS = 'base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.1 random_seed: 3'


def solver_of(text: str, before: str = "", top: str = "x") -> caffe.Solver:
    """The solver of NET with layers before W, which takes the blob `top`."""
    net = NET.replace("BEFORE", before).replace("INPUT", top)
    param = text_format.Parse(f"{SETTINGS} net_param {{ {net} }}", SolverParameter())
    solver = caffe.get_solver(text_format.Merge(text, param))
    solver.net.set_input_arrays(normal(ROWS, 3, 1, 1), np.zeros(ROWS, np.float32))
    return solver


def parameters(solver: caffe.Solver) -> list[np.ndarray]:
    return [blob.data.copy() for blob in solver.net.learnable_params]


def gradients(x: np.ndarray, values: list[np.ndarray]) -> list[np.ndarray]:
    y = x @ values[0].T + values[1]
    return [y.T @ x, y.sum(0)]


def norm_of(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum((array**2).sum() for array in arrays)))


@pytest.mark.parametrize("iter_size", [1, 3])
def test_arrays_of_the_diffs_that_somebody_has_change_nothing(iter_size: int) -> None:
    ours, theirs = (solver_of(f"sam_rho: 0.3 iter_size: {iter_size}") for _ in range(2))
    held = [blob.diff for blob in ours.net.learnable_params]
    for solver in (ours, theirs):
        solver.step(3)
    for mine, other in zip(parameters(ours), parameters(theirs), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert all(array.any() for array in held)


@pytest.mark.parametrize("iter_size", [1, 3])
@pytest.mark.parametrize("clip", [-1.0, 4.0])
def test_steps_by_hand(iter_size: int, clip: float) -> None:
    """Foret et al. 2021, algorithm 1, in float64; each batch of an iteration has its own perturbation."""
    solver = solver_of(f"sam_rho: 0.3 iter_size: {iter_size} clip_gradients: {clip}")
    values = [blob.data.astype(np.float64) for blob in solver.net.params["fc"]]
    speed = [np.zeros_like(value) for value in values]
    rows = 2 * normal(ROWS, 3).astype(np.float64) + 0.5
    position, clipped = 0, 0
    for _ in range(5):
        total = [np.zeros_like(value) for value in values]
        for _ in range(iter_size):
            x = rows[position : position + 2]
            position = (position + 2) % ROWS
            first = gradients(x, values)
            away = [value + 0.3 * g / norm_of(first) for value, g in zip(values, first, strict=True)]
            total = [t + g for t, g in zip(total, gradients(x, away), strict=True)]
        factor = min(1.0, clip / norm_of(total)) if clip > 0 else 1.0
        clipped += factor < 1
        for i, decay in enumerate((0.1, 0.0)):
            speed[i] = 0.9 * speed[i] + 0.01 * (i + 1) * (factor * total[i] / iter_size + decay * values[i])
            values[i] = values[i] - speed[i]
        solver.step(1)
        for blob, value in zip(solver.net.params["fc"], values, strict=True):
            np.testing.assert_allclose(blob.data, value, rtol=2e-4, atol=1e-5)
    assert (clipped > 0) == (clip > 0), "nothing is clipped: the test says nothing of it"
    assert solver.net.layers[0].position == position


def test_the_loss_is_that_of_the_weights_themselves() -> None:
    plain, sharp = solver_of(""), solver_of("sam_rho: 0.3")
    plain.step(1)
    sharp.step(1)
    assert sharp.smoothed_loss() == plain.smoothed_loss()
    assert not np.array_equal(parameters(sharp)[0], parameters(plain)[0])


IN_PLACE = """
  layer { name: "scale" type: "Scale" bottom: "x" top: "x" scale_param { bias_term: true
    filler { type: "constant" value: 0.7 } } }
"""
# random data that do not stand at the front: the second pass must see the same
NOISE = (
    IN_PLACE
    + """
  layer { name: "noise" type: "DummyData" top: "noise" dummy_data_param { shape { dim: 2 dim: 3 dim: 1 dim: 1 }
    data_filler { type: "gaussian" std: 1 } } }
  layer { name: "noisy" type: "Eltwise" bottom: "x" bottom: "noise" top: "noisy" }
  layer { name: "mask" type: "Dropout" bottom: "noisy" top: "noisy" }
  layer { name: "learned" type: "Parameter" top: "learned" parameter_param { shape { dim: 2 dim: 3 dim: 1 dim: 1 } } }
  layer { name: "sum" type: "Eltwise" bottom: "noisy" bottom: "learned" top: "sum" }
"""
)


@pytest.mark.parametrize(("before", "top"), [(IN_PLACE, "x"), (NOISE, "sum")])
def test_both_passes_see_the_same(before: str, top: str) -> None:
    """With next to no perturbation the step is the plain one: unless data, noise or masks differ between passes."""
    plain, sharp = (solver_of(text, before, top) for text in ("", "sam_rho: 1e-6"))
    start = parameters(plain)
    for solver in (plain, sharp):
        solver.step(3)
    assert sharp.net.states() == plain.net.states()
    for ours, theirs, initial in zip(parameters(sharp), parameters(plain), start, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        assert not np.array_equal(theirs, initial)


def test_learned_parameters_are_all_perturbed() -> None:
    """By the distance rho together, while the second gradient is taken."""
    solver = solver_of("sam_rho: 0.3", IN_PLACE)
    start, seen = parameters(solver), []
    solver.net.after_forward(lambda number: seen.append(parameters(solver)))
    solver.step(1)
    distances = [norm_of([a - b for a, b in zip(values, start, strict=True)]) for values in seen]
    count = len(solver.net.layers)
    assert distances[:count] == [0] * count
    assert distances[count:] == pytest.approx([0.3] * (count - 1), rel=1e-4)  # the data layer is not run again


def test_the_weights_come_back_exactly() -> None:
    solver = solver_of("sam_rho: 0.3 base_lr: 0", IN_PLACE)
    start, sizes = parameters(solver), []
    solver.add_callback(lambda: None, lambda: sizes.append(np.abs(solver.net.params["fc"][0].diff).max()))
    solver.step(2)
    assert all(np.array_equal(*pair) for pair in zip(parameters(solver), start, strict=True))
    assert min(sizes) > 0


def test_a_gradient_of_0_moves_nothing() -> None:
    solver = solver_of("sam_rho: 0.3 weight_decay: 0")
    for blob in solver.net.params["fc"]:
        blob.data[...] = 0
    solver.step(2)
    assert not any(values.any() for values in parameters(solver))


@pytest.mark.parametrize("iter_size", [1, 2])
def test_only_the_first_pass_moves_batch_norms_sums(tmp_path: Path, iter_size: int) -> None:
    path = write_problem(tmp_path)
    sums = []
    for text in ("", "sam_rho: 0.5"):
        text = f"{text} iter_size: {iter_size} base_lr: 0"
        solver = caffe.get_solver(text_format.Merge(text, read_solver_parameter(path)))
        solver.step(2)
        sums.append([blob.data.tobytes() for blob in solver.net.params["bn"]] + [solver.net.states()])
    assert sums[0] == sums[1]


def test_a_file_is_written_once_a_batch(tmp_path: Path) -> None:
    """HDF5Output writes the first pass's rows, not those of the weights that were moved."""
    path = tmp_path / "rows.h5"
    output = f"""layer {{ name: "out" type: "HDF5Output" bottom: "x" bottom: "label"
        hdf5_output_param {{ file_name: "{path}" }} }}"""
    solver = solver_of("sam_rho: 0.05", before=output)
    solver.step(3)
    with h5py.File(path) as file:
        assert file["data"].shape == (3 * 2, 3, 1, 1)


def test_it_learns(tmp_path: Path) -> None:
    path = write_problem(tmp_path)
    text = "sam_rho: 0.05 lr_policy: 'cosine' max_iter: 60 test_interval: 1000"
    solver = caffe.get_solver(text_format.Merge(text, read_solver_parameter(path)))
    before = solver.test()
    solver.step(60)
    after = solver.test()
    assert after["loss"][0] < 0.5 * before["loss"][0]
    assert after["accuracy"][0] >= 0.9


def test_a_net_without_anything_to_learn() -> None:
    fixed = re.sub(r"lr_mult: [12]", "lr_mult: 0", NET.replace("BEFORE", "").replace("INPUT", "x"))
    param = text_format.Parse(f"{SETTINGS} sam_rho: 0.1 net_param {{ {fixed} }}", SolverParameter())
    solver = caffe.get_solver(param)
    solver.net.set_input_arrays(normal(ROWS, 3, 1, 1), np.zeros(ROWS, np.float32))
    solver.step(1)
    assert solver.iter == 1


@pytest.mark.parametrize("rho", ["-0.1", "nan", "inf"])
def test_a_rho_out_of_range(rho: str) -> None:
    with pytest.raises(caffe.CaffeError, match=f"sam_rho is {rho}; expected at least 0"):
        solver_of(f"sam_rho: {rho}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_as_on_the_cpu() -> None:
    results = []
    for mode in (caffe.set_mode_cpu, caffe.set_mode_gpu):
        mode()
        try:
            solver = solver_of("sam_rho: 0.3 ema_decay: 0.5", IN_PLACE)
            solver.step(4)
            results.append(parameters(solver))
        finally:
            caffe.set_mode_cpu()
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
