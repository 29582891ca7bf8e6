"""Nets written as text in a test, without files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from google.protobuf import text_format

import caffe
from caffe.proto.caffe_pb2 import NetParameter


def input_layer(name: str, *shape: int) -> str:
    """An Input layer of that name whose one top has that shape."""
    dims = " ".join(f"dim: {n}" for n in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def net_of(text: str, phase: int = caffe.TEST, backward: bool = True, seed: int = 1, **settings: object) -> caffe.Net:
    """The net that a prototxt's text describes; with `backward` the gradient reaches the inputs."""
    param = text_format.Parse(text, NetParameter())
    param.force_backward = backward
    return caffe.Net(param, phase=phase, seed=seed, **settings)


def one_layer(layer: str, *shapes: Sequence[int], tops: Sequence[str] = ("y",), **settings: object) -> caffe.Net:
    """A net of one layer `layer { LAYER }` with the bottoms x0, x1, … of those shapes and the tops `tops`."""
    inputs = "".join(input_layer(f"x{i}", *shape) for i, shape in enumerate(shapes))
    bottoms = " ".join(f'bottom: "x{i}"' for i in range(len(shapes)))
    names = " ".join(f'top: "{top}"' for top in tops)
    return net_of(f'{inputs} layer {{ name: "layer" {bottoms} {names} {layer} }}', **settings)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 values of that shape, the same for the same seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(net: caffe.Net, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Forward pass of a net of `one_layer`; its outputs, copied."""
    for i, x in enumerate(inputs):
        net.blobs[f"x{i}"].data[...] = x
    return {name: value.copy() for name, value in net.forward().items()}
