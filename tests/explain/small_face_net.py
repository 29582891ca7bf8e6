"""A small trained-looking net with all that explanations must see through, and the same net as a PyTorch module."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import caffe
from caffe.io import save_mean
from preprocessing.network_input import FaceNetwork
from preprocessing.stage import run_main

CLASSES, SIZE, FACE, MEAN = 7, 12, 16, 100.0

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 12 dim: 12 } } }\n'


def convolution(bottom: str, top: str, outputs: int, kernel: int, pad: int = 0) -> str:
    """A convolution layer of the name of its top."""
    settings = f"num_output: {outputs} kernel_size: {kernel} pad: {pad}"
    return (
        f'layer {{ name: "{top}" type: "Convolution" bottom: "{bottom}" top: "{top}" '
        f"convolution_param {{ {settings} }} }}\n"
    )


# in place: BatchNorm, Scale and ReLU; the ReLU's output is read twice; conv2's ReLU makes a blob of its own
LAYERS = (
    convolution("data", "conv1", 4, 3)
    + """
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
"""
    + convolution("conv1", "shortcut", 5, 1)
    + convolution("conv1", "conv2", 5, 3, pad=1)
    + """
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2_relu" }
layer { name: "sum" type: "Eltwise" bottom: "shortcut" bottom: "conv2_relu" top: "sum" }
layer { name: "pool" type: "Pooling" bottom: "sum" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "fc1" type: "InnerProduct" bottom: "pool" top: "fc1" inner_product_param { num_output: 9 } }
layer { name: "relu3" type: "ReLU" bottom: "fc1" top: "fc1" }
layer { name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2" inner_product_param { num_output: 7 } }
layer { name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }
"""
)
DEPLOY = f'name: "small"\n{INPUT}{LAYERS}'


def random_face(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (FACE, FACE), np.uint8)


def write_network(folder: Path, deploy: str, weights: dict[str, list[np.ndarray]] | None = None) -> tuple[Path, ...]:
    """Write deploy.prototxt, small.caffemodel (by the layers' names, else normal numbers) and a constant mean."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "deploy.prototxt", folder / "small.caffemodel", folder / "mean.binaryproto"
    files[0].write_text(deploy)
    net, random = caffe.Net(str(files[0]), caffe.TEST), np.random.default_rng(1)
    for name, blobs in net.params.items():
        if net.layer_dict[name].type == "BatchNorm":  # mean, variance and the number that both are divided by
            given = [random.standard_normal(blobs[0].shape), random.uniform(0.5, 2, blobs[1].shape), np.array([1.0])]
        else:
            fan_in = np.prod(blobs[0].shape[1:])
            given = [random.standard_normal(blob.shape) / np.sqrt(fan_in) for blob in blobs]
        for blob, values in zip(blobs, (weights or {}).get(name, given), strict=True):
            blob.data[...] = values
    net.save(str(files[1]))
    save_mean(files[2], np.full((1, FACE, FACE), MEAN, np.float32))
    return files


def small_network(
    folder: Path, deploy: str = DEPLOY, weights: dict[str, list[np.ndarray]] | None = None
) -> FaceNetwork:
    return FaceNetwork(*write_network(folder, deploy, weights), device="cpu")


def torch_input(face: np.ndarray) -> torch.Tensor:
    """The centre 12×12 of a 16×16 face minus the mean, worked out here."""
    return torch.from_numpy(face[2:14, 2:14].astype(np.float32) - MEAN)[None, None].requires_grad_(True)


class TorchNet(nn.Module):
    """The net of LAYERS, with the weights of a FaceNetwork."""

    def __init__(self, network: FaceNetwork) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.shortcut, self.conv2 = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(125, 9), nn.Linear(9, 7)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        params = {name: [torch.from_numpy(b.data.copy()) for b in blobs] for name, blobs in network.net.params.items()}
        for name in ("conv1", "shortcut", "conv2", "fc1", "fc2"):
            layer = getattr(self, name)
            layer.weight.data, layer.bias.data = params[name]
        self.bn1.running_mean, self.bn1.running_var = params["bn1"][0], params["bn1"][1]
        self.bn1.weight.data, self.bn1.bias.data = params["scale1"]
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scores."""
        h = self.relu1(self.bn1(self.conv1(x)))
        self.sum = self.shortcut(h) + self.relu2(self.conv2(h))
        self.pool = nn.functional.avg_pool2d(self.sum, 2)
        return self.fc2(self.relu3(self.fc1(self.pool.flatten(1))))


def run_command(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *arguments: str) -> int:
    """Run a command's `main` with these arguments in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["explain", *arguments])
    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    return int(exit_.value.code or 0)


def small_networks_of_one_face_and_two(folder: Path) -> tuple[FaceNetwork, FaceNetwork]:
    """The small net, and one of two channels, which go through its layers as a batch and have their scores added."""
    join = """
      layer { name: "kinds" type: "Slice" bottom: "data" top: "first" top: "second" slice_param { axis: 1 } }
      layer { name: "faces" type: "Concat" bottom: "first" bottom: "second" top: "faces" concat_param { axis: 0 } }
    """
    added = """
      layer { name: "apart" type: "Slice" bottom: "fc2" top: "fc2a" top: "fc2b" slice_param { axis: 0 } }
      layer { name: "score" type: "Eltwise" bottom: "fc2a" bottom: "fc2b" top: "score" }
      layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }
    """
    once = LAYERS.replace('bottom: "data"', 'bottom: "faces"')
    twice = INPUT.replace("dim: 1 dim: 1", "dim: 1 dim: 2") + join + once[: once.index('layer { name: "prob"')] + added
    alone = small_network(folder / "one", DEPLOY)
    save_mean(folder / "mean.binaryproto", np.full((2, FACE, FACE), MEAN, np.float32))
    (folder / "deploy.prototxt").write_text(twice)
    pair = FaceNetwork(folder / "deploy.prototxt", alone.weights, folder / "mean.binaryproto", device="cpu")
    return alone, pair
