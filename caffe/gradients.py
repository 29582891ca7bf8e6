"""Gradients through some of a net's layers, by autograd: what passes there, where they end, what a user wrote there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from .errors import CaffeError
from .layers import Layer

Tensors = dict[str, torch.Tensor]
# for each layer that was run, by its number: its bottoms and its tops
Trace = dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]]


class Passage(NamedTuple):
    """The values that pass through some layers. A blob may change in place: how it came in and how it left count."""

    entered: Tensors  # each blob as the first of the layers that has it reads or makes it
    left: Tensors  # the tops, as the last of the layers leaves them
    consumed: set[str]  # blobs that a layer reads and does not overwrite
    made: set[int]  # ids of all tops

    @staticmethod
    def of(layers: Sequence[Layer], trace: Trace, numbers: Sequence[int]) -> Passage:
        """What the layers of these numbers have read and made."""
        passage = Passage({}, {}, set(), set())
        for number in numbers:
            layer, (bottoms, tops) = layers[number], trace[number]
            for name, value in [
                *zip(layer.param.bottom, bottoms, strict=True),
                *zip(layer.param.top, tops, strict=True),
            ]:
                passage.entered.setdefault(name, value)
            passage.left.update(zip(layer.param.top, tops, strict=True))
            passage.consumed.update(set(layer.param.bottom) - set(layer.param.top))
            passage.made.update(id(top) for top in tops)
        return passage


class Overwritten(torch.autograd.Function):
    """The values that a user wrote into a blob, exactly, in the graph of those that were computed there."""

    @staticmethod
    def forward(ctx: Any, computed: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        return written.view_as(written)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class Border:
    """Keeps a backward pass within its layers: the gradient of each value that came in is noted, and goes no further.

    Without this, where one such value was computed from another, or by parameters that the layers share, its gradient
    would flow on into theirs.
    """

    def __init__(self, values: list[torch.Tensor]) -> None:
        self.values = values
        self.reached: dict[int, torch.Tensor] = {}

    def _stop(self, key: int, gradient: torch.Tensor) -> torch.Tensor:
        self.reached[key] = gradient
        return torch.zeros_like(gradient)

    def __enter__(self) -> dict[int, torch.Tensor]:
        """The gradients by the values' `id`, once the pass is done."""
        self.handles = [value.register_hook(partial(self._stop, id(value))) for value in self.values]
        return self.reached

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def differentiate(
    layers: Sequence[Layer],
    roots: list[torch.Tensor],
    seeds: list[torch.Tensor],
    wanted: list[torch.Tensor],
    keep: bool,
) -> tuple[torch.Tensor | None, ...]:
    """The gradients that come from the roots' seeds; None for what they do not depend on. An error names the layers."""
    try:
        return torch.autograd.grad(roots, wanted, seeds, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        if isinstance(error, CaffeError) or any(layer.type == "Python" for layer in layers):
            raise
        raise CaffeError(f"the backward pass from layer {layers[-1].name!r} to {layers[0].name!r}: {error}") from error
