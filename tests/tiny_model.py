"""A net small enough to work out by hand: a face's class is the brightest of the seven bands of six columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import caffe
from caffe.io import array_to_datum, save_mean

DEPLOY = """
name: "bands"
layer {{ name: "data" type: "Input" top: "data"
  input_param {{ shape {{ dim: 1 dim: {channels} dim: {size} dim: {size} }} }} }}
layer {{
  name: "score" type: "InnerProduct" bottom: "data" top: "score" inner_product_param {{ num_output: {classes} }}
}}
{softmax}
"""
SOFTMAX = 'layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }'


def make_model(
    folder: Path,
    classes: int = 7,
    mean: float = 10.0,
    size: int = 42,
    softmax: bool = True,
    name: str = "bands",
    channels: int = 1,
) -> tuple[Path, Path, Path]:
    """Write deploy.prototxt, NAME.caffemodel and mean.binaryproto (a constant) to `folder` and return their paths.

    The score of class k is the sum of band k (columns 6k to 6k + 5 of the net's input) divided by 6 · 42 · 25, so
    that a band of grey level v on black scores v / 25 above the others; with several channels, the mean of theirs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "deploy.prototxt", folder / f"{name}.caffemodel", folder / "mean.binaryproto"
    paths[0].write_text(
        DEPLOY.format(classes=classes, channels=channels, size=size, softmax=SOFTMAX if softmax else "")
    )
    net = caffe.Net(str(paths[0]), caffe.TEST)
    weights = np.zeros((classes, size, size), np.float32)
    for k in range(classes):
        weights[k, :, 6 * k : 6 * k + 6] = 1 / (6 * 42 * 25)
    net.params["score"][0].data[...] = np.tile(weights.reshape(classes, -1), channels) / channels
    net.params["score"][1].data[...] = 0
    net.save(str(paths[1]))
    save_mean(paths[2], np.full((channels, 48, 48), mean, np.float32))
    return paths


def band_face(k: int, level: int = 200) -> np.ndarray:
    """A face (uint8, 48×48) whose band k of the centre 42 columns has that grey level, the rest black."""
    face = np.zeros((48, 48), np.uint8)
    face[:, 3 + 6 * k : 9 + 6 * k] = level
    return face


def band_probabilities(levels: list[float]) -> np.ndarray:
    """What the net answers to bands of those grey levels: worked out from the formula, not by the net."""
    powers = np.exp(np.array(levels) / 25)
    return powers / powers.sum()


def write_database(path: Path, faces: list[np.ndarray], labels: list[int]) -> Path:
    """An LMDB of those faces (H×W or C×H×W), written record by record with the lmdb package alone."""
    import lmdb

    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as transaction:
        for i, (face, label) in enumerate(zip(faces, labels, strict=True)):
            datum = array_to_datum(face[None] if face.ndim == 2 else face, label)
            transaction.put(f"{i:08d}".encode(), datum.SerializeToString())
    return path
