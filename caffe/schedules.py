"""How a training is steered: the learning rate of each iteration, and what the tests say of its progress."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .errors import CaffeError
from .proto.caffe_pb2 import SolverParameter

if TYPE_CHECKING:  # nets read HDF5 files, and those hold a Progress
    from .net import Net

POLICIES = "fixed, step, multistep, exp, inv, poly, sigmoid, cosine, onecycle or plateau"


def learning_rate(param: SolverParameter, iteration: int, reductions: int = 0) -> float:
    """The rate of an iteration by `lr_policy`, times (iter + 1) / warmup_iter in the first warmup_iter iterations.

    fixed: base_lr. step: base_lr · gamma^floor(iter / stepsize). multistep: base_lr · gamma^(stepvalues passed).
    exp: base_lr · gamma^iter. inv: base_lr · (1 + gamma · iter)^−power.
    poly: base_lr · (1 − iter / max_iter)^power, 0 from max_iter on.
    sigmoid: base_lr / (1 + exp(−gamma · (iter − stepsize))).
    cosine: min_lr + (base_lr − min_lr) · (1 + cos(π · iter / max_iter)) / 2, min_lr from max_iter on (Loshchilov and
    Hutter 2017, without restarts).
    onecycle: half a cosine from base_lr / div_factor up to base_lr, which stands at iteration pct_start · max_iter − 1,
    and another down to base_lr / div_factor / final_div_factor, at iteration max_iter − 1 (Smith and Topin 2018).
    plateau: base_lr · gamma^reductions, but at least min_lr.

    Parameters
    ----------
    param: the solver's settings.
    iteration: counted from 0.
    reductions: plateau: how many times the rate has fallen (`Progress.rate_reductions`).

    Raises
    ------
    CaffeError: naming the setting that is out of range, or the policy that is none.
    """
    rate = _rate(param, iteration, reductions)
    _check(param, "warmup_iter", param.warmup_iter >= 0, "at least 0")
    return rate * (iteration + 1) / param.warmup_iter if iteration < param.warmup_iter else rate


def _rate(param: SolverParameter, iteration: int, reductions: int) -> float:
    base, gamma, policy = param.base_lr, param.gamma, param.lr_policy
    if policy == "fixed":
        return base
    if policy == "step":
        _check(param, "stepsize", param.stepsize >= 1, "at least 1")
        return base * _power(gamma, iteration // param.stepsize)
    if policy == "multistep":
        return base * _power(gamma, sum(iteration >= value for value in param.stepvalue))
    if policy == "exp":
        return base * _power(gamma, iteration)
    if policy == "inv":
        return base * _power(1 + gamma * iteration, -param.power)
    if policy == "poly":
        _check(param, "max_iter", param.max_iter >= 1, "at least 1")
        return base * _power(max(1 - iteration / param.max_iter, 0.0), param.power)
    if policy == "sigmoid":
        return base / (1 + float(torch.exp(torch.tensor(-gamma * (iteration - param.stepsize), dtype=torch.float64))))
    if policy == "cosine":
        _check(param, "max_iter", param.max_iter >= 1, "at least 1")
        _check(param, "min_lr", 0 <= param.min_lr <= base, f"0 to base_lr, {base:.6g}")
        return _cosine(base, param.min_lr, min(iteration / param.max_iter, 1.0))
    if policy == "onecycle":
        return _one_cycle(param, iteration)
    if policy == "plateau":
        _check(param, "gamma", 0 < gamma < 1, "more than 0 and less than 1")
        _check(param, "min_lr", 0 <= param.min_lr <= base, f"0 to base_lr, {base:.6g}")
        _check(param, "patience", param.patience >= 1, "at least 1")
        return max(base * _power(gamma, reductions), param.min_lr)
    raise CaffeError(f"lr_policy {policy!r} is not known; expected {POLICIES}")


def _check(param: SolverParameter, name: str, fits: bool, expected: str) -> None:
    if not fits:
        value = getattr(param, name)
        shown = f"{value:.6g}" if isinstance(value, float) else value
        raise CaffeError(f"lr_policy {param.lr_policy}: {name} is {shown}; expected {expected}")


def _power(base: float, exponent: float) -> float:
    """As C computes it: infinite or NaN where Python's numbers end, or are not real."""
    with np.errstate(all="ignore"):
        return float(np.float64(base) ** np.float64(exponent))


