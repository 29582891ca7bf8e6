"""Our files read by OpenCV's own Caffe importer: a .caffemodel that Net.save wrote gives the same answers there."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe

PROTOTXT = Path(__file__).resolve().parents[2] / "prototxt"
NETWORKS = ["face_emotion_net", "mini_xception"]

# every kind of geometry that our two networks do not use
MIXED = """
name: "mixed"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 18 dim: 16 } } }
layer { name: "grouped" type: "Convolution" bottom: "data" top: "grouped" convolution_param {
  num_output: 8 group: 2 kernel_h: 3 kernel_w: 5 stride_h: 1 stride_w: 2 pad_h: 1 pad_w: 2 } }
layer { name: "lrn" type: "LRN" bottom: "grouped" top: "lrn" lrn_param { local_size: 3 alpha: 0.5 beta: 0.7 k: 1 } }
layer { name: "dilated" type: "Convolution" bottom: "lrn" top: "dilated" convolution_param {
  num_output: 8 kernel_size: 3 pad: 2 dilation: 2 bias_term: false } }
layer { name: "prelu" type: "PReLU" bottom: "dilated" top: "dilated" }
layer { name: "sum" type: "Eltwise" bottom: "lrn" bottom: "dilated" top: "sum" eltwise_param { coeff: 0.5 coeff: -1 } }
layer { name: "max_pool" type: "Pooling" bottom: "sum" top: "max_pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "ave_pool" type: "Pooling" bottom: "sum" top: "ave_pool" pooling_param {
  pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "concat" type: "Concat" bottom: "max_pool" bottom: "ave_pool" top: "concat" }
layer { name: "tanh" type: "TanH" bottom: "concat" top: "concat" }
layer { name: "fc" type: "InnerProduct" bottom: "concat" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def randomise(net: caffe.Net) -> None:
    """Weights that keep the values of every layer in a lively range; BatchNorm's running sums among them."""
    random = np.random.default_rng(3)
    for name, blobs in net.params.items():
        kind = net.layer_dict[name].type
        if kind == "BatchNorm":
            total = random.uniform(2, 900)
            blobs[0].data[...] = total * random.normal(0, 0.5, blobs[0].shape)
            blobs[1].data[...] = total * random.uniform(0.2, 4, blobs[1].shape)
            blobs[2].data[...] = total
        elif kind in ("Scale", "PReLU"):
            blobs[0].data[...] = random.uniform(0.3, 1.5, blobs[0].shape)
        else:
            blobs[0].data[...] = random.normal(0, np.sqrt(2 / np.prod(blobs[0].shape[1:])), blobs[0].shape)
        if kind != "BatchNorm" and len(blobs) > 1:
            blobs[1].data[...] = random.normal(0, 0.3, blobs[1].shape)


def assert_opencv_agrees(net: caffe.Net, weights: Path, scale: float) -> None:
    theirs = cv2.dnn.readNetFromCaffe(net.source, str(weights))
    random = np.random.default_rng(4)
    answers = []
    for _ in range(4):
        x = (scale * random.standard_normal(net.blobs["data"].shape)).astype(np.float32)
        net.blobs["data"].data[...] = x
        theirs.setInput(x)
        answers.append(net.forward()["prob"].ravel().copy())
        np.testing.assert_allclose(answers[-1], theirs.forward("prob").ravel(), atol=1e-4)
    assert np.ptp(answers, axis=0).max() > 0.01, "the inputs make no difference: the comparison says nothing"


@pytest.mark.parametrize("network", NETWORKS)
def test_random_weights(network: str, tmp_path: Path) -> None:
    net = caffe.Net(str(PROTOTXT / network / "deploy.prototxt"), caffe.TEST)
    randomise(net)
    net.save(tmp_path / "random.caffemodel")
    assert_opencv_agrees(net, tmp_path / "random.caffemodel", scale=1)


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_that_ship(network: str) -> None:
    weights = PROTOTXT / network / f"{network}.caffemodel"
    if not weights.is_file():
        pytest.skip(f"{network} ships without weights")
    net = caffe.Net(str(PROTOTXT / network / "deploy.prototxt"), str(weights), caffe.TEST)
    assert_opencv_agrees(net, weights, scale=60)


def test_geometry_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "mixed.prototxt").write_text(MIXED)
    net = caffe.Net(str(tmp_path / "mixed.prototxt"), caffe.TEST)
    assert net.blobs["max_pool"].shape == net.blobs["ave_pool"].shape == (1, 8, 9, 4)  # of 18×8, both rounded up
    randomise(net)
    net.save(tmp_path / "mixed.caffemodel")
    assert_opencv_agrees(net, tmp_path / "mixed.caffemodel", scale=1)
