"""The usual Caffe networks of prototxt/zoo: their sizes as published, and OpenCV's answers on the same files."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import caffe
from bench import ZOO, write_random_weights
from prototxt.zoo.build import FOLDER, NETS, prototxt

# Input, classes, learned parameters (weights, biases, gamma and beta) and multiplications for one image (convolutions
# and inner products), as their authors and others who counted give them. The first number of the last two tells a wrong
# channel, kernel, group or bias, the second a wrong stride, pad or pool.
SIZES = {
    "lenet": ((1, 28, 28), 10, 431_080, 2_293_000),
    "cifar10_quick": ((3, 32, 32), 10, 145_578, 12_354_176),
    "alexnet": ((3, 227, 227), 1000, 60_965_224, 724_406_816),
    "googlenet": ((3, 224, 224), 1000, 6_998_552, 1_582_671_872),
    "resnet18": ((3, 224, 224), 1000, 11_689_512, 1_814_073_344),
    "mobilenet": ((3, 224, 224), 1000, 4_231_976, 568_740_352),
}


def path(name: str) -> Path:
    return FOLDER / f"{name}.prototxt"


def learned(net: caffe.Net) -> int:
    return sum(blob.count for layer in net.layers if layer.type != "BatchNorm" for blob in layer.blobs)


def multiplications(net: caffe.Net) -> int:
    """Each weight multiplies once for each place of the top."""
    return sum(
        layer.blobs[0].count * math.prod(net.blobs[layer.param.top[0]].shape[2:])
        for layer in net.layers
        if layer.type in ("Convolution", "InnerProduct")
    )


def test_the_folder_holds_these_networks_and_no_other() -> None:
    assert {file.stem for file in FOLDER.glob("*.prototxt")} == set(ZOO) == set(SIZES)


@pytest.mark.parametrize("name", ZOO)
def test_sizes_are_the_published_ones(name: str) -> None:
    image, classes, parameters, products = SIZES[name]
    net = caffe.Net(path(name), caffe.TEST)
    assert net.name == name
    assert (net.inputs, net.outputs) == (["data"], ["prob"])
    assert net.blobs["data"].shape == (1, *image)
    assert net.blobs["prob"].shape[:2] == (1, classes)
    assert net.layer_dict["prob"].type == "Softmax"
    assert (learned(net), multiplications(net)) == (parameters, products)


def test_resnet18_by_hand() -> None:
    """Its parameters from the paper's table 1: stages of four 3×3 convolutions, each with a gamma and a beta."""
    stem = 7 * 7 * 3 * 64 + 2 * 64
    first_stage = 4 * (3 * 3 * 64 * 64 + 2 * 64)
    # then each stage begins at half the channels, which one of its convolutions and the 1×1 projection read
    stages = sum(9 * (c // 2) * c + 3 * 9 * c * c + (c // 2) * c + 5 * 2 * c for c in (128, 256, 512))
    assert stem + first_stage + stages + 512 * 1000 + 1000 == SIZES["resnet18"][2]


def test_mobilenet_by_hand() -> None:
    """Its parameters from the paper's table 1: pairs of a depthwise 3×3 and a 1×1 convolution, each normalised."""
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    pairs = sum(9 * a + 2 * a + a * b + 2 * b for a, b in pairwise(widths))
    assert 3 * 3 * 3 * 32 + 2 * 32 + pairs + 1024 * 1000 + 1000 == SIZES["mobilenet"][2]


@pytest.mark.parametrize("name", NETS)
def test_the_files_are_what_the_script_writes(name: str) -> None:
    assert path(name).read_text(encoding="utf-8") == prototxt(name)


@pytest.mark.parametrize("name", ZOO)
def test_opencv_gives_the_same_probabilities(tmp_path: Path, name: str) -> None:
    weights = tmp_path / "random.caffemodel"
    write_random_weights(path(name), weights)
    net, peer = caffe.Net(path(name), weights, caffe.TEST), cv2.dnn.readNetFromCaffe(str(path(name)), str(weights))
    weights.unlink()  # AlexNet's are 244 MB
    images = np.random.default_rng(1).normal(0, 60, (2, *SIZES[name][0])).astype(np.float32)
    for batch in (images[:1], images):
        ours = net.infer(data=torch.from_numpy(batch))["prob"].numpy()
        peer.setInput(batch)
        theirs = peer.forward()
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours.reshape(len(batch), -1).sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=0)
        assert np.abs(ours - theirs).max() < 1e-4
    # what was compared says something: no class has it all, and another image gives another answer
    assert ours.max() < 0.5
    assert np.abs(ours[0] - ours[1]).max() > 100 * np.abs(ours - theirs).max()
