"""Running a net's layers: forward passes, on tensors of the caller's or into the blobs, and backward passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from . import context
from .debug_info import log_backward, log_forward, log_parameters
from .errors import CaffeError
from .folding import Folded
from .gradients import Border, Overwritten, Passage, Tensors, Trace, differentiate
from .graph import LayerGraph
from .plans import InferencePlan, Plan, ReLUInPlace, Step, fuse_norms, hidden_blobs, rectify_in_place
from .proto.caffe_pb2 import TEST, NetParameter


class RunnableGraph(LayerGraph):
    """A graph of layers that can be run; parameters are `LayerGraph`'s.

    Attributes
    ----------
    debug_info: whether each pass logs how large values and gradients are.
    """

    def __init__(self, param: NetParameter, device: torch.device, precision: str, seed: int | None) -> None:
        self._dtype = context.autocast_dtype(precision, device)
        super().__init__(param, device, precision, seed)
        self.debug_info = param.debug_info
        self._hooks: dict[str, list[Callable[[int], Any]]] = {
            f"{when}_{which}": [] for when in ("before", "after") for which in ("forward", "backward")
        }
        # what every pass asks, without the messages, which are slow: bottoms, tops, to which bottoms a gradient goes
        self._ends = [
            (list(layer.param.bottom), list(layer.param.top), [] if all(down) else down)
            for layer, down in zip(self.layers, self.passes_down, strict=True)
        ]
        self._is_input = [layer.type == "Input" for layer in self.layers]
        read = {bottom for layer in self.layers for bottom in layer.param.bottom}
        self._read_losses = {name for name in read if self.blob_loss_weights[name]}
        self._plan: Plan = [(layer, i, i) for i, layer in enumerate(self.layers)]
        self._fused_plan = fuse_norms(self.layers)
        self._training_plan = rectify_in_place(self.layers, self._fused_plan)
        # for passes whose blobs can be looked at, and for those that only give the outputs
        self._inference_plans: dict[bool, InferencePlan] = {}
        self._values: Tensors = {}
        self._entries: dict[tuple[int, int], set[str]] = {}
        self._trace: Trace | None = None  # None: no forward pass that a backward pass could go back through
        self._walked: set[int] = set()

    # What to run, and how

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def _choose_plan(self, gradient: bool, fuse: bool, outputs_only: bool = False) -> Plan:
        """What to run: groups of layers as far as nobody looks between them, and no backward pass will."""
        if gradient or self.phase != TEST:
            return self._training_plan if fuse else self._plan
        plan = self._inference_plans.get(outputs_only)
        if plan is None or not plan.current:
            hidden = hidden_blobs(self.layers, self.outputs) if outputs_only else set()
            plan = InferencePlan(self._fused_plan, self.layers, self._dtype, hidden)
            self._inference_plans[outputs_only] = plan
        return plan.steps

    @property
    def observed(self) -> bool:
        """Whether somebody looks at each layer as it runs: hooks, or `debug_info`."""
        return self._observed("forward") or self._observed("backward")

    def _observed(self, which: str) -> bool:
        return self.debug_info or bool(self._hooks[f"before_{which}"] or self._hooks[f"after_{which}"])

    def _call_hooks(self, when: str, number: int) -> None:
        for hook in self._hooks[when]:
            hook(number)

    # Forward

    def infer(self, **inputs: torch.Tensor) -> Tensors:
        """The outputs for the inputs given as tensors, by name; quick, and nothing is kept in the blobs.

        Parameters
        ----------
        inputs: one tensor for each of `net.inputs`: N×C×H×W float32 on `net.device`. N may be any number; H and W too,
            where the layers allow it.

        Returns
        -------
        The output blobs by name, float32, on `net.device`.
        """
        if set(inputs) != set(self.inputs):
            raise CaffeError(f"infer: inputs are {sorted(inputs)}; expected {sorted(self.inputs)}")
        values = dict(inputs)
        with torch.inference_mode(), self._autocast():
            self._compute(values, None, 0, len(self.layers) - 1, self._choose_plan(False, True, outputs_only=True))
        return {name: values[name].float() for name in self.outputs}

    def trace(self, **inputs: torch.Tensor) -> Trace:
        """What each layer reads and makes for the inputs given as tensors; nothing is kept in the blobs.

        The layers run one by one, and one that works in place makes a tensor of its own: each top is there as it left
        its layer. All are in one graph of autograd, where its recording is on, so `torch.autograd.grad` gives the
        gradient of any of them with respect to any other or an input, and a hook on a top sees, or changes, the whole
        gradient that comes back to this layer.

        Parameters
        ----------
        inputs: as `infer`'s; with `requires_grad` where a gradient is wanted.

        Returns
        -------
        For each layer but Input ones, by its number in `net.layers`: its bottoms and its tops, on `net.device`.
        """
        if set(inputs) != set(self.inputs):
            raise CaffeError(f"trace: inputs are {sorted(inputs)}; expected {sorted(self.inputs)}")
        values = dict(inputs)
        trace: Trace = {}
        with self._autocast():
            for number, layer in enumerate(self.layers):
                if not self._is_input[number]:
                    self._run_layer(layer, number, number, values, trace)
        return trace

    def compute(
        self, start: int = 0, end: int | None = None, gradient: bool | None = None, fuse: bool = True
    ) -> torch.Tensor:
        """Run the layers numbered `start` to `end` into the blobs; returns the weighted sum of the losses.

        Parameters
        ----------
        gradient: whether `backward` can follow; default: whether the net needs one.
        fuse: compute a BatchNorm and its Scale as one, between which `backward` then cannot begin or end, and ReLUs in
            place.
        """
        end = len(self.layers) - 1 if end is None else end
        gradient = self.needs_backward if gradient is None else gradient
        if not self._observed("forward"):
            return self._compute_blobs(start, end, gradient, fuse)
        loss = torch.zeros((), device=self.device)
        for number in range(start, end + 1):
            self._call_hooks("before_forward", number)
            loss = loss + self._compute_blobs(number, number, gradient, fuse=False)
            if self.debug_info:
                log_forward(self.layers[number], self.blobs)
            self._call_hooks("after_forward", number)
        return loss

    def forget(self) -> None:
        """Let go of what the last forward pass computed, and of its graph: blobs keep their values, as if set."""
        self._trace, self._values, self._walked = None, {}, set()

    def _compute_blobs(self, start: int, end: int, gradient: bool, fuse: bool) -> torch.Tensor:
        values: Tensors = {}
        if start == 0:
            self.forget()
        else:
            values = {name: self._current(name) for name in self.blobs}
            if gradient:  # to what no pass has computed so far, too
                for name in self._entered(start, end) - self._values.keys():
                    values[name] = values[name].detach().requires_grad_()
        produced = dict.fromkeys(top for layer in self.layers[start : end + 1] for top in layer.param.top)
        with torch.set_grad_enabled(gradient), self._autocast():
            if gradient and self._trace is None:
                self._trace = {}
            trace = self._trace if gradient else None
            self._compute(values, trace, start, end, self._choose_plan(gradient, fuse))
        self._values.update((name, values[name]) for name in produced)
        loss = torch.zeros((), device=self.device)
        for name in produced:
            self.blobs[name].set_tensor(values[name])
            weight = self.blob_loss_weights[name]
            if weight:
                value = values[name].detach().float()
                loss = loss + (value * self._loss_diff(name, value)).sum()
        return loss

    def _loss_diff(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """What each value of a blob counts in the objective: its diff, at first its loss weight, as in Caffe.

        Of one that another layer reads, whose diff is more than that, it is the weight.
        """
        if name in self._read_losses:
            return torch.full_like(value, self.blob_loss_weights[name])
        return self.blobs[name].diff_tensor().reshape(value.shape)

    def _current(self, name: str) -> torch.Tensor:
        """A blob's value for a pass that begins in the middle: what the user wrote, in the graph that it came from."""
        now, computed = self.blobs[name].tensor(), self._values.get(name)
        if computed is None or not computed.requires_grad or now is computed:
            return now
        return Overwritten.apply(computed, now.to(computed.dtype))

    def _entered(self, start: int, end: int) -> set[str]:
        """The blobs that layers `start` to `end` read before one of them makes them, and whose gradient is wanted."""
        if (start, end) not in self._entries:
            made: set[str] = set()
            entered = self._entries[start, end] = set()
            for number in range(start, end + 1):
                read, tops, _ = self._ends[number]
                wanted = zip(read, self.wants_gradient[number], strict=True)
                entered.update(bottom for bottom, wants in wanted if wants and bottom not in made)
                made.update(tops)
        return self._entries[start, end]

    def _compute(self, values: Tensors, trace: Trace | None, start: int, end: int, plan: Plan) -> None:
        """Run the layers from `start` to `end` on `values`. `trace` collects what goes in and out."""
        for step, begin, last in plan:
            # what was there before the pass is not to be overwritten: others may hold it
            if start <= begin and last <= end and not (begin == start and isinstance(step, ReLUInPlace)):
                self._run_layer(step, begin, last, values, trace)
                continue
            for number in range(max(start, begin), min(end, last) + 1):  # the range begins or ends inside a group
                self._run_layer(self.layers[number], number, number, values, trace)

    def _run_layer(self, step: Step, begin: int, last: int, values: Tensors, trace: Trace | None) -> None:
        """Run a layer, or a group: what the first of it reads becomes what the last makes."""
        read, made, propagate_down = self._ends[begin]
        if self._is_input[begin]:
            for top in made:
                if top not in values:
                    values[top] = self.blobs[top].tensor().detach()
                if trace is not None:
                    values[top].requires_grad_(top in self.gradient_ends.get(begin, ()))
            return
        bottoms = [values[bottom] for bottom in read]
        if propagate_down:
            bottoms = [b if p else b.detach() for b, p in zip(bottoms, propagate_down, strict=True)]
        if isinstance(step, Folded) and step.added is not None:
            read = [*read, step.added]
            bottoms.append(values[step.added])
        try:
            tops = step.forward(bottoms)
        except CaffeError:
            raise
        except (RuntimeError, IndexError, ValueError) as error:
            layer, shapes = self.layers[begin], [tuple(bottom.shape) for bottom in bottoms]
            if layer.type == "Python":  # the error of a user's code is his
                raise
            layer.top_shapes(shapes[: len(layer.param.bottom)])  # has better words for bottoms that do not fit
            text = ", ".join(f"{name!r} {shape}" for name, shape in zip(read, shapes, strict=True))
            raise CaffeError(f"layer {layer.param.name!r} ({layer.type}): bottoms {text}: {error}") from error
        if trace is not None:
            # a top that is its bottom becomes a tensor of its own, since its gradient is one
            tops = [top.view_as(top) if any(top is bottom for bottom in bottoms) else top for top in tops]
            if last in self.gradient_ends:
                ends = self.gradient_ends[last]
                tops = [
                    top.detach().requires_grad_() if name in ends and not top.requires_grad else top
                    for name, top in zip(self._ends[last][1], tops, strict=True)
                ]
            trace[last] = (bottoms, tops)
        values.update(zip(self._ends[last][1], tops, strict=True))

    # Backward

    def propagate(self, start: int | None = None, end: int = 0, blob_diffs: bool = True, keep: bool = True) -> None:
        """Backward pass from layer number `start` down to `end`: adds to the parameters' diffs, sets the blobs'.

        Parameters
        ----------
        blob_diffs: whether the blobs' diffs are wanted too, or the parameters' alone.
        keep: whether another backward pass may follow on the same forward pass.
        """
        start = len(self.layers) - 1 if start is None else start
        if self.needs_backward and self._trace is None:
            raise CaffeError("backward: there is no forward pass to go back through; expected forward before it")
        above = range(max(self._trace, default=-1) + 1, start + 1) if self._trace is not None else ()
        missing = [self.layers[number].name for number in above if self.layer_needs_backward[number]]
        if missing:  # where Caffe goes back through what they computed from other values
            raise CaffeError(
                f"backward: the forward pass ended before layer {missing[0]!r}; expected forward(start={missing[0]!r}) "
                f"before it, or backward(start=…) with the layer at which the pass ended"
            )
        if not self._observed("backward"):
            self._propagate(start, end, blob_diffs, keep)
            return
        for number in range(start, end - 1, -1):
            self._call_hooks("before_backward", number)
            self._propagate(number, number, blob_diffs=True, keep=True)
            if self.debug_info and self.layer_needs_backward[number]:
                log_backward(self.layers[number], self.blobs)
            self._call_hooks("after_backward", number)
        if self.debug_info:
            log_parameters(self.learnable_params, self.device)
        if not keep:
            self._trace = None

    def _propagate(self, start: int, end: int, blob_diffs: bool, keep: bool) -> None:
        if self._trace is None:
            return
        numbers = [number for number in range(end, start + 1) if number in self._trace]
        if self._walked.intersection(numbers):  # another round begins
            self._walked = set()
        # values whose diff already holds the part of their readers behind this range
        partly = {id(value) for number in self._walked if number > start for value in self._trace[number][0]}
        self._walked.update(numbers)
        passage = Passage.of(self.layers, self._trace, [i for i in numbers if self.layer_needs_backward[i]])
        # float16 has no small numbers: gradients are computed that much larger
        scale = context.FLOAT16_LOSS_SCALE if self._dtype is torch.float16 else 1.0
        roots, seeds, given = self._seeds(passage, partly, scale)
        entered, layers = passage.entered, self.layers[end : start + 1]
        names = [n for n, value in entered.items() if blob_diffs and value.requires_grad and n not in given]
        owners = (blob.owner for layer in layers for blob in layer.blobs)
        parameters = list({id(owner): owner for owner in owners if owner.needs_diff}.values())
        wanted = [p.tensor() for p in parameters] + [entered[name] for name in names]
        if not roots or not wanted:
            return
        border = [value for value in entered.values() if value.requires_grad and id(value) not in passage.made]
        if not keep:  # the new ones take the old ones' memory, which is in the cache; what gets none stays 0
            for name in names:
                if id(entered[name]) not in partly:
                    self.blobs[name].clear_diff()
        with Border(border if end > 0 else []) as reached:
            gradients = differentiate(layers, roots, seeds, wanted, keep)
        if not keep:
            self._trace = None
        for parameter, gradient in zip(parameters, gradients, strict=False):
            if gradient is not None:
                parameter.accumulate(gradient if scale == 1 else gradient / scale)
        for name, gradient in zip(names, gradients[len(parameters) :], strict=True):
            blob, key = self.blobs[name], id(entered[name])
            gradient = reached.get(key, gradient)
            if gradient is not None:
                gradient = gradient if scale == 1 else gradient.float() / scale
                added = key in partly and key not in passage.made
                blob.set_diff(blob.diff_tensor() + gradient if added else gradient)

    def _seeds(
        self, passage: Passage, partly: set[int], scale: float
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], set[str]]:
        """The values that a backward pass begins at, the gradient of each, and the blobs whose diff is that alone.

        partly: ids of values whose diff already holds a part. scale: by which gradients are larger.
        """
        roots, seeds = [], []
        given: set[str] = set()  # whose diff stays what it is
        for name, value in passage.left.items():
            weight = self.blob_loss_weights[name]
            if not value.requires_grad or (name in passage.consumed and not weight and id(value) not in partly):
                continue
            roots.append(value)
            seeds.append((self._loss_diff(name, value) * scale).to(value.dtype))
            if passage.entered[name] is value and name not in passage.consumed and name not in self._read_losses:
                given.add(name)
        return roots, seeds, given
