"""The extract stage: CSV, archive and folder to PNG files, read back with Pillow; bad rows; kills."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fer_csv import csv_bytes, faces, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing.extract import Written, _write_rows, extract
from preprocessing.images import read_image
from preprocessing.stage import Stage, StageError, sha256

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("Training", "PublicTest", "PrivateTest")
FOLDERS = ("0_angry", "1_disgust", "2_fear", "3_happy", "4_sad", "5_surprise", "6_neutral")


def tree(folder: Path) -> dict[str, np.ndarray]:
    """Relative path and pixels of every PNG below a folder; fails on any that is not 8-bit grey."""
    found = {}
    for path in sorted(folder.glob("*/*/*")):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", "L")
            found[path.relative_to(folder).as_posix()] = np.asarray(image)
    return found


def write_csv(path: Path, images: np.ndarray, labels: list[int], splits: list[str]) -> Path:
    rows = [[label, pixels(face), split] for face, label, split in zip(images, labels, splits, strict=True)]
    path.write_bytes(csv_bytes(rows))
    return path


def rows_csv(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["emotion,pixels,Usage", *rows, ""]))
    return path


@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(SPLITS)), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
    workers=st.integers(1, 3),
)
@settings(deadline=None, max_examples=25)
def test_pixels_in_the_png_files_are_those_of_the_csv(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]], seed: int, workers: int
) -> None:
    folder = tmp_path_factory.mktemp("extract")
    images = faces(len(rows), seed)
    labels, splits = [label for label, _ in rows], [split for _, split in rows]
    counts = extract(write_csv(folder / "a.csv", images, labels, splits), folder / "images", workers=workers)
    found = tree(folder / "images")
    expected = [f"{split}/{FOLDERS[label]}/{i:05d}.png" for i, (label, split) in enumerate(rows)]
    assert sorted(found) == sorted(expected)
    for file, image in zip(expected, images, strict=True):
        np.testing.assert_array_equal(found[file], image)
    assert counts["written"] == counts["read"] == len(rows)
    for split in SPLITS:
        assert list(counts["faces"][split].values()) == [rows.count((label, split)) for label in range(7)]


def test_every_folder_is_there_and_the_manifest_says_what_was_done(tmp_path: Path) -> None:
    images = faces(4)
    images[1], images[2] = 0, 200
    images[2, 3, 3] = 203
    source = write_csv(tmp_path / "a.csv", images, [0, 1, 2, 3], ["Training"] * 4)
    extract(source, tmp_path / "deep" / "images")
    output = tmp_path / "deep" / "images"
    assert sorted(p.relative_to(output).as_posix() for p in output.glob("*/*")) == sorted(
        f"{split}/{folder}" for split in SPLITS for folder in FOLDERS
    )
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["stage"] == "extract"
    emotions = [folder[2:] for folder in FOLDERS]
    assert manifest["settings"] == {"layout": "fer2013", "contempt": "drop", "classes": emotions, "skip_bad": False}
    assert manifest["inputs"] == [{"file": str(source), "sha256": sha256(source)}]
    assert manifest["counts"]["blank"] == 2
    assert manifest["counts"]["rejected"] == 0
    assert len(tree(output)) == 4  # blank faces are kept


def test_blank_faces_are_kept_as_they_are(tmp_path: Path) -> None:
    images = np.full((2, 48, 48), 7, np.uint8)
    counts = extract(write_csv(tmp_path / "a.csv", images, [0, 1], ["Training"] * 2), tmp_path / "images")
    assert counts["blank"] == 2
    for image in tree(tmp_path / "images").values():
        np.testing.assert_array_equal(image, images[0])


FACE = pixels(faces(1)[0])


def test_a_bad_row_stops_the_stage_and_leaves_the_old_output(tmp_path: Path) -> None:
    extract(write_csv(tmp_path / "a.csv", faces(3), [1, 2, 3], ["Training"] * 3), tmp_path / "images")
    before = {path: path.read_bytes() for path in (tmp_path / "images").rglob("*") if path.is_file()}
    bad = rows_csv(tmp_path / "bad.csv", f"1,{FACE},Training", f"9,{FACE},Training", f"8,{FACE},Training")
    with pytest.raises(StageError, match=r"bad\.csv, row 3: label '9'; expected 0\.\.6; --skip-bad"):
        extract(bad, tmp_path / "images")
    assert {path: path.read_bytes() for path in (tmp_path / "images").rglob("*") if path.is_file()} == before
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "bad.csv", "images"]


@pytest.mark.parametrize("position", [0, 15, 16, 99])
def test_the_first_bad_row_is_the_one_that_is_named_whatever_thread_finds_one(tmp_path: Path, position: int) -> None:
    rows = [f"1,{FACE},Training"] * 100
    for bad in {position, 99}:
        rows[bad] = f"1,{FACE},Train"
    with pytest.raises(StageError, match=rf"row {position + 2}: usage 'Train'"):
        extract(rows_csv(tmp_path / "a.csv", *rows), tmp_path / "images", workers=4)


def test_skip_bad_counts_and_lists_bad_rows_and_keeps_the_numbers_of_the_others(tmp_path: Path) -> None:
    source = rows_csv(
        tmp_path / "a.csv", f"1,{FACE},Training", "1,1 2 3,Training", f"x,{FACE},T", f"2,{FACE},PublicTest"
    )
    counts = extract(source, tmp_path / "images", skip_bad=True)
    assert (counts["read"], counts["written"], counts["rejected"]) == (4, 2, 2)
    assert sorted(tree(tmp_path / "images")) == ["PublicTest/2_fear/00003.png", "Training/1_disgust/00000.png"]
    rejected = json.loads((tmp_path / "images" / "manifest.json").read_text())["rejected"]
    assert [entry["row"] for entry in rejected] == [3, 4]
    assert "3 pixels; expected 2304" in rejected[0]["reason"]
    assert "label 'x'" in rejected[1]["reason"]


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("rows", [(), ("1,2,Training",)])
def test_no_face_at_all_is_an_error(tmp_path: Path, rows: tuple[str, ...], skip_bad: bool) -> None:
    with pytest.raises(StageError):
        extract(rows_csv(tmp_path / "a.csv", *rows), tmp_path / "images", skip_bad)
    assert not (tmp_path / "images").exists()


def test_a_wrong_header_is_an_error_even_when_bad_rows_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("emotion,pixels\n")
    with pytest.raises(StageError, match="no column 'Usage'"):
        extract(tmp_path / "a.csv", tmp_path / "images", skip_bad=True)


def test_a_folder_that_something_else_wrote_is_not_replaced(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "a.csv", faces(1), [1], ["Training"])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    with pytest.raises(StageError, match="a folder that this stage did not write"):
        extract(source, tmp_path / "home")
    with pytest.raises(StageError, match="overlaps with the input"):
        extract(source, tmp_path)
    with pytest.raises(StageError, match="a file; expected a folder"):
        extract(source, tmp_path / "home" / "letter.txt")
    assert (tmp_path / "home" / "letter.txt").exists()
    (tmp_path / "home" / "letter.txt").unlink()
    extract(source, tmp_path / "home")  # an empty folder is as good as none


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Kaggle's folder form, with one image of another size and in colour."""
    images = faces(5)
    files = {
        "test/happy/PrivateTest_88305.png": images[0],
        "test/happy/PublicTest_11.png": images[1],
        "train/Angry/Training_3.png": images[2],
        "train/Angry/Training_12.png": np.full((96, 96, 3), (30, 30, 30), np.uint8),
        "validation/6_neutral/a.png": images[4],
    }
    for name, image in files.items():
        (tmp_path / "kaggle" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "kaggle" / name), image)
    (tmp_path / "kaggle" / "README").touch()
    return tmp_path / "kaggle"


