"""The drawn sample: same seed, same bytes; FER2013's format; faces that the detector finds; expressions that show."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing.datasets import EMOTIONS, is_blank
from preprocessing.extract import extract
from preprocessing.mtcnn import Detector
from preprocessing.sample import draw_face, draw_montage, draw_photo, main, write_sample
from preprocessing.stage import StageError

SHOWN = ("happy", "sad", "surprise")
NUMBER = 14  # faces of each


@pytest.fixture(scope="module", autouse=True)
def one_opencv_thread() -> Iterator[None]:
    """On a busy machine several wait for each other far longer than these small pictures take."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """Faces of the three expressions that landmarks can tell apart: (n, 48, 48) uint8 each."""
    return {
        emotion: np.stack([draw_face(emotion, np.random.default_rng([1, i])) for i in range(NUMBER)])
        for emotion in SHOWN
    }


@pytest.fixture(scope="module")
def landmarks(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the faces that MTCNN finds: (n, 5, 2) by emotion."""
    detector = Detector("cpu")
    return {
        emotion: np.array([found[0].landmarks for found in detector.detect_batch(list(images)) if found])
        for emotion, images in drawn.items()
    }


def test_the_detector_finds_most_faces_where_they_are(landmarks: dict[str, np.ndarray]) -> None:
    points = np.concatenate(list(landmarks.values()))
    assert len(points) >= 0.7 * NUMBER * len(SHOWN)
    left_eye, right_eye, nose, mouth_left, mouth_right = np.median(points, 0)
    assert left_eye[0] < nose[0] < right_eye[0]
    assert mouth_left[0] < nose[0] < mouth_right[0]
    assert left_eye[1] < nose[1] < mouth_left[1]
    assert right_eye[1] < nose[1] < mouth_right[1]
    assert 11 < right_eye[0] - left_eye[0] < 20


def test_mouths_say_which_expression_it_is(landmarks: dict[str, np.ndarray]) -> None:
    """By the detector, which knows nothing of how the faces were drawn: the mouth's width and place below the eyes."""

    def median(emotion: str, value: np.ndarray) -> float:
        eyes = landmarks[emotion][:, :2].mean(1)
        distance = np.linalg.norm(landmarks[emotion][:, 1] - landmarks[emotion][:, 0], axis=1)
        corners = landmarks[emotion][:, 3:]
        height = np.linalg.norm(corners.mean(1) - eyes, axis=1) / distance
        width = np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1) / distance
        return float(np.median({"height": height, "width": width}[value]))

    assert median("happy", "height") < median("sad", "height")
    assert median("happy", "width") > median("surprise", "width")


def test_faces_differ_and_fill_the_range_of_grey_levels(drawn: dict[str, np.ndarray]) -> None:
    images = np.concatenate(list(drawn.values()))
    assert images.shape == (NUMBER * 3, 48, 48)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == len(images)
    assert not is_blank(images).any()
    assert images.std((1, 2)).min() > 15
    assert 60 < images.mean() < 190


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_the_same_state_draws_the_same_face_and_another_state_another(emotion: str) -> None:
    first, again, other = (draw_face(emotion, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_emotions_differ_for_one_person() -> None:
    images = {draw_face(emotion, np.random.default_rng(5)).tobytes() for emotion in EMOTIONS}
    assert len(images) == len(EMOTIONS)


def test_a_face_of_any_size_and_a_photo() -> None:
    assert draw_face("happy", np.random.default_rng(0), 100).shape == (100, 100)
    photo = draw_photo("neutral", np.random.default_rng(1), 320, 240, 130, (110, 120))
    assert photo.shape == (240, 320)
    found = Detector("cpu").detect(photo)
    assert len(found) == 1
    x, y, width, height = found[0].box
    assert x < 110 < x + width
    assert y < 120 < y + height
    assert 90 < width < 170


def test_an_unknown_emotion_is_refused() -> None:
    with pytest.raises(ValueError, match="emotion is 'bored'; expected one of angry"):
        draw_face("bored", np.random.default_rng(0))


def test_the_csv_has_the_same_bytes_for_the_same_seed_whatever_the_workers(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.csv", seed=3, count=70, workers=1)
    write_sample(tmp_path / "b.csv", seed=3, count=70, workers=2)
    write_sample(tmp_path / "c.csv", seed=4, count=70, workers=2)
    digests = [hashlib.sha256((tmp_path / f"{name}.csv").read_bytes()).hexdigest() for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    with open(tmp_path / "a.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["emotion", "pixels", "Usage"]
    assert Counter(row["Usage"] for row in rows) == {"Training": 56, "PublicTest": 7, "PrivateTest": 7}
    assert Counter((row["Usage"], row["emotion"]) for row in rows) == {
        (split, str(label)): number
        for split, number in (("Training", 8), ("PublicTest", 1), ("PrivateTest", 1))
        for label in range(7)
    }
    manifest = json.loads((tmp_path / "a.manifest.json").read_text())
    assert manifest["settings"] == {"seed": 3, "count": 70}
    counts = extract(tmp_path / "a.csv", tmp_path / "images")
    assert (counts["written"], counts["rejected"], counts["blank"]) == (70, 0, 0)
    assert counts["faces"] == manifest["counts"]["faces"]


@pytest.mark.parametrize(("option", "value"), [("count", 69), ("seed", -1), ("workers", 0)])
def test_arguments_out_of_range_are_refused(tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(StageError, match=f"--{option} is {value}; expected"):
        write_sample(tmp_path / "a.csv", **{option: value})
    assert not any(tmp_path.iterdir())


def test_the_montages_name_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "a.csv"), "--count", "70", "--workers", "1", "--montage"]
    monkeypatch.setattr("sys.argv", ["sample", *arguments, str(tmp_path / "a.txt")])
    with pytest.raises(SystemExit):
        main()
    assert "a.txt'; expected a name that ends in .png" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_montage_has_a_row_for_each_emotion() -> None:
    image = draw_montage(0, columns=1, zoom=1)
    assert image.shape[0] == 7 * 50 + 2
    assert image.dtype == np.uint8
