"""The align stage: its tree, its table, its contact sheet, and what it does with bad input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from trees import make_folders

from preprocessing.align import COLUMNS, align, main_face, read_grey
from preprocessing.alignment import align_face
from preprocessing.datasets import list_faces, tree_classes
from preprocessing.mtcnn import Detector, Face
from preprocessing.stage import StageError

ROOT = Path(__file__).resolve().parents[2]
FACES = {  # file: the square of the photo that it shows (x, y, side), and its side in pixels
    "Training/0_angry/00000.png": (140, 30, 160, 48),
    "Training/3_happy/00001.png": (150, 40, 150, 48),
    "Training/3_happy/00003.png": (120, 20, 200, 150),
    "PublicTest/6_neutral/00004.png": (140, 40, 160, 48),
    "PrivateTest/1_disgust/00005.png": (130, 30, 170, 48),
}
LANDMARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
FACELESS = ("Training/5_surprise/00002.png", "PrivateTest/4_sad/100006.png")


@pytest.fixture
def images(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """A small tree: the photo's face in several sizes, a blank image and one of noise; a path with spaces."""
    folder = make_folders(tmp_path / "my data" / "images")
    pictures = {
        file: cv2.resize(astronaut[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
        for file, (x, y, side, size) in FACES.items()
    }
    pictures[FACELESS[0]] = np.zeros((48, 48), np.uint8)
    pictures[FACELESS[1]] = np.random.default_rng(0).integers(0, 256, (60, 50)).astype(np.uint8)
    for file, picture in pictures.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        grey = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        assert cv2.imwrite(str(folder / file), grey)
    (folder / "manifest.json").write_text("{}\n")
    return folder


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image


def read_table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "faces.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_the_tree_the_table_and_the_manifest(images: Path) -> None:
    folder = images.parent / "aligned"
    counts = align(images, folder, device="cpu", workers=2, batch=2)
    files = {path.relative_to(folder).as_posix() for path in folder.glob("*/*/*")}
    assert files == set(FACES) | set(FACELESS)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"faces.csv", "align.png", "manifest.json"}
    assert len(list(folder.glob("*/*"))) == 3 * 7

    table = read_table(folder)
    assert tuple(table[0]) == COLUMNS
    assert {row["file"] for row in table} == files
    detector = Detector("cpu")
    for row in table:
        original, aligned = read(images / row["file"]), read(folder / row["file"])
        assert aligned.shape == (48, 48)
        assert aligned.dtype == np.uint8
        if row["file"] in FACELESS:
            assert set(row.values()) == {row["file"], ""}
            np.testing.assert_array_equal(aligned, align_face(original, None))
            continue
        (face,) = detector.detect(original)
        np.testing.assert_allclose([float(row[name]) for name in ("x", "y", "width", "height")], face.box, atol=2e-3)
        points = [[float(row[f"{name}_{axis}"]) for axis in "xy"] for name in LANDMARKS]
        np.testing.assert_allclose(points, face.landmarks, atol=2e-3)
        assert float(row["confidence"]) == pytest.approx(face.confidence, abs=1e-4)
        assert np.abs(aligned.astype(int) - align_face(original, face.landmarks)).max() <= 2

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == counts
    assert [Path(entry["file"]) for entry in manifest["inputs"]] == [images / "manifest.json"]
    assert counts == {
        "read": 7,
        "found": 5,
        "not_found": 2,
        "several_faces": 0,
        "splits": {
            "Training": {"read": 4, "found": 3, "not_found": 1},
            "PublicTest": {"read": 1, "found": 1, "not_found": 0},
            "PrivateTest": {"read": 2, "found": 1, "not_found": 1},
        },
    }
    sheet = read(folder / "align.png")
    assert sheet.shape[1] > 800
    assert sheet.std() > 30


def test_the_rows_are_in_the_trees_order_whatever_the_workers_and_batches(images: Path) -> None:
    tables = []
    for workers, batch in ((1, 100), (3, 1)):
        folder = images.parent / f"aligned {workers}"
        align(images, folder, device="cpu", workers=workers, batch=batch)
        tables.append(read_table(folder))
    assert [row["file"] for row in tables[0]] == [row["file"] for row in tables[1]]
    for one, other in zip(*tables, strict=True):
        for name in COLUMNS[1:]:
            assert bool(one[name]) == bool(other[name])
            if one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), abs=2e-3)


@pytest.mark.parametrize("function", [list_faces, read_grey])
def test_images_that_are_replaced_meanwhile_leave_the_old_output(
    images: Path, monkeypatch: pytest.MonkeyPatch, function: Callable[[Path], Any]
) -> None:
    align(images, images.parent / "aligned", device="cpu")
    before = (images.parent / "aligned/manifest.json").read_bytes()

    def replace(path: Path) -> Any:
        found = function(path)
        (images / "manifest.json").write_text("another extract's")
        return found

    monkeypatch.setattr(f"preprocessing.align.{function.__name__}", replace)
    with pytest.raises(StageError, match=r"images/manifest\.json: changed while align was reading"):
        align(images, images.parent / "aligned", device="cpu")
    assert (images.parent / "aligned/manifest.json").read_bytes() == before


def test_another_size(images: Path) -> None:
    folder = images.parent / "aligned"
    align(images, folder, size=112, device="cpu")
    assert {read(folder / file).shape for file in (*FACES, *FACELESS)} == {(112, 112)}


