"""What must hold after `make data train plot evaluate DATASET=fer2013 EPOCHS=2` and `make mean ALIGN=both` on the real
data set.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe.io import DatumReader, load_mean
from predict.recognizer import model_files
from preprocessing.network_input import FaceNetwork

DATA = Path("data/fer2013")
SPLITS = {"Training": ("train_lmdb", 28_709), "PublicTest": ("val_lmdb", 3_589), "PrivateTest": ("test_lmdb", 3_589)}
PER_EMOTION = [3995, 436, 4097, 7215, 4830, 3171, 4965]  # of the training split, as the data set's authors count it


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_every_row_became_an_image() -> None:
    for split, (_, count) in SPLITS.items():
        assert len(list((DATA / "images" / split).glob("*/*.png"))) == count
        assert len(list((DATA / "aligned" / split).glob("*/*.png"))) == count
    folders = sorted((DATA / "images" / "Training").iterdir())
    assert [len(list(folder.glob("*.png"))) for folder in folders] == PER_EMOTION
    assert manifest(DATA / "images")["counts"]["blank"] == 13


def test_images_are_the_rows() -> None:
    """Sampled rows of the CSV, parsed by the csv module, against the PNGs."""
    csv.field_size_limit(1 << 20)
    numbers = set(range(0, 35_887, 997))
    with open("data/fer2013.csv", newline="") as f:
        for number, row in enumerate(csv.DictReader(f)):
            if number in numbers:
                (path,) = (DATA / "images" / row["Usage"]).glob(f"*/{number:05d}.png")
                assert path.parent.name.startswith(row["emotion"])
                pixels = np.array(row["pixels"].split(), np.uint8).reshape(48, 48)
                np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), pixels)


@pytest.mark.parametrize("split", SPLITS)
def test_lmdb_of_both_has_the_faces_aligned_and_as_they_are(split: str) -> None:
    name, count = SPLITS[split]
    reader, aligned = (DatumReader(folder / "lmdb" / name) for folder in (DATA / "both", DATA))
    keys, (images, _) = reader.keys(), reader.read_all()
    assert keys == aligned.keys()
    np.testing.assert_array_equal(images[:, :1], aligned.read_all()[0])
    for i in range(0, count, 7):
        path = DATA / "images" / keys[i].decode().split("_", 1)[1]
        np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), images[i, 1])


@pytest.mark.parametrize("split", SPLITS)
def test_lmdb_agrees_with_the_aligned_images(split: str) -> None:
    name, count = SPLITS[split]
    reader = DatumReader(DATA / "lmdb" / name)
    keys = reader.keys()
    images, labels = reader.read_all()
    assert len(keys) == len(set(keys)) == count
    for i in range(0, count, 7):
        path = DATA / "aligned" / keys[i].decode().split("_", 1)[1]
        assert path.is_relative_to(DATA / "aligned" / split)
        assert int(path.parent.name[0]) == labels[i]
        np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), images[i, 0])
    if split == "Training":
        mean = images.mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(load_mean(DATA / "mean.binaryproto"), mean, atol=1e-3)


def test_the_detector_finds_most_faces() -> None:
    with open(DATA / "aligned" / "faces.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 35_887
    assert 0.96 < np.mean([row["x"] != "" for row in rows]) < 0.98  # at the first look, and by the mtcnn package, 84%


# the rows of nets that ship in the table of the README: network, parameters, alignment, epochs, PublicTest, PrivateTest
SHIPPED = [
    (cells[1].split()[0].strip("*"), float(cells[6].strip(" *%")) / 100)
    for cells in (row.split("|") for row in Path("README.md").read_text("utf-8").splitlines())
    if len(cells) > 6 and "(ships" in cells[1]
]


@pytest.mark.parametrize(("name", "accuracy"), SHIPPED)
def test_what_ships_is_as_accurate_as_the_readme_says(name: str, accuracy: float) -> None:
    """On PrivateTest by the centre crop; another processor rounds, and aligns a few faces, a little differently."""
    network = FaceNetwork(*model_files(name), device="cpu")
    folder = DATA / "both" if network.face_shape[0] == 2 else DATA
    images, labels = DatumReader(folder / "lmdb" / "test_lmdb").read_all()
    assert (network.probabilities(images).argmax(axis=1) == labels).mean() == pytest.approx(accuracy, abs=0.004)


def test_two_epochs_learn() -> None:
    run = DATA / "runs" / "face_emotion_net"
    result = json.loads((run / "evaluation" / "evaluation.json").read_text())
    accuracies = [database["accuracy"] for database in result["databases"].values()]
    assert len(accuracies) == 2
    assert min(accuracies) > 0.40
    for name, database in result["databases"].items():
        assert list(database["views"]) == ["centre", "mirror", "ten_crop"], name
        assert {view["images"] for view in database["views"].values()} == {3_589}
    calibration = result["databases"]["val"]["calibration"]
    assert calibration["nll_calibrated"] <= calibration["nll"]
    assert (
        json.loads((run / "calibration.json").read_text())["temperatures"]["centre"]
        == result["calibration"]["temperature"]
    )
    assert (run / "loss.png").stat().st_size > 10_000
