"""Net: layers and blobs made from a prototxt, run forward and backward; pycaffe's interface."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from . import context, hdf5
from . import glog as log
from .blob import Blob, Parameter, Reshaped
from .errors import CaffeError
from .files import StrPath
from .folding import Folded
from .io import array_to_blobproto, blobproto_to_array, read_net_binary, read_net_parameter, replace_bytes
from .layers import LAYERS, Layer, make_layer
from .layers.base import Shape
from .layers.data import DummyData
from .layers.normalization import BatchNorm
from .memory import keep_freed_memory
from .phases import filter_net
from .plans import InferencePlan, Plan, ReLUInPlace, Step, fuse_norms, hidden_blobs, rectify_in_place
from .proto.caffe_pb2 import TEST, TRAIN, LayerParameter, NetParameter, ParamSpec, Phase
from .upgrade import upgrade_net

Tensors = dict[str, torch.Tensor]
# for each layer that was run, by its number: its bottoms and its tops
Graph = dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]]


# the name of a loss layer's top where its prototxt has none
AUTOMATIC = "(automatic)"


def _automatic_names() -> Iterator[str]:
    yield AUTOMATIC
    yield from (f"{AUTOMATIC} {number}" for number in itertools.count(2))


class _Overwritten(torch.autograd.Function):
    """The values that a user wrote into a blob, exactly, in the graph of those that were computed there."""

    @staticmethod
    def forward(ctx: Any, computed: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        return written.view_as(written)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class _Border:
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


class _Passage(NamedTuple):
    """The values that pass through some layers. A blob may change in place: how it came in and how it left count."""

    entered: Tensors  # each blob as the first of the layers that has it reads or makes it
    left: Tensors  # the tops, as the last of the layers leaves them
    consumed: set[str]  # blobs that a layer reads and does not overwrite
    made: set[int]  # ids of all tops


class Net:
    """A network.

    Parameters
    ----------
    network_file: path of a prototxt, or a NetParameter.
    args: pycaffe's forms: `Net(network_file, phase, level, stages, weights)`, of which all behind the phase may be
        left out, and `Net(network_file, weights, phase)`.
    phase: caffe.TRAIN or caffe.TEST.
    level, stages: the rest of the state that `include` and `exclude` rules look at: an int and a list of str.
    weights: path of a .caffemodel or .caffemodel.h5.
    precision: `fp32` (default), `bf16`, `fp16` or `auto`: in what convolutions and inner products are computed.
    seed: of the fillers and random layers; default: `caffe.set_random_seed`'s, else from the system.

    Raises
    ------
    CaffeError: naming file and line for a prototxt that does not parse, or the layer or blob that does not fit.
    """

    def __init__(
        self,
        network_file: StrPath | NetParameter,
        *args: Any,
        phase: int | None = None,
        weights: StrPath | None = None,
        level: int = 0,
        stages: Sequence[str] | None = None,
        precision: str = "fp32",
        seed: int | None = None,
    ) -> None:
        network = network_file
        if len(args) == 2 and not isinstance(args[0], int):
            weights, phase = args
        elif len(args) > 4:
            raise CaffeError(
                f"Net: {len(args) + 1} positional arguments; expected (network_file, phase, level, stages, weights) "
                "or (network_file, weights, phase)"
            )
        else:
            given = dict(zip(("phase", "level", "stages", "weights"), args, strict=False))
            phase, level = given.get("phase", phase), given.get("level", level)
            stages, weights = given.get("stages", stages), given.get("weights", weights)
        if phase not in (TRAIN, TEST):
            raise CaffeError(f"Net: phase is {phase!r}; expected caffe.TRAIN or caffe.TEST")
        if isinstance(network, NetParameter):
            param = NetParameter()
            param.CopyFrom(network)
            upgrade_net(param, f"net {network.name!r}")
        else:
            param = read_net_parameter(network)
        param.state.phase = Phase.ValueType(phase)
        param.state.level = level
        param.state.stage.extend(stages or [])
        self.source = "" if isinstance(network, NetParameter) else str(network)
        self.param = filter_net(param)
        self.debug_info = self.param.debug_info
        self._hooks: dict[str, list[Callable[[int], Any]]] = {
            f"{when}_{which}": [] for when in ("before", "after") for which in ("forward", "backward")
        }
        self.phase = phase
        self.device = context.current_device()
        self.precision = precision
        self._dtype = context.autocast_dtype(precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._generator = torch.Generator().manual_seed(context.next_seed() if seed is None else seed)
        log.info("net.cpp:53", f"Initializing net from parameters: \n{self.param}")
        self._build()
        if weights is not None:
            self.copy_from(weights)

    # Building

    @property
    def name(self) -> str:
        """The net's name."""
        return self.param.name

    def _build(self) -> None:
        self.layers: list[Layer] = []
        self.layer_dict: OrderedDict[str, Layer] = OrderedDict()
        self.blobs: OrderedDict[str, Blob] = OrderedDict()
        self.params: OrderedDict[str, list[Parameter]] = OrderedDict()
        self.blob_loss_weights: OrderedDict[str, float] = OrderedDict()
        self._shared: dict[str, tuple[Parameter, ParamSpec]] = {}
        self._learnable: list[Parameter] = []
        self._room = context.memory_limit()
        available: dict[str, None] = OrderedDict()
        memory = 0
        for layer_param in self.param.layer:
            if not layer_param.HasField("phase"):
                layer_param.phase = self.param.state.phase
            layer = self._add_layer(layer_param, available)
            for blob in layer.param.top:
                log.info("net.cpp:131", f"Top shape: {_shape_line(self.blobs[blob])}")
                if self.blob_loss_weights[blob]:
                    log.info("net.cpp:134", f"    with loss weight {log.number(self.blob_loss_weights[blob])}")
                memory += self.blobs[blob].count
            log.info("net.cpp:139", f"Memory required for data: {4 * memory}")
        self.inputs = [top for layer in self.layers if layer.type == "Input" for top in layer.param.top]
        self.top_names = OrderedDict((layer.name, list(layer.param.top)) for layer in self.layers)
        self.bottom_names = OrderedDict((layer.name, list(layer.param.bottom)) for layer in self.layers)
        self.outputs = sorted(available)  # Caffe keeps them in a set: its logs and pycaffe have the names in order
        self._mark_backward()
        # what every pass asks, without the messages, which are slow: bottoms, tops, to which bottoms a gradient goes
        self._ends = [
            (list(layer.param.bottom), list(layer.param.top), [] if all(down) else down)
            for layer, down in zip(self.layers, self._passes_down, strict=True)
        ]
        self._is_input = [layer.type == "Input" for layer in self.layers]
        read = {bottom for layer in self.layers for bottom in layer.param.bottom}
        self._read_losses = {name for name in read if self.blob_loss_weights[name]}
        for name in self.outputs:
            log.info("net.cpp:244", f"This network produces output {name}")
        self._plan: Plan = [(layer, i, i) for i, layer in enumerate(self.layers)]
        self._fused_plan = fuse_norms(self.layers)
        self._training_plan = rectify_in_place(self.layers, self._fused_plan)
        # for passes whose blobs can be looked at, and for those that only give the outputs
        self._inference_plans: dict[bool, InferencePlan] = {}
        self._values: Tensors = {}
        self._graph: Graph | None = None  # None: no forward pass that a backward pass could go back through
        self._walked: set[int] = set()
        log.info("net.cpp:257", "Network initialization done.")

    def _add_layer(self, param: LayerParameter, available: dict[str, None]) -> Layer:
        """Make the layer, its tops and its parameters; `available` holds the blobs that no layer has read so far."""
        log.info("layer_factory.hpp:77", f"Creating layer {param.name}")
        kind = LAYERS.get(param.type)
        if kind is not None and kind.default_loss_weight and not param.top:
            # a loss whose value the prototxt does not name
            param.top.append(next(name for name in _automatic_names() if name not in self.blobs))
        layer = make_layer(param, self.device, self._generator)
        layer.room, layer.precision = self._room, self.precision
        log.info("net.cpp:86", f"Creating Layer {param.name}")
        self._read_bottoms(layer, available)
        shapes = [self.blobs[bottom].shape for bottom in param.bottom]
        layer.setup(shapes)
        self._room = layer.room
        self._add_tops(layer, layer.top_shapes(shapes), available)
        # Caffe lets two layers have one name, as some old prototxts do; weights would not be told apart by it
        if param.name in self.layer_dict and (layer.blobs or self.layer_dict[param.name].blobs):
            layer.error("the name is taken by an earlier layer; expected another, since weights go by the name")
        self._add_params(layer)
        self.layers.append(layer)
        self.layer_dict.setdefault(param.name, layer)
        log.info("net.cpp:124", f"Setting up {param.name}")
        return layer

    def _read_bottoms(self, layer: Layer, available: dict[str, None]) -> None:
        """Check that the layer's bottoms are there; they are available no more."""
        param = layer.param
        for bottom in param.bottom:
            if bottom not in self.blobs:
                layer.error(
                    f"bottom {bottom!r} is no top of an earlier layer; there are {', '.join(self.blobs) or 'none'}"
                )
            self.blobs[bottom].set_default_diff(0.0)  # of a loss that is read, the weight is but a part of the diff
            log.info("net.cpp:408", f"{param.name} <- {bottom}")
            available.pop(bottom, None)
        if len(param.propagate_down) not in (0, len(param.bottom)):
            layer.error(f"has {len(param.propagate_down)} propagate_down for {len(param.bottom)} bottoms")

    def _add_tops(self, layer: Layer, shapes: list[Shape], available: dict[str, None]) -> None:
        """Make the layer's tops, or in place reshape them, with their weights in the loss; they become available."""
        param = layer.param
        weights = list(param.loss_weight) or [layer.default_loss_weight, *[0.0] * len(param.top)][: len(param.top)]
        if len(weights) != len(param.top):
            layer.error(f"has {len(weights)} loss_weight for {len(param.top)} tops; expected none or one a top")
        for i, (top, shape) in enumerate(zip(param.top, shapes, strict=True)):
            in_place = i < len(param.bottom) and param.bottom[i] == top
            if top in self.blobs and not in_place:
                layer.error(f"top {top!r} is already the top of an earlier layer and not this layer's bottom {i}")
            log.info("net.cpp:369" if in_place else "net.cpp:382", f"{param.name} -> {top}{' (in-place)' * in_place}")
            try:
                if in_place:
                    self.blobs[top].set_shape(shape)
                else:
                    self.blobs[top] = Blob(shape, self.device)
            except CaffeError as error:
                layer.error(f"top {top!r}: {error}")
            self.blob_loss_weights[top] = weights[i]
            self.blobs[top].set_default_diff(weights[i])
            if not top.startswith(AUTOMATIC):
                available[top] = None
        layer.set_loss_weights(weights)
        if isinstance(layer, DummyData):  # whose constant tops hold their values before the first pass
            for top, constant in zip(param.top, layer.constants, strict=True):
                if constant is not None:
                    self.blobs[top].set_tensor(constant)

    def _add_params(self, layer: Layer) -> None:
        """Set the parameters' multipliers, and share those that carry the name of an earlier one."""
        specs = layer.param.param
        if len(specs) > len(layer.blobs):
            layer.error(f"has {len(specs)} param for {len(layer.blobs)} parameters")
        if layer.param.blobs:
            self._copy_blobs(layer, layer.param.blobs, "the prototxt")
            layer.param.ClearField("blobs")
        for i, blob in enumerate(layer.blobs):
            spec = specs[i] if i < len(specs) else None
            fixed = isinstance(layer, BatchNorm)
            if spec is not None:
                blob.lr_mult = 0.0 if fixed else spec.lr_mult
                blob.decay_mult = spec.decay_mult
                if spec.name:
                    blob = self._share(layer, i, spec)
            if not any(blob.owner is other for other in self._learnable):
                self._learnable.append(blob)
                blob.forced = self.param.force_backward and not fixed
        if layer.blobs:
            self.params[layer.name] = layer.blobs

    def _share(self, layer: Layer, i: int, spec: ParamSpec) -> Parameter:
        own = layer.blobs[i]
        if spec.name not in self._shared:
            own.name, given = spec.name, ParamSpec()
            given.CopyFrom(spec)
            self._shared[spec.name] = own, given
            return own
        owner, given = self._shared[spec.name]
        permissive = spec.share_mode == ParamSpec.PERMISSIVE
        if (owner.count != own.count) if permissive else (owner.shape != own.shape):
            layer.error(f"param {spec.name!r} has shape {own.shape}; the layer that owns it has {owner.shape}")
        for setting in ("lr_mult", "decay_mult"):
            value = getattr(spec, setting)
            if not spec.HasField(setting):
                continue
            if given.HasField(setting) and value != getattr(given, setting):
                layer.error(f"param {spec.name!r}: {setting} is {value}; its owner's is {getattr(given, setting)}")
            setattr(given, setting, value)
            setattr(owner, setting, value)
        layer.blobs[i] = owner if owner.shape == own.shape else Reshaped(owner, own.shape)
        return layer.blobs[i]

    def _mark_reach(self) -> list[bool]:
        """Which layers' tops depend on something that has a gradient: a learned parameter, or what is asked for.

        `force_backward` asks for the gradient of all data and of all that lies between, whatever `propagate_down` is;
        without it `propagate_down: true` asks for that of the bottoms that have it.
        """
        given = [[] if self.force_backward else layer.param.propagate_down for layer in self.layers]
        needs: dict[str, bool] = {}
        makers: dict[str, int] = {}
        reach: list[bool] = []
        read: list[list[tuple[str, int, bool]]] = []  # of each layer: its bottoms, their makers, whether they need one
        # tops at which a gradient ends, though it goes no further, by the layer's number
        self.gradient_ends: dict[int, set[str]] = {}
        for number, layer in enumerate(self.layers):
            asked = given[number] or [None] * len(layer.param.bottom)
            read.append([])
            for bottom, propagate in zip(layer.param.bottom, asked, strict=True):
                if propagate and not needs[bottom] and layer.differentiable:
                    self.gradient_ends.setdefault(makers[bottom], set()).add(bottom)
                read[-1].append((bottom, makers[bottom], needs[bottom] if propagate is None else propagate))
            learned = any(blob.owner.needs_diff for blob in layer.blobs)
            reach.append((learned or any(down for _, _, down in read[-1])) and layer.differentiable)
            if self.force_backward and not reach[-1] and not layer.param.bottom:
                self.gradient_ends[number] = {*layer.param.top}
            for top in layer.param.top:
                needs[top], makers[top] = reach[-1] or number in self.gradient_ends, number
        # nothing goes down where propagate_down is false, nor to what ends there for another reader's sake
        self._passes_down = [
            [
                down or not (of_prototxt or bottom in self.gradient_ends.get(maker, ()))
                for bottom, maker, down in of_layer
            ]
            for of_prototxt, of_layer in zip(given, read, strict=True)
        ]
        return reach

    def _mark_backward(self) -> None:
        """Which layers take part in the backward pass: those between what has a gradient and a loss."""
        self.force_backward = self.param.force_backward
        reach = self._mark_reach()
        under_loss: set[str] = set()
        self.layer_needs_backward = [False] * len(self.layers)
        for i in reversed(range(len(self.layers))):
            param = self.layers[i].param
            contributes = any(top in under_loss or self._loss_weight(param, j) for j, top in enumerate(param.top))
            self.layer_needs_backward[i] = reach[i] and (contributes or self.force_backward)
            under_loss.difference_update(set(param.top) - set(param.bottom))
            if contributes:
                under_loss.update(param.bottom)
            verb = "needs" if self.layer_needs_backward[i] else "does not need"
            log.info("net.cpp:200", f"{param.name} {verb} backward computation.")
        self.needs_backward = any(self.layer_needs_backward)

    def _loss_weight(self, param: LayerParameter, top: int) -> float:
        if param.loss_weight:
            return param.loss_weight[top]
        return LAYERS[param.type].default_loss_weight if top == 0 else 0.0

    # Running

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

    def _compute(self, values: Tensors, graph: Graph | None, start: int, end: int, plan: Plan) -> None:
        """Run the layers from `start` to `end` on `values`. `graph` collects what goes in and out."""
        for step, begin, last in plan:
            # what was there before the pass is not to be overwritten: others may hold it
            if start <= begin and last <= end and not (begin == start and isinstance(step, ReLUInPlace)):
                self._run_layer(step, begin, last, values, graph)
                continue
            for number in range(max(start, begin), min(end, last) + 1):  # the range begins or ends inside a group
                self._run_layer(self.layers[number], number, number, values, graph)

    def _run_layer(
        self,
        step: Step,
        begin: int,
        last: int,
        values: Tensors,
        graph: Graph | None,
    ) -> None:
        """Run a layer, or a group: what the first of it reads becomes what the last makes."""
        read, made, propagate_down = self._ends[begin]
        if self._is_input[begin]:
            for top in made:
                if top not in values:
                    values[top] = self.blobs[top].tensor().detach()
                if graph is not None:
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
            param = self.layers[begin].param
            if param.type == "Python":  # the error of a user's code is his
                raise
            shapes = ", ".join(f"{name!r} {tuple(b.shape)}" for name, b in zip(read, bottoms, strict=True))
            raise CaffeError(f"layer {param.name!r} ({param.type}): bottoms {shapes}: {error}") from error
        if graph is not None:
            # a top that is its bottom becomes a tensor of its own, since its gradient is one
            tops = [top.view_as(top) if any(top is bottom for bottom in bottoms) else top for top in tops]
            if last in self.gradient_ends:
                ends = self.gradient_ends[last]
                tops = [
                    top.detach().requires_grad_() if name in ends and not top.requires_grad else top
                    for name, top in zip(self._ends[last][1], tops, strict=True)
                ]
            graph[last] = (bottoms, tops)
        values.update(zip(self._ends[last][1], tops, strict=True))

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

    def trace(self, **inputs: torch.Tensor) -> Graph:
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
        graph: Graph = {}
        with self._autocast():
            for number, layer in enumerate(self.layers):
                if not self._is_input[number]:
                    self._run_layer(layer, number, number, values, graph)
        return graph

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
                self._log_forward(number)
            self._call_hooks("after_forward", number)
        return loss

    def forget(self) -> None:
        """Let go of what the last forward pass computed, and of its graph: blobs keep their values, as if set."""
        self._graph, self._values, self._walked = None, {}, set()

    def _compute_blobs(self, start: int, end: int, gradient: bool, fuse: bool) -> torch.Tensor:
        values: Tensors = {}
        if start == 0:
            self.forget()
        else:
            values = {name: self._current(name) for name in self.blobs}
        produced = dict.fromkeys(top for layer in self.layers[start : end + 1] for top in layer.param.top)
        with torch.set_grad_enabled(gradient), self._autocast():
            if gradient and self._graph is None:
                self._graph = {}
            graph = self._graph if gradient else None
            self._compute(values, graph, start, end, self._choose_plan(gradient, fuse))
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
        return _Overwritten.apply(computed, now.to(computed.dtype))

    def _fitting(self, what: str, name: str, array: np.ndarray) -> np.ndarray:
        """An array for a blob in the blob's shape; axes of size 1 may be missing, but for the first.

        One that has as many rows is spread over axes of which it has one value alone, as numpy does on assignment.
        """
        array, shape = np.asarray(array), self.blobs[name].shape
        if array.shape[:1] == shape[:1]:
            if [n for n in array.shape if n != 1] == [n for n in shape if n != 1]:
                return array.reshape(shape)
            if array.ndim == len(shape) and all(n in (1, size) for n, size in zip(array.shape, shape, strict=True)):
                return np.broadcast_to(array, shape)
        raise CaffeError(f"{what}: {name!r} has shape {array.shape}; expected {shape}")

    def _number(self, layer: str | None, default: int, what: str) -> int:
        if layer is None:
            return default
        if layer not in self.layer_dict:
            raise CaffeError(f"{what}: no layer {layer!r}; expected one of {', '.join(self.layer_dict)}")
        return self._layer_names.index(layer)

    def forward(
        self,
        blobs: Iterable[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Forward pass; pycaffe's.

        Parameters
        ----------
        blobs: names of blobs to return beside the outputs.
        start, end: names of the layers to begin with and to stop behind; default: all.
        inputs: arrays for the input blobs, whose shapes are those of the blobs.

        Returns
        -------
        The output blobs (with `end`: that layer's tops) and `blobs`, by name.
        """
        if inputs:
            if set(inputs) != set(self.inputs):
                raise CaffeError(f"forward: inputs are {sorted(inputs)}; expected {sorted(self.inputs)}")
            for name, array in inputs.items():
                self.blobs[name].data[...] = self._fitting("forward", name, array)
        first = self._number(start, 0, "forward: start")
        last = self._number(end, len(self.layers) - 1, "forward: end")
        self.compute(first, last, fuse=False)
        names = self.outputs if end is None else list(self.layers[last].param.top)
        return {name: self.blobs[name].data for name in [*names, *(blobs or [])]}

    def propagate(self, start: int | None = None, end: int = 0, blob_diffs: bool = True, keep: bool = True) -> None:
        """Backward pass from layer number `start` down to `end`: adds to the parameters' diffs, sets the blobs'.

        Parameters
        ----------
        blob_diffs: whether the blobs' diffs are wanted too, or the parameters' alone.
        keep: whether another backward pass may follow on the same forward pass.
        """
        start = len(self.layers) - 1 if start is None else start
        if self.needs_backward and self._graph is None:
            raise CaffeError("backward: there is no forward pass to go back through; expected forward before it")
        above = range(max(self._graph, default=-1) + 1, start + 1) if self._graph is not None else ()
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
            if self.debug_info:
                self._log_backward(number)
            self._call_hooks("after_backward", number)
        if self.debug_info:
            self._log_parameters()
        if not keep:
            self._graph = None

    def _propagate(self, start: int, end: int, blob_diffs: bool, keep: bool) -> None:
        if self._graph is None:
            return
        numbers = [number for number in range(end, start + 1) if number in self._graph]
        if self._walked.intersection(numbers):  # another round begins
            self._walked = set()
        # values whose diff already holds the part of their readers behind this range
        partly = {id(value) for number in self._walked if number > start for value in self._graph[number][0]}
        self._walked.update(numbers)
        passage = self._passage(self._graph, numbers)
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
        with _Border(border if end > 0 else []) as reached:
            gradients = _differentiate(layers, roots, seeds, wanted, keep)
        if not keep:
            self._graph = None
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

    def _passage(self, graph: Graph, numbers: Sequence[int]) -> _Passage:
        """What the layers of these numbers that take part in the backward pass have read and made."""
        passage = _Passage({}, {}, set(), set())
        for number in numbers:
            if not self.layer_needs_backward[number]:
                continue
            layer, (bottoms, tops) = self.layers[number], graph[number]
            for name, value in [
                *zip(layer.param.bottom, bottoms, strict=True),
                *zip(layer.param.top, tops, strict=True),
            ]:
                passage.entered.setdefault(name, value)
            passage.left.update(zip(layer.param.top, tops, strict=True))
            passage.consumed.update(set(layer.param.bottom) - set(layer.param.top))
            passage.made.update(id(top) for top in tops)
        return passage

    def _seeds(
        self, passage: _Passage, partly: set[int], scale: float
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

    def backward(
        self,
        diffs: Iterable[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **top_diffs: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Backward pass; pycaffe's. A net without a loss needs `force_backward: true` in its prototxt.

        Parameters
        ----------
        diffs: names of blobs whose diffs to return beside the inputs'.
        start, end: names of the layers to begin with (nearest the loss) and to stop behind; default: all.
        top_diffs: diffs to put into the output blobs first (default: what stands there: in a loss at first its weight).

        Returns
        -------
        The diffs of the input blobs (with `end`: of that layer's bottoms) and of `diffs`, by name.
        """
        first = self._number(start, len(self.layers) - 1, "backward: start")
        last = self._number(end, 0, "backward: end")
        allowed = self.outputs if start is None else list(self.layers[first].param.top)
        for name, array in top_diffs.items():
            if name not in allowed:
                raise CaffeError(f"backward: {name!r} is given a diff; expected one of {sorted(allowed)}")
            self.blobs[name].diff[...] = self._fitting("backward", name, array)
        self.propagate(first, last)
        names = self.inputs if end is None else list(self.layers[last].param.bottom)
        return {name: self.blobs[name].diff for name in [*names, *(diffs or [])]}

    def forward_all(self, blobs: Iterable[str] | None = None, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Forward passes over inputs of any number of rows, in batches of the net's size; pycaffe's.

        Parameters and result are `forward`'s, but with all rows; the last batch is filled up with zeros.
        """
        names = [*self.outputs, *(blobs or [])]
        parts = [
            {name: out[name][:count].copy() for name in names}
            for batch, count in self._batches(inputs)
            for out in [self.forward(blobs, None, None, **batch)]
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def forward_backward_all(
        self, blobs: Iterable[str] | None = None, diffs: Iterable[str] | None = None, **arrays: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Forward and backward passes over any number of rows, in batches of the net's size; pycaffe's.

        Parameters
        ----------
        blobs, diffs: names of blobs whose values and whose diffs to return beside the outputs' and the inputs'.
        arrays: for the input blobs their values, for the output blobs their diffs.

        Returns
        -------
        The values and the diffs, by name, with all rows.
        """
        names, diff_names = [*self.outputs, *(blobs or [])], [*self.inputs, *(diffs or [])]
        values: list[dict[str, np.ndarray]] = []
        gradients: list[dict[str, np.ndarray]] = []
        for batch, count in self._batches(arrays):
            out = self.forward(blobs, None, None, **{name: batch[name] for name in batch if name in self.inputs})
            values.append({name: out[name][:count].copy() for name in names})
            back = self.backward(diffs, None, None, **{name: batch[name] for name in batch if name not in self.inputs})
            gradients.append({name: back[name][:count].copy() for name in diff_names})
        return (
            {name: np.concatenate([part[name] for part in values]) for name in names},
            {name: np.concatenate([part[name] for part in gradients]) for name in diff_names},
        )

    def _batches(self, arrays: dict[str, np.ndarray]) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """The arrays in pieces of the net's batch size, and how many rows of each piece are real."""
        sizes = {len(array) for array in arrays.values()}
        if len(sizes) != 1 or sizes == {0}:
            raise CaffeError(f"arrays of {sorted(sizes) or 'no'} rows; expected one number of rows, 1 or more, for all")
        total, size = sizes.pop(), self.blobs[next(iter(arrays))].shape[0]
        for first in range(0, total, size):
            count = min(size, total - first)
            batch = {name: np.asarray(array[first : first + count], np.float32) for name, array in arrays.items()}
            if count < size:
                batch = {
                    name: np.concatenate([array, np.zeros((size - count, *array.shape[1:]), np.float32)])
                    for name, array in batch.items()
                }
            yield batch, count

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Let the net's first layer, a MemoryData layer, read these rows; pycaffe's.

        Parameters
        ----------
        data: N×C×H×W, float32; N is a multiple of the layer's batch size.
        labels: N values.
        """
        layer: Any = self.layers[0]
        if layer.type != "MemoryData":
            layer.error("set_input_arrays needs a MemoryData layer as the net's first")
        layer.set_input_arrays(data, labels)

    def reshape(self) -> None:
        """Carry the input blobs' shapes through all layers, as after `net.blobs['data'].reshape(…)`."""
        for layer in self.layers:
            if layer.type != "Input":
                shapes = layer.top_shapes([self.blobs[b].shape for b in layer.param.bottom])
                for top, shape in zip(layer.param.top, shapes, strict=True):
                    self.blobs[top].set_shape(shape)

    # Looking at a pass layer by layer

    def before_forward(self, hook: Callable[[int], Any]) -> None:
        """Call `hook` with each layer's number before its forward pass; pycaffe's, like the next three.

        While there is a hook the layers run one by one, and what it writes into blobs counts.
        """
        self._hooks["before_forward"].append(hook)

    def after_forward(self, hook: Callable[[int], Any]) -> None:
        """Call `hook` with each layer's number after its forward pass."""
        self._hooks["after_forward"].append(hook)

    def before_backward(self, hook: Callable[[int], Any]) -> None:
        """Call `hook` with each layer's number before its backward pass."""
        self._hooks["before_backward"].append(hook)

    def after_backward(self, hook: Callable[[int], Any]) -> None:
        """Call `hook` with each layer's number after its backward pass."""
        self._hooks["after_backward"].append(hook)

    @property
    def observed(self) -> bool:
        """Whether somebody looks at each layer as it runs: hooks, or `debug_info`."""
        return self._observed("forward") or self._observed("backward")

    def _observed(self, which: str) -> bool:
        return self.debug_info or bool(self._hooks[f"before_{which}"] or self._hooks[f"after_{which}"])

    def _call_hooks(self, when: str, number: int) -> None:
        for hook in self._hooks[when]:
            hook(number)

    def _log_forward(self, number: int) -> None:
        """`debug_info`: the mean magnitude of a layer's tops and parameters."""
        layer = self.layers[number]
        for top in layer.param.top:
            size = _magnitude(self.blobs[top].tensor())
            log.info("net.cpp:584", f"    [Forward] Layer {layer.name}, top blob {top} data: {size}")
        for i, blob in enumerate(layer.blobs):
            size = _magnitude(blob.tensor())
            log.info("net.cpp:596", f"    [Forward] Layer {layer.name}, param blob {blob.name or i} data: {size}")

    def _log_backward(self, number: int) -> None:
        """`debug_info`: the mean magnitude of the diffs of a layer's bottoms and parameters."""
        layer = self.layers[number]
        if not self.layer_needs_backward[number]:
            return
        for bottom in layer.param.bottom:
            if self.blobs[bottom].has_diff:
                size = _magnitude(self.blobs[bottom].diff_tensor())
                log.info("net.cpp:611", f"    [Backward] Layer {layer.name}, bottom blob {bottom} diff: {size}")
        for i, blob in enumerate(layer.blobs):
            if blob.owner.needs_diff:
                size = _magnitude(blob.diff_tensor())
                log.info("net.cpp:621", f"    [Backward] Layer {layer.name}, param blob {i} diff: {size}")

    def _log_parameters(self) -> None:
        """`debug_info`: the norms of all parameters and their diffs."""
        sides = ([p.tensor().detach() for p in self._learnable], [p.diff_tensor() for p in self._learnable])

        def norms(order: int) -> str:
            none = torch.zeros((), device=self.device)
            lengths = [[none, *(torch.linalg.vector_norm(tensor, order) for tensor in side)] for side in sides]
            return ", ".join(log.number(float(torch.linalg.vector_norm(torch.stack(n), order))) for n in lengths)

        totals = f"L1 norm = ({norms(1)}); L2 norm = ({norms(2)})"
        log.info("net.cpp:562", f"    [Backward] All net params (data, diff): {totals}")

    def clear_param_diffs(self) -> None:
        """Make the gradients of all parameters 0."""
        for parameter in self._learnable:
            parameter.clear_diff()

    @property
    def learnable_params(self) -> list[Parameter]:
        """All parameters once each, in the order of the layers: the order of a .solverstate's history."""
        return self._learnable

    # The numbers that pycaffe scripts of all years look at

    @property
    def _layer_names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    @property
    def _blob_names(self) -> list[str]:
        return list(self.blobs)

    @property
    def _blobs(self) -> list[Blob]:
        return list(self.blobs.values())

    @property
    def _blob_loss_weights(self) -> list[float]:
        return list(self.blob_loss_weights.values())

    @property
    def _inputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.inputs]

    @property
    def _outputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.outputs]

    def _top_ids(self, layer: int) -> list[int]:
        return [self._blob_names.index(name) for name in self.layers[layer].param.top]

    def _bottom_ids(self, layer: int) -> list[int]:
        return [self._blob_names.index(name) for name in self.layers[layer].param.bottom]

    def _forward(self, start: int, end: int) -> float:
        return float(self.compute(start, end, fuse=False))

    def _backward(self, start: int, end: int) -> None:
        self.propagate(start, end)

    # Weights

    def _copy_blobs(self, layer: Layer, protos: Sequence[Any], source: str) -> None:
        if len(protos) != len(layer.blobs):
            layer.error(f"{source} has {len(protos)} parameters for it; expected {len(layer.blobs)}")
        for i, (proto, blob) in enumerate(zip(protos, layer.blobs, strict=True)):
            try:
                array = blobproto_to_array(proto)
            except CaffeError as error:
                layer.error(f"{source}: parameter {i}: {error}")
            # old files give every blob four axes, the missing ones 1 in front
            legacy = not proto.HasField("shape")
            if legacy and array.size == blob.count and array.shape[4 - len(blob.shape) :] == blob.shape:
                array = array.reshape(blob.shape)
            if array.shape != blob.shape:
                layer.error(
                    f"{source}: parameter {i} has shape {array.shape}; expected {blob.shape} (to learn this "
                    "layer from scratch instead, give it another name)"
                )
            blob.data[...] = array

    def copy_from(self, weights: StrPath) -> None:
        """Copy parameters from a .caffemodel(.h5), by layer name; layers that this net lacks are passed over.

        Raises CaffeError where a layer's parameters differ in number or shape, naming both; nothing is copied then.
        """
        if str(weights).endswith(".h5"):
            self.load_hdf5(weights)
            return
        source = read_net_binary(weights)
        if not source.layer:
            raise CaffeError(f"{weights}: holds no layer; expected a .caffemodel")
        before = {name: [blob.data.copy() for blob in blobs] for name, blobs in self.params.items()}
        try:
            for proto in source.layer:
                if proto.name not in self.layer_dict:
                    log.info("net.cpp:737", f"Ignoring source layer {proto.name}")
                elif proto.blobs or self.layer_dict[proto.name].blobs:
                    self._copy_blobs(self.layer_dict[proto.name], proto.blobs, str(weights))
        except CaffeError:
            for name, arrays in before.items():
                for blob, array in zip(self.params[name], arrays, strict=True):
                    blob.data[...] = array
            raise

    def share_with(self, other: Net) -> None:
        """Have the values of `other`'s parameters, by layer name: what changes there changes here, and the reverse.

        Diffs, and lr_mult and decay_mult, stay each net's own, as in Caffe: solvers of both may take turns.

        Raises CaffeError as `share_params` does.
        """
        self.share_params(other.params)

    def share_params(self, params: Mapping[str, Sequence[Parameter]]) -> None:
        """`share_with` for parameters by layer, such as another net's `params`.

        Raises CaffeError for a layer whose parameters there have other shapes, or are shared otherwise among layers.
        """
        pairs: dict[int, tuple[Parameter, Parameter]] = {}  # of each owner here, once
        for name, blobs in params.items():
            if name in self.params:
                mine = self.params[name]
                if [b.shape for b in mine] != [b.shape for b in blobs]:
                    shapes, others = [b.shape for b in mine], [b.shape for b in blobs]
                    self.layer_dict[name].error(f"has parameters of shapes {shapes}; the other net's are {others}")
                for i, (own, source) in enumerate(zip(mine, blobs, strict=True)):
                    _, first = pairs.setdefault(id(own.owner), (own.owner, source))
                    if not first.shares_with(source):
                        self.layer_dict[name].error(
                            f"parameter {i} is an earlier layer's here, and one of its own in the other net; expected "
                            "layers that share parameters in both, or in neither"
                        )
        for own, source in pairs.values():
            own.share(source)
        self._inference_plans = {}

    def to_proto(self, diff: bool = False) -> NetParameter:
        """The net as a message with its parameters (and with `diff` their gradients), as a .caffemodel holds it."""
        proto = NetParameter(name=self.param.name)
        for layer in self.layers:
            out = proto.layer.add()
            out.CopyFrom(layer.param)
            out.top[:] = [top for top in layer.param.top if not top.startswith(AUTOMATIC)]
            for blob in layer.blobs:
                out.blobs.append(array_to_blobproto(blob.data, blob.diff if diff else None))
        return proto

    def save(self, path: StrPath, write_diff: bool = False) -> None:
        """Write a .caffemodel, all or nothing, and if asked for with the gradients."""
        replace_bytes(path, self.to_proto(write_diff).SerializeToString())

    def _owned_elsewhere(self) -> set[tuple[str, int]]:
        """(layer, i) of the parameters that an earlier layer owns."""
        seen: set[int] = set()
        shared = set()
        for layer in self.layers:
            shared |= {(layer.name, i) for i, blob in enumerate(layer.blobs) if id(blob.owner) in seen}
            seen |= {id(blob.owner) for blob in layer.blobs}
        return shared

    def save_hdf5(self, path: StrPath, write_diff: bool = False) -> None:
        """Write a .caffemodel.h5, all or nothing, and if asked for with the gradients; pycaffe's."""
        shared = self._owned_elsewhere()
        hdf5.write_weights(
            path,
            {
                layer.name: [None if (layer.name, i) in shared else blob.data for i, blob in enumerate(layer.blobs)]
                for layer in self.layers
            },
            {layer.name: [blob.diff for blob in layer.blobs] for layer in self.layers} if write_diff else None,
        )

    def load_hdf5(self, path: StrPath) -> None:
        """Copy parameters from a .caffemodel.h5 by layer name, as `copy_from` does from a .caffemodel; pycaffe's."""
        shapes = {layer.name: [blob.shape for blob in layer.blobs] for layer in self.layers}
        for name, arrays in hdf5.read_weights(path, shapes, self._owned_elsewhere()).items():
            for i, array in arrays.items():
                self.layer_dict[name].blobs[i].data[...] = array

    # The state that a resumed run needs beside the parameters

    def states(self) -> dict[str, dict[str, Any]]:
        """Each layer's state (`position`, `random_state`) by name, for the layers that have one."""
        return {layer.name: state for layer in self.layers if (state := layer.state())}


def _differentiate(
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


def _magnitude(tensor: torch.Tensor) -> str:
    """The mean of the absolute values, as a log line has it."""
    return log.number(float(tensor.detach().float().abs().mean()) if tensor.numel() else 0.0)


def _shape_line(blob: Blob) -> str:
    return " ".join(map(str, [*blob.shape, f"({blob.count})"]))
