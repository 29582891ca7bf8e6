"""The networks of prototxt/: sizes as published, files that fit each other, gradients, OpenCV's answers; the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from google.protobuf import text_format
from test_zoo import SIZES
from tiny_model import write_database

import caffe
from caffe import NetSpec
from caffe import layers as L
from caffe.complexity import complexity
from caffe.io import read_net_parameter, read_solver_parameter, save_mean
from caffe.net_spec import Top
from caffe.proto.caffe_pb2 import TEST, TRAIN, NetParameter
from predict.recognizer import DEFAULT_MODEL
from preprocessing.network_input import read_temperatures
from prototxt.blocks import channel_shuffle, inverted_residual, separable_conv_bn, squeeze_excitation
from prototxt.build import FOLDER, prototxts, table
from prototxt.networks import CROP, NETWORKS, PAIRS

FOLDERS = sorted(path.parent.name for path in FOLDER.glob("*/train_val.prototxt"))


def adapted(published: int, inputs: int, kernel: int = 3, filters: int = 32) -> int:
    """Parameters of a published ImageNet network after the changes that all have: a 3×3 stem that reads one channel
    instead of `kernel`×`kernel` that read three, and seven classes instead of 1000, each of `inputs` weights and a
    bias.
    """
    return published - (3 * kernel**2 - 3**2) * filters - (1000 - 7) * (inputs + 1)


def norm_conv(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of a convolution without bias, and its batch norm's."""
    return inputs * outputs * kernel**2 + 2 * outputs


