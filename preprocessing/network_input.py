"""From aligned faces to a net's probabilities: the one place where a face is cropped and the mean subtracted.

The evaluation and the recogniser both use it, and it does what Caffe's Data layer does in the TEST phase.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

import caffe
from caffe.files import StrPath
from preprocessing.classes import CLASSES_FILE, default_classes, read_classes
from preprocessing.stage import StageError, sha256

BATCH = 256  # faces that go through the net at a time
CALIBRATION = "calibration.json"

CORNERS = ("top left", "top right", "bottom left", "bottom right")
# what a face is seen by when testing: crops, each with whether it is mirrored; their probabilities are averaged
VIEWS: dict[str, tuple[tuple[str, bool], ...]] = {
    "centre": (("centre", False),),
    "mirror": (("centre", False), ("centre", True)),
    "ten_crop": tuple((crop, mirrored) for crop in ("centre", *CORNERS) for mirrored in (False, True)),
}


def faces_to_input(
    faces: np.ndarray, mean: np.ndarray, size: tuple[int, int], crop: str = "centre", mirrored: bool = False
) -> np.ndarray:
    """The net's input: a crop of each face, minus the same crop of the mean.

    Parameters
    ----------
    faces: N×H×W or N×C×H×W, grey levels 0..255.
    mean: C×H×W, 0..255, the training set's.
    size: height and width of the net's input, at most H and W.
    crop: `centre` (default), `top left`, `top right`, `bottom left` or `bottom right`.
    mirrored: left and right are exchanged after the mean is subtracted, as training does it.

    Returns
    -------
    float32, N×C×height×width, -255..255. Where H - height is odd, the centre's smaller margin is at the top, as in
    Caffe.

    Raises
    ------
    ValueError: the faces and the mean differ in size, or are smaller than the input.
    """
    faces = faces[:, None] if faces.ndim == 3 else faces
    if faces.shape[1:] != mean.shape:
        raise ValueError(f"faces are {_times(faces.shape[1:])}; the mean is {_times(mean.shape)}")
    (height, width), (full_height, full_width) = size, mean.shape[1:]
    if height > full_height or width > full_width:
        raise ValueError(f"the net's input is {height}×{width}; the faces are {full_height}×{full_width}")
    below, right = full_height - height, full_width - width
    places = {"centre": (below // 2, right // 2)}
    places |= dict(zip(CORNERS, ((0, 0), (0, right), (below, 0), (below, right)), strict=True))
    top, left = places[crop]
    window = (..., slice(top, top + height), slice(left, left + width))
    inputs = faces[window].astype(np.float32) - mean[window].astype(np.float32)
    return inputs[..., ::-1] if mirrored else inputs


def soften(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities of the logits divided by a temperature (Guo et al. 2017): above 1 they are less sure.

    probabilities: N×classes, rows of sum 1; their logarithms are the logits but for a constant of each row.
    temperature: above 0; 1 changes nothing.
    Returns float64, N×classes, rows of sum 1; the order of the classes in a row stays.
    """
    scores = log_probabilities(probabilities) / temperature
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Natural logarithms, float64; 0, which a softmax in float32 may give, counts as the smallest float32."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny, dtype=np.float64))


class Classifier(Protocol):
    """What can be evaluated: a FaceNetwork, or several together.

    `face_shape`: C, H and W of the faces that go in, None for any. `classes`: the names of the outputs. `name`: for
    titles.
    `files`: for each net the paths of its `deploy`, `weights` and `mean`.
    """

    name: str
    files: list[dict[str, str]]
    classes: tuple[str, ...]

    @property
    def face_shape(self) -> tuple[int, int, int] | None: ...