def test_the_classes_of_the_tree_and_its_folds_stay(tmp_path: Path, astronaut: np.ndarray) -> None:
    classes = ("bored", "very_engaged", "confused")
    tree = make_folders(tmp_path / "images", classes)
    frame = cv2.cvtColor(astronaut[:300, 60:400], cv2.COLOR_BGR2GRAY)  # a face among other things
    cv2.imwrite(str(tree / "PrivateTest/1_very_engaged/00000.png"), frame)
    (tree / "folds.csv").write_text("file,person,fold\nPrivateTest/1_very_engaged/00000.png,S005,1\n")
    counts = align(tree, tmp_path / "aligned", device="cpu", workers=1)
    assert (counts["read"], counts["found"]) == (1, 1)
    assert tree_classes(tmp_path / "aligned") == classes
    assert (tmp_path / "aligned/folds.csv").read_bytes() == (tree / "folds.csv").read_bytes()


def test_a_tree_without_any_face(tmp_path: Path) -> None:
    (tmp_path / "images/Training/0_angry").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images/Training/0_angry/00000.png"), np.zeros((48, 48), np.uint8))
    counts = align(tmp_path / "images", tmp_path / "aligned", device="cpu")
    assert (counts["read"], counts["found"]) == (1, 0)
    assert (tmp_path / "aligned/align.png").is_file()


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_an_unreadable_image_is_named_and_leaves_the_old_output(images: Path, content: bytes | str) -> None:
    folder = images.parent / "aligned"
    align(images, folder, device="cpu")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    broken = images / "Training/3_happy/00001.png"
    data = broken.read_bytes()
    broken.write_bytes(data[: len(data) // 2] if content == "truncated" else content)
    with pytest.raises(StageError, match=r"00001\.png: not a readable image; expected"):
        align(images, folder, device="cpu")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in images.parent.iterdir() if path.name.startswith(".")] == []


def test_folders_that_do_not_fit_are_refused(images: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(StageError, match=r"no faces; expected Training/0_angry"):
        align(empty, tmp_path / "aligned")
    with pytest.raises(StageError, match="no such folder"):
        align(tmp_path / "nothing", tmp_path / "aligned")
    for target in (images, images / "aligned", images.parent):
        with pytest.raises(StageError, match="overlaps"):
            align(images, target)
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(StageError, match="did not write"):
        align(images, foreign)
    with pytest.raises(StageError, match="a file; expected a folder"):
        align(images, foreign / "photo.jpg")
    assert (foreign / "photo.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"size": 0}, "--size is 0"), ({"workers": 0}, "--workers is 0"), ({"batch": -1}, "--batch is -1")],
)
def test_numbers_out_of_range_are_refused(images: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(StageError, match=f"{message}; expected 1 or more"):
        align(images, images.parent / "aligned", **arguments)


def test_the_command(images: Path) -> None:
    folder = images.parent / "aligned"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "preprocessing.align", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    good = run(str(images), str(folder), "--device", "cpu", "--workers", "1")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("align: 7 images, a face found in 5 (71.4%), 2 resized as they are")
    assert len(good.stdout.splitlines()) == 1
    bad = run(str(images), str(folder), "--device", "abacus")
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: ")
    assert "abacus" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert len(read_table(folder)) == 7


def test_the_main_face_is_large_and_near_the_middle() -> None:
    def face(x: float, y: float, side: float) -> Face:
        return Face((x, y, side, side), np.zeros((5, 2), np.float32), 0.9)

    middle, large_aside, small = face(30, 30, 40), face(0, 0, 44), face(48, 48, 4)
    assert main_face([], 100, 100) is None
    assert main_face([large_aside, small, middle], 100, 100) is middle
    assert main_face([small, large_aside], 100, 100) is small  # the large one's centre is 39 pixels away
    assert main_face([small, face(5, 5, 80)], 100, 100) is not small


def test_the_main_face_of_an_image_that_is_not_square() -> None:
    def face(*box: float) -> Face:
        return Face((box[0], box[1], box[2], box[3]), np.zeros((5, 2), np.float32), 0.9)

    middle, aside = face(80, 0, 40, 40), face(0, 0, 40, 40)
    assert main_face([aside, middle, face(160, 0, 40, 40)], 40, 200) is middle
    wide, tall = face(60, 10, 80, 20), face(90, 0, 20, 40)  # both in the middle
    assert main_face([tall, wide], 40, 200) is wide
    # the same with x and y exchanged
    middle, aside = face(0, 80, 40, 40), face(0, 0, 40, 40)
    assert main_face([aside, middle, face(0, 160, 40, 40)], 200, 40) is middle
    tall, wide = face(10, 60, 20, 80), face(0, 90, 40, 20)
    assert main_face([wide, tall], 200, 40) is tall


def test_of_several_faces_the_main_one_is_aligned_and_they_are_counted(tmp_path: Path, astronaut: np.ndarray) -> None:
    tree = make_folders(tmp_path / "images")
    face = cv2.cvtColor(astronaut[30:190, 140:300], cv2.COLOR_BGR2GRAY)
    picture = np.full((180, 520), 128, np.uint8)
    picture[10:170, 180:340] = face
    picture[10:110, 10:110] = cv2.resize(face, (100, 100), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tree / "Training/3_happy/00000.png"), picture)
    counts = align(tree, tmp_path / "aligned", device="cpu", workers=1)
    assert (counts["read"], counts["found"], counts["several_faces"]) == (1, 1, 1)
    (row,) = read_table(tmp_path / "aligned")
    x, y, width, height = (float(row[name]) for name in ("x", "y", "width", "height"))
    assert (x + width / 2, y + height / 2) == pytest.approx((260, 95), abs=15)
    (alone,) = Detector("cpu").detect(picture[:, 180:340])
    expected = align_face(picture, alone.landmarks + np.array([180, 0]))
    assert np.abs(read(tmp_path / "aligned/Training/3_happy/00000.png").astype(int) - expected).mean() < 6
