"""Writes googlenet, resnet18 and mobilenet.prototxt beside itself: deep nets of one block over and over.

python -m prototxt.zoo.build

Layers are named as in the published prototxts, so that weights trained elsewhere find theirs.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from google.protobuf import text_format

from caffe import NetSpec
from caffe import layers as L
from caffe import params as P
from caffe.net_spec import Top

FOLDER = Path(__file__).resolve().parent


def start() -> NetSpec:
    """A net that has its input: one BGR image, 0..255, minus the mean."""
    n = NetSpec()
    n.data = L.Input(input_param={"shape": {"dim": [1, 3, 224, 224]}})
    return n


def max_pool(bottom: Top, **geometry: int) -> Top:
    """The maximum of 3×3 windows."""
    return L.Pooling(bottom, pool=P.Pooling.MAX, kernel_size=3, **geometry)


def average(bottom: Top) -> Top:
    """The average of each channel."""
    return L.Pooling(bottom, pool=P.Pooling.AVE, global_pooling=True)


# GoogLeNet


def convolution(n: NetSpec, stage: str, name: str, bottom: Top, outputs: int, **geometry: int) -> Top:
    """A convolution `STAGE/NAME` and its ReLU."""
    n[f"{stage}/{name}"] = L.Convolution(bottom, num_output=outputs, **geometry)
    n[f"{stage}/relu_{name}"] = L.ReLU(n[f"{stage}/{name}"], in_place=True)
    return n[f"{stage}/relu_{name}"]


def normalize(bottom: Top) -> Top:
    """Local response normalisation over five channels."""
    return L.LRN(bottom, local_size=5, alpha=1e-4, beta=0.75)


def inception(
    n: NetSpec, stage: str, bottom: Top, ones: int, threes: tuple[int, int], fives: tuple[int, int], pooled: int
) -> Top:
    """An inception module: 1×1, 3×3 and 5×5 convolutions and max pooling side by side, joined channel by channel.

    `threes` and `fives` are the channels of a 1×1 convolution in front and those of the 3×3 or 5×5 convolution itself.
    """
    one = convolution(n, stage, "1x1", bottom, ones, kernel_size=1)
    reduced = convolution(n, stage, "3x3_reduce", bottom, threes[0], kernel_size=1)
    three = convolution(n, stage, "3x3", reduced, threes[1], kernel_size=3, pad=1)
    reduced = convolution(n, stage, "5x5_reduce", bottom, fives[0], kernel_size=1)
    five = convolution(n, stage, "5x5", reduced, fives[1], kernel_size=5, pad=2)
    n[f"{stage}/pool"] = max_pool(bottom, stride=1, pad=1)
    projected = convolution(n, stage, "pool_proj", n[f"{stage}/pool"], pooled, kernel_size=1)
    n[f"{stage}/output"] = L.Concat(one, three, five, projected)
    return n[f"{stage}/output"]


def googlenet() -> NetSpec:
    """GoogLeNet (Szegedy et al., arXiv 1409.4842) without its two auxiliary losses: nine inception modules;
    6,998,552 parameters.
    """
    n = start()
    x = convolution(n, "conv1", "7x7_s2", n.data, 64, kernel_size=7, stride=2, pad=3)
    n["pool1/3x3_s2"] = max_pool(x, stride=2)
    n["pool1/norm1"] = normalize(n["pool1/3x3_s2"])
    x = convolution(n, "conv2", "3x3_reduce", n["pool1/norm1"], 64, kernel_size=1)
    x = convolution(n, "conv2", "3x3", x, 192, kernel_size=3, pad=1)
    n["conv2/norm2"] = normalize(x)
    n["pool2/3x3_s2"] = max_pool(n["conv2/norm2"], stride=2)
    x = inception(n, "inception_3a", n["pool2/3x3_s2"], 64, (96, 128), (16, 32), 32)
    x = inception(n, "inception_3b", x, 128, (128, 192), (32, 96), 64)
    n["pool3/3x3_s2"] = max_pool(x, stride=2)
    x = inception(n, "inception_4a", n["pool3/3x3_s2"], 192, (96, 208), (16, 48), 64)
    x = inception(n, "inception_4b", x, 160, (112, 224), (24, 64), 64)
    x = inception(n, "inception_4c", x, 128, (128, 256), (24, 64), 64)
    x = inception(n, "inception_4d", x, 112, (144, 288), (32, 64), 64)
    x = inception(n, "inception_4e", x, 256, (160, 320), (32, 128), 128)
    n["pool4/3x3_s2"] = max_pool(x, stride=2)
    x = inception(n, "inception_5a", n["pool4/3x3_s2"], 256, (160, 320), (32, 128), 128)
    x = inception(n, "inception_5b", x, 384, (192, 384), (48, 128), 128)
    n["pool5/7x7_s1"] = average(x)
    n["pool5/drop_7x7_s1"] = L.Dropout(n["pool5/7x7_s1"], dropout_ratio=0.4, in_place=True)
    n["loss3/classifier"] = L.InnerProduct(n["pool5/drop_7x7_s1"], num_output=1000)
    n.prob = L.Softmax(n["loss3/classifier"])
    return n


# ResNet


def normalized(n: NetSpec, convolution: str, place: str, bottom: Top, outputs: int, **geometry: int) -> Top:
    """A convolution of that name, its BatchNorm `bnPLACE` and its Scale `scalePLACE`, which holds the bias."""
    n[convolution] = L.Convolution(bottom, num_output=outputs, bias_term=False, **geometry)
    n[f"bn{place}"] = L.BatchNorm(n[convolution], in_place=True)
    n[f"scale{place}"] = L.Scale(n[f"bn{place}"], bias_term=True, in_place=True)
    return n[f"scale{place}"]


def relu(n: NetSpec, name: str, bottom: Top) -> Top:
    """A ReLU of that name, in place."""
    n[name] = L.ReLU(bottom, in_place=True)
    return n[name]


def residual(n: NetSpec, block: str, bottom: Top, outputs: int, stride: int) -> Top:
    """A residual block: two 3×3 convolutions, added to the bottom, or to a projection of it where shapes differ."""
    shortcut = bottom
    if stride > 1:
        name = f"{block}_branch1"
        shortcut = normalized(n, f"res{name}", name, bottom, outputs, kernel_size=1, stride=stride)
    name = f"{block}_branch2a"
    x = normalized(n, f"res{name}", name, bottom, outputs, kernel_size=3, stride=stride, pad=1)
    x = relu(n, f"res{name}_relu", x)
    name = f"{block}_branch2b"
    x = normalized(n, f"res{name}", name, x, outputs, kernel_size=3, pad=1)
    n[f"res{block}"] = L.Eltwise(shortcut, x)
    return relu(n, f"res{block}_relu", n[f"res{block}"])


def resnet18() -> NetSpec:
    """ResNet-18 (He et al., arXiv 1512.03385), with projections where the shape changes: eight residual blocks;
    11,689,512 parameters.
    """
    n = start()
    x = normalized(n, "conv1", "_conv1", n.data, 64, kernel_size=7, stride=2, pad=3)
    n.pool1 = max_pool(relu(n, "conv1_relu", x), stride=2)
    x = n.pool1
    for number, outputs in enumerate((64, 128, 256, 512), start=2):
        x = residual(n, f"{number}a", x, outputs, stride=1 if number == 2 else 2)
        x = residual(n, f"{number}b", x, outputs, stride=1)
    n.pool5 = average(x)
    n.fc1000 = L.InnerProduct(n.pool5, num_output=1000)
    n.prob = L.Softmax(n.fc1000)
    return n


# MobileNet


def rectified(n: NetSpec, name: str, bottom: Top, **geometry: int) -> Top:
    """A convolution of that name, BatchNorm, Scale and ReLU; not all in place, as the published net has it."""
    n[name] = L.Convolution(bottom, bias_term=False, **geometry)
    n[f"{name}/bn"] = L.BatchNorm(n[name])
    n[f"{name}/scale"] = L.Scale(n[f"{name}/bn"], bias_term=True, in_place=True)
    return relu(n, f"relu{name.removeprefix('conv')}", n[f"{name}/scale"])


def separable(n: NetSpec, name: str, bottom: Top, inputs: int, outputs: int, stride: int) -> Top:
    """A depthwise separable convolution: 3×3 within each channel, then 1×1 across them."""
    x = rectified(n, f"{name}/dw", bottom, num_output=inputs, group=inputs, kernel_size=3, stride=stride, pad=1)
    return rectified(n, f"{name}/sep", x, num_output=outputs, kernel_size=1)


def mobilenet() -> NetSpec:
    """MobileNet, the first one (Howard et al., arXiv 1704.04861), at full width: thirteen depthwise separable
    convolutions; 4,231,976 parameters.
    """
    n = start()
    inputs = 32
    x = rectified(n, "conv1", n.data, num_output=inputs, kernel_size=3, stride=2, pad=1)
    same_size = [(f"conv5_{i}", 512, 1) for i in range(1, 6)]
    for name, outputs, stride in (
        ("conv2_1", 64, 1),
        ("conv2_2", 128, 2),
        ("conv3_1", 128, 1),
        ("conv3_2", 256, 2),
        ("conv4_1", 256, 1),
        ("conv4_2", 512, 2),
        *same_size,
        ("conv5_6", 1024, 2),
        ("conv6", 1024, 1),
    ):
        x = separable(n, name, x, inputs, outputs, stride)
        inputs = outputs
    n.pool6 = average(x)
    n.fc7 = L.Convolution(n.pool6, num_output=1000, kernel_size=1)
    n.prob = L.Softmax(n.fc7)
    return n


NETS = {net.__name__: net for net in (googlenet, resnet18, mobilenet)}


def prototxt(name: str) -> str:
    """The text of `NAME.prototxt`: what the net is, then a layer a line."""
    comment = inspect.cleandoc(NETS[name].__doc__ or "").splitlines()
    lines = [*comment, "Written by build.py in this folder: change it there."]
    layers = [text_format.MessageToString(layer, as_one_line=True) for layer in NETS[name]().to_proto().layer]
    return (
        "\n".join([*(f"# {line}" for line in lines), f'name: "{name}"', *(f"layer {{ {x} }}" for x in layers)]) + "\n"
    )


def main() -> None:
    """Write the three files."""
    for name in NETS:
        (FOLDER / f"{name}.prototxt").write_text(prototxt(name), encoding="utf-8")


if __name__ == "__main__":
    main()
