"""The update rules: SGD, Nesterov, AdaGrad, RMSProp, AdaDelta, Adam, AdamW; and the solver that a prototxt names.

In their formulas g is the gradient with the weight decay's part, r the learning rate times the parameter's lr_mult,
and the update is what is subtracted from the parameter.
"""

from __future__ import annotations

from itertools import groupby
from typing import ClassVar

import numpy as np
import torch

from .blob import Parameter
from .errors import CaffeError
from .files import StrPath
from .proto.caffe_pb2 import SolverParameter
from .solver import Solver, solver_settings


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum: V ← momentum · V + r · g; the update is V."""

    type = "SGD"
    nesterov: ClassVar[bool] = False

    def _update_all(self, learned: list[tuple[int, Parameter]], rate: float) -> None:
        p = self.param

        def settings(entry: tuple[int, Parameter]) -> tuple[float, float]:
            return rate * entry[1].lr_mult, p.weight_decay * entry[1].decay_mult

        for (own_rate, decay), group in groupby(sorted(learned, key=settings), settings):
            entries = list(group)
            decays = p.regularization_type == "L2" or not decay
            if not (own_rate and p.iter_size == 1 and p.momentum and decays and not p.snapshot_diff):
                for i, parameter in entries:
                    self._update(i, parameter, own_rate)
                continue
            # one pass over the memory: torch's momentum buffer takes the gradient times the rate, then a step of 1
            values = [parameter.tensor().detach() for _, parameter in entries]
            torch._fused_sgd_(
                values,
                [parameter.diff_tensor() for _, parameter in entries],
                [self.history[i] for i, _ in entries],
                weight_decay=own_rate * decay,
                momentum=p.momentum,
                lr=1.0,
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
                is_first_step=False,
                grad_scale=torch.full((), 1 / own_rate, device=self.net.device),
            )
            # which it does not do itself: nets that share the weights would answer with those that they folded before
            torch.autograd.graph.increment_version(values)

    def compute_update(self, diff: torch.Tensor, history: list[torch.Tensor], rate: float) -> None:
        (velocity,) = history
        diff.copy_(velocity.mul_(self.param.momentum).add_(diff, alpha=rate))


class NesterovSolver(SGDSolver):
    """Nesterov's accelerated gradient (1983): V' ← momentum · V + r · g; the update is V' + momentum · (V' − V).

    That is r · g + momentum · V', PyTorch's form of it.
    """

    type = "Nesterov"
    nesterov = True

    def compute_update(self, diff: torch.Tensor, history: list[torch.Tensor], rate: float) -> None:
        (velocity,), momentum = history, self.param.momentum
        before = velocity.clone()
        velocity.mul_(momentum).add_(diff, alpha=rate)
        torch.mul(velocity, 1 + momentum, out=diff).sub_(before, alpha=momentum)


class AdaGradSolver(Solver):
    """Duchi et al. 2011: H ← H + g²; the update is r · g / (√H + delta)."""

    type = "AdaGrad"

    def _check_settings(self) -> None:
        super()._check_settings()
        self._refuse_momentum()

    def compute_update(self, diff: torch.Tensor, history: list[torch.Tensor], rate: float) -> None:
        (squares,) = history
        squares.addcmul_(diff, diff)
        diff.div_(squares.sqrt().add_(self.param.delta)).mul_(rate)


class RMSPropSolver(Solver):
    """Tieleman and Hinton 2012: H ← rms_decay · H + (1 − rms_decay) · g²; the update is r · g / (√H + delta)."""

    type = "RMSProp"

    def _check_settings(self) -> None:
        super()._check_settings()
        self._refuse_momentum()
        if not 0 <= self.param.rms_decay < 1:
            raise CaffeError(f"solver: rms_decay is {self.param.rms_decay}; expected at least 0 and less than 1")

    def compute_update(self, diff: torch.Tensor, history: list[torch.Tensor], rate: float) -> None:
        (squares,), decay = history, self.param.rms_decay
        squares.mul_(decay).addcmul_(diff, diff, value=1 - decay)
        diff.div_(squares.sqrt().add_(self.param.delta)).mul_(rate)


class AdaDeltaSolver(Solver):
    """Zeiler 2012: H ← m · H + (1 − m) · g²; u = g · √((U + delta) / (H + delta)); U ← m · U + (1 − m) · u².

    The update is r · u; m is `momentum`. In the history all H come before all U.
    """

    type = "AdaDelta"
    histories = 2

    def compute_update(self, diff: torch.Tensor, history: list[torch.Tensor], rate: float) -> None:
        (squares, updates), p = history, self.param
        squares.mul_(p.momentum).addcmul_(diff, diff, value=1 - p.momentum)
        diff.mul_((updates + p.delta).div_(squares + p.delta).sqrt_())
        updates.mul_(p.momentum).addcmul_(diff, diff, value=1 - p.momentum)
        diff.mul_(rate)


class AdamSolver(Solver):
    """Kingma and Ba 2015: M ← β₁ · M + (1 − β₁) · g; V ← β₂ · V + (1 − β₂) · g².

    The update is r · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · M / (√V + delta) in iteration t, counted from 1; β₁ is `momentum`, β₂
    `momentum2`. In the history all M come before all V.
    """

    type = "Adam"
    histories = 2

    def compute_update(self, diff: torch.Tensor, history: list[torch.Tensor], rate: float) -> None:
        (mean, squares), p = history, self.param
        mean.mul_(p.momentum).add_(diff, alpha=1 - p.momentum)
        squares.mul_(p.momentum2).addcmul_(diff, diff, value=1 - p.momentum2)
        steps = self.iter + 1
        with np.errstate(all="ignore"):  # infinite or NaN for a momentum of 1 or more, as in Caffe
            correction = float(np.sqrt(1 - np.float64(p.momentum2) ** steps) / (1 - np.float64(p.momentum) ** steps))
        torch.div(mean, squares.sqrt().add_(p.delta), out=diff).mul_(rate * correction)


class AdamWSolver(AdamSolver):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): w ← w − r · weight_decay · decay_mult · w first.

    Then Adam's update of a gradient without a part for the decay; as with Adam here, and in Caffe, `delta` is added to
    √V, where other libraries add it to √(V / (1 − β₂ᵗ)).
    """

    type = "AdamW"

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.param.regularization_type != "L2":
            kind = self.param.regularization_type
            raise CaffeError(f"solver: regularization_type is {kind!r}; AdamW's weight decay is L2")

    def _update(self, i: int, parameter: Parameter, rate: float) -> None:
        parameter.tensor().detach().mul_(1 - rate * self.param.weight_decay * parameter.decay_mult)
        super()._update(i, parameter, rate)

    def _regularize(self, parameter: Parameter) -> None:
        """Nothing: the decay is no part of the gradient."""


SOLVERS: dict[str, type[Solver]] = {
    solver.type: solver
    for solver in (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver, AdamWSolver)
}


def get_solver(param: StrPath | SolverParameter) -> Solver:
    """The solver of the type that a solver prototxt names (default SGD).

    Raises CaffeError for a type that is none of them, and for what the solver refuses.
    """
    settings = solver_settings(param)
    if settings.type not in SOLVERS:
        raise CaffeError(f"solver type {settings.type!r} is not known; expected one of {', '.join(SOLVERS)}")
    return SOLVERS[settings.type](settings)
