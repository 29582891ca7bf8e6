"""Whole training iterations against the same network and rule written by hand in plain PyTorch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from google.protobuf import text_format

import caffe
from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

NET = """
layer { name: "in" type: "Input" top: "x" top: "label"
        input_param { shape { dim: 8 dim: 3 dim: 11 dim: 9 } shape { dim: 8 } } }
layer { name: "conv1" type: "Convolution" bottom: "x" top: "conv1"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool" type: "Pooling" bottom: "conv1" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool" top: "conv2"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "fc" type: "InnerProduct" bottom: "conv2" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


def test_convolutions_of_several_channels_train_as_in_pytorch() -> None:
    """Gradients come back from a convolution in channels-last order; the update must not mix them up."""
    param = SolverParameter(
        net_param=text_format.Parse(NET, NetParameter()),
        base_lr=0.05,
        momentum=0.9,
        weight_decay=0.01,
        lr_policy="fixed",
        random_seed=3,
    )
    solver = caffe.get_solver(param)
    net = solver.net
    rng = np.random.default_rng(0)
    net.blobs["x"].data[...] = rng.normal(size=(8, 3, 11, 9))
    net.blobs["label"].data[...] = labels = rng.integers(5, size=8)
    ours = {(name, i): blob for name, blobs in net.params.items() if name != "bn" for i, blob in enumerate(blobs)}
    theirs = {key: torch.tensor(blob.data.copy(), requires_grad=True) for key, blob in ours.items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=0.05, momentum=0.9, weight_decay=0.01)
    x, y = torch.tensor(net.blobs["x"].data.copy()), torch.tensor(labels)
    for _ in range(4):
        solver.step(1)
        h = F.conv2d(x, theirs["conv1", 0], theirs["conv1", 1], padding=1)
        h = F.relu(F.batch_norm(h, None, None, theirs["scale", 0], theirs["scale", 1], training=True))
        h = F.max_pool2d(h, 3, 2, ceil_mode=True)
        h = F.relu(F.conv2d(h, theirs["conv2", 0], theirs["conv2", 1]))
        loss = F.cross_entropy(F.linear(h.flatten(1), theirs["fc", 0], theirs["fc", 1]), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(net.blobs["loss"].data, loss.item(), rtol=1e-4)
    for key, blob in ours.items():
        np.testing.assert_allclose(blob.data, theirs[key].detach().numpy(), rtol=1e-3, atol=1e-4, err_msg=str(key))