def _cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start`, where `share` is 0, to `end`, where it is 1."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _one_cycle(param: SolverParameter, iteration: int) -> float:
    _check(param, "max_iter", param.max_iter >= 1, "at least 1")
    _check(param, "pct_start", 0 <= param.pct_start <= 1, "0 to 1")
    _check(param, "div_factor", param.div_factor >= 1, "at least 1")
    _check(param, "final_div_factor", param.final_div_factor >= 1, "at least 1")
    highest, first = param.base_lr, param.base_lr / param.div_factor
    peak, last = param.pct_start * param.max_iter - 1, param.max_iter - 1
    if iteration < peak:
        return _cosine(first, highest, iteration / peak)
    share = (iteration - peak) / (last - peak) if last > peak else float(iteration > peak)
    return _cosine(highest, first / param.final_div_factor, min(share, 1.0))


@dataclass(frozen=True)
class Monitor:
    """The test output that tells how good the weights are.

    Attributes
    ----------
    name: the output's.
    lower: True where lower is better, as for a loss.
    """

    name: str
    lower: bool

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than the best so far (None: there is none). NaN is never better."""
        if math.isnan(value):
            return False
        return best is None or (value < best if self.lower else value > best)


def find_monitor(param: SolverParameter, net: Net | None) -> Monitor | None:
    """The output of the first test net that `monitor` names.

    Parameters
    ----------
    param: the solver's settings.
    net: the first test net; None where there is none.

    Returns
    -------
    None where there is no such output and nothing in the settings needs one.

    Raises
    ------
    CaffeError: `lr_policy: "plateau"` or `early_stop` needs it, and it is not there or is not one number.
    """
    name = param.monitor
    tests = param.test_iter[0] if param.test_iter else 0
    if net is not None and tests > 0 and name in net.outputs and net.blobs[name].count == 1:
        return Monitor(name, lower=net.blob_loss_weights[name] != 0)
    if not needs_monitor(param):
        return None
    why = 'lr_policy "plateau"' if param.lr_policy == "plateau" else f"early_stop {param.early_stop}"
    if net is None:
        raise CaffeError(f"solver: {why} looks at tests, and there is no test net; expected a test_iter and a net")
    if tests < 1:
        raise CaffeError(f"solver: {why} looks at tests, and test_iter is {tests}; expected 1 or more")
    if name in net.outputs:
        raise CaffeError(f"solver: monitor {name!r} has {net.blobs[name].count} values; expected an output of one")
    outputs = ", ".join(net.outputs) or "none"
    raise CaffeError(f"solver: monitor {name!r} is no output of the first test net; its outputs are {outputs}")


def needs_monitor(param: SolverParameter) -> bool:
    """Whether the training depends on what the tests give."""
    return param.lr_policy == "plateau" or param.early_stop > 0


@dataclass
class Progress:
    """What the tests have said so far; part of a solver's state.

    Attributes
    ----------
    best: the best value of the monitored output, rounded to the float32 that a file holds; None before the first.
    tests_since_best: tests since then.
    tests_waited: tests since then or since the rate last fell, whichever is later.
    rate_reductions: times that the rate has fallen.
    tested_iter: iteration of the last test; -1 before the first.
    """

    best: float | None = None
    tests_since_best: int = 0
    tests_waited: int = 0
    rate_reductions: int = 0
    tested_iter: int = -1

    def add(self, monitor: Monitor, value: float, iteration: int) -> None:
        """Note the result of a test. An iteration counts once: a resumed run repeats the test that it begins with."""
        if iteration == self.tested_iter:
            return
        with np.errstate(over="ignore"):
            value = float(np.float32(value))
        self.tested_iter = iteration
        if monitor.better(value, self.best):
            self.best, self.tests_since_best, self.tests_waited = value, 0, 0
        else:
            self.tests_since_best += 1
            self.tests_waited += 1

    def reduce_rate(self, patience: int) -> bool:
        """Count one reduction of the rate where `patience` tests have been waited for a better one; whether it is."""
        due = self.tests_waited >= patience
        if due:
            self.rate_reductions, self.tests_waited = self.rate_reductions + 1, 0
        return due
