"""Layer: what every layer type is made of, and the registry that finds a type by the name a prototxt writes.

A layer computes its tops from its bottoms with differentiable torch operations; the backward pass is their gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

import torch

from ..blob import Parameter, check_shape
from ..context import memory_limit
from ..errors import CaffeError
from ..filler import fill
from ..proto.caffe_pb2 import TEST, FillerParameter, LayerParameter

Shape = tuple[int, ...]
LAYERS: dict[str, type[Layer]] = {}

# what to do about a type that Caffe 1.0 lacks
OF_ANOTHER_CAFFE = (
    "A layer of another Caffe (SSD's, Faster R-CNN's, …) can be written as a Python layer: type: \"Python\" with "
    'python_param { module: "FILE" layer: "CLASS" }, see docs/caffe.md'
)

L = TypeVar("L", bound="type[Layer]")


def register(*types: str) -> Callable[[L], L]:
    """Class decorator: make the layer known under the types that prototxts write."""

    def add(cls: L) -> L:
        for name in types:
            LAYERS[name] = cls
        return cls

    return add


class Layer:
    """One layer of a net.

    Parameters
    ----------
    param: the layer's message; `phase` is filled in by the net.
    device: where parameters live and the layer computes.
    generator: on the CPU, for the fillers; a random layer seeds its own from it.

    Attributes
    ----------
    blobs: the layer's parameters.
    room: bytes that they may take.
    precision: the net's: in what it computes convolutions and inner products.
    bottoms, tops: how many are allowed, as (fewest, most); None is unbounded.
    default_loss_weight: of the first top, where the prototxt gives none.
    differentiable: False for a layer through which no gradient passes.
    recordable: False for a layer whose work no CUDA graph can hold: it waits for the device, computes elsewhere, or
        keeps values from one batch to the next.
    """

    bottoms: ClassVar[tuple[int, int | None]] = (1, 1)
    tops: ClassVar[tuple[int, int | None]] = (1, 1)
    default_loss_weight: ClassVar[float] = 0.0
    differentiable: ClassVar[bool] = True
    recordable: bool = True

    def __init__(self, param: LayerParameter, device: torch.device, generator: torch.Generator) -> None:
        self.param = param
        self.device = device
        self.generator = generator
        self.blobs: list[Parameter] = []
        self.room = memory_limit()
        self.precision = "fp32"
        for names, (fewest, most), what in (
            (param.bottom, self.bottoms, "bottoms"),
            (param.top, self.tops, "tops"),
        ):
            if len(names) < fewest or (most is not None and len(names) > most):
                allowed = (
                    str(fewest) if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
                )
                self.error(f"has {len(names)} {what} ({', '.join(names)}); expected {allowed}")

    @property
    def name(self) -> str:
        """The prototxt's name of the layer."""
        return self.param.name

    @property
    def type(self) -> str:
        """The prototxt's type, under which the class is registered."""
        return self.param.type

    @property
    def training(self) -> bool:
        """True in phase TRAIN."""
        return self.param.phase != TEST

    @property
    def reads_data(self) -> bool:
        """Whether the tops are the batch: the layer reads no other, and has nothing to learn (as Parameter has)."""
        return not self.param.bottom and not self.blobs

    def error(self, message: str) -> NoReturn:
        """Raise a CaffeError that names the layer."""
        raise CaffeError(f"layer {self.param.name!r} ({self.param.type}): {message}")

    def add_blob(self, shape: Sequence[int], filler: FillerParameter) -> None:
        """Make the next parameter: from the prototxt's `blobs` where it has them, else filled."""
        try:
            self.take(shape)
            blob = Parameter(tuple(shape), self.device)
            blob.tensor().detach().copy_(fill(blob.shape, filler, self.generator))
        except RuntimeError as error:  # CaffeError, and PyTorch's where the device has no more memory
            self.error(str(error))
        self.blobs.append(blob)

    def take(self, shape: Sequence[int]) -> None:
        """Take the room for values of that shape, float32, before they are made.

        Raises CaffeError, without the layer's name, where there is not enough (`caffe.set_memory_limit`).
        """
        check_shape(shape)
        size = 4 * math.prod(shape)
        if size > self.room:
            raise CaffeError(
                f"values of shape {tuple(shape)} take {size} bytes; of the {memory_limit()} bytes that a net may take "
                f"(caffe.set_memory_limit), {self.room} are left"
            )
        self.room -= size

    def axis(self, axis: int, shape: Shape) -> int:
        """`axis` counted from 0, where the prototxt may count from the end with a negative number."""
        if not -len(shape) <= axis < len(shape):
            self.error(f"axis {axis} is out of range for bottom {self.param.bottom[0]!r} of shape {shape}")
        return axis % len(shape)

    def setup(self, shapes: list[Shape]) -> None:
        """Check the settings and make the parameters, given the bottoms' shapes. Called once."""

    def set_loss_weights(self, weights: Sequence[float]) -> None:
        """Be told what each top counts in the objective, after `setup`. Called once."""

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        """The tops' shapes, given the bottoms'. Raises CaffeError where they do not fit."""
        return [shapes[0]]

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tops, given the bottoms."""
        raise CaffeError(f"layer type {self.param.type!r} has no forward pass")

    # State beside the parameters that a resumed run needs: where a data layer reads, a generator's state.

    def state(self) -> dict[str, Any]:
        """`position` (records read) and `random_state` (bytes), where the layer has them."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


class RandomLayer(Layer):
    """A layer that draws random numbers, from a generator of its own.

    Attributes
    ----------
    draws_on_cpu: whether the generator is on the CPU, and so draws the same on every device; else it is on the layer's.
    """

    draws_on_cpu: ClassVar[bool] = False

    def __init__(self, param: LayerParameter, device: torch.device, generator: torch.Generator) -> None:
        super().__init__(param, device, generator)
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        self.random = torch.Generator(device="cpu" if self.draws_on_cpu else device).manual_seed(seed)

    def state(self) -> dict[str, Any]:
        return {"random_state": bytes(self.random.get_state().numpy())}

    def set_state(self, state: dict[str, Any]) -> None:
        saved = torch.tensor(list(state.get("random_state", b"")), dtype=torch.uint8)
        if saved.numel() != self.random.get_state().numel():
            self.error("the snapshot's random state is of another kind of device; resume on the kind that wrote it")
        try:
            self.random.set_state(saved)
        except RuntimeError as error:
            self.error(f"the snapshot's random state is none: {error}")


def make_layer(param: LayerParameter, device: torch.device, generator: torch.Generator) -> Layer:
    """The layer that a message describes.

    Raises CaffeError for a type that is not registered, naming the layer.
    """
    if param.type not in LAYERS:
        known = ", ".join(sorted(LAYERS))
        raise CaffeError(
            f"layer {param.name!r}: type {param.type!r} is not known; expected one of {known}. {OF_ANOTHER_CAFFE}"
        )
    return LAYERS[param.type](param, device, generator)
