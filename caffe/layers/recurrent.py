"""Recurrent layers over axis 0, the time: RNN and LSTM, and LSTMUnit, one step of the latter.

The input's part of all steps is one product ahead of the loop over time; the loop, and the one back, are written out.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from .. import glog as log
from ..proto.caffe_pb2 import FillerParameter
from .base import Layer, Shape, register

aten = torch.ops.aten


class _RNNSteps(torch.autograd.Function):
    """h_t = tanh(z_t + W · (cont_t · h_(t−1))), all steps: z T×N×D, W D×D, cont T×N×1, h_0 N×D → h T×N×D."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, weight: torch.Tensor, cont: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        states, past = z.clone(memory_format=torch.contiguous_format), torch.empty_like(z)
        turned = weight.t()
        for state, before, keep in zip(states.unbind(), past.unbind(), cont.unbind(), strict=True):
            torch.mul(h, keep, out=before)
            h = state.addmm_(before, turned).tanh_()
        ctx.save_for_backward(states, past, weight, cont)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, past, weight, cont = ctx.saved_tensors
        diffs = torch.empty_like(states)
        dh = torch.zeros_like(states[0])
        steps = (gradients[0].unbind(), states.unbind(), diffs.unbind(), cont.unbind())
        for given, state, diff, keep in reversed(list(zip(*steps, strict=True))):
            aten.tanh_backward(dh.add_(given), state, grad_input=diff)  # dh · (1 − h²)
            dh = (diff @ weight).mul_(keep)
        return diffs, diffs.flatten(0, 1).t() @ past.flatten(0, 1), None, None


class _LSTMSteps(torch.autograd.Function):
    """The steps of an LSTM: z T×N×4D (for input gate, forget gate, output gate, candidate), W 4D×D, cont T×N×1,
    h_0 and c_0 N×D → h and c, T×N×D. The gradient is that of h."""

    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        weight: torch.Tensor,
        cont: torch.Tensor,
        h: torch.Tensor,
        c: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = weight.shape[1]
        acts = z.clone(memory_format=torch.contiguous_format)  # the gates' values take the place of their inputs
        past, hidden = z.new_empty(2, *z.shape[:2], size)
        cells = torch.cat([c[None], past])  # the first before all steps, the others still to be computed
        turned = weight.t()
        steps = (acts.unbind(), past.unbind(), cells.unbind()[1:], hidden.unbind(), cont.unbind())
        for gates, kept, cell, out, keep in zip(*steps, strict=True):
            torch.mul(h, keep, out=kept)
            gates.addmm_(kept, turned)
            gates[:, : 3 * size].sigmoid_()
            gates[:, 3 * size :].tanh_()
            i, f, o, g = gates.split(size, 1)
            torch.mul(f.mul_(keep), c, out=cell).addcmul_(i, g)
            h, c = torch.tanh(cell, out=out).mul_(o), cell
        ctx.save_for_backward(acts, cells, past, weight, cont)
        cells = cells[1:]
        ctx.mark_non_differentiable(cells)
        return hidden, cells

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        acts, cells, past, weight, cont = ctx.saved_tensors
        size = weight.shape[1]
        i, f, o, g = acts.split(size, 2)
        bent = cells[1:].tanh()
        # what a step's diff of c (of h, for the output gate) is multiplied by to give that of each gate's input
        slopes = acts.new_empty(*acts.shape[:2], 4, size)
        aten.sigmoid_backward(g, i, grad_input=slopes[:, :, 0])  # g · i · (1 − i)
        aten.sigmoid_backward(cells[:-1], f, grad_input=slopes[:, :, 1])
        aten.sigmoid_backward(bent, o, grad_input=slopes[:, :, 2])
        aten.tanh_backward(i, g, grad_input=slopes[:, :, 3])  # i · (1 − g²)
        through = aten.tanh_backward(o, bent)
        diffs = torch.empty_like(slopes)
        dh, dc = torch.zeros_like(past[0]), torch.zeros_like(past[0])
        steps = (gradients[0].unbind(), slopes.unbind(), through.unbind(), f.unbind(), cont.unbind(), diffs.unbind())
        for given, slope, passing, forget, keep, diff in reversed(list(zip(*steps, strict=True))):
            dh.add_(given)
            dc.addcmul_(dh, passing)
            torch.mul(slope, dc[:, None], out=diff)
            torch.mul(slope[:, 2], dh, out=diff[:, 2])
            dc.mul_(forget)
            dh = (diff.flatten(1) @ weight).mul_(keep)
        rows = diffs.flatten(0, 1).flatten(1)
        return rows.view(acts.shape), rows.t() @ past.flatten(0, 1), None, None, None


