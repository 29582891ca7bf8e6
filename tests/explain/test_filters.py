"""The filters of the first convolution as they are drawn: which, on what scale, in what colours."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from google.protobuf import text_format
from small_face_net import DEPLOY, INPUT, convolution, small_network, write_network

import caffe
from caffe.proto.caffe_pb2 import NetParameter
from explain.filters import draw_filters, first_filters, main
from preprocessing.stage import StageError, run_main


def test_zero_is_the_middle_of_the_scale_and_all_filters_share_it(tmp_path: Path) -> None:
    filters = np.random.default_rng(0).normal(size=(4, 1, 3, 3)).astype(np.float32)
    filters[3, 0, 1, 1] = -5
    network = small_network(tmp_path, DEPLOY, {"conv1": [filters, np.zeros(4)]})
    figure = draw_filters(network)
    assert figure.get_suptitle() == "conv1: 4 filters of 3×3"
    image = figure.axes[0].images[0]
    assert image.get_clim() == (-5, 5)
    tiles = np.asarray(image.get_array().filled(np.nan))
    np.testing.assert_array_equal(tiles[:3, :3], filters[0, 0])
    np.testing.assert_array_equal(tiles[:3, 4:7], filters[1, 0])


def colour_network(filters: np.ndarray) -> Any:
    """What `draw_filters` reads of a network, around a net of more than one input channel."""
    channels = filters.shape[1]
    text = INPUT.replace("dim: 1 dim: 1", f"dim: 1 dim: {channels}") + convolution("data", "rgb", len(filters), 2)
    net = caffe.Net(text_format.Parse(text, NetParameter()), caffe.TEST)
    net.params["rgb"][0].data[...] = filters
    return SimpleNamespace(net=net, deploy="colour.prototxt")


def test_three_channels_are_blue_green_and_red() -> None:
    filters = np.zeros((1, 3, 2, 2), np.float32)
    filters[0, 2] = 2  # OpenCV's third channel is red
    filters[0, 0] = -1
    picture = draw_filters(colour_network(filters)).axes[0].images[0].get_array()
    np.testing.assert_allclose(picture[0, 0], [1, 0.5, 0.25])


def test_two_channels_are_two_tiles_a_filter() -> None:
    filters = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    figure = draw_filters(colour_network(filters))
    assert figure.get_suptitle() == "rgb: 1 filter of 2×2×2"
    tiles = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(tiles[:, :2], filters[0, 0])
    np.testing.assert_array_equal(tiles[:, 3:], filters[0, 1])


def test_a_net_without_convolution_is_refused(tmp_path: Path) -> None:
    flat = f"""{INPUT}
      layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param {{ num_output: 7 }} }}
      layer {{ name: "prob" type: "Softmax" bottom: "fc" top: "prob" }}"""
    with pytest.raises(StageError, match=r"deploy\.prototxt: has no Convolution"):
        first_filters(small_network(tmp_path, flat))


def test_the_command_writes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy, weights, mean = map(str, write_network(tmp_path / "model", DEPLOY))
    out = tmp_path / "out" / "filters.png"
    files = ["--deploy", deploy, "--weights", weights, "--mean", mean, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["filters", *files, "--output", str(out)])
    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    assert exit_.value.code == 0
    assert cv2.imread(str(out)) is not None
    assert [path.name for path in out.parent.iterdir()] == ["filters.png"]
