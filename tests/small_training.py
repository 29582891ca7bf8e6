"""A training of seconds: three kinds of 8×8 images told apart by where they are bright, by a net with random layers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tiny_model import write_database

import caffe
from caffe.io import blobproto_to_array, read_binary
from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

NET = """
name: "small"
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TRAIN }}
  transform_param {{ crop_size: 6 mirror: true mean_value: 60 scale: 0.02 }}
  data_param {{ source: "{folder}/train_lmdb" backend: LMDB batch_size: {batch} }} }}
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TEST }}
  transform_param {{ crop_size: 6 mean_value: 60 scale: 0.02 }}
  data_param {{ source: "{folder}/test_lmdb" backend: LMDB batch_size: 6 }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{ num_output: 4 kernel_size: 3 bias_term: false weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }}
layer {{ name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param {{ bias_term: true }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "fc1" type: "InnerProduct" bottom: "pool" top: "fc1" param {{ lr_mult: 1 }} param {{ lr_mult: 2 }}
  inner_product_param {{ num_output: 8 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "drop" type: "Dropout" bottom: "fc1" top: "fc1" }}
layer {{ name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2"
  inner_product_param {{ num_output: 3 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc2" bottom: "label" top: "loss" }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "fc2" bottom: "label" top: "accuracy" include {{ phase: TEST }} }}
"""

DEPLOY = """
name: "small"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 1 dim: 6 dim: 6 }} }} }}
{layers}layer {{ name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }}
"""

SOLVER = """
net: "{folder}/net.prototxt"
test_iter: 2
test_interval: 4
base_lr: 0.05
lr_policy: "step"
gamma: 0.5
stepsize: 5
momentum: 0.9
weight_decay: 0.001
display: 2
average_loss: 3
max_iter: 12
snapshot_prefix: "{folder}/snap"
random_seed: 3
"""


def images(count: int, seed: int) -> tuple[list[np.ndarray], list[int]]:
    """Noise with a bright band of rows: at the top, in the middle or at the bottom."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count).tolist()
    faces = []
    for label in labels:
        image = random.integers(0, 90, (8, 8)).astype(np.uint8)
        image[3 * label : 3 * label + 2] += 120
        faces.append(image)
    return faces, labels


def write_problem(folder: Path, batch: int = 5) -> Path:
    """Write train_lmdb (22 images), test_lmdb (12), net.prototxt and solver.prototxt; returns the latter's path."""
    write_database(folder / "train_lmdb", *images(22, seed=0))
    write_database(folder / "test_lmdb", *images(12, seed=1))
    (folder / "net.prototxt").write_text(NET.format(folder=folder, batch=batch))
    (folder / "solver.prototxt").write_text(SOLVER.format(folder=folder))
    return folder / "solver.prototxt"


# how the faces are changed and mixed, and a teacher for what comes of it, as a recipe of `python -m train` has them
CHANGED = """
  random_contrast: 0.2 random_erasing: 0.5 mixup_alpha: 0.2 cutmix_alpha: 1 }
  data_param { shuffle: true classes: 3"""
TAUGHT = """
layer {{ name: "teacher" type: "Teacher" bottom: "data" top: "teacher" include {{ phase: TRAIN }}
  teacher_param {{ net: "{folder}/deploy.prototxt" weights: "{folder}/teacher.caffemodel" temperature: 2 }} }}
layer {{ name: "taught" type: "SoftmaxWithLoss" bottom: "fc2" bottom: "teacher" top: "taught" include {{ phase: TRAIN }}
  loss_weight: 3.6 }}
"""


def write_taught(folder: Path) -> Path:
    """Let the net of `write_problem` learn from mixed images and from a teacher like it, of which deploy.prototxt is
    written and teacher.caffemodel is expected; returns the former's path."""
    net, deploy = folder / "net.prototxt", folder / "deploy.prototxt"
    text = net.read_text()
    layers = text[text.index('layer { name: "conv"') : text.index('layer { name: "loss"')]
    deploy.write_text(DEPLOY.format(layers=layers))
    changed = text.replace(" }\n  data_param {", f"{CHANGED} ", 1)
    assert changed != text
    net.write_text(changed + TAUGHT.format(folder=folder))
    return deploy


def write_project(folder: Path) -> None:
    """Write what `python -m train` needs: the two LMDBs, their mean.binaryproto, and a network's folder `tiny net`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_problem(folder)
    network = folder / "tiny net"
    network.mkdir()
    for name in ("net.prototxt", "solver.prototxt"):
        (folder / name).unlink()
    text = NET.format(folder="/nowhere", batch=5).replace("mean_value: 60 scale: 0.02", 'mean_file: "/nowhere/mean"')
    (network / "train_val.prototxt").write_text(text)
    layers = text[text.index('layer { name: "conv"') : text.index('layer { name: "loss"')]
    (network / "deploy.prototxt").write_text(DEPLOY.format(layers=layers))
    (network / "solver.prototxt").write_text(
        'net: "/nowhere/train_val.prototxt" base_lr: 0.005 lr_policy: "multistep" gamma: 0.1 stepvalue: 20 '
        "stepvalue: 35 max_iter: 40 momentum: 0.9 display: 100 test_iter: 9 test_interval: 10 random_seed: 3 "
        "snapshot: 10"
    )
    faces, _ = images(22, seed=0)
    caffe.io.save_mean(folder / "mean.binaryproto", np.mean(faces, 0, dtype=np.float32)[None])


def write_recipe(project: Path, name: str, changes: str, net: str = "train_val.prototxt") -> None:
    """Write solver_NAME.prototxt: the network's solver with other settings, and the net that it names."""
    text = (project / "tiny net" / "solver.prototxt").read_text()
    solver = text_format.Parse(text, SolverParameter())
    text_format.Merge(changes, solver)
    solver.net = f"/nowhere/{net}"
    (project / "tiny net" / f"solver_{name}.prototxt").write_text(text_format.MessageToString(solver))


def arguments(project: Path, output: str, *more: str, network: str = "tiny net") -> list[str]:
    """The options of `python -m train` for such a project, whose run is in its folder `output`."""
    return [
        str(project / network), "--train", f"{project}/train_lmdb", "--val", f"{project}/test_lmdb",
        "--mean", f"{project}/mean.binaryproto", "--output", f"{project}/{output}", "--device", "cpu", *more,
    ]  # fmt: skip


def train(monkeypatch: pytest.MonkeyPatch, project: Path, output: str, *more: str, network: str = "tiny net") -> int:
    """Run `python -m train` in this process; its exit code."""
    from preprocessing.stage import run_main
    from train.__main__ import main

    monkeypatch.setattr(sys, "argv", ["train", *arguments(project, output, *more, network=network)])
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    return int(caught.value.code or 0)


def blobs(path: Path) -> dict[str, list[np.ndarray]]:
    """The parameters in a .caffemodel by layer, of the layers that have some."""
    message = read_binary(path, NetParameter())
    return {layer.name: [blobproto_to_array(blob) for blob in layer.blobs] for layer in message.layer if layer.blobs}


def stop_after(patch: pytest.MonkeyPatch, iterations: int) -> None:
    """Let trainings ask themselves to stop after so many iterations, as Ctrl-C does."""
    update = caffe.Solver.apply_update

    def update_and_stop(solver: caffe.Solver, display: bool = False) -> None:
        update(solver, display)
        if solver.iter == iterations - 1:
            solver.requested = "stop"

    patch.setattr(caffe.Solver, "apply_update", update_and_stop)
