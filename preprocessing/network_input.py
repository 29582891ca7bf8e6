"""From aligned faces to a net's probabilities: the one place where a face is cropped and the mean subtracted.

The evaluation and the recogniser both use it, and it does what Caffe's Data layer does in the TEST phase.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import torch

import caffe
from preprocessing.datasets import EMOTIONS
from preprocessing.stage import StageError

StrPath = str | PathLike[str]
BATCH = 256  # faces that go through the net at a time


def faces_to_input(faces: np.ndarray, mean: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The net's input: the centre of each face, minus the centre of the mean.

    Parameters
    ----------
    faces: N×H×W or N×C×H×W, grey levels 0..255.
    mean: C×H×W, 0..255, the training set's.
    size: height and width of the net's input, at most H and W.

    Returns
    -------
    float32, N×C×height×width, -255..255. Where H - height is odd, the smaller margin is at the top, as in Caffe.

    Raises
    ------
    ValueError: the faces and the mean differ in size, or are smaller than the input.
    """
    faces = faces[:, None] if faces.ndim == 3 else faces
    if faces.ndim != 4 or faces.shape[1:] != mean.shape:
        raise ValueError(f"faces are {_times(faces.shape[1:])}; the mean is {_times(mean.shape)}")
    (height, width), (full_height, full_width) = size, mean.shape[1:]
    if height > full_height or width > full_width:
        raise ValueError(f"the net's input is {height}×{width}; the faces are {full_height}×{full_width}")
    top, left = (full_height - height) // 2, (full_width - width) // 2
    window = (..., slice(top, top + height), slice(left, left + width))
    return faces[window].astype(np.float32) - mean[window].astype(np.float32)


def class_names(count: int) -> tuple[str, ...]:
    """The emotions where there are as many classes, else `class_0`, `class_1`, …"""
    return EMOTIONS if count == len(EMOTIONS) else tuple(f"class_{i}" for i in range(count))


class FaceNetwork:
    """A trained net with its mean: aligned faces in, probabilities out.

    Parameters
    ----------
    deploy: the net's deploy.prototxt, with one input and one output, a Softmax.
    weights: its .caffemodel.
    mean: the training set's mean.binaryproto; its size is the size of the faces that go in.
    device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Attributes: `classes`, the names of the outputs; `face_shape`, C, H and W of the faces that go in.

    Raises
    ------
    StageError: a file is missing or is not what it should be, or the three do not fit each other.
    """

    def __init__(self, deploy: StrPath, weights: StrPath, mean: StrPath, device: str = "auto") -> None:
        for what, path in (("net", deploy), ("weights", weights), ("mean", mean)):
            if not Path(path).is_file():
                raise StageError(f"{path}: no such file; expected the {what} of a trained model")
        self.deploy, self.weights = str(deploy), str(weights)
        try:
            self.mean = caffe.io.load_mean(mean)
            caffe.use_device(device)
            self._net = caffe.Net(self.deploy, self.weights, caffe.TEST)
        except caffe.CaffeError as error:
            raise StageError(str(error)) from error
        if len(self._net.inputs) != 1 or len(self._net.outputs) != 1:
            raise StageError(
                f"{deploy}: has the inputs {self._net.inputs} and the outputs {self._net.outputs}; expected one of each"
            )
        self._input, self._output = self._net.inputs[0], self._net.outputs[0]
        shape = tuple(self._net.blobs[self._input].shape)
        if len(shape) != 4 or shape[1] != self.mean.shape[0]:
            raise StageError(
                f"{deploy}: its input is {_times(shape)}; expected N×{self.mean.shape[0]}×H×W, as the mean"
            )
        self.input_size = (shape[2], shape[3])
        if any(side > whole for side, whole in zip(self.input_size, self.mean.shape[1:], strict=True)):
            raise StageError(
                f"{deploy}: its input is {_times(shape)}; the mean {mean} is only {_times(self.mean.shape)}"
            )
        self.face_shape: tuple[int, int, int] = (self.mean.shape[0], self.mean.shape[1], self.mean.shape[2])
        self.classes = class_names(self._net.blobs[self._output].shape[1])

    def probabilities(self, faces: np.ndarray, mirror: bool = False) -> np.ndarray:
        """The probability of each class for each face.

        Parameters
        ----------
        faces: N×H×W (grey) or N×C×H×W, 0..255, of the mean's size.
        mirror: average with the probabilities of the mirrored input.

        Returns
        -------
        float64, N×classes; rows sum to 1.

        Raises
        ------
        ValueError: the faces are not of the mean's size. StageError: the net's output is no probabilities.
        """
        parts = [np.empty((0, len(self.classes)))]
        for start in range(0, len(faces), BATCH):
            inputs = faces_to_input(faces[start : start + BATCH], self.mean, self.input_size)
            result = self._run(inputs)
            if mirror:  # the input as training mirrors it: with the mean subtracted
                result = (result + self._run(inputs[..., ::-1])) / 2
            parts.append(result)
        return np.concatenate(parts)

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(inputs)).to(self._net.device)
        output = self._net.infer(**{self._input: tensor})[self._output]
        result = output.reshape(len(inputs), -1).cpu().numpy().astype(np.float64)
        total = result.sum(axis=1, keepdims=True)
        if result.shape[1] != len(self.classes) or not (np.abs(total - 1) < 1e-3).all() or result.min() < 0:
            raise StageError(
                f"{self.deploy}: the output {self._output!r} is not {len(self.classes)} probabilities that sum to 1; "
                f"expected a deploy net that ends in Softmax, and whole weights in {self.weights}"
            )
        return result / total


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape)
