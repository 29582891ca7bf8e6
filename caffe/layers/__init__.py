"""The layer types, one module a family; importing this registers them all."""

from . import activation, combine, data, lookup, loss, normalization, pooling, recurrent, shape, vision
from .base import LAYERS, Layer, make_layer

__all__ = [
    "LAYERS",
    "Layer",
    "activation",
    "combine",
    "data",
    "lookup",
    "loss",
    "make_layer",
    "normalization",
    "pooling",
    "recurrent",
    "shape",
    "vision",
]