class FaceNetwork:
    """A trained net with its mean: aligned faces in, probabilities out.

    Parameters
    ----------
    deploy: the net's deploy.prototxt, with one input and one output, a Softmax.
    weights: its .caffemodel.
    mean: the training set's mean.binaryproto; its size is the size of the faces that go in.
    device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.
    calibrated: divide the logits, of the probabilities averaged over a face's views, by the temperature for these views
        in the calibration.json that `train.evaluate` wrote beside the weights, if one is there and names these weights
        (their SHA-256): then 0.8 means right in 80% of such faces. The answer is the same. False leaves the
        probabilities as the net gives them.

    Attributes
    ----------
    net: the net itself, to look into; its input is what `input_tensor` gives.
    name: the weights' file name without its ending.
    files: the paths of its `deploy`, `weights` and `mean`, in a list of one.
    classes: the names of the outputs, from the classes.txt beside the weights if one is there.
    face_shape: C, H and W of the faces that go in.
    temperatures: by views; none where the probabilities are the net's own.

    Raises
    ------
    StageError: a file is missing or is not what it should be, or the three do not fit each other.
    """

    def __init__(
        self, deploy: StrPath, weights: StrPath, mean: StrPath, device: str = "auto", calibrated: bool = True
    ) -> None:
        for what, path in (("net", deploy), ("weights", weights), ("mean", mean)):
            if not Path(path).is_file():
                raise StageError(f"{path}: no such file; expected the {what} of a trained model")
        self.deploy, self.weights = str(deploy), str(weights)
        self.name = Path(weights).stem
        self.files = [{"deploy": self.deploy, "weights": self.weights, "mean": str(mean)}]
        self.temperatures = read_temperatures(Path(weights)) if calibrated else {}
        try:
            self.mean = caffe.io.load_mean(mean)
            caffe.use_device(device)
            self.net = caffe.Net(self.deploy, self.weights, caffe.TEST)
        except caffe.CaffeError as error:
            raise StageError(str(error)) from error
        if len(self.net.inputs) != 1 or len(self.net.outputs) != 1:
            raise StageError(
                f"{deploy}: has the inputs {self.net.inputs} and the outputs {self.net.outputs}; expected one of each"
            )
        self._input, self._output = self.net.inputs[0], self.net.outputs[0]
        shape = tuple(self.net.blobs[self._input].shape)
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
        output_shape = tuple(self.net.blobs[self._output].shape)
        if len(output_shape) < 2:
            raise StageError(f"{deploy}: its output is {_times(output_shape) or 'one number'}; expected N×classes")
        outputs = output_shape[1]
        self.classes = read_classes(Path(weights).parent) or default_classes(outputs)
        if len(self.classes) != outputs:
            raise StageError(
                f"{Path(weights).parent / CLASSES_FILE}: {len(self.classes)} names; expected {outputs}, the outputs of "
                f"{deploy}"
            )

    def input_tensor(self, face: np.ndarray) -> torch.Tensor:
        """One face (H×W or C×H×W, 0..255, of the mean's size) as the net sees it: 1×C×height×width, its centre crop.

        Raises ValueError where the face is not of the mean's size.
        """
        inputs = faces_to_input(face[None], self.mean, self.input_size)
        return torch.from_numpy(inputs).to(self.net.device)

    def probabilities(self, faces: np.ndarray, views: str = "centre") -> np.ndarray:
        """The probability of each class for each face.

        Parameters
        ----------
        faces: N×H×W (grey) or N×C×H×W, 0..255, of the mean's size.
        views: `centre` (1), `mirror` (the centre and its mirror image: 2) or `ten_crop` (the centre and the four
            corners, each also mirrored: 10); the probabilities of all views are averaged.

        Returns
        -------
        float64, N×classes; rows sum to 1.

        Raises
        ------
        ValueError: the faces are not of the mean's size, or `views` is none of these.
        StageError: the net's output is no probabilities.
        """
        check_views([views])
        parts = [np.empty((0, len(self.classes)))]
        step = max(BATCH // len(VIEWS[views]), 1)  # all views of some faces go through the net together
        for start in range(0, len(faces), step):
            batch = faces[start : start + step]
            inputs = [faces_to_input(batch, self.mean, self.input_size, *view) for view in VIEWS[views]]
            answers = self._run(np.concatenate(inputs))
            parts.append(answers.reshape(len(inputs), len(batch), -1).mean(axis=0))
        result = np.concatenate(parts)
        temperature = self.temperatures.get(views, 1.0)
        return result if temperature == 1 else soften(result, temperature)

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(inputs)).to(self.net.device)
        output = self.net.infer(**{self._input: tensor})[self._output]
        result = output.reshape(len(inputs), -1).cpu().numpy().astype(np.float64)
        total = result.sum(axis=1, keepdims=True)
        if result.shape[1] != len(self.classes) or not (np.abs(total - 1) < 1e-3).all() or result.min() < 0:
            raise StageError(
                f"{self.deploy}: the output {self._output!r} is not {len(self.classes)} probabilities that sum to 1; "
                f"expected a deploy net that ends in Softmax, and whole weights in {self.weights}"
            )
        return result / total


def check_views(views: Sequence[str]) -> None:
    """Raise ValueError for a name that is not in VIEWS."""
    for name in views:
        if name not in VIEWS:
            raise ValueError(f"views is {name!r}; expected one of {', '.join(VIEWS)}")


def read_temperatures(weights: Path) -> dict[str, float]:
    """The temperature for each views in the calibration.json beside the weights; none where it is for other weights.

    Raises StageError for a file that is not what `train.evaluate` writes.
    """
    path = weights.parent / CALIBRATION
    if not path.is_file():
        return {}
    expected = "expected what `python -m train.evaluate --calibrate-on` writes"
    try:
        calibration = json.loads(path.read_text())
        temperatures, of = dict(calibration["temperatures"]), calibration["weights_sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise StageError(f"{path}: {type(error).__name__}: {error}; {expected}") from error
    for views, temperature in temperatures.items():
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < 1e6:
            raise StageError(f"{path}: the temperature for {views} is {temperature!r}; expected a number above 0")
    return temperatures if of == sha256(weights) else {}


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape)