class _Recurrent(Layer):
    """What RNN and LSTM share: bottoms, tops, parameters, and the state that passes from batch to batch.

    Bottoms: x T×N×…, of T steps of N streams; cont T×N, 0 where a step begins a new sequence and 1 where it goes on;
    if wanted x_static N×…, an input of every step; with `expose_hidden` the states before the first step, 1×N×D each.
    Tops: the outputs T×N×D, D = num_output; with `expose_hidden` the states after the last step, 1×N×D each. Without
    it a batch begins with the states that the last one ended with. No gradient goes to cont, to or from the states
    that come in or go out: it stays within the batch. `debug_info` is without effect: there is no unrolled net whose
    layers it could log.

    Attributes
    ----------
    states: how many the type has.
    """

    bottoms = (2, None)
    tops = (1, None)
    states: ClassVar[int]

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.recurrent_param
        self.exposed = self.states if p.expose_hidden else 0
        fewest, tops = 2 + self.exposed, 1 + self.exposed
        if not fewest <= len(shapes) <= fewest + 1 or len(self.param.top) != tops:
            expected = f"{fewest} or {fewest + 1} bottoms and {tops} tops"
            self.error(f"has {len(shapes)} bottoms and {len(self.param.top)} tops; expected {expected}")
        if p.num_output < 1:
            self.error(f"num_output is {p.num_output}; expected at least 1")
        self.static = len(shapes) > fewest
        self._check(shapes)
        steps, streams = shapes[0][:2]
        log.info(
            "recurrent_layer.cpp:20",
            "Initializing recurrent layer: assuming input batch contains "
            f"{steps} timesteps of {streams} independent streams.",
        )
        inputs, statics = math.prod(shapes[0][2:]), math.prod(shapes[2][1:]) if self.static else 0
        for i, (name, shape, filler) in enumerate(self.parameters(inputs, statics)):
            log.info("recurrent_layer.cpp:150", f"Adding parameter {i}: {name}")
            self.add_blob(shape, filler)
        self.kept: list[torch.Tensor] = []
        self.recordable = bool(self.exposed)  # else each pass begins with what the one before has kept here

    def parameters(self, inputs: int, statics: int) -> list[tuple[str, Shape, FillerParameter]]:
        """Name, shape and filler of each parameter, in Caffe's order; `statics` is 0 without x_static."""
        raise NotImplementedError

    def _check(self, shapes: list[Shape]) -> None:
        names = list(self.param.bottom)
        if len(shapes[0]) < 3:
            self.error(f"bottom {names[0]!r} has shape {shapes[0]}; expected at least 3 axes, steps×streams×…")
        if shapes[1] != shapes[0][:2]:
            self.error(
                f"bottom {names[1]!r} has shape {shapes[1]}; expected {shapes[0][:2]}, steps×streams of {names[0]!r}"
            )
        streams = shapes[0][1]
        if self.static and (len(shapes[2]) < 2 or shapes[2][0] != streams):
            self.error(f"bottom {names[2]!r} has shape {shapes[2]}; expected {streams}×…, the streams of {names[0]!r}")
        state = (1, streams, self.param.recurrent_param.num_output)
        for name, shape in list(zip(names, shapes, strict=True))[2 + self.static :]:
            if shape != state:
                self.error(f"bottom {name!r} has shape {shape}; expected {state}, a state of {streams} streams")

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        self._check(shapes)
        (steps, streams), size = shapes[0][:2], self.param.recurrent_param.num_output
        return [(steps, streams, size), *[(1, streams, size)] * self.exposed]

    def inputs(self, bottoms: list[torch.Tensor]) -> torch.Tensor:
        """What x, the bias and x_static give the steps, T×N×D or T×N×4D."""
        z = F.linear(bottoms[0].flatten(2), self.blobs[0].tensor(), self.blobs[1].tensor()).float()
        return z + F.linear(bottoms[2].flatten(1), self.blobs[2].tensor()) if self.static else z

    @staticmethod
    def continued(bottoms: list[torch.Tensor]) -> torch.Tensor:
        """cont, T×N×1: to it no gradient goes, also where force_backward asks for those of all bottoms."""
        return bottoms[1].detach().float()[..., None]

    def before(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        """The states before the first step, N×D each."""
        if self.exposed:
            return [h.detach()[0].float() for h in bottoms[2 + self.static :]]
        streams, size = bottoms[0].shape[1], self.param.recurrent_param.num_output
        if not self.kept or self.kept[0].shape[0] != streams:
            return [torch.zeros(streams, size, device=bottoms[0].device) for _ in range(self.states)]
        return self.kept

    def finish(self, output: torch.Tensor, *states: torch.Tensor) -> list[torch.Tensor]:
        """The tops, given the outputs and all steps' states; keeps the last ones where no top takes them."""
        if self.exposed:
            return [output, *(state.detach()[-1:].clone() for state in states)]
        with torch.inference_mode(False):  # a batch with gradient may follow one without
            self.kept = [state.detach()[-1].clone() for state in states]
        return [output]


@register("RNN")
class RNN(_Recurrent):
    """h_t = tanh(W_hh · cont_t · h_(t−1) + W_xh x_t + b_h + W_xh_static x_static), y_t = tanh(W_ho h_t + b_o).

    Bottoms, tops and state as in _Recurrent; state: h. Parameters: W_xh D×inputs, b_h D, W_xh_static D×static inputs
    if there are any, W_hh D×D, W_ho D×D, b_o D.
    """

    states = 1

    def parameters(self, inputs: int, statics: int) -> list[tuple[str, Shape, FillerParameter]]:
        p = self.param.recurrent_param
        size, weight, bias = p.num_output, p.weight_filler, p.bias_filler
        return [
            ("W_xh", (size, inputs), weight),
            ("b_h", (size,), bias),
            *([("W_xh_static", (size, statics), weight)] if self.static else []),
            ("W_hh", (size, size), weight),
            ("W_ho", (size, size), weight),
            ("b_o", (size,), bias),
        ]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        own, out, bias = (blob.tensor() for blob in self.blobs[-3:])
        z = self.inputs(bottoms)
        with torch.autocast(z.device.type, enabled=False):
            h = _RNNSteps.apply(z, own, self.continued(bottoms), *self.before(bottoms))
        return self.finish(torch.tanh(F.linear(h, out, bias)), h)


@register("LSTM")
class LSTM(_Recurrent):
    """c_t = cont_t · f · c_(t−1) + i · g and h_t = o · tanh(c_t) (Hochreiter and Schmidhuber 1997), of the gates
    (i, f, o, g) = (σ, σ, σ, tanh)(W_hc · cont_t · h_(t−1) + W_xc x_t + b_c + W_xc_static x_static).

    Bottoms, tops and state as in _Recurrent; output: h; states: h, c. Parameters: W_xc 4D×inputs, b_c 4D, W_xc_static
    4D×static inputs if there are any, W_hc 4D×D.
    """

    states = 2

    def parameters(self, inputs: int, statics: int) -> list[tuple[str, Shape, FillerParameter]]:
        p = self.param.recurrent_param
        size, weight, bias = p.num_output, p.weight_filler, p.bias_filler
        return [
            ("W_xc", (4 * size, inputs), weight),
            ("b_c", (4 * size,), bias),
            *([("W_xc_static", (4 * size, statics), weight)] if self.static else []),
            ("W_hc", (4 * size, size), weight),
        ]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        z, cont = self.inputs(bottoms), self.continued(bottoms)
        with torch.autocast(z.device.type, enabled=False):
            h, c = _LSTMSteps.apply(z, self.blobs[-1].tensor(), cont, *self.before(bottoms))
        return self.finish(h, h, c)


class _Forget(torch.autograd.Function):
    """f = cont · σ(x), with the gradient f · (1 − f) by x, which is Caffe's also where cont is neither 0 nor 1."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cont: torch.Tensor) -> torch.Tensor:
        f = x.sigmoid().mul_(cont)
        ctx.save_for_backward(f)
        return f

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (f,) = ctx.saved_tensors
        return gradients[0] * f * (1 - f), None


@register("LSTMUnit")
class LSTMUnit(Layer):
    """One step of an LSTM: c = cont · f · c' + i · g, h = o · tanh(c), (i, f, o, g) = (σ, σ, σ, tanh) of the gates.

    Bottoms: c' 1×N×D, the gates' inputs 1×N×4D, cont 1×N. Tops: c and h, 1×N×D. No gradient to cont.
    """

    bottoms = (3, 3)
    tops = (2, 2)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        cell = shapes[0]
        if len(cell) != 3 or cell[0] != 1:
            self.error(f"bottom {self.param.bottom[0]!r} has shape {cell}; expected 1×streams×size")
        for name, shape, expected in zip(
            self.param.bottom[1:], shapes[1:], ((1, cell[1], 4 * cell[2]), cell[:2]), strict=True
        ):
            if shape != expected:
                self.error(f"bottom {name!r} has shape {shape}; expected {expected}")
        return [cell, cell]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        cell, gates, cont = bottoms[0].float(), bottoms[1].float(), bottoms[2].float()[..., None]
        i, f, o, g = gates.split(cell.shape[2], 2)
        c = _Forget.apply(f, cont) * cell + i.sigmoid() * g.tanh()
        return [c, o.sigmoid() * c.tanh()]
