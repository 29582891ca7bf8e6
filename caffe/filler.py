"""Fillers: how a parameter blob is initialised, chosen by `weight_filler { type: "…" }`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .errors import CaffeError
from .proto.caffe_pb2 import FillerParameter

LARGEST = torch.finfo(torch.float32).max

FILLERS: dict[str, Callable[[torch.Tensor, FillerParameter, torch.Generator], None]] = {}


def _register(name: str) -> Callable:
    def add(function: Callable) -> Callable:
        FILLERS[name] = function
        return function

    return add


def fill(shape: tuple[int, ...], filler: FillerParameter, generator: torch.Generator) -> torch.Tensor:
    """A new float32 CPU tensor of `shape`, filled as `filler` says from `generator` (on the CPU).

    Raises CaffeError for a type that is not known or settings out of range.
    """
    if filler.type not in FILLERS:
        raise CaffeError(f"filler type {filler.type!r} is not known; expected one of {', '.join(sorted(FILLERS))}")
    if filler.sparse != -1 and filler.type != "gaussian":
        raise CaffeError(f"filler {filler.type!r}: sparse is for the gaussian filler only")
    if 0 in shape:
        raise CaffeError(f"filler {filler.type!r}: the shape {shape} has no values; expected at least one")
    tensor = torch.empty(shape)
    FILLERS[filler.type](tensor, filler, generator)
    return tensor


def _fan(tensor: torch.Tensor, filler: FillerParameter) -> float:
    """Inputs a unit sees (count / axis 0), outputs that see an input (count / axis 1), or their mean."""
    fan_in = tensor.numel() / tensor.shape[0] if tensor.dim() else 1.0
    fan_out = tensor.numel() / tensor.shape[1] if tensor.dim() > 1 else float(tensor.numel())
    norms = {FillerParameter.FAN_IN: fan_in, FillerParameter.FAN_OUT: fan_out}
    return norms.get(filler.variance_norm, (fan_in + fan_out) / 2)


@_register("constant")
def _constant(tensor: torch.Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    tensor.fill_(filler.value)


@_register("uniform")
def _uniform(tensor: torch.Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    if filler.min > filler.max:
        raise CaffeError(f"uniform filler: min {filler.min} is above max {filler.max}")
    if not (abs(filler.min) <= LARGEST and filler.max - filler.min <= LARGEST):
        raise CaffeError(f"uniform filler: min is {filler.min} and max {filler.max}; expected finite numbers")
    tensor.uniform_(filler.min, filler.max, generator=generator)


@_register("gaussian")
def _gaussian(tensor: torch.Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """Normal; with `sparse`, each value is kept with probability sparse / (count of axis 0)."""
    if not filler.std >= 0:  # or no number
        raise CaffeError(f"gaussian filler: std {filler.std} is negative or no number")
    tensor.normal_(filler.mean, filler.std, generator=generator)
    if filler.sparse >= 0:
        keep = min(filler.sparse / (tensor.shape[0] if tensor.dim() else 1), 1.0)
        tensor.mul_(torch.empty_like(tensor).bernoulli_(keep, generator=generator))


@_register("positive_unitball")
def _positive_unitball(tensor: torch.Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """Uniform on [0, 1), then each row of axis 0 divided by its sum."""
    tensor.uniform_(0, 1, generator=generator)
    rows = tensor.view(tensor.shape[0], -1)
    rows.div_(rows.sum(1, keepdim=True))


@_register("xavier")
def _xavier(tensor: torch.Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """Uniform on ±sqrt(3 / fan) (Glorot and Bengio 2010)."""
    bound = math.sqrt(3.0 / _fan(tensor, filler))
    tensor.uniform_(-bound, bound, generator=generator)


@_register("msra")
def _msra(tensor: torch.Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """Normal with standard deviation sqrt(2 / fan) (He et al. 2015)."""
    tensor.normal_(0.0, math.sqrt(2.0 / _fan(tensor, filler)), generator=generator)


@_register("bilinear")
def _bilinear(tensor: torch.Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """The kernel of bilinear upsampling in every channel, for a Deconvolution."""
    if tensor.dim() != 4 or tensor.shape[2] != tensor.shape[3]:
        raise CaffeError(f"bilinear filler: expected a square N×C×K×K blob, not {tuple(tensor.shape)}")
    size = tensor.shape[3]
    factor = math.ceil(size / 2)
    centre = (size - 1) / (2 * factor)
    line = 1 - (torch.arange(size) / factor - centre).abs()
    tensor.copy_(line[:, None] * line[None, :])