def separable(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * kernel**2 + norm_conv(inputs, outputs, 1)


def concatenated(branches: list[tuple[int, int]], excite: bool = False) -> int:
    """mini_concat_xception's parameters: stem, blocks of branches and a shortcut, the maps."""
    total, inputs = norm_conv(1, 8, 3) + norm_conv(8, 8, 3), 8
    for width in (16, 32, 64, 128):
        outputs = width * len(branches)
        total += norm_conv(inputs, outputs, 1)
        for kernel, depth in branches:
            total += separable(inputs, width, kernel) + (depth - 1) * separable(width, width, kernel)
        if excite:
            total += 2 * outputs * (outputs // 8) + outputs // 8 + outputs
        inputs = outputs
    return total + 9 * inputs * 7 + 7


def vgg() -> int:
    stages = sum(norm_conv(a, b, 3) + norm_conv(b, b, 3) for a, b in ((1, 64), (64, 128), (128, 256), (256, 512)))
    return stages + sum((a + 1) * b for a, b in ((512 * 2 * 2, 4096), (4096, 4096), (4096, 7)))


def sequential() -> int:
    pairs = sum(
        norm_conv(a, b, k) + norm_conv(b, b, k) for a, b, k in ((1, 16, 7), (16, 32, 5), (32, 64, 3), (64, 128, 3))
    )
    return pairs + norm_conv(128, 256, 3) + 9 * 256 * 7 + 7


def big_xception() -> int:
    stem = norm_conv(1, 32, 3) + norm_conv(32, 64, 3)
    blocks = sum(norm_conv(a, b, 1) + separable(a, b, 3) + separable(b, b, 3) for a, b in ((64, 128), (128, 256)))
    return stem + blocks + 9 * 256 * 7 + 7


def multikernel() -> int:
    """mobilenet_v2's, and what 5×5 and 7×7 have more than 3×3 in their shares of the depthwise channels."""
    hidden = [32, *(6 * c for c in [16, *[24] * 2, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3])]
    return adapted(3_504_872, 1280) + sum(
        (25 - 9) * (c * 2 // 3 - c // 3) + (49 - 9) * (c - c * 2 // 3) for c in hidden
    )


def face_resnet() -> int:
    total, inputs = norm_conv(1, 32, 5), 32
    for width in (48, 96, 192, 384):
        total += norm_conv(inputs, width, 3) + norm_conv(width, width, 3) + norm_conv(inputs, width, 1)
        inputs = width
    return total + 7 * (inputs + 1)


def face_resnet16() -> int:
    total, inputs = norm_conv(1, 32, 3) + 2 * norm_conv(32, 32, 3), 32
    for width, blocks in ((64, 2), (128, 2), (256, 2), (360, 1)):
        total += norm_conv(inputs, width, 3) + norm_conv(inputs, width, 1)
        total += (2 * blocks - 1) * norm_conv(width, width, 3)
        inputs = width
    return total + 7 * (inputs + 1)


# The published numbers are those of torchvision and Keras, of the parameters that are learned: without auxiliary
# classifiers, gamma and beta of each batch norm among them.
PARAMETERS = {
    "face_emotion_net": 5_452_839,
    "mini_xception": 56_951,
    "lenet": 431_080 - (10 - 7) * 501,  # that of digits of 28×28, less three classes
    "sequential_fcn": sequential(),
    "big_xception": big_xception(),
    "mini_concat_xception_v1": concatenated([(3, 2), (5, 2)]),
    "mini_concat_xception_v2": concatenated([(3, 2), (3, 4)]),
    "mini_concat_xception_v3": concatenated([(3, 2), (5, 2), (3, 4)], excite=True),
    "mobilenet_v1": adapted(4_231_976, 1024),
    "mobilenet_v2": adapted(3_504_872, 1280),
    "mobilenet_v2_multikernel": multikernel(),
    "shufflenet_v2": adapted(2_278_604, 1024, filters=24),
    "inception_v3": adapted(23_834_568, 2048),
    "inception_resnet_v2": adapted(55_843_464, 1536),
    "xception": adapted(22_855_952, 2048),
    "resnet18": adapted(11_689_512, 512, kernel=7, filters=64),
    "resnet34": adapted(21_797_672, 512, kernel=7, filters=64),
    "face_resnet": face_resnet(),
    "face_resnet16": face_resnet16(),
    "face_resnet16_pair": face_resnet16(),
    "vgg_fer": vgg(),
}


class Nets(NamedTuple):
    """A folder's three nets: of train_val.prototxt in both phases, on tiny databases, and deploy.prototxt's.

    All have the weights of train, which has done one forward pass, whose loss is `loss`.
    """

    name: str
    loss: float
    train: caffe.Net
    test: caffe.Net
    deploy: caffe.Net


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lmdb`, six random faces of 48×48, and `mean.binaryproto`; in `both` as many in two channels."""
    folder = tmp_path_factory.mktemp("networks")
    random = np.random.default_rng(0)
    for place, channels in ((folder, 1), (folder / "both", 2)):
        faces = random.integers(0, 256, (6, channels, 48, 48)).astype(np.uint8)
        write_database(place / "lmdb", list(faces), [0, 1, 2, 3, 4, 6])
        save_mean(place / "mean.binaryproto", np.full((channels, 48, 48), 128, np.float32))
    return folder


@pytest.fixture(scope="module", params=sorted(PARAMETERS))
def nets(request: pytest.FixtureRequest, data: Path) -> Nets:
    """The nets of one folder after the other: all together are 2 GB."""
    name = request.param
    param = read_net_parameter(FOLDER / name / "train_val.prototxt")
    place = data / "both" if name in PAIRS else data
    for layer in param.layer:
        if layer.type == "Data":
            layer.data_param.source, layer.data_param.batch_size = str(place / "lmdb"), 2
            layer.transform_param.mean_file = str(place / "mean.binaryproto")
    train = caffe.Net(param, phase=TRAIN, seed=1)
    random = np.random.default_rng(3)
    for layer_name, blobs in train.params.items():  # gamma, beta and biases that are not all 1 and 0
        kind = train.layer_dict[layer_name].type
        if kind == "Scale":
            blobs[0].data[...] = random.uniform(0.5, 1.5, blobs[0].shape)
        if kind != "BatchNorm" and len(blobs) > 1:
            blobs[1].data[...] = random.normal(0, 0.1, blobs[1].shape)
    test, deploy = caffe.Net(param, phase=TEST, seed=1), caffe.Net(FOLDER / name / "deploy.prototxt", TEST)
    loss = float(train.forward()["loss"])
    test.share_with(train)
    deploy.share_with(train)
    return Nets(name, loss, train, test, deploy)


def shapes(net: caffe.Net) -> dict[str, list[tuple[int, ...]]]:
    return {name: [blob.shape for blob in blobs] for name, blobs in net.params.items()}


def test_every_folder_is_checked_here() -> None:
    assert set(FOLDERS) == set(PARAMETERS)
    assert set(FOLDERS) == set(NETWORKS) | {"face_emotion_net", "mini_xception"}


def test_sizes_are_the_published_ones(nets: Nets) -> None:
    size = complexity(nets.deploy)
    assert size.parameters == PARAMETERS[nets.name] == complexity(nets.train).parameters
    if nets.name in NETWORKS:
        comment = (FOLDER / nets.name / "train_val.prototxt").read_text("utf-8").split("\nname:")[0]
        assert f"{size.parameters:,} parameters, {size.multiply_adds:,} multiply-adds" in comment


def test_train_val_and_deploy_hold_the_same_weights(nets: Nets) -> None:
    assert shapes(nets.train) == shapes(nets.test) == shapes(nets.deploy)
    assert (nets.deploy.inputs, nets.deploy.outputs) == (["data"], ["prob"])
    assert nets.deploy.blobs["data"].shape[1:] == nets.train.blobs["data"].shape[1:]
    assert nets.deploy.blobs["prob"].shape == (1, 7)
    assert set(nets.test.outputs) == {"accuracy", "loss"}


def test_deploy_is_the_net_that_is_tested(nets: Nets) -> None:
    """The same weights give the same scores in the TEST phase of train_val.prototxt as in deploy.prototxt."""
    nets.test.forward()
    faces = nets.test.blobs["data"].data
    assert faces.shape[0] == 2
    answers = []
    for i in (0, 1):
        nets.deploy.blobs["data"].data[...] = faces[i : i + 1]
        answers.append(nets.deploy.forward()["prob"][0].copy())
    scores = nets.test.layer_dict["loss"].param.bottom[0]
    powers = torch.from_numpy(nets.test.blobs[scores].data.reshape(2, 7)).softmax(1)
    np.testing.assert_allclose(answers, powers, atol=1e-4)


def test_every_parameter_has_a_gradient(nets: Nets) -> None:
    net = nets.train
    if nets.name in NETWORKS:  # all classes are about equally likely to begin with
        assert nets.loss == pytest.approx(math.log(7), abs=1)
    net.backward()
    for name, blobs in net.params.items():
        layer = net.layer_dict[name]
        if layer.type == "BatchNorm":
            continue
        for i, blob in enumerate(blobs):
            gradient = blob.diff
            assert np.isfinite(gradient).all(), (name, i)
            assert gradient.any(), (name, i)


def test_opencv_gives_the_same_probabilities(nets: Nets, tmp_path: Path) -> None:
    weights = tmp_path / "weights.caffemodel"
    nets.deploy.save(weights)
    peer = cv2.dnn.readNetFromCaffe(nets.deploy.source, str(weights))
    weights.unlink()  # inception_resnet_v2's are 217 MB
    faces = nets.train.blobs["data"].data.copy()  # those that BatchNorm's statistics are of
    for batch in (faces[:1], faces):
        ours = nets.deploy.infer(data=torch.from_numpy(batch))["prob"].numpy()
        peer.setInput(batch)
        theirs = peer.forward()
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours[0] - ours[1]).max() > 100 * np.abs(ours - theirs).max(), "the comparison says nothing"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_files_are_what_the_script_writes(name: str) -> None:
    for file, text in prototxts(name).items():
        assert (FOLDER / name / file).read_text("utf-8") == text, file


@pytest.mark.parametrize("name", NETWORKS)
def test_recipe(name: str) -> None:
    """What the new networks share, and that weights before a batch norm have no bias and those behind it no decay."""
    solver = read_solver_parameter(FOLDER / name / "solver.prototxt")
    assert (solver.type, solver.lr_policy, solver.max_iter, solver.warmup_iter) == ("Nesterov", "cosine", 44900, 449)
    net = read_net_parameter(FOLDER / name / "train_val.prototxt")
    data = [layer for layer in net.layer if layer.type == "Data"]
    first, *others, last = data
    train, test = first.transform_param, last.transform_param
    assert train.crop_size == test.crop_size == CROP.get(name, 44)
    assert (train.mirror, train.random_rotation, train.random_erasing) == (True, 10, 0.25)
    assert (test.mirror, test.random_rotation, test.random_erasing) == (False, 0, 0)
    solvers = [read_solver_parameter(path) for path in sorted((FOLDER / name).glob("solver_*.prototxt"))]
    asked = {stage for solver in solvers for stage in solver.train_state.stage}
    assert {stage for layer in others for stage in layer.include[0].stage} == asked
    for layer in others:
        (stage,), other = layer.include[0].stage, layer.transform_param
        mixes, strong = stage in ("mixup", "mixed"), stage == "mixed"
        augmentation = other.crop_size, other.mirror, other.random_rotation, other.random_erasing
        assert augmentation == ((44, True, 10, 0.25) if strong else (44, True, 8, 0))
        assert other.mixup_alpha == pytest.approx(0.4 if mixes else 0)
        assert layer.data_param.classes == (7 if mixes else 0)
    loss = next(layer for layer in net.layer if layer.type == "SoftmaxWithLoss")
    assert loss.loss_param.label_smoothing == pytest.approx(0.1)
    normalised = {layer.bottom[0] for layer in net.layer if layer.type == "BatchNorm"}
    assert normalised or name == "lenet"
    for layer in net.layer:
        if layer.type == "Scale" and len(layer.bottom) == 1:
            assert [spec.decay_mult for spec in layer.param] == [0, 0]
        elif layer.type == "Convolution" and layer.top[0] in normalised:
            assert not layer.convolution_param.bias_term
        elif len(layer.param) > 1:
            assert [spec.decay_mult for spec in layer.param] == [1, 0]


def test_a_pairs_scores_are_the_means_of_those_of_each_face(data: Path) -> None:
    """In tests; in training there are those of each face as well, the labels thrice."""
    weights = FOLDER / "face_resnet16_pair/face_resnet16_pair.caffemodel"
    pair = caffe.Net(FOLDER / "face_resnet16_pair/deploy.prototxt", weights, TEST)
    once = caffe.Net(FOLDER / "face_resnet16/deploy.prototxt", TEST)
    once.share_with(pair)
    faces = np.random.default_rng(1).normal(0, 60, (3, 2, 44, 44)).astype(np.float32)
    scores = []
    for channel in (0, 1):
        once.blobs["data"].reshape(3, 1, 44, 44)
        once.blobs["data"].data[...] = faces[:, channel : channel + 1]
        once.forward()
        scores.append(once.blobs["score"].data.copy())
    pair.blobs["data"].reshape(3, 2, 44, 44)
    pair.blobs["data"].data[...] = faces
    pair.forward()
    assert np.abs(scores[0] - scores[1]).max() > 1e-3 * np.abs(scores[0]).max(), "the comparison says nothing"
    np.testing.assert_allclose(pair.blobs["score"].data, np.mean(scores, axis=0), rtol=1e-4, atol=1e-5)

    param = read_net_parameter(FOLDER / "face_resnet16_pair/train_val.prototxt")
    for layer in param.layer:
        if layer.type == "Data":
            layer.data_param.source, layer.data_param.batch_size = str(data / "both/lmdb"), 2
            layer.transform_param.mean_file = str(data / "both/mean.binaryproto")
        elif layer.type == "Dropout":
            layer.dropout_param.dropout_ratio = 0
    train = caffe.Net(param, TRAIN, seed=2)
    train.forward()
    first, second, both = train.blobs["score"].data.reshape(3, 2, 7)
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(train.blobs["labels"].data, np.tile(train.blobs["label"].data, 3))


def test_what_ships_is_calibrated() -> None:
    """By the views that predict takes, for the very weights."""
    weights = sorted(FOLDER.glob("*/*.caffemodel"))
    assert DEFAULT_MODEL in [path.stem for path in weights]
    for path in weights:
        assert read_temperatures(path).keys() >= {"centre", "mirror", "ten_crop"}, path


def test_table_names_every_folder() -> None:
    rows = table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == FOLDERS
    resnet = next(row for row in rows if "resnet18" in row)
    assert "11,171,271" in resnet
    assert "https://arxiv.org/abs/1512.03385" in resnet


# The blocks, against PyTorch


def net_of(build: Callable[[NetSpec, Top], Top], *shape: int, phase: int = TEST) -> tuple[caffe.Net, torch.Tensor]:
    """A net of one block with random weights and BatchNorm statistics, and its input, which is in it."""
    n = NetSpec()
    n.x = L.Input(shape={"dim": shape})
    n.y = L.Power(build(n, n.x))  # the identity: a name for the block's top
    net = caffe.Net(n.to_proto(), phase=phase)
    random = np.random.default_rng(2)
    for name, blobs in net.params.items():
        for i, blob in enumerate(blobs):
            positive = net.layer_dict[name].type == "BatchNorm" and i > 0
            blob.data[...] = random.uniform(0.5, 2, blob.shape) if positive else random.normal(0, 0.5, blob.shape)
    x = random.normal(0, 1, shape).astype(np.float32)
    net.blobs["x"].data[...] = x
    net.forward()
    return net, torch.from_numpy(x)


def weights(net: caffe.Net, name: str) -> list[torch.Tensor]:
    return [torch.from_numpy(blob.data.copy()) for blob in net.params[name]]


def conv_bn_of(net: caffe.Net, name: str, x: torch.Tensor, relu: bool = True, **geometry: int) -> torch.Tensor:
    """What the layers NAME, NAME_bn and NAME_scale should give."""
    (kernel,) = weights(net, name)
    means, variances, total = weights(net, f"{name}_bn")
    gamma, beta = weights(net, f"{name}_scale")
    x = F.conv2d(x, kernel, **geometry)
    x = F.batch_norm(x, means / total, variances / total, gamma, beta, eps=1e-5)
    return x.relu() if relu else x


def assert_gives(net: caffe.Net, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(net.blobs["y"].data, expected, rtol=1e-4, atol=1e-4)


def test_squeeze_excitation() -> None:
    net, x = net_of(lambda n, x: squeeze_excitation(n, "se", x, channels=16, reduction=4), 3, 16, 5, 6)
    (w1, b1), (w2, b2) = weights(net, "se_reduce"), weights(net, "se_expand")
    assert w1.shape == (4, 16)
    factors = torch.sigmoid(F.linear(F.linear(x.mean((2, 3)), w1, b1).relu(), w2, b2))
    assert_gives(net, x * factors[:, :, None, None])


def test_channel_shuffle() -> None:
    def halves(n: NetSpec, x: Top) -> Top:
        n.left, n.right = L.Slice(x, ntop=2)
        return channel_shuffle(n, "shuffle", n.left, n.right, channels=10)

    net, x = net_of(halves, 3, 10, 4, 5)
    # as its authors write it: channels as two rows, turned
    assert_gives(net, x.view(3, 2, 5, 4, 5).transpose(1, 2).reshape(3, 10, 4, 5))
    assert [int(c) for c in net.blobs["y"].data[0, :4, 0, 0] == x[0, [0, 5, 1, 6], 0, 0].numpy()] == [1, 1, 1, 1]


def test_separable_convolution() -> None:
    net, x = net_of(lambda n, x: separable_conv_bn(n, "s", x, inputs=6, num_output=8, kernel_size=5), 2, 6, 7, 7)
    (depthwise,) = weights(net, "s_dw")
    assert depthwise.shape == (6, 1, 5, 5)
    assert_gives(net, conv_bn_of(net, "s", F.conv2d(x, depthwise, padding=2, groups=6)))


@pytest.mark.parametrize(("outputs", "stride"), [(8, 1), (8, 2), (12, 1)])
def test_inverted_residual(outputs: int, stride: int) -> None:
    net, x = net_of(lambda n, x: inverted_residual(n, "b", x, 8, outputs, expansion=6, stride=stride), 2, 8, 9, 9)
    y = conv_bn_of(net, "b_expand", x)
    y = conv_bn_of(net, "b_dw", y, stride=stride, padding=1, groups=48)
    y = conv_bn_of(net, "b_project", y, relu=False)
    assert_gives(net, x + y if (outputs, stride) == (8, 1) else y)


def test_inverted_residual_of_several_kernels() -> None:
    net, x = net_of(lambda n, x: inverted_residual(n, "b", x, 8, 8, 2, stride=2, kernels=(3, 5, 7)), 2, 8, 9, 9)
    parts = conv_bn_of(net, "b_expand", x).split([5, 5, 6], 1)
    parts = [
        conv_bn_of(net, f"b_dw{k}", part, stride=2, padding=k // 2, groups=part.shape[1])
        for k, part in zip((3, 5, 7), parts, strict=True)
    ]
    assert_gives(net, conv_bn_of(net, "b_project", torch.cat(parts, 1), relu=False))


# caffe.complexity


@pytest.mark.parametrize("name", ["googlenet", "mobilenet", "resnet18"])
def test_complexity_of_published_networks(name: str) -> None:
    net = caffe.Net(FOLDER / "zoo" / f"{name}.prototxt", caffe.TEST)
    assert complexity(net) == SIZES[name][2:]


@pytest.mark.parametrize(
    ("layer", "bottoms", "parameters", "multiply_adds"),
    [
        # 3×2 kernels, 4 → 6 channels, stride 2: 3×4 places of 7×8; a batch of 5
        (
            'type: "Convolution" convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2 stride: 2 }',
            [(5, 4, 7, 8)],
            6 * 4 * 6 + 6,
            5 * 3 * 4 * 6 * 4 * 6,
        ),
        # two groups: each output reads half of the channels
        (
            'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 2 bias_term: false }',
            [(1, 4, 5, 5)],
            6 * 2 * 9,
            25 * 6 * 2 * 9,
        ),
        # each of the 3×3 inputs meets all 2×2 taps of 6 channels
        (
            'type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 2 stride: 2 }',
            [(2, 4, 3, 3)],
            4 * 6 * 4 + 6,
            2 * 9 * 4 * 6 * 4,
        ),
        ('type: "InnerProduct" inner_product_param { num_output: 10 }', [(3, 4, 5)], 200 + 10, 3 * 200),
        ('type: "InnerProduct" inner_product_param { num_output: 10 axis: 2 }', [(3, 4, 5)], 50 + 10, 12 * 50),
        # 4 gates; 7 steps of 2 streams, 3 inputs, 5 cells; 6 static inputs once a stream
        ('type: "LSTM" recurrent_param { num_output: 5 }', [(7, 2, 3), (7, 2)], 20 * (3 + 1 + 5), 14 * 20 * (3 + 5)),
        (
            'type: "LSTM" recurrent_param { num_output: 5 }',
            [(7, 2, 3), (7, 2), (2, 6)],
            20 * (3 + 1 + 5 + 6),
            14 * 20 * (3 + 5) + 2 * 20 * 6,
        ),
        # input to hidden, hidden to hidden, hidden to output
        ('type: "RNN" recurrent_param { num_output: 5 }', [(7, 2, 3), (7, 2)], 15 + 25 + 25 + 10, 14 * (15 + 25 + 25)),
        ('type: "BatchNorm"', [(2, 4, 3, 3)], 0, 0),
        ('type: "Scale" scale_param { bias_term: true }', [(2, 4, 3, 3)], 8, 0),
        ('type: "Pooling" pooling_param { kernel_size: 2 stride: 2 }', [(2, 4, 4, 4)], 0, 0),
    ],
)
def test_complexity_by_hand(layer: str, bottoms: list[tuple[int, ...]], parameters: int, multiply_adds: int) -> None:
    text = ""
    for i, shape in enumerate(bottoms):
        dims = " ".join(f"dim: {size}" for size in shape)
        text += f'layer {{ name: "x{i}" type: "Input" top: "x{i}" input_param {{ shape {{ {dims} }} }} }}\n'
    names = " ".join(f'bottom: "x{i}"' for i in range(len(bottoms)))
    text += f'layer {{ name: "y" {names} top: "y" {layer} }}'
    assert complexity(caffe.Net(text_format.Parse(text, NetParameter()), TEST)) == (parameters, multiply_adds)


def test_complexity_counts_shared_weights_once() -> None:
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }\n'
    for bottom, top in (("x", "y"), ("y", "z")):
        text += (
            f'layer {{ name: "{top}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" param {{ name: "w" }} '
            f"inner_product_param {{ num_output: 4 bias_term: false }} }}\n"
        )
    assert complexity(caffe.Net(text_format.Parse(text, NetParameter()), TEST)) == (16, 32)
