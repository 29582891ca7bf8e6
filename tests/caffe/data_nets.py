"""Nets of one data layer, written as text in a test, and what they read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from google.protobuf import text_format

import caffe
from caffe.proto.caffe_pb2 import NetParameter

Batch = list[np.ndarray]


def data_net(layer: str, tops: Sequence[str] = ("data", "label"), phase: int = caffe.TEST, seed: int = 1) -> caffe.Net:
    """A net of the one layer `layer { LAYER }`, named `data`, with those tops."""
    names = " ".join(f'top: "{top}"' for top in tops)
    param = text_format.Parse(f'layer {{ name: "data" {names} {layer} }}', NetParameter())
    return caffe.Net(param, phase=phase, seed=seed)


def batches(net: caffe.Net, count: int) -> list[Batch]:
    """The tops of the next forward passes, copied."""
    found = []
    for _ in range(count):
        net.forward()
        found.append([net.blobs[top].data.copy() for top in net.layers[0].param.top])
    return found


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for batch, other in zip(ours, theirs, strict=True):
        for array, expected in zip(batch, other, strict=True):
            np.testing.assert_array_equal(array, expected)


def assert_resumes(layer: str, before: int = 3, after: int = 5, **settings: object) -> None:
    """Batches after a state was taken are the same in a net of another seed that is given the state."""
    net = data_net(layer, phase=caffe.TRAIN, seed=5, **settings)
    batches(net, before)
    state = net.layers[0].state()
    assert set(state) <= {"position", "random_state"}
    expected = batches(net, after)
    other = data_net(layer, phase=caffe.TRAIN, seed=6, **settings)
    batches(other, 1)
    other.layers[0].set_state(state)
    assert_same(batches(other, after), expected)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth image H×W×C (or H×W), uint8, another for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, channels), np.uint8)
    return cv2.resize(small, (width, height)).reshape((height, width, channels)[: 2 + (channels > 1)])


def write_pictures(folder: Path, images: Sequence[np.ndarray], extension: str = "png") -> list[str]:
    """Write images as 0.png, 1.png, …; returns the names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i}.{extension}" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        assert cv2.imwrite(str(folder / name), image)
    return names


def chw(image: np.ndarray) -> np.ndarray:
    """C×H×W of an image as OpenCV has it."""
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