def test_a_folder_of_images_becomes_the_same_tree(folder: Path, tmp_path: Path) -> None:
    counts = extract(folder, tmp_path / "images")
    found = tree(tmp_path / "images")
    images = faces(5)
    assert list(found) == [
        "PrivateTest/3_happy/00000.png",
        "PublicTest/3_happy/00001.png",
        "PublicTest/6_neutral/00004.png",
        "Training/0_angry/00002.png",  # Training_12: numbers are places among the sorted files
        "Training/0_angry/00003.png",
    ]
    np.testing.assert_array_equal(found["PrivateTest/3_happy/00000.png"], images[0])
    np.testing.assert_array_equal(found["Training/0_angry/00002.png"], np.full((96, 96), 30))  # as large as it was
    np.testing.assert_array_equal(found["Training/0_angry/00003.png"], images[2])
    assert (counts["written"], counts["other_files"], counts["blank"]) == (5, 1, 1)
    again = tmp_path / "again"
    extract(folder, again, workers=1)
    digests = [json.loads((p / "manifest.json").read_text())["settings"] for p in (tmp_path / "images", again)]
    assert digests[0] == digests[1]


def extract_files(source: Path, files: dict[str, bytes]) -> dict[str, np.ndarray]:
    """What extract makes of these files, given by name, in a folder of their own."""
    for name, data in files.items():
        (source / "train/happy").mkdir(parents=True, exist_ok=True)
        (source / "train/happy" / name).write_bytes(data)
    extract(source, source.parent / "read")
    numbers = {f"{number:05d}": name for number, name in enumerate(sorted(files))}
    return {numbers[Path(file).stem]: image for file, image in tree(source.parent / "read").items()}


