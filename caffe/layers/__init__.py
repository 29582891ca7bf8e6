"""The layer types, one module a family; importing this registers them all."""

from . import (
    activation,
    combine,
    data,
    data_files,
    data_hdf5,
    lookup,
    loss,
    normalization,
    pooling,
    python,
    recurrent,
    shape,
    teacher,
    vision,
)
from .base import LAYERS, Layer, make_layer

__all__ = [
    "LAYERS",
    "Layer",
    "activation",
    "combine",
    "data",
    "data_files",
    "data_hdf5",
    "lookup",
    "loss",
    "make_layer",
    "normalization",
    "pooling",
    "python",
    "recurrent",
    "shape",
    "teacher",
    "vision",
]
