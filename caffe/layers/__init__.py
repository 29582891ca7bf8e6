"""The layer types, one module a family; importing this registers them all."""

from . import activation, combine, data, loss, normalization, shape, vision
from .base import LAYERS, Layer, make_layer

__all__ = [
    "LAYERS",
    "Layer",
    "activation",
    "combine",
    "data",
    "loss",
    "make_layer",
    "normalization",
    "shape",
    "vision",
]
