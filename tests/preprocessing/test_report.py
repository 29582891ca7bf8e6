"""The report stage on small trees whose counts, blank faces and duplicates are known."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from fer_csv import faces
from trees import make_folders

from preprocessing.datasets import EMOTIONS
from preprocessing.report import report
from preprocessing.stage import StageError

ROOT = Path(__file__).resolve().parents[2]


def write_tree(folder: Path, images: dict[str, np.ndarray]) -> Path:
    return write_images(make_folders(folder), images)


def write_images(folder: Path, images: dict[str, np.ndarray]) -> Path:
    for file, image in images.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / file), image)
    (folder / "manifest.json").write_text("{}")
    return folder


def write_faces_csv(folder: Path, found: dict[str, bool]) -> Path:
    folder.mkdir()
    rows = [f"{file},{'1,2,20,20,0.99' if is_found else ',,,,'}" for file, is_found in found.items()]
    (folder / "faces.csv").write_text("\n".join(["file,x,y,width,height,confidence", *rows, ""]))
    return folder


@pytest.fixture
def images() -> dict[str, np.ndarray]:
    """Ten images: two blank ones, a pair in Training, three alike in all splits with two labels, three single ones."""
    face = faces(5)
    return {
        "Training/0_angry/00000.png": face[0],
        "Training/3_happy/00001.png": face[1],
        "Training/3_happy/00002.png": face[1],
        "Training/4_sad/00003.png": face[2],
        "Training/4_sad/00004.png": np.zeros((48, 48), np.uint8),
        "PublicTest/2_fear/00005.png": face[2],
        "PublicTest/6_neutral/00006.png": np.zeros((48, 48), np.uint8),
        "PrivateTest/4_sad/00007.png": face[2],
        "PrivateTest/5_surprise/00008.png": face[3],
        "PrivateTest/5_surprise/00009.png": face[4],
    }


def test_counts_duplicates_and_blank_faces(images: dict[str, np.ndarray], tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "images", images)
    counts = report(tree, None, tmp_path / "report.md")
    assert counts["images"] == 10
    assert counts["faces"]["Training"] == dict(zip(EMOTIONS, (1, 0, 0, 2, 2, 0, 0), strict=True))
    assert counts["faces"]["PrivateTest"]["surprise"] == 2
    assert counts["blank_files"] == ["Training/4_sad/00004.png", "PublicTest/6_neutral/00006.png"]
    assert counts["duplicate_groups"] == 3
    assert counts["duplicate_images"] == 7
    assert counts["duplicate_groups_by_splits"] == {
        "Training": 1,
        "Training and PublicTest": 1,
        "Training and PublicTest and PrivateTest": 1,
    }
    assert counts["duplicate_groups_with_different_labels"] == 2
    assert counts["images_that_stand_in_training_too"] == {"PublicTest": 2, "PrivateTest": 1}
    assert "not_found" not in counts
    manifest = json.loads((tmp_path / "report.manifest.json").read_text())
    assert manifest["counts"] == counts
    assert [entry["file"] for entry in manifest["inputs"]] == [str(tree / "manifest.json")]


def test_brightness_and_contrast_are_those_of_the_pixels(images: dict[str, np.ndarray], tmp_path: Path) -> None:
    counts = report(write_tree(tmp_path / "images", images), None, tmp_path / "report.md")
    surprise = np.array([images[f"PrivateTest/5_surprise/0000{i}.png"].astype(float).ravel() for i in (8, 9)])
    assert counts["brightness"]["surprise"]["mean"] == pytest.approx(surprise.mean(), abs=0.06)
    assert counts["brightness"]["surprise"]["contrast"] == pytest.approx(surprise.std(1).mean(), abs=0.06)
    assert counts["brightness"]["surprise"]["spread"] == pytest.approx(surprise.mean(1).std(), abs=0.06)
    assert counts["brightness"]["neutral"] == {"mean": 0.0, "spread": 0.0, "contrast": 0.0}
    assert "disgust" not in counts["brightness"]


def test_the_text_tells_the_figures_and_its_pictures_are_there(images: dict[str, np.ndarray], tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "images", images)
    found = {file: not file.startswith("PrivateTest") for file in images}
    counts = report(tree, write_faces_csv(tmp_path / "aligned", found), tmp_path / "report.md")
    assert counts["not_found"] == 3
    assert counts["not_found_faces"]["PrivateTest"]["surprise"] == 2
    text = (tmp_path / "report.md").read_text()
    for line in (
        "10 faces of 48×48 pixels.",
        "| happy | 2 | 0 | 0 | 2 |",
        "| all | 5 | 2 | 3 | 10 |",
        "In 3 of 10 images (30.0%) the detector found no face",
        "| surprise | 0 | 0 | 2 | 2 | 100.0% |",
        "| sad | 0 | 0 | 1 | 1 | 33.3% |",
        "2 faces show nothing but one grey level. `Training/4_sad/00004.png`, `PublicTest/6_neutral/00006.png`.",
        "3 groups of images are identical to the pixel, 7 images in all; the largest group has 3.",
        "2 of PublicTest, 1 of PrivateTest.",
        "2 groups carry different labels",
        "| fear, sad | 1 |",
        "`Training/4_sad/00003.png` = `PublicTest/2_fear/00005.png` = `PrivateTest/4_sad/00007.png`",
    ):
        assert line in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):  # Markdown takes none for a table whose rows differ
        head, rule, *rows = table.splitlines()
        assert {line.count("|") for line in (rule, *rows)} == {head.count("|")}
        assert set(rule) <= set("|-:")
    shown = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert sorted(shown) == sorted(f"report/{path.name}" for path in (tmp_path / "report").iterdir())
    assert {"report/counts.png", "report/3_happy.png", "report/not_found.png", "report/different_labels.png"} <= set(
        shown
    )
    for name in shown:
        assert cv2.imread(str(tmp_path / name)) is not None
    picture = cv2.imread(str(tmp_path / "report" / "3_happy.png"), cv2.IMREAD_GRAYSCALE)
    face = images["Training/3_happy/00001.png"]
    assert any(np.array_equal(picture[2:50, x : x + 48], face) for x in range(picture.shape[1] - 47))


def test_without_duplicates_or_blank_faces_it_says_so_and_shows_no_picture_of_them(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "images", {f"Training/{i}_{e}/0000{i}.png": faces(7)[i] for i, e in [(0, "angry")]})
    report(tree, write_faces_csv(tmp_path / "aligned", {"Training/0_angry/00000.png": True}), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "No two images are identical to the pixel." in text
    assert "0 faces show nothing" in text
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["0_angry.png", "counts.png"]


def test_of_many_blank_faces_some_are_named(tmp_path: Path) -> None:
    blank = {f"Training/0_angry/{i:05d}.png": np.full((48, 48), i, np.uint8) for i in range(43)}
    counts = report(write_tree(tmp_path / "images", blank), None, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "43 faces show nothing but one grey level. `Training/0_angry/00000.png`, " in text
    assert ", `Training/0_angry/00039.png`, and 3 more.\n" in text
    assert counts["blank_files"] == list(blank)


def test_a_class_may_have_the_name_of_another_picture(tmp_path: Path) -> None:
    tree = make_folders(tmp_path / "images", ("counts", "happy"))
    write_images(tree, {"Training/0_counts/00000.png": faces(1)[0]})
    report(tree, None, tmp_path / "report.md")
    shown = re.findall(r"\((report/.*)\)", (tmp_path / "report.md").read_text())
    assert shown == ["report/counts.png", "report/0_counts.png"]
    assert len({(tmp_path / name).read_bytes() for name in shown}) == 2


def test_other_classes_and_images_of_any_size(tmp_path: Path) -> None:
    tree = make_folders(tmp_path / "images", ("bored", "confused"))
    wide = np.full((60, 120), 200, np.uint8)
    wide[10:50, 20:100] = 50
    images = {"Training/0_bored/00000.png": wide, "Training/1_confused/00001.png": np.ascontiguousarray(wide.T)}
    images["PublicTest/1_confused/00002.png"] = wide
    write_images(tree, images)
    counts = report(tree, write_faces_csv(tmp_path / "aligned", dict.fromkeys(images, False)), tmp_path / "report.md")
    assert counts["faces"]["Training"] == {"bored": 1, "confused": 1}
    assert counts["sizes"] == {"120x60": 2, "60x120": 1}
    assert counts["duplicate_groups"] == 1  # a picture on its side is another one
    text = (tmp_path / "report.md").read_text()
    assert "3 images of 2 sizes; the most frequent one is 120×60 pixels (2 images)." in text
    assert "| confused | 1 | 1 | 0 | 2 |" in text
    assert "| all | 2 | 1 | 0 | 3 | 100.0% |" in text
    montage = cv2.imread(str(tmp_path / "report/0_bored.png"), cv2.IMREAD_GRAYSCALE)[2:50, -50:-2]
    assert montage[24, 24] == 50  # the whole picture is there, on grey
    assert [int(montage[row, 24]) for row in (2, 14, 33, 45)] == [128, 200, 200, 128]


def test_the_same_input_gives_the_same_text_and_pictures(images: dict[str, np.ndarray], tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "images", images)
    outputs = []
    for _ in range(2):
        report(tree, None, tmp_path / "report.md")
        files = [tmp_path / "report.md", *sorted((tmp_path / "report").iterdir())]
        outputs.append([(path.name, path.read_bytes()) for path in files])
    assert outputs[0] == outputs[1]


def test_wrong_inputs_are_refused_and_leave_the_old_report(images: dict[str, np.ndarray], tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "images", images)
    report(tree, None, tmp_path / "report.md")
    before = (tmp_path / "report.md").read_text()
    found = dict.fromkeys(images, True)
    del found["Training/3_happy/00001.png"]
    aligned = write_faces_csv(tmp_path / "aligned", found)
    with pytest.raises(StageError, match=r"9 files, but 10 images; .* such as Training/3_happy/00001\.png"):
        report(tree, aligned, tmp_path / "report.md")
    (aligned / "faces.csv").write_text("a,b\n1,2\n")
    with pytest.raises(StageError, match=r"faces\.csv, row 1: columns"):
        report(tree, aligned, tmp_path / "report.md")
    with pytest.raises(StageError, match=r"faces\.csv: no such file"):
        report(tree, tmp_path, tmp_path / "report.md")
    with pytest.raises(StageError, match=r"ends in \.md"):
        report(tree, None, tmp_path / "report.txt")
    (tree / "Training/3_happy/00001.png").write_bytes(b"\x89PNG")
    with pytest.raises(StageError, match=r"00001\.png: not a readable image; expected a PNG"):
        report(tree, None, tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text() == before


def test_a_folder_of_something_else_is_not_replaced_by_pictures(images: dict[str, np.ndarray], tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "images", images)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "letter.txt").touch()
    with pytest.raises(StageError, match="not a folder of pictures that this stage wrote"):
        report(tree, None, tmp_path / "notes.md")
    assert (tmp_path / "notes" / "letter.txt").exists()


def test_as_a_program_the_aligned_folder_may_be_left_out(images: dict[str, np.ndarray], tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "images", images)
    run = subprocess.run(
        [sys.executable, "-m", "preprocessing.report", str(tree), str(tmp_path / "report.md")],
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},  # text files are ASCII there
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("report: 10 images, 2 blank, 3 groups of duplicates, 2 of them with different labels")
    assert "48×48 pixels" in (tmp_path / "report.md").read_text(encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "preprocessing.report", str(tmp_path / "none"), str(tmp_path / "a.md")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "no such folder" in run.stderr
    assert "Traceback" not in run.stderr
