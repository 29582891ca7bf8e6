"""Every layer against values that BVLC Caffe 1.0 computed: forward, backward, and running statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe
from caffe.io import read_net_parameter

CASES = [
    "absval", "accuracy", "argmax_axis", "batch_reindex", "batchnorm_test", "batchnorm_train", "bias", "bnll", "clip",
    "concat", "contrastiveloss", "convolution_basic", "convolution_depthwise", "convolution_dilation",
    "convolution_group", "convolution_nobias", "convolution_pad_stride", "convolution_pointwise", "crop",
    "deconvolution_basic", "deconvolution_stride_pad", "dropout_test", "eltwise_max", "eltwise_prod", "eltwise_sum",
    "elu", "elu_alpha", "embed", "euclideanloss", "exp", "flatten", "flatten_axes", "hingeloss_l1", "im2col",
    "infogainloss", "innerproduct", "innerproduct_axis2", "lenet_like", "log", "lrn_across", "multinomiallogisticloss",
    "mvn", "parameter", "pooling_ave_2x2", "pooling_ave_3x3s1p1", "pooling_ave_3x3s2", "pooling_ave_floor",
    "pooling_ave_global", "pooling_ave_k4s3p2", "pooling_max_2x2", "pooling_max_3x3s1p1", "pooling_max_3x3s2",
    "pooling_max_3x3s2p1", "pooling_max_floor", "pooling_max_global", "pooling_max_rect", "power", "prelu",
    "reduction_asum", "reduction_mean", "reduction_sum", "relu", "relu_inplace", "relu_leaky", "reshape", "rnn",
    "scale", "sigmoid", "sigmoidceloss", "silence", "slice", "softmax", "softmaxloss", "softmaxloss_ignore",
    "softmaxloss_spatial_none", "softmaxloss_spatial_valid", "split", "spp", "swish", "tanh", "threshold", "tile",
]  # fmt: skip


def close(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    assert ours.shape == theirs.shape, what
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=what)


def phase_of(folder: Path) -> int:
    """The phase that a case was run in."""
    phase_file = folder / "phase"
    if phase_file.exists():
        return caffe.TRAIN if phase_file.read_text().strip() == "TRAIN" else caffe.TEST
    return read_net_parameter(folder / "net.prototxt").state.phase


def run_case(folder: Path) -> int:
    """Run one case and compare every value that Caffe recorded; returns how many arrays were compared."""
    values = np.load(folder / "values.npz")
    phase = phase_of(folder)
    weights = folder / "weights.caffemodel"
    net = (
        caffe.Net(str(folder / "net.prototxt"), str(weights), phase)
        if weights.exists()
        else caffe.Net(str(folder / "net.prototxt"), phase)
    )
    keys = {key: key.split("/", 1)[1] for key in values.files if "/" in key}
    compared = 0
    for key, rest in keys.items():
        if key.startswith("param/"):
            layer, i = rest.rsplit("/", 1)
            close(net.params[layer][int(i)].data, values[key], key)
            compared += 1
        elif key.startswith("in/"):
            net.blobs[rest].data[...] = values[key]
    net.forward()
    for key, rest in keys.items():
        if key.startswith("out/"):
            close(net.blobs[rest].data, values[key], key)
            compared += 1
        elif key.startswith("paramafter/"):
            layer, i = rest.rsplit("/", 1)
            close(net.params[layer][int(i)].data, values[key], key)
            compared += 1
    for key, rest in keys.items():
        if key.startswith("topdiff/"):
            net.blobs[rest].diff[...] = values[key]
    net.backward()
    for key, rest in keys.items():
        if key.startswith("indiff/"):
            close(net.blobs[rest].diff, values[key], key)
            compared += 1
        elif key.startswith("paramdiff/"):
            layer, i = rest.rsplit("/", 1)
            close(net.params[layer][int(i)].diff, values[key], key)
            compared += 1
    return compared


@pytest.mark.parametrize("case", CASES)
def test_layer_agrees_with_caffe(shared: Path, case: str) -> None:
    assert run_case(shared / "caffe_golden" / "layers" / case) > 0


@pytest.mark.parametrize("case", CASES)
def test_layer_on_a_gpu_agrees_with_caffe(shared: Path, case: str, on_gpu: None) -> None:
    assert run_case(shared / "caffe_golden" / "layers" / case) > 0


def test_every_case_is_run(shared: Path) -> None:
    assert sorted(folder.name for folder in (shared / "caffe_golden" / "layers").iterdir()) == CASES
