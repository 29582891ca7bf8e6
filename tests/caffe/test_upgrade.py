"""Nets and solvers as they looked in 2013 (V0) and 2014 (V1): the same messages, numbers and log as the current form.

The current forms are written by hand here, beside the old ones; OpenCV's own importer of old Caffe files reads the
same nets and weights.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from google.protobuf import text_format
from small_nets import net_of
from tiny_model import write_database

import caffe
from caffe import glog as log
from caffe.io import read_net_binary, read_net_parameter, read_solver_parameter
from caffe.proto.caffe_pb2 import (
    BlobProto,
    DataParameter,
    LayerParameter,
    NetParameter,
    SolverParameter,
    V1LayerParameter,
)
from caffe.upgrade import net_needs_upgrade, upgrade_net

LENET_V0 = """
name: "LeNet"
layers {
  layer { name: "mnist" type: "data" source: "{folder}/db" meanfile: "{folder}/mean.binaryproto" batchsize: 3
    scale: 0.00390625 cropsize: 8 mirror: false }
  top: "data" top: "label"
}
layers {
  layer { name: "conv1" type: "conv" num_output: 4 kernelsize: 3 stride: 1 weight_filler { type: "xavier" }
    bias_filler { type: "constant" value: 0.5 } blobs_lr: 1. blobs_lr: 2. weight_decay: 1. weight_decay: 0. }
  bottom: "data" top: "conv1"
}
layers { layer { name: "pool1" type: "pool" kernelsize: 2 stride: 2 pool: MAX } bottom: "conv1" top: "pool1" }
layers {
  layer { name: "ip1" type: "innerproduct" num_output: 6 biasterm: false weight_filler { type: "gaussian" std: 0.2 }
    blobs_lr: 1. }
  bottom: "pool1" top: "ip1"
}
layers { layer { name: "relu1" type: "relu" } bottom: "ip1" top: "ip1" }
layers { layer { name: "drop1" type: "dropout" dropout_ratio: 0.25 } bottom: "ip1" top: "ip1" }
layers {
  layer { name: "ip2" type: "innerproduct" num_output: 3 weight_filler { type: "xavier" } }
  bottom: "ip1" top: "ip2"
}
layers { layer { name: "prob" type: "softmax" } bottom: "ip2" top: "prob" }
layers { layer { name: "accuracy" type: "accuracy" } bottom: "prob" bottom: "label" top: "accuracy" }
"""

LENET_V1 = """
name: "LeNet"
layers {
  name: "mnist" type: DATA top: "data" top: "label"
  data_param { source: "{folder}/db" mean_file: "{folder}/mean.binaryproto" batch_size: 3 scale: 0.00390625
    crop_size: 8 mirror: false }
}
layers {
  name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1" blobs_lr: 1. blobs_lr: 2. weight_decay: 1
  weight_decay: 0
  convolution_param { num_output: 4 kernel_size: 3 stride: 1 weight_filler { type: "xavier" }
    bias_filler { type: "constant" value: 0.5 } }
}
layers {
  name: "pool1" type: POOLING bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 pool: MAX }
}
layers {
  name: "ip1" type: INNER_PRODUCT bottom: "pool1" top: "ip1" blobs_lr: 1
  inner_product_param { num_output: 6 bias_term: false weight_filler { type: "gaussian" std: 0.2 } }
}
layers { name: "relu1" type: RELU bottom: "ip1" top: "ip1" }
layers { name: "drop1" type: DROPOUT bottom: "ip1" top: "ip1" dropout_param { dropout_ratio: 0.25 } }
layers {
  name: "ip2" type: INNER_PRODUCT bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layers { name: "prob" type: SOFTMAX bottom: "ip2" top: "prob" }
layers { name: "accuracy" type: ACCURACY bottom: "prob" bottom: "label" top: "accuracy" }
"""

LENET = """
name: "LeNet"
layer {
  name: "mnist" type: "Data" top: "data" top: "label"
  transform_param { scale: 0.00390625 mean_file: "{folder}/mean.binaryproto" crop_size: 8 mirror: false }
  data_param { source: "{folder}/db" batch_size: 3 }
}
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 stride: 1 weight_filler { type: "xavier" }
    bias_filler { type: "constant" value: 0.5 } }
}
layer {
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 pool: MAX }
}
layer {
  name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1" param { lr_mult: 1 }
  inner_product_param { num_output: 6 bias_term: false weight_filler { type: "gaussian" std: 0.2 } }
}
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "drop1" type: "Dropout" bottom: "ip1" top: "ip1" dropout_param { dropout_ratio: 0.25 } }
layer {
  name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" }
layer { name: "accuracy" type: "Accuracy" bottom: "prob" bottom: "label" top: "accuracy" }
"""

# as imagenet_deploy.prototxt of 2013 was: padding layers before the convolutions, groups, LRN behind pooling
CAFFENET_V0 = """
name: "CaffeNet"
input: "data"
input_dim: 2
input_dim: 3
input_dim: 21
input_dim: 19
layers { layer { name: "conv1" type: "conv" num_output: 8 kernelsize: 5 stride: 2 } bottom: "data" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "pool1" type: "pool" pool: MAX kernelsize: 3 stride: 2 } bottom: "conv1" top: "pool1" }
layers {
  layer { name: "norm1" type: "lrn" local_size: 5 alpha: 0.05 beta: 0.75 } bottom: "pool1" top: "norm1"
}
layers { layer { name: "pad2" type: "padding" pad: 2 } bottom: "norm1" top: "pad2" }
layers {
  layer { name: "conv2" type: "conv" num_output: 6 group: 2 kernelsize: 5 } bottom: "pad2" top: "conv2"
}
layers { layer { name: "relu2" type: "relu" } bottom: "conv2" top: "conv2" }
layers { layer { name: "pad3" type: "padding" pad: 1 } bottom: "conv2" top: "pad3" }
layers { layer { name: "conv3" type: "conv" num_output: 6 kernelsize: 3 } bottom: "pad3" top: "conv3" }
layers { layer { name: "pool3" type: "pool" pool: AVE kernelsize: 3 stride: 1 } bottom: "pad3" top: "pool3" }
layers { layer { name: "both" type: "concat" concat_dim: 1 } bottom: "conv3" bottom: "pool3" top: "both" }
layers { layer { name: "fc6" type: "innerproduct" num_output: 10 } bottom: "both" top: "fc6" }
layers { layer { name: "relu6" type: "relu" } bottom: "fc6" top: "fc6" }
layers { layer { name: "drop6" type: "dropout" } bottom: "fc6" top: "fc6" }
layers { layer { name: "fc8" type: "innerproduct" num_output: 4 } bottom: "fc6" top: "fc8" }
layers { layer { name: "prob" type: "softmax" } bottom: "fc8" top: "prob" }
"""

CAFFENET_V1 = """
name: "CaffeNet"
input: "data"
input_dim: 2
input_dim: 3
input_dim: 21
input_dim: 19
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1" convolution_param { num_output: 8 kernel_size: 5
  stride: 2 } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layers { name: "norm1" type: LRN bottom: "pool1" top: "norm1" lrn_param { local_size: 5 alpha: 0.05 beta: 0.75 } }
