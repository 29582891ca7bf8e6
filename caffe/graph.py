"""The layers and blobs of a net, made and connected as its prototxt says, and where gradients go among them."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

from . import context
from . import glog as log
from .blob import Blob, Parameter, Reshaped
from .errors import CaffeError
from .layers import LAYERS, Layer, make_layer
from .layers.base import Shape
from .layers.data import DummyData
from .layers.normalization import BatchNorm
from .proto.caffe_pb2 import LayerParameter, NetParameter, ParamSpec
from .weights import copy_blobs

# the name of a loss layer's top where its prototxt has none
AUTOMATIC = "(automatic)"


def _automatic_names() -> Iterator[str]:
    yield AUTOMATIC
    yield from (f"{AUTOMATIC} {number}" for number in itertools.count(2))


class LayerGraph:
    """Layers, their parameters, and the blobs between them.

    Parameters
    ----------
    param: the net's message, without the layers that its state leaves out.
    device: where parameters and blobs live.
    precision: in what the layers compute convolutions and inner products.
    seed: of the fillers and random layers; None: `caffe.set_random_seed`'s, else from the system.

    Attributes
    ----------
    layers: in order; a layer's number is its place here.
    layer_dict, params: the layers, and the parameters of those that have some, by name.
    blobs, blob_loss_weights: the blobs, and what each counts in the objective, by name.
    inputs, outputs: names of the tops of Input layers, and of the blobs that no layer reads.
    top_names, bottom_names: each layer's, by its name.
    needs_backward, layer_needs_backward: whether there is a backward pass, and which layers, by number, take part.
    gradient_ends: tops at which a gradient ends that goes no further, by the layer's number.
    wants_gradient: for each layer and each of its bottoms, whether the bottom's gradient is wanted.
    passes_down: likewise, whether one would be let through, which `propagate_down: false` for example forbids.

    Raises
    ------
    CaffeError: naming the layer or blob that does not fit.
    """

    def __init__(self, param: NetParameter, device: torch.device, precision: str, seed: int | None) -> None:
        self.param, self.device, self.precision = param, device, precision
        self.phase = param.state.phase
        self._generator = torch.Generator().manual_seed(context.next_seed() if seed is None else seed)
        log.info("net.cpp:53", f"Initializing net from parameters: \n{param}")
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
        for layer_param in param.layer:
            if not layer_param.HasField("phase"):
                layer_param.phase = self.phase
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
        for name in self.outputs:
            log.info("net.cpp:244", f"This network produces output {name}")
        log.info("net.cpp:257", "Network initialization done.")

    @property
    def name(self) -> str:
        """The net's name."""
        return self.param.name

    @property
    def learnable_params(self) -> list[Parameter]:
        """All parameters once each, in the order of the layers: the order of a .solverstate's history."""
        return self._learnable

    def clear_param_diffs(self) -> None:
        """Make the gradients of all parameters 0."""
        for parameter in self._learnable:
            parameter.clear_diff()

    def states(self) -> dict[str, dict[str, Any]]:
        """Each layer's state (`position`, `random_state`) by name, for the layers that have one."""
        return {layer.name: state for layer in self.layers if (state := layer.state())}

    def reshape(self) -> None:
        """Carry the input blobs' shapes through all layers, as after `net.blobs['data'].reshape(…)`."""
        for layer in self.layers:
            if layer.type != "Input":
                shapes = layer.top_shapes([self.blobs[b].shape for b in layer.param.bottom])
                for top, shape in zip(layer.param.top, shapes, strict=True):
                    self.blobs[top].set_shape(shape)

    # Building

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
        self._add_params(layer)
        # Caffe lets two layers have one name, as some old prototxts do; other weights would not be told apart by it
        earlier = self.layer_dict.get(param.name, layer)
        if [blob.owner for blob in layer.blobs] != [blob.owner for blob in earlier.blobs]:
            layer.error(
                "the name is taken by an earlier layer; expected another, since weights go by the name, or the same "
                "parameters (param { name: … })"
            )
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
        weights = _loss_weights(layer)
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
            copy_blobs(layer, layer.param.blobs, "the prototxt")
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
        """The layer's parameter number `i`, which has a name: itself where it is the first of that name, else that."""
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

    # Where gradients go

    def _mark_reach(self) -> list[bool]:
        """Which layers' tops depend on something that has a gradient: a learned parameter, or what is asked for.

        `force_backward` asks for the gradient of all data and of all that lies between, whatever `propagate_down` is;
        without it `propagate_down: true` asks for that of the bottoms that have it.
        """
        given = [[] if self.param.force_backward else layer.param.propagate_down for layer in self.layers]
        needs: dict[str, bool] = {}
        makers: dict[str, int] = {}
        reach: list[bool] = []
        read: list[list[tuple[str, int, bool]]] = []  # of each layer: its bottoms, their makers, whether they need one
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
            if self.param.force_backward and not reach[-1] and not layer.param.bottom:
                self.gradient_ends[number] = {*layer.param.top}
            for top in layer.param.top:
                needs[top], makers[top] = reach[-1] or number in self.gradient_ends, number
        self.wants_gradient = [[down for _, _, down in of_layer] for of_layer in read]
        # nothing goes down where propagate_down is false, nor to what ends there for another reader's sake
        self.passes_down = [
            [
                down or not (of_prototxt or bottom in self.gradient_ends.get(maker, ()))
                for bottom, maker, down in of_layer
            ]
            for of_prototxt, of_layer in zip(given, read, strict=True)
        ]
        return reach

    def _mark_backward(self) -> None:
        """Which layers take part in the backward pass: those between what has a gradient and a loss."""
        reach = self._mark_reach()
        under_loss: set[str] = set()
        self.layer_needs_backward = [False] * len(self.layers)
        for i in reversed(range(len(self.layers))):
            param = self.layers[i].param
            weights = _loss_weights(self.layers[i])
            contributes = any(top in under_loss or weight for top, weight in zip(param.top, weights, strict=True))
            self.layer_needs_backward[i] = reach[i] and (contributes or self.param.force_backward)
            under_loss.difference_update(set(param.top) - set(param.bottom))
            if contributes:
                under_loss.update(param.bottom)
            verb = "needs" if self.layer_needs_backward[i] else "does not need"
            log.info("net.cpp:200", f"{param.name} {verb} backward computation.")
        self.needs_backward = any(self.layer_needs_backward)


def _loss_weights(layer: Layer) -> list[float]:
    """What each top counts in the objective: as the prototxt says, else only the first of a loss."""
    tops = len(layer.param.top)
    return list(layer.param.loss_weight) or [layer.default_loss_weight, *[0.0] * tops][:tops]


def _shape_line(blob: Blob) -> str:
    return " ".join(map(str, [*blob.shape, f"({blob.count})"]))