def test_grey_images_stay_as_they_are_to_the_bit(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
    grey[0] = np.arange(48) * 5.4
    deep = grey.astype(np.uint16) << 8 | 255 - grey
    files = {f"a{suffix}": cv2.imencode(suffix, grey)[1].tobytes() for suffix in (".jpg", ".png", ".bmp", ".tif")}
    files |= {f"deep{suffix}": cv2.imencode(suffix, deep)[1].tobytes() for suffix in (".png", ".tif")}
    found = extract_files(tmp_path / "grey", files)
    for name, data in files.items():
        np.testing.assert_array_equal(found[name], cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))
        assert name == "a.jpg" or np.array_equal(found[name], grey)


def test_images_are_read_as_prediction_reads_them(tmp_path: Path) -> None:
    """Colours made grey alike, transparent parts on white, turned as EXIF says."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    colours[..., 3] = 255
    colours[:10, :, :3], colours[:10, :, 3] = (10, 20, 200), 0  # what is hidden is no part of the picture
    jpeg = cv2.imencode(".jpg", colours[..., :3])[1].tobytes()
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    files = {
        "clear.png": cv2.imencode(".png", colours)[1].tobytes(),
        "turned.jpg": jpeg[:2] + struct.pack(">HH", 0xFFE1, len(exif) + 2) + exif + jpeg[2:],
        "upright.jpg": jpeg,
    }
    found = extract_files(tmp_path / "faces", files)
    for name in files:
        read = read_image(tmp_path / "faces/train/happy" / name)
        np.testing.assert_array_equal(found[name], cv2.cvtColor(read, cv2.COLOR_BGR2GRAY))
    assert (found["clear.png"][:10] == 255).all()
    assert np.abs(found["clear.png"][10:] - colours[10:, :, :3] @ [0.114, 0.587, 0.299]).max() <= 0.51
    np.testing.assert_array_equal(found["turned.jpg"], np.rot90(found["upright.jpg"], -1))


def test_a_file_that_claims_to_be_huge_is_not_decoded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = cv2.imencode(".png", faces(1)[0])[1].tobytes()
    huge = good[:16] + struct.pack(">II", 60_000, 60_000) + good[24:]
    damaged = cv2.imencode(".tif", faces(1)[0])[1].tobytes()[:-40]
    files = {"a.png": good, "b.png": huge, "c.tif": damaged}
    with pytest.raises(StageError, match=r"file train/happy/b\.png: 60000×60000 is 3,600\.0 megapixels; expected 67"):
        extract_files(tmp_path / "faces", files)
    counts = extract(tmp_path / "faces", tmp_path / "images", skip_bad=True)
    assert (counts["written"], counts["rejected"]) == (1, 2)
    assert "OpenCV" not in capfd.readouterr().err  # what it says of damaged files is in the manifest, in our words


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0, 10, 0.6, -3])
def test_a_cut_off_image_is_a_bad_file(folder: Path, tmp_path: Path, suffix: str, kept: float) -> None:
    whole = cv2.imencode(suffix, faces(1)[0])[1].tobytes()
    length = int(len(whole) * kept) if isinstance(kept, float) else kept
    (folder / "train" / "Angry" / f"x{suffix}").write_bytes(whole[:length])
    with pytest.raises(StageError, match=rf"file train/Angry/x\{suffix}: "):
        extract(folder, tmp_path / "images")
    counts = extract(folder, tmp_path / "images", skip_bad=True)
    assert (counts["written"], counts["rejected"]) == (5, 1)


def test_files_in_the_wrong_place_are_bad_files(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "bored").mkdir()
    (folder / "train" / "bored" / "a.jpg").write_bytes(b"text")
    (folder / "b.jpg").write_bytes(b"text")
    counts = extract(folder, tmp_path / "images", skip_bad=True)
    rejected = json.loads((tmp_path / "images" / "manifest.json").read_text())["rejected"]
    assert [entry["file"] for entry in rejected] == ["b.jpg", "train/bored/a.jpg"]
    assert counts["rejected"] == 2


# ---- as a program ---------------------------------------------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "preprocessing.extract", *map(str, arguments)]


def test_on_bad_input_the_program_says_so_and_exits_1(tmp_path: Path) -> None:
    source = rows_csv(tmp_path / "a.csv", f"1,{FACE},Training", f"1,{FACE} 3,Training", f"2,{FACE},Training")
    run = subprocess.run(command(source, tmp_path / "images"), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {source}, row 3: 2305 pixels; expected 2304")
    assert "Traceback" not in run.stderr
    run = subprocess.run(command(source, tmp_path / "images", "--skip-bad"), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stdout.startswith(
        "extract: 2 faces (2 Training, 0 PublicTest, 0 PrivateTest), 0 blank, 1 rejected, Training lacks angry"
    )
    run = subprocess.run(command(tmp_path / "b.csv", tmp_path / "i"), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "b.csv: no such file" in run.stderr


def test_what_is_made_of_the_old_images_meanwhile_is_older_than_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an align that ends while extract runs; make would never make it again."""
    source, made = rows_csv(tmp_path / "a.csv", f"1,{FACE},Training"), tmp_path / "aligned.json"

    def decoded(*arguments: Any) -> Written:
        time.sleep(0.05)  # clocks of file systems are coarse
        made.touch()
        time.sleep(0.05)
        return _write_rows(*arguments)

    monkeypatch.setattr("preprocessing.extract._write_rows", decoded)
    extract(source, tmp_path / "images", workers=1)
    assert made.stat().st_mtime_ns < (tmp_path / "images/manifest.json").stat().st_mtime_ns


