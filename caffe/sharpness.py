"""Sharpness-aware minimization: gradients from where the weights have been moved towards a higher loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import torch

from .blob import Parameter
from .layers import Layer
from .layers.data_hdf5 import HDF5Output
from .layers.normalization import running_sums
from .layers.teacher import Teacher
from .net import Net


class SharpnessAware:
    """The gradient of SAM (Foret et al. 2021): ∇L at w + rho · g / ‖g‖, where g = ∇L at w, on one batch.

    The norm is that of all learned parameters together. Both passes see the same batch and draw the same random
    numbers (Dropout's masks), and only the first moves BatchNorm's running sums.

    Parameters
    ----------
    net: the training net.
    rho: how far the weights are moved, as a Euclidean distance; more than 0.
    """

    def __init__(self, net: Net, rho: float) -> None:
        self.net, self.rho = net, rho
        # (whether they run once, first number, last number) of layers in a row
        self._ranges: list[tuple[bool, int, int]] = []
        for once, group in groupby(range(len(net.layers)), key=lambda number: _runs_once(net.layers[number])):
            numbers = list(group)
            self._ranges.append((once, numbers[0], numbers[-1]))
        self._inner = [layer for layer in net.layers if not layer.reads_data]

    def compute(self) -> torch.Tensor:
        """Read a batch and add its gradient to the parameters' diffs; returns the loss at the weights themselves."""
        net = self.net
        with_diff = [parameter for parameter in net.learnable_params if parameter.needs_diff]
        # of the batches before it in this iteration
        accumulated = [(parameter, parameter.diff_tensor().clone()) for parameter in with_diff if parameter.has_diff]
        for parameter, _ in accumulated:
            parameter.clear_diff()
        states = [(layer, state) for layer in self._inner if (state := layer.state())]
        loss, batch = self._first_pass()
        net.propagate(blob_diffs=False, keep=False)
        moved = [parameter for parameter in with_diff if parameter.lr_mult and parameter.has_diff]
        if moved:
            for layer, state in states:
                layer.set_state(state)
            with self._uphill(moved), running_sums(net.layers, None):
                for parameter in with_diff:
                    parameter.clear_diff()
                self._second_pass(batch)
                net.propagate(keep=False)
        for parameter, diff in accumulated:
            parameter.accumulate(diff)
        return loss

    def _first_pass(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and what the data layers gave, before a layer changes it in place."""
        net, batch = self.net, {}
        loss = torch.zeros((), device=net.device)
        for once, first, last in self._ranges:
            loss = loss + net.compute(first, last, gradient=True).detach()
            if once:
                tops = [top for layer in net.layers[first : last + 1] for top in layer.param.top]
                batch.update({top: net.blobs[top].tensor() for top in tops})
        return loss, batch

    def _second_pass(self, batch: dict[str, torch.Tensor]) -> None:
        net = self.net
        net.forget()  # the graph of the first pass is gone, and what was computed there is no part of this one
        for top, tensor in batch.items():
            net.blobs[top].set_tensor(tensor)
        for once, first, last in self._ranges:
            if not once:
                net.compute(first, last, gradient=True)

    @contextmanager
    def _uphill(self, parameters: list[Parameter]) -> Iterator[None]:
        """Move the parameters along their diffs, by a distance of rho; afterwards they are as before, bit for bit."""
        values = [parameter.tensor().detach() for parameter in parameters]
        diffs = [parameter.diff_tensor() for parameter in parameters]
        kept = [value.clone() for value in values]
        norm = torch.nn.utils.get_total_norm(diffs)
        step = self.rho / norm.clamp_min(1e-12)  # on the device: no waiting for it, and no division by 0
        torch._foreach_add_(values, torch._foreach_mul(diffs, step))
        try:
            yield
        finally:
            torch._foreach_copy_([parameter.tensor().detach() for parameter in parameters], kept)


def _runs_once(layer: Layer) -> bool:
    """Whether a layer runs in the first pass alone: it reads the batch, answers to it alone, or writes into a file."""
    return layer.reads_data or isinstance(layer, HDF5Output | Teacher)
