"""Layers in which numbers stand for rows: those that take rows by their number, and ArgMax, which finds the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F

from .base import Layer, Shape, register


class Checks:
    """Checks of numbers whose pass is recorded: nothing can be asked of the device meanwhile, only afterwards.

    Parameters
    ----------
    device: where the numbers are.
    """

    def __init__(self, device: torch.device) -> None:
        # made outside of the recording, so that each replay goes on from them: the least and the greatest number
        self._free = list(torch.zeros((256, 2), dtype=torch.int64, device=device))
        self._checks: list[tuple[torch.Tensor, Callable[[int, int], None]]] = []

    def add(self, numbers: torch.Tensor, check: Callable[[int, int], None]) -> None:
        """Have `ask` call `check` with the least and the greatest of all numbers that the replays have computed."""
        seen, (least, most) = self._free.pop(), numbers.aminmax()
        seen.copy_(torch.stack([torch.minimum(seen[0], least), torch.maximum(seen[1], most)]))
        self._checks.append((seen, check))

    def ask(self) -> None:
        """Wait for the device, and raise the CaffeError of a check that fails, for numbers since it was last asked."""
        for seen, check in self._checks:
            least, most = seen.tolist()
            seen.zero_()
            check(least, most)


_deferred: ContextVar[Checks | None] = ContextVar("deferred", default=None)


@contextmanager
def deferred_checks(device: torch.device) -> Iterator[Checks]:
    """Within it, `whole_numbers` leaves its check to the Checks, and takes the nearest for a number out of range."""
    checks = Checks(device)
    token = _deferred.set(checks)
    try:
        yield checks
    finally:
        _deferred.reset(token)


def whole_numbers(layer: Layer, bottom: int, values: torch.Tensor, count: int, what: str) -> torch.Tensor:
    """A bottom's float32 values as int64, one axis; CaffeError where one is not in 0..count−1."""
    numbers = values.reshape(-1).long()

    def check(least: int, most: int) -> None:
        if least < 0 or most >= count:
            wrong = least if least < 0 else most
            layer.error(f"{what} in {layer.param.bottom[bottom]!r} is outside 0..{count - 1}: {wrong}")

    if not numbers.numel():
        return numbers
    checks = _deferred.get()
    if checks is not None:
        checks.add(numbers, check)
        return numbers.clamp(0, count - 1)
    check(*(int(number) for number in numbers.aminmax()))
    return numbers


@register("ArgMax")
class ArgMax(Layer):
    """Where the `top_k` largest values are, largest first; of equal ones the last. No gradient.

    With `axis`: along it, top_k in its place; with `out_max_val` the values, not the places. Without: of each image
    as one vector, top N×1×top_k (at least 3 axes, the others 1), with `out_max_val` N×2×top_k, places and values.
    """

    differentiable = False

    def setup(self, shapes: list[Shape]) -> None:
        p, shape = self.param.argmax_param, shapes[0]
        if not shape:
            self.error(f"bottom {self.param.bottom[0]!r} is a scalar; expected at least one axis")
        self.along = self.axis(p.axis, shape) if p.HasField("axis") else None
        count = math.prod(shape[1:]) if self.along is None else shape[self.along]
        if not 1 <= p.top_k <= count:
            self.error(f"top_k is {p.top_k}; expected 1 to {count}, the number of values in {self.param.bottom[0]!r}")

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        p, shape = self.param.argmax_param, shapes[0]
        if self.along is not None:
            return [(*shape[: self.along], p.top_k, *shape[self.along + 1 :])]
        return [(shape[0], 2 if p.out_max_val else 1, p.top_k, *(1,) * (len(shape) - 3))]

    @torch.no_grad()
    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        p, x = self.param.argmax_param, bottoms[0].float()
        rows = x.reshape(x.shape[0], math.prod(x.shape[1:])) if self.along is None else x.movedim(self.along, -1)
        # turned round, the last of equal values is the first, which is the one that max and a stable sort give
        turned = rows.flip(-1)
        if p.top_k == 1:
            values, places = turned.max(-1, keepdim=True)
        else:
            values, places = (part[..., : p.top_k] for part in turned.sort(dim=-1, descending=True, stable=True))
        places = (rows.shape[-1] - 1 - places).float()
        if self.along is not None:
            return [(values if p.out_max_val else places).movedim(-1, self.along)]
        tops = torch.stack([places, values], 1) if p.out_max_val else places
        return [tops.reshape(self.top_shapes([tuple(x.shape)])[0])]


@register("Embed")
class Embed(Layer):
    """y = W[x] + b: a learned row for each whole number x in 0..input_dim−1.

    Bottom D0×…, top D0×…×num_output. Parameters: weight input_dim×num_output, bias num_output. No gradient to x.
    """

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.embed_param
        for setting in ("num_output", "input_dim"):
            if getattr(p, setting) < 1:
                self.error(f"{setting} is {getattr(p, setting)}; expected at least 1")
        self.add_blob((p.input_dim, p.num_output), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [(*shapes[0], self.param.embed_param.num_output)]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x, weight = bottoms[0], self.blobs[0].tensor()
        y = F.embedding(whole_numbers(self, 0, x, weight.shape[0], "a number"), weight)
        if len(self.blobs) > 1:
            y = y + self.blobs[1].tensor()
        return [y.reshape(*x.shape, weight.shape[1])]


@register("BatchReindex")
class BatchReindex(Layer):
    """y[i] = x[n[i]]: rows of the first bottom, N×…, in the order and number of the second, M whole numbers below N.

    Top M×…. The gradients of a row that is taken several times add up; none goes to the numbers.
    """

    bottoms = (2, 2)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        if not shapes[0] or len(shapes[1]) != 1:
            names = self.param.bottom
            self.error(
                f"bottoms {names[0]!r} and {names[1]!r} have shapes {shapes[0]} and {shapes[1]}; expected N×… and M"
            )
        return [(shapes[1][0], *shapes[0][1:])]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        x = bottoms[0]
        return [x.index_select(0, whole_numbers(self, 1, bottoms[1], x.shape[0], "a number"))]


@register("Filter")
class Filter(Layer):
    """The rows of each bottom but the last for which the last, the selector, is not 0.

    Bottoms N×… each, the selector N(×1×…); as many tops as bottoms before it, M×… with M the rows that were chosen
    in the last forward pass, N before the first. No gradient goes to the selector or to rows left out.
    """

    bottoms = (2, None)
    tops = (1, None)
    recordable = False

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        names, selector = self.param.bottom, shapes[-1]
        if len(self.param.top) != len(names) - 1:
            self.error(f"has {len(names)} bottoms and {len(self.param.top)} tops; expected a top less than bottoms")
        if not selector or math.prod(selector[1:]) != 1:
            self.error(f"the selector {names[-1]!r} has shape {selector}; expected one value a row")
        for name, shape in zip(names[:-1], shapes[:-1], strict=True):
            if shape[:1] != selector[:1]:
                self.error(f"bottom {name!r} has shape {shape}; expected {selector[0]} rows, as the selector has")
        return shapes[:-1]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        chosen = bottoms[-1].reshape(-1).nonzero().reshape(-1)
        return [x.index_select(0, chosen) for x in bottoms[:-1]]