layers { name: "conv2" type: CONVOLUTION bottom: "norm1" top: "conv2" convolution_param { num_output: 6 pad: 2
  kernel_size: 5 group: 2 } }
layers { name: "relu2" type: RELU bottom: "conv2" top: "conv2" }
layers { name: "conv3" type: CONVOLUTION bottom: "conv2" top: "conv3" convolution_param { num_output: 6 pad: 1
  kernel_size: 3 } }
layers { name: "pool3" type: POOLING bottom: "conv2" top: "pool3" pooling_param { pool: AVE kernel_size: 3 stride: 1
  pad: 1 } }
layers { name: "both" type: CONCAT bottom: "conv3" bottom: "pool3" top: "both" concat_param { concat_dim: 1 } }
layers { name: "fc6" type: INNER_PRODUCT bottom: "both" top: "fc6" inner_product_param { num_output: 10 } }
layers { name: "relu6" type: RELU bottom: "fc6" top: "fc6" }
layers { name: "drop6" type: DROPOUT bottom: "fc6" top: "fc6" }
layers { name: "fc8" type: INNER_PRODUCT bottom: "fc6" top: "fc8" inner_product_param { num_output: 4 } }
layers { name: "prob" type: SOFTMAX bottom: "fc8" top: "prob" }
"""

CAFFENET = """
name: "CaffeNet"
layer { name: "input" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 21 dim: 19 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 8 kernel_size: 5
  stride: 2 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 3
  stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1" lrn_param { local_size: 5 alpha: 0.05 beta: 0.75 } }
layer { name: "conv2" type: "Convolution" bottom: "norm1" top: "conv2" convolution_param { num_output: 6 pad: 2
  kernel_size: 5 group: 2 } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "conv3" type: "Convolution" bottom: "conv2" top: "conv3" convolution_param { num_output: 6 pad: 1
  kernel_size: 3 } }
layer { name: "pool3" type: "Pooling" bottom: "conv2" top: "pool3" pooling_param { pool: AVE kernel_size: 3 stride: 1
  pad: 1 } }
layer { name: "both" type: "Concat" bottom: "conv3" bottom: "pool3" top: "both" concat_param { concat_dim: 1 } }
layer { name: "fc6" type: "InnerProduct" bottom: "both" top: "fc6" inner_product_param { num_output: 10 } }
layer { name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }
layer { name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6" }
layer { name: "fc8" type: "InnerProduct" bottom: "fc6" top: "fc8" inner_product_param { num_output: 4 } }
layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
"""

# every V0 type and setting that the two nets above do not have
OTHER_V0 = """
force_backward: true
layers { layer { name: "faces" type: "images" source: "list" batchsize: 2 rand_skip: 3 shuffle_images: true
  new_height: 5 new_width: 6 scale: 2 mirror: true } top: "a" top: "b" }
layers { layer { name: "windows" type: "window_data" source: "w" batchsize: 4 cropsize: 7 meanfile: "m"
  det_fg_threshold: 0.6 det_bg_threshold: 0.4 det_fg_fraction: 0.3 det_context_pad: 16 det_crop_mode: "square" }
  top: "c" top: "d" }
layers { layer { name: "h5" type: "hdf5_data" source: "h" batchsize: 8 } top: "e" }
layers { layer { name: "records" type: "data" source: "l" rand_skip: 9 } top: "f" }
layers { layer { name: "norm" type: "lrn" k: 2 } bottom: "a" top: "g" }
layers { layer { name: "pool" type: "pool" pad: 1 pool: STOCHASTIC kernelsize: 2 } bottom: "g" top: "h" }
layers { layer { name: "bnll" type: "bnll" } bottom: "h" top: "h" }
layers { layer { name: "sigmoid" type: "sigmoid" } bottom: "h" top: "h" }
layers { layer { name: "tanh" type: "tanh" } bottom: "h" top: "h" }
layers { layer { name: "flat" type: "flatten" } bottom: "h" top: "i" }
layers { layer { name: "im2col" type: "im2col" } bottom: "i" top: "j" }
layers { layer { name: "split" type: "split" } bottom: "j" top: "k" top: "l" }
layers { layer { name: "out" type: "hdf5_output" hdf5_output_param { file_name: "o" } } bottom: "k" bottom: "b" }
layers { layer { name: "info" type: "infogain_loss" source: "matrix" } bottom: "k" bottom: "b" top: "m" }
layers { layer { name: "multi" type: "multinomial_logistic_loss" } bottom: "k" bottom: "b" top: "n" }
layers { layer { name: "euclid" type: "euclidean_loss" } bottom: "k" bottom: "l" top: "o" }
layers { layer { name: "loss" type: "softmax_loss" } bottom: "k" bottom: "b" top: "p" }
"""

OTHER = """
force_backward: true
layer { name: "faces" type: "ImageData" top: "a" top: "b" transform_param { scale: 2 mirror: true }
  image_data_param { source: "list" batch_size: 2 rand_skip: 3 shuffle: true new_height: 5 new_width: 6 } }
layer { name: "windows" type: "WindowData" top: "c" top: "d" transform_param { crop_size: 7 mean_file: "m" }
  window_data_param { source: "w" batch_size: 4 fg_threshold: 0.6 bg_threshold: 0.4 fg_fraction: 0.3
    context_pad: 16 crop_mode: "square" } }
layer { name: "h5" type: "HDF5Data" top: "e" hdf5_data_param { source: "h" batch_size: 8 } }
layer { name: "records" type: "Data" top: "f" data_param { source: "l" rand_skip: 9 } }
layer { name: "norm" type: "LRN" bottom: "a" top: "g" lrn_param { k: 2 } }
layer { name: "pool" type: "Pooling" bottom: "g" top: "h" pooling_param { pad: 1 pool: STOCHASTIC kernel_size: 2 } }
layer { name: "bnll" type: "BNLL" bottom: "h" top: "h" }
layer { name: "sigmoid" type: "Sigmoid" bottom: "h" top: "h" }
layer { name: "tanh" type: "TanH" bottom: "h" top: "h" }
layer { name: "flat" type: "Flatten" bottom: "h" top: "i" }
layer { name: "im2col" type: "Im2col" bottom: "i" top: "j" }
layer { name: "split" type: "Split" bottom: "j" top: "k" top: "l" }
layer { name: "out" type: "HDF5Output" bottom: "k" bottom: "b" hdf5_output_param { file_name: "o" } }
layer { name: "info" type: "InfogainLoss" bottom: "k" bottom: "b" top: "m" infogain_loss_param { source: "matrix" } }
layer { name: "multi" type: "MultinomialLogisticLoss" bottom: "k" bottom: "b" top: "n" }
layer { name: "euclid" type: "EuclideanLoss" bottom: "k" bottom: "l" top: "o" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "k" bottom: "b" top: "p" }
"""

# what V1 added to a layer, on a layer that has all of it
SHARED_V1 = """
layers { name: "a" type: INNER_PRODUCT bottom: "x" top: "y" param: "w" param: "b" blob_share_mode: STRICT
  blob_share_mode: PERMISSIVE blobs_lr: 3 loss_weight: 0.5 include { phase: TRAIN stage: "s" } include { min_level: 2 }
  loss_param { ignore_label: 3 } transform_param { mean_value: 4 } inner_product_param { num_output: 2 } }
layers { name: "b" type: IMAGE_DATA top: "z" exclude { phase: TEST } image_data_param { scale: 3 source: "l" }
  transform_param { mirror: true } }
layers { name: "c" type: WINDOW_DATA top: "v" window_data_param { crop_size: 5 } weight_decay: 2 weight_decay: 3 }
"""

SHARED = """
layer { name: "a" type: "InnerProduct" bottom: "x" top: "y" loss_weight: 0.5
  param { name: "w" share_mode: STRICT lr_mult: 3 } param { name: "b" share_mode: PERMISSIVE }
  include { phase: TRAIN stage: "s" } include { min_level: 2 }
  loss_param { ignore_label: 3 } transform_param { mean_value: 4 } inner_product_param { num_output: 2 } }
layer { name: "b" type: "ImageData" top: "z" exclude { phase: TEST } image_data_param { source: "l" }
  transform_param { mirror: true scale: 3 } }
layer { name: "c" type: "WindowData" top: "v" window_data_param { } transform_param { crop_size: 5 }
  param { decay_mult: 2 } param { decay_mult: 3 } }
"""


def parsed(text: str) -> NetParameter:
    return text_format.Parse(text, NetParameter())


def upgraded(text: str) -> NetParameter:
    net = parsed(text)
    assert upgrade_net(net, "old.prototxt")
    return net


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the caffe log says from here on."""
    stream = io.StringIO()
    handler = log.log_to(stream)
    yield stream
    log.stop_logging(handler)


# Text


@pytest.mark.parametrize(
    ("old", "current"),
    [
        (LENET_V0, LENET),
        (LENET_V1, LENET),
        (CAFFENET_V0, CAFFENET),
        (CAFFENET_V1, CAFFENET),
        (OTHER_V0, OTHER),
        (SHARED_V1, SHARED),
    ],
    ids=["lenet_v0", "lenet_v1", "caffenet_v0", "caffenet_v1", "other_v0", "shared_v1"],
)
def test_the_same_net_as_written_today(old: str, current: str) -> None:
    assert net_needs_upgrade(parsed(old))
    assert not net_needs_upgrade(parsed(current))
    assert str(upgraded(old)) == str(parsed(current))
    assert str(upgraded(current)) == str(parsed(current))


def test_every_type_of_v1() -> None:
    """A type's name is what it was, in other letters, but for SOFTMAX_LOSS."""
    today = """AbsVal Accuracy ArgMax BNLL Concat ContrastiveLoss Convolution Data Deconvolution Dropout DummyData
        Eltwise EuclideanLoss Exp Flatten HDF5Data HDF5Output HingeLoss Im2col ImageData InfogainLoss InnerProduct LRN
        MVN MemoryData MultinomialLogisticLoss Pooling Power ReLU Sigmoid SigmoidCrossEntropyLoss Silence Slice Softmax
        Split TanH Threshold WindowData"""
    expected = {name.upper(): name for name in today.split()} | {"SOFTMAXLOSS": "SoftmaxWithLoss", "NONE": ""}
    names = {name.replace("_", ""): name for name in V1LayerParameter.LayerType.keys()}  # noqa: SIM118 (an enum)
    assert names.keys() == expected.keys()
    for plain, name in names.items():
        (layer,) = upgraded(f'layers {{ name: "x" type: {name} }}').layer
        assert layer.type == expected[plain]


def test_every_setting_of_v1_is_one_of_today() -> None:
    today = LayerParameter.DESCRIPTOR.fields_by_name
    for field in V1LayerParameter.DESCRIPTOR.fields:
        if field.message_type is not None and field.name != "layer":
            assert today[field.name].message_type is field.message_type


def test_the_nets_compute_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    write_database(tmp_path / "db", list(random.integers(0, 256, (7, 10, 10), dtype=np.uint8)), [0, 1, 2, 0, 1, 2, 0])
    caffe.io.save_mean(tmp_path / "mean.binaryproto", random.uniform(0, 255, (1, 10, 10)).astype(np.float32))
    outputs = []
    for name, text in (("v0", LENET_V0), ("v1", LENET_V1), ("v2", LENET)):
        (tmp_path / f"{name}.prototxt").write_text(text.replace("{folder}", str(tmp_path)))
        param = read_net_parameter(tmp_path / f"{name}.prototxt")
        param.layer[0].data_param.backend = DataParameter.LMDB  # which did not exist in 2013
        net = caffe.Net(param, caffe.TEST, seed=5)
        net.forward()
        outputs.append({blob: net.blobs[blob].data.copy() for blob in net.blobs})
    assert np.ptp(outputs[0]["ip2"]) > 0.01
    for other in outputs[1:]:
        assert list(other) == list(outputs[0])
        for blob, values in outputs[0].items():
            np.testing.assert_array_equal(other[blob], values)


# Weights


def fill(net: caffe.Net) -> None:
    random = np.random.default_rng(1)
    for blobs in net.params.values():
        for blob in blobs:
            fan = np.prod(blob.shape[1:]) if len(blob.shape) > 1 else 10
            blob.data[...] = random.normal(0, np.sqrt(2 / fan), blob.shape)


def old_blob(blob: BlobProto, array: np.ndarray) -> None:
    """As Caffes of 2013 and 2014 wrote a blob: four sizes, those of vectors and matrices in the last places."""
    shape = (1,) * (4 - array.ndim) + array.shape
    blob.num, blob.channels, blob.height, blob.width = shape
    blob.data.extend(array.ravel().tolist())


def old_weights(prototxt: str, net: caffe.Net) -> NetParameter:
    """What a Caffe that read `prototxt` wrote of `net`'s weights: layers as they are there, and names of the inputs."""
    message = parsed(prototxt)
    message.ClearField("input_dim")
    for layer in message.layers:
        holder = layer.layer if layer.HasField("layer") else layer
        for blob in net.params.get(holder.name, []):
            old_blob(holder.blobs.add(), blob.data)
    # Caffe shared blobs by layers that it added, and wrote those too
    extra = message.layers.add(bottom=["data"], top=["data_split_0", "data_split_1"])
    if message.layers[0].HasField("layer"):
        extra.layer.name, extra.layer.type = "data_split", "split"
    else:
        extra.name, extra.type = "data_split", V1LayerParameter.SPLIT
    return message


@pytest.fixture
def old_files(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """Prototxt and weights of the same net by form: v0, v1."""
    net = net_of(CAFFENET, backward=False)
    fill(net)
    files = {}
    for form, text in (("v0", CAFFENET_V0), ("v1", CAFFENET_V1)):
        files[form] = tmp_path / f"{form}.prototxt", tmp_path / f"{form}.caffemodel"
        files[form][0].write_text(text)
        files[form][1].write_bytes(old_weights(text, net).SerializeToString())
    net.save(tmp_path / "current.caffemodel")
    return files


def images(seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (2, 3, 21, 19)).astype(np.float32)


@pytest.mark.parametrize("form", ["v0", "v1"])
@pytest.mark.parametrize("weights", ["v0", "v1", "current"])
def test_weights_of_any_age_in_a_net_of_any_age(
    old_files: dict[str, tuple[Path, Path]], tmp_path: Path, form: str, weights: str
) -> None:
    net = caffe.Net(str(old_files[form][0]), str(tmp_path / f"{weights}.caffemodel"), caffe.TEST)
    reference = net_of(CAFFENET, backward=False)
    fill(reference)
    for one in (net, reference):
        one.blobs["data"].data[...] = images()
    np.testing.assert_array_equal(net.forward()["prob"], reference.forward()["prob"])


@pytest.mark.parametrize("form", ["v0", "v1"])
def test_opencv_reads_the_old_files_alike(old_files: dict[str, tuple[Path, Path]], form: str) -> None:
    prototxt, weights = str(old_files[form][0]), str(old_files["v1"][1])  # it finds no parameters in V0 weights
    ours, theirs = caffe.Net(prototxt, weights, caffe.TEST), cv2.dnn.readNetFromCaffe(prototxt, weights)
    answers = []
    for seed in range(3):
        ours.blobs["data"].data[...] = images(seed)
        theirs.setInput(images(seed))
        answers.append(ours.forward()["prob"].copy())
        np.testing.assert_allclose(answers[-1], theirs.forward("prob"), atol=1e-5)
    assert np.ptp(answers, axis=0).max() > 0.05, "the inputs make no difference: the comparison says nothing"


def test_old_weights_keep_their_parameters(old_files: dict[str, tuple[Path, Path]]) -> None:
    for form in ("v0", "v1"):
        message = read_net_binary(old_files[form][1])
        assert not message.layers
        assert not message.input  # names without sizes make no Input layer
        names = [layer.name for layer in message.layer]
        assert names == [layer.name for layer in parsed(CAFFENET).layer[1:]] + ["data_split"]
        assert (message.layer[0].blobs[0].num, message.layer[0].blobs[0].width) == (8, 5)
        assert (message.layer[0].blobs[1].num, message.layer[0].blobs[1].width) == (1, 8)
        assert [len(layer.blobs) for layer in message.layer if layer.blobs] == [2] * 5


def test_weights_of_batch_norm_are_not_learned() -> None:
    text = """layer { name: "bn" type: "BatchNorm" bottom: "x" top: "x"
      param { name: "mean" lr_mult: 1 } param { decay_mult: 1 } param { } }
    layer { name: "two" type: "BatchNorm" param { lr_mult: 0 } param { lr_mult: 0 } }
    layer { name: "other" type: "Scale" param { lr_mult: 1 } param { } param { } }"""
    bn, two, other = upgraded(text).layer
    assert [(p.name, p.lr_mult, p.decay_mult) for p in bn.param] == [("mean", 0, 0), ("", 0, 0), ("", 0, 0)]
    assert [two, other] == list(parsed(text).layer)[1:]


# Inputs


@pytest.mark.parametrize(
    "sizes",
    [
        "input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 5 input_dim: 6 input_dim: 7 input_dim: 8 input_dim: 9",
        "input_shape { dim: 2 dim: 3 dim: 4 dim: 5 } input_shape { dim: 6 dim: 7 dim: 8 dim: 9 }",
    ],
)
def test_inputs_become_a_layer_in_front(sizes: str) -> None:
    relu = 'layer { name: "r" type: "ReLU" bottom: "a" top: "r" }'
    net = upgraded(f'input: "a" input: "b" {sizes} {relu}')
    assert str(net) == str(
        parsed(
            'layer { name: "input" type: "Input" top: "a" top: "b" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } '
            f"shape {{ dim: 6 dim: 7 dim: 8 dim: 9 }} }} }} {relu}"
        )
    )


# Log


def test_the_log_of_caffe(tmp_path: Path, logged: io.StringIO) -> None:
    (tmp_path / "old.prototxt").write_text(LENET_V1 + 'input: "x" input_shape { dim: 1 }')
    read_net_parameter(tmp_path / "old.prototxt")
    start, old = "Attempting to upgrade input file specified using deprecated", f"{tmp_path}/old.prototxt"
    lines = [line.split("] ", 1) for line in logged.getvalue().splitlines()]
    assert [(head[0], message) for head, message in lines] == [
        ("I", f"{start} transformation parameters: {old}"),
        ("I", "Successfully upgraded file specified using deprecated data transformation parameters."),
        ("W", "Note that future Caffe releases will only support transform_param messages for transformation fields."),
        ("I", f"{start} V1LayerParameter: {old}"),
        ("I", "Successfully upgraded file specified using deprecated V1LayerParameter"),
        ("I", f"{start} input fields: {old}"),
        ("I", "Successfully upgraded file specified using deprecated input fields."),
        ("W", "Note that future Caffe releases will only support input layers and not input fields."),
    ]  # fmt: skip
    assert all(" upgrade_proto.cpp:" in head for head, _ in lines)


def test_a_net_of_today_is_not_mentioned(logged: io.StringIO) -> None:
    upgraded(CAFFENET)
    assert logged.getvalue() == ""


def test_batch_norm_lines_are_where_caffe_has_them(shared: Path, logged: io.StringIO) -> None:
    read_net_binary(shared / "caffe_golden/resume/full_25.caffemodel")
    theirs = (shared / "caffe_golden/resume/resumed.log").read_text().splitlines()
    ours = logged.getvalue().splitlines()
    expected = [line.split(" ", 3)[3].split(": ")[0] for line in theirs if "upgrade_proto.cpp" in line]
    assert [line.split(" ", 3)[3].split(": ")[0] for line in ours] == expected


def test_settings_without_a_place_are_logged_and_left_out(logged: io.StringIO) -> None:
    net = parsed(
        'layers { layer { name: "r" type: "relu" stride: 2 kernelsize: 3 scale: 4 } top: "r" } '
        'layers { layer { name: "s" type: "relu" } bottom: "r" top: "s" }'
    )
    assert not upgrade_net(net, "old.prototxt")
    today = (
        'layer { name: "r" type: "ReLU" top: "r" transform_param { scale: 4 } } '
        'layer { name: "s" type: "ReLU" bottom: "r" top: "s" }'
    )
    assert str(net) == str(parsed(today))
    errors = [line.split("] ")[1] for line in logged.getvalue().splitlines() if line.startswith("E")]
    assert errors == [
        "old.prototxt: layer 'r': Unknown parameter kernelsize for layer type relu",
        "old.prototxt: layer 'r': Unknown parameter stride for layer type relu",
        "Warning: had one or more problems upgrading V0NetParameter to NetParameter (see above); continuing anyway.",
    ]


# Encodings


def test_comments_in_any_encoding(tmp_path: Path) -> None:
    """Caffe reads bytes: comments in GBK were common, and a byte order mark does no harm."""
    path = tmp_path / "net.prototxt"
    path.write_bytes('# 网络 "\nname: "a#b"  # 名字\nlayer { name: \'c#\' } # 第'.encode("gbk"))
    expected = parsed('name: "a#b" layer { name: "c#" }')
    assert read_net_parameter(path) == expected
    path.write_bytes('# 网络\nname: "网#络"'.encode("utf-8-sig"))
    assert read_net_parameter(path).name == "网#络"
    path.write_bytes('# 网络\n\nname: "网络"'.encode("gbk"))
    with pytest.raises(caffe.CaffeError, match=r"net\.prototxt: not a text file \(line 3: "):
        read_net_parameter(path)


def test_weights_with_text_in_any_encoding(tmp_path: Path) -> None:
    """A path of another system does not keep the weights from being read, in a file of any age."""
    for text in (
        'layers { layer { name: "a" type: "data" source: "PATH" meanfile: "PATH" } top: "PATH" top: "b" }',
        'layers { name: "a" type: DATA data_param { source: "PATH" mean_file: "PATH" } top: "PATH" top: "b" }',
        'layer { name: "a" type: "Data" top: "PATH" top: "b" data_param { source: "PATH" } '
        'transform_param { mean_file: "PATH" } }',
    ):
        (tmp_path / "x.caffemodel").write_bytes(parsed(text).SerializeToString().replace(b"PATH", b"D:\xca\xfd"))
        (layer,) = read_net_binary(tmp_path / "x.caffemodel").layer
        assert [layer.name, layer.type, *layer.top] == ["a", "Data", "D:\ufffd\ufffd", "b"]
        assert layer.data_param.source == layer.transform_param.mean_file == "D:\ufffd\ufffd"


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "x"\nlayers {\n  type: CONVOLVE\n}', r"old\.prototxt:3:\d+: .*CONVOLVE"),
        ('layers {\n  type: "Convolution"\n}', r"old\.prototxt:2:\d+: "),
        ("layer {\n  type: CONVOLUTION\n}", r"old\.prototxt:2:\d+: "),
        ('layers {\n  layer {\n    kernel_size: 3\n  }\n}', r"old\.prototxt:3:\d+: .*kernel_size"),
        ('layers { layer { name: "c" type: "convolution" } }', r"prototxt: layer 'c': type 'convolution' is no type"),
        ('layers { name: "a" type: RELU } layer { name: "b" type: "ReLU" }', r"old\.prototxt: layer 'b' is .*'a'.*two"),
        ('layers { layer { name: "a" type: "data" } } layers { name: "b" type: RELU }', "layer 'b' is a V1 layer am"),
        ('layers { layer { name: "r" type: "relu" } bottom: "y" top: "y" }', r"layer 'r': bottom 'y' is no top"),
        ('input: "x" layers { layer { name: "p" type: "padding" pad: 1 } bottom: "x" top: "p" }'
         'layers { layer { name: "r" type: "relu" } bottom: "p" top: "r" }', "'r' is of type 'relu' and reads the pad"),
        ('input: "x" input: "y" layers { layer { name: "p" type: "padding" } bottom: "x" bottom: "y" top: "p" }'
         'layers { layer { name: "c" type: "conv" } bottom: "p" top: "c" }', "padding layer 'p': bottoms are x, y; "),
        ('input: "x" layers { layer { name: "p" type: "padding" } bottom: "x" top: "p" top: "q" }'
         'layers { layer { name: "c" type: "conv" } bottom: "p" top: "c" }', "padding layer 'p': tops are p, q; exp"),
        ('input: "x" layers { layer { name: "p" type: "padding" } bottom: "x" top: "p" }'
         'layers { layer { name: "c" type: "conv" } bottom: "p" bottom: "x" top: "c" }', "'c': bottoms are p, x; ex"),
        ('input: "x" input_dim: 1 input_dim: 2', r"old\.prototxt: 1 input need as many input_shape or 4 input_dim"),
    ],
)  # fmt: skip
def test_what_is_no_net_of_any_age(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "old.prototxt").write_text(text)
    with pytest.raises(caffe.CaffeError, match=message):
        read_net_parameter(tmp_path / "old.prototxt")


def test_errors_name_the_weights(tmp_path: Path) -> None:
    message = parsed('layers { name: "a" type: RELU } layer { name: "b" type: "ReLU" }')
    (tmp_path / "both.caffemodel").write_bytes(message.SerializeToString())
    with pytest.raises(caffe.CaffeError, match=r"both\.caffemodel: layer 'b' is a `layer`"):
        read_net_binary(tmp_path / "both.caffemodel")
    for content in (b"\xff\xff", b"\x0a\x09short"):
        (tmp_path / "bad.caffemodel").write_bytes(content)
        with pytest.raises(caffe.CaffeError, match=r"bad\.caffemodel: not a NetParameter"):
            read_net_binary(tmp_path / "bad.caffemodel")
    with pytest.raises(caffe.CaffeError, match=r"nowhere\.caffemodel: No such file"):
        read_net_binary(tmp_path / "nowhere.caffemodel")
    with pytest.raises(caffe.CaffeError, match=r"nowhere\.prototxt: No such file"):
        read_net_parameter(tmp_path / "nowhere.prototxt")


def test_a_type_that_weights_do_not_name(tmp_path: Path) -> None:
    """An enum's number that the schema lacks is no type; only a net that is built needs one."""
    message = parsed('layers { name: "a" } layers { name: "b" type: RELU }')
    raw = message.SerializeToString().replace(b"\x28\x12", b"\x28\x63")  # type 18 becomes 99
    (tmp_path / "odd.caffemodel").write_bytes(raw)
    assert [layer.type for layer in read_net_binary(tmp_path / "odd.caffemodel").layer] == ["", ""]


# Solvers


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("SGD", "SGD"),
        ("NESTEROV", "Nesterov"),
        ("ADAGRAD", "AdaGrad"),
        ("RMSPROP", "RMSProp"),
        ("ADADELTA", "AdaDelta"),
        ("ADAM", "Adam"),
        ("5", "Adam"),
    ],
)
def test_a_solvers_type_was_a_number(tmp_path: Path, old: str, name: str, logged: io.StringIO) -> None:
    (tmp_path / "solver.prototxt").write_text(f'net: "net.prototxt" solver_type: {old} base_lr: 0.5')
    solver = read_solver_parameter(tmp_path / "solver.prototxt")
    assert solver == SolverParameter(net="net.prototxt", type=name, base_lr=0.5)
    assert f"deprecated 'solver_type' field (enum)': {tmp_path}/solver.prototxt\n" in logged.getvalue()
    assert logged.getvalue().splitlines()[-1].startswith("W")


def test_a_solver_has_one_type(tmp_path: Path, logged: io.StringIO) -> None:
    path = tmp_path / "solver.prototxt"
    path.write_text('solver_type: ADAM type: "SGD"')
    with pytest.raises(caffe.CaffeError, match=r"solver\.prototxt: solver_type and type are both given"):
        read_solver_parameter(path)
    path.write_text('type: "Adam"')
    assert read_solver_parameter(path).type == "Adam"
    path.write_text("base_lr: 1")
    assert not read_solver_parameter(path).HasField("type")
    assert logged.getvalue() == ""
