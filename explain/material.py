"""What the report on a trained net is made of: the net, its run's files, and its answers to the faces of databases."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe.io import DatumReader
from explain.features import find_faces
from predict import Recognizer
from preprocessing.network_input import FaceNetwork, read_temperatures
from preprocessing.stage import StageError
from train.ensemble import trained_files
from train.evaluate import VIEW_NAMES, Evaluation, confusion_matrix, database_classes, read_database


@dataclass
class Answered:
    """A database that the net has answered.

    Attributes
    ----------
    evaluation: labels, answers by one of the views, and counts.
    images: the faces, N×C×H×W, uint8, in the order of the labels.
    names: the files that they were made of, as the keys of the records name them.
    """

    evaluation: Evaluation
    images: np.ndarray
    names: list[str]

    @property
    def predicted(self) -> np.ndarray:
        """The answers' classes (N)."""
        return self.evaluation.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """The answers' probabilities (N)."""
        return self.evaluation.probabilities.max(axis=1)


@dataclass
class Material:
    """What the page is made of.

    Attributes
    ----------
    folder: the run's, or the shipped net's.
    network: the net, not calibrated.
    view: by what the faces were seen: the first views of evaluation.json, else `centre`.
    tested: the databases, by name.
    main: the one that the figures are of, `test` or the last.
    face, face_name: the one whose feature maps are drawn, C×H×W.
    settings, manifest, recorded: what settings.json, manifest.json and evaluation.json hold; empty where there is none.
    temperature: by which the logits are divided for calibration, and where it is from; None where none was chosen.
    """

    folder: Path
    network: FaceNetwork
    view: str
    tested: dict[str, Answered]
    main: str
    face: np.ndarray
    face_name: str
    settings: dict[str, Any]
    manifest: dict[str, Any]
    recorded: dict[str, Any]
    temperature: tuple[float, str] | None

    @property
    def test(self) -> Answered:
        """The database that the figures are of."""
        return self.tested[self.main]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the net's classes."""
        return self.network.classes


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file. Raises StageError for what is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise StageError(f"{path}: {type(value).__name__}; expected a JSON object")
    return value


def record_names(sources: Sequence[Path], network: FaceNetwork) -> list[str]:
    """The files that the records were made of, in the order in which `train.evaluate` reads them: their keys without
    the number in front. Records of classes that the net lacks are left out, as there."""
    names = []
    for path in sources:
        reader = DatumReader(path)
        read = reader.read_all()
        labels = np.zeros(len(reader), np.int64) if read is None else read[1]
        classes = database_classes(path, labels, network.classes)
        for key, label in zip(reader.keys(), labels, strict=True):
            if classes[label] in network.classes:
                text = key.decode("utf-8", "replace")
                number, _, name = text.partition("_")
                names.append(name if name and number.isdigit() else text)
    return names


def answer(network: FaceNetwork, name: str, sources: Sequence[Path], view: str) -> Answered:
    """Read some databases as one and let the net answer each face once. Raises StageError as `train.evaluate` does."""
    parts = [read_database(path, network) for path in sources]
    images, labels = (np.concatenate([getattr(part, what) for part in parts]) for what in ("images", "labels"))
    if not len(labels):
        raise StageError(f"{', '.join(map(str, sources))}: no face of a class of the net; expected at least one")
    foreign = sum((Counter(part.foreign) for part in parts), Counter[str]())
    answers = network.probabilities(images, view)
    confusion = confusion_matrix(labels, answers.argmax(axis=1), len(network.classes))
    source = ", ".join(map(str, sources))
    evaluation = Evaluation(name, source, network.classes, {view: confusion}, {}, labels, {view: answers})
    evaluation.foreign = dict(foreign)
    return Answered(evaluation, images, record_names(sources, network))


def find_face(path: Path, network: FaceNetwork, face: str, device: str) -> np.ndarray:
    """The surest face of a photo, C×H×W, as the net sees it. Raises StageError where there is none, or no image."""
    (files,) = network.files
    recognizer = Recognizer(files["deploy"], files["weights"], files["mean"], face, device)
    return find_faces(recognizer, path)[0].pixels.reshape(network.face_shape)


def median_face(confidence: np.ndarray, of: np.ndarray) -> int:
    """The number of the face of median confidence among those that `of` (booleans) marks; the lower one of two."""
    numbers = np.flatnonzero(of)
    return int(numbers[np.argsort(confidence[numbers], kind="stable")[(len(numbers) - 1) // 2]])


def choose_face(test: Answered) -> int:
    """The face that stands for the database: that of median confidence among the right answers, if there are any."""
    right = test.predicted == test.evaluation.labels
    return median_face(test.confidence, right if right.any() else np.ones_like(right))


def read_temperature(weights: Path, view: str, recorded: dict[str, Any]) -> tuple[float, str] | None:
    """The temperature that evaluation.json or calibration.json names for these views, and the file's name."""
    if view == "centre" and "calibration" in recorded:
        temperature = float(recorded["calibration"]["temperature"])
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}, not above 0")
        return temperature, "evaluation.json"
    temperatures = read_temperatures(weights)
    return (temperatures[view], "calibration.json") if view in temperatures else None


def gather(
    net: Path,
    databases: dict[str, list[Path]],
    evaluation: Path | None = None,
    image_file: Path | None = None,
    face: str = "detect",
    device: str = "auto",
) -> Material:
    """Read all that the page is made of, and let the net answer. Arguments and errors as of `report.write_report`."""
    if net.suffix == ".caffemodel":
        folder, weights = net.parent, net
        deploy, mean = folder / "deploy.prototxt", folder / "mean.binaryproto"
    else:
        folder, (deploy, weights, mean) = net, trained_files(net)
    network = FaceNetwork(deploy, weights, mean, device, calibrated=False)
    if evaluation is not None and not evaluation.is_file():
        raise StageError(f"{evaluation}: no such file; expected the evaluation.json that `train.evaluate` wrote")
    recorded_in = evaluation or folder / "evaluation/evaluation.json"
    recorded = read_json(recorded_in)
    try:
        of_databases = recorded.get("databases", {}).values()
        view = next((next(iter(entry["views"])) for entry in of_databases), "centre")
        temperature = read_temperature(weights, view, recorded)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise StageError(f"{recorded_in}: {error!r}; expected what `python -m train.evaluate` writes") from error
    if view not in VIEW_NAMES:
        raise StageError(f"{recorded_in}: has the views {view!r}; expected some of {', '.join(VIEW_NAMES)}")
    tested = {name: answer(network, name, sources, view) for name, sources in databases.items()}
    main = "test" if "test" in tested else list(tested)[-1]
    if image_file is None:
        chosen = choose_face(tested[main])
        pixels, face_name = tested[main].images[chosen], tested[main].names[chosen]
    else:
        pixels, face_name = find_face(image_file, network, face, device), image_file.name
    settings, manifest = read_json(folder / "settings.json"), read_json(folder / "manifest.json")
    lacking = {"settings", "counts", "seconds", "inputs", "versions"} - set(manifest)
    if manifest and (manifest.get("stage") != "train" or lacking):
        raise StageError(f"{folder / 'manifest.json'}: not what `python -m train` writes (lacks {sorted(lacking)})")
    return Material(
        folder, network, view, tested, main, pixels, face_name, settings, manifest, recorded, temperature
    )  # fmt: skip