def test_a_csv_that_changes_while_it_is_read_is_an_error_or_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rows_csv(tmp_path / "a.csv", f"1,{FACE},Training")
    check = Stage.check_inputs

    def change(stage: Stage) -> None:
        time.sleep(0.05)
        os.utime(source)

    def change_before(stage: Stage) -> None:
        change(stage)
        check(stage)

    monkeypatch.setattr(Stage, "check_inputs", change_before)
    with pytest.raises(StageError, match=r"a\.csv: changed while extract was reading"):
        extract(source, tmp_path / "images")
    assert not (tmp_path / "images").exists()
    monkeypatch.setattr(Stage, "check_inputs", change)  # as behind the check
    extract(source, tmp_path / "images")
    assert (tmp_path / "images/manifest.json").stat().st_mtime_ns < source.stat().st_mtime_ns


def test_killed_midway_the_old_output_stays_and_the_next_run_is_right(tmp_path: Path) -> None:
    old = faces(2)
    extract(write_csv(tmp_path / "old.csv", old, [1, 2], ["Training"] * 2), tmp_path / "images")
    before = tree(tmp_path / "images")
    (tmp_path / "new.csv").write_text("emotion,pixels,Usage\n" + f"3,{FACE},PrivateTest\n" * 2000)
    process = subprocess.Popen(command(tmp_path / "new.csv", tmp_path / "images"), cwd=ROOT)
    try:
        while process.poll() is None and not any(tmp_path.glob(".partial-*/PrivateTest/3_happy/*")):
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    after = tree(tmp_path / "images")
    assert list(after) == list(before)
    extract(tmp_path / "new.csv", tmp_path / "images")
    assert len(tree(tmp_path / "images")) == 2000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "new.csv", "old.csv"]
