"""The readers of other data sets' layouts, on small ones of drawn faces: labels by name, splits, what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from fer_csv import csv_bytes, faces, pixels
from layout_samples import (
    AFFECTNET_HEADER,
    affectnet_row,
    face,
    write,
    write_affectnet,
    write_affectnet_arrays,
    write_ck48,
    write_ckplus,
    write_rafdb,
    write_rafdb_folders,
)

from preprocessing.datasets import tree_classes
from preprocessing.extract import crop, extract
from preprocessing.folds import hold_out
from preprocessing.images import find_images
from preprocessing.layouts import Box, canonical
from preprocessing.layouts.ckplus import read_ckplus
from preprocessing.layouts.folder import list_images, read_folder, split_and_class
from preprocessing.stage import StageError

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("Training", "PublicTest", "PrivateTest")
SEVEN = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def tree(folder: Path) -> dict[str, np.ndarray]:
    """Relative path and pixels of every image of a tree; fails on any that is not 8-bit grey."""
    found = {}
    for path in sorted(folder.glob("*/*/*.png")):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image.ndim == 2
        assert image.dtype == np.uint8
        found[path.relative_to(folder).as_posix()] = image
    return found


def by_class(images: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """The numbers of the images of each class, whatever their split."""
    found: dict[str, list[int]] = {}
    for file in images:
        found.setdefault(file.split("/")[1], []).append(int(Path(file).stem))
    return {name: sorted(numbers) for name, numbers in found.items()}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


# ---- folders --------------------------------------------------------------------------------------------------------

EIGHT = (*SEVEN, "contempt")


@pytest.mark.parametrize(
    ("file", "split", "emotion"),
    [
        ("train/happy/Training_3908.jpg", "Training", "happy"),
        ("test/angry/PublicTest_1.jpg", "PublicTest", "angry"),
        ("test/angry/PrivateTest_1.jpg", "PrivateTest", "angry"),
        ("test/neutral/im0.png", "PrivateTest", "neutral"),
        ("validation/Surprise/a.jpg", "PublicTest", "surprise"),
        ("VAL/SADNESS/a.jpg", "PublicTest", "sad"),
        ("Training/1_disgust/00042.png", "Training", "disgust"),
        ("train/fearful/publictest_7.jpg", "PublicTest", "fear"),
        ("train/7_Contempt/a.jpg", "Training", "contempt"),
        ("test/happy/training7.jpg", "PrivateTest", "happy"),
        ("PublicTest/happy/a.jpg", "PublicTest", "happy"),
        ("PrivateTest/happy/a.jpg", "PrivateTest", "happy"),
        ("valid/happy/a.jpg", "PublicTest", "happy"),
    ],
)
def test_split_and_emotion_of_a_path(file: str, split: str, emotion: str) -> None:
    assert split_and_class(file, EIGHT) == (split, emotion)


def test_other_words_for_the_emotions() -> None:
    words = ("Anger", "disgusted", "FEARFUL", "happiness", "sadness", "surprised", "neutral", "contemptuous")
    assert tuple(map(canonical, words)) == EIGHT
    assert canonical("Bored") == "bored"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("happy/a.jpg", "expected SPLIT/EMOTION/NAME"),
        ("data/train/happy/a.jpg", "expected SPLIT/EMOTION/NAME"),
        ("images/happy/a.jpg", "split folder 'images'; expected train, validation or test"),
        ("train/bored/a.jpg", "emotion folder 'bored'; expected angry, disgust.*, or names of your own by --classes"),
        ("train/3_sad/a.jpg", "emotion folder '3_sad'; expected '4_sad'"),
    ],
)
def test_a_path_that_says_neither_is_refused(file: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_and_class(file, EIGHT)


def test_names_of_ones_own() -> None:
    classes = ("Bored", "2_minds", "happiness")
    assert split_and_class("train/bored/a.jpg", classes) == ("Training", "Bored")
    assert split_and_class("train/happy/a.jpg", classes) == ("Training", "happiness")
    assert split_and_class("train/2_Happiness/a.jpg", classes) == ("Training", "happiness")
    assert split_and_class("train/2_minds/a.jpg", classes) == ("Training", "2_minds")
    assert split_and_class("train/fro\u0308hlich/a.jpg", ("fr\u00f6hlich",)) == ("Training", "fr\u00f6hlich")
    with pytest.raises(ValueError, match="'0_happy'; expected '2_happiness'"):
        split_and_class("train/0_happy/a.jpg", classes)


def test_folders_of_splits_in_any_case(tmp_path: Path) -> None:
    for name in ("Train/happy", "VALID/sad", "Test/Anger"):
        write(tmp_path / name / "a.png", face("sad", 9, 9, 0))
    items = read_folder(tmp_path).items
    assert {(item.split, item.emotion) for item in items} == {
        ("Training", "happy"),
        ("PublicTest", "sad"),
        ("PrivateTest", "angry"),
    }


def test_folders_that_are_labels(tmp_path: Path) -> None:
    names = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")  # AffectNet's order
    for split in ("train", "val", "test"):
        for label in range(8):
            write(tmp_path / f"faces/{split}/{label}/a.png", face("sad", 30, 40, 10 * label))
    with pytest.raises(StageError, match=r"test/0/a\.png: emotion folder '0'; expected angry, disgust"):
        extract(tmp_path / "faces", tmp_path / "images", layout="folder")
    extract(tmp_path / "faces", tmp_path / "images", layout="folder", classes=names)
    found = tree(tmp_path / "images")
    assert len(found) == 24
    for file, image in found.items():
        label = int(image[0, 0]) // 10
        assert file.split("/")[1] == f"{label}_{names[label]}"
    assert split_and_class("train/1/a.jpg", ("2", "1", "0"), numbered=True) == ("Training", "1")  # names come first
    with pytest.raises(ValueError, match=r"emotion folder '2'; expected no, yes$"):
        split_and_class("train/2/a.jpg", ("no", "yes"), numbered=True)


def test_images_are_listed_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("train/happy/b.JPG", "train/happy/a.png", "test/sad/c.jpeg", "train/happy/.a.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "train/happy/Thumbs.db").touch()
    assert list_images(tmp_path) == (["test/sad/c.jpeg", "train/happy/a.png", "train/happy/b.JPG"], 1)


def test_training_and_prediction_take_the_same_files_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [".bmp", ".gif", ".jpeg", ".JPG", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
    for suffix in images:
        picture = (
            face("happy", 30, 40, 1) if suffix in (".pbm", ".pgm", ".pnm") else np.full((30, 40, 3), 200, np.uint8)
        )
        write(tmp_path / f"mine/train/happy/a{suffix}", picture)
    (tmp_path / "mine/train/happy/notes.txt").touch()
    listed, others = list_images(tmp_path / "mine")
    assert [str(tmp_path / "mine" / file) for file in listed] == [
        file for file, _ in find_images([str(tmp_path / "mine/train/happy")])
    ]
    assert ({Path(file).suffix for file in listed}, others) == (set(images), 1)
    assert extract(tmp_path / "mine", tmp_path / "images")["written"] == len(images)
    assert ", 1 other file passed over" in capsys.readouterr().out
    (tmp_path / "mine/train/happy/notes.txt").unlink()
    extract(tmp_path / "mine", tmp_path / "images")
    assert "passed over" not in capsys.readouterr().out


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "disk/happy/a.png", face("happy", 30, 40, 1))
    (tmp_path / "faces/test").mkdir(parents=True)
    (tmp_path / "faces/train").symlink_to(tmp_path / "disk")
    (tmp_path / "faces/test/happy").symlink_to(tmp_path / "disk/happy")
    (tmp_path / "disk/happy/back").symlink_to(tmp_path / "faces")
    assert list_images(tmp_path / "faces") == (["test/happy/a.png", "train/happy/a.png"], 0)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train/happy/a.png", face("happy", 30, 40, 1))
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("happy"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="happy"):
        list_images(tmp_path)


def test_names_of_files_need_not_be_utf_8(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"faces/{split}/happy/a.png", face("happy", 30, 40, 1))
    name = os.fsdecode(b"\xff.png")
    os.rename(tmp_path / "faces/train/happy/a.png", tmp_path / "faces/train/happy" / name)
    counts = extract(tmp_path / "faces", tmp_path / "images", layout="folder")
    assert counts["faces"]["Training"]["happy"] == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images of two emotions and contempt to train on, four to test on, none to validate on."""
    for index in range(40):
        emotion = ("anger", "Happiness", "contempt", "anger")[index % 4]
        write(tmp_path / f"my faces/train/{emotion}/{index:03d}.png", face("sad", 30, 40, index))
    for index in range(4):
        write(tmp_path / f"my faces/test/{('anger', 'Happiness')[index % 2]}/{index}.png", face("sad", 30, 40, index))
    return tmp_path / "my faces"


def test_a_tenth_of_each_class_becomes_the_validation_split(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = extract(folder, tmp_path / "images", layout="folder")
    assert "no validation split: PublicTest is 10% of each class's training images" in capsys.readouterr().out
    assert {split: sum(row.values()) for split, row in counts["faces"].items()} == {
        "Training": 27,
        "PublicTest": 3,
        "PrivateTest": 4,
    }
    assert counts["faces"]["PublicTest"] == dict.fromkeys(SEVEN, 0) | {"angry": 2, "happy": 1}
    assert counts["held_out"] == 3
    settings = manifest(tmp_path / "images")["settings"]
    assert "10% of each class of Training" in settings["splits"]
    assert not {"frames", "neutral"} & set(settings)
    assert counts["left_out"] == {"contempt": 10}
    found = tree(tmp_path / "images")
    assert {image.shape for image in found.values()} == {(40, 30)}
    extract(folder, tmp_path / "again", workers=1)  # fer2013's layout reads a folder alike
    assert list(tree(tmp_path / "again")) == list(found)


@pytest.mark.parametrize("above", ["", "train/"])
def test_a_folder_of_classes_alone_gets_all_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], above: str
) -> None:
    source = tmp_path / "mine"
    for index in range(60):
        write(source / f"{above}{('anger', 'happy')[index % 3 == 0]}/{index}.png", face("sad", 30, 40, index))
    counts = extract(source, tmp_path / "images", layout="folder")
    assert "no test split: PrivateTest is 10% of each class's training images" in capsys.readouterr().out
    of_class = {split: (row["angry"], row["happy"]) for split, row in counts["faces"].items()}
    assert of_class == {"Training": (32, 16), "PublicTest": (4, 2), "PrivateTest": (4, 2)}
    assert counts["held_out"] == 12
    marks = [int(image[0, 0]) for image in tree(tmp_path / "images").values()]
    assert sorted(marks) == list(range(60))  # each image once
    for file, image in tree(tmp_path / "images").items():
        assert file.split("/")[1] == ("3_happy" if image[0, 0] % 3 == 0 else "0_angry")
    # of all images the test split is drawn first, then of what it leaves the validation split
    drawn = hold_out(hold_out(read_folder(source).items, "PrivateTest"), "PublicTest")
    splits = {int(Path(file).stem): file.split("/")[0] for file in tree(tmp_path / "images")}
    assert splits == {number: item.split for number, item in enumerate(drawn)}
    extract(source, tmp_path / "again", layout="folder")
    assert list(tree(tmp_path / "again")) == list(tree(tmp_path / "images"))
    write(source / "test/happy/a.png", face("sad", 30, 40, 60))
    if not above:  # the other folders are no classes now
        with pytest.raises(StageError, match=r"anger/1\.png: expected SPLIT/EMOTION/NAME"):
            extract(source, tmp_path / "again", layout="folder")


def test_a_validation_split_is_the_test_split_where_there_is_no_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(folder, tmp_path / "images", layout="folder")
    (folder / "test").rename(folder / "validation")
    extract(folder, tmp_path / "again", layout="folder")
    assert "no test split: PrivateTest is the validation split, no validation split" in capsys.readouterr().out
    assert manifest(tmp_path / "again")["settings"]["splits"].startswith("PrivateTest: the validation split; Public")
    found, again = tree(tmp_path / "images"), tree(tmp_path / "again")
    for split in SPLITS:
        pixels = [{i.tobytes() for f, i in images.items() if f.startswith(split)} for images in (found, again)]
        assert pixels[0] == pixels[1]


def test_contempt_kept_changes_nothing_else(folder: Path, tmp_path: Path) -> None:
    extract(folder, tmp_path / "dropped", layout="folder")
    extract(folder, tmp_path / "kept", layout="folder", contempt="keep")
    assert tree_classes(tmp_path / "dropped") == SEVEN
    assert tree_classes(tmp_path / "kept") == EIGHT
    dropped, kept = tree(tmp_path / "dropped"), tree(tmp_path / "kept")
    contempt = {file for file in kept if "7_contempt" in file}
    assert set(kept) - contempt == set(dropped)
    assert [sum(file.startswith(split) for file in contempt) for split in SPLITS] == [9, 1, 0]


def test_a_validation_split_that_is_there_is_taken(folder: Path, tmp_path: Path) -> None:
    write(folder / "valid/anger/x.png", face("sad", 30, 40, 0))
    counts = extract(folder, tmp_path / "images", layout="folder")
    assert sum(counts["faces"]["PublicTest"].values()) == 1
    assert "held_out" not in counts


def test_what_comes_while_a_folder_is_read_is_newer_than_the_output(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = folder / "train/anger/late.png"

    def read(path: Path) -> bytes:
        if not late.exists():
            time.sleep(0.05)  # clocks of file systems are coarse
            write(late, face("sad", 30, 40, 99))
        return path.read_bytes()

    monkeypatch.setattr("preprocessing.extract.read_file", read)
    extract(folder, tmp_path / "images", layout="folder", workers=1)
    assert (tmp_path / "images/manifest.json").stat().st_mtime_ns < late.parent.stat().st_mtime_ns
    assert extract(folder, tmp_path / "images", layout="folder")["written"] == 35
    assert (tmp_path / "images/manifest.json").stat().st_mtime_ns > late.parent.stat().st_mtime_ns


def test_the_summary_says_which_split_is_empty(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(folder, tmp_path / "images", layout="folder")
    assert "no images in" not in capsys.readouterr().out
    shutil.rmtree(folder / "train")
    extract(folder, tmp_path / "images", layout="folder")
    assert ", no images in Training and PublicTest, without which lmdb stops" in capsys.readouterr().out


def test_classes_of_ones_own_in_the_order_that_is_given(folder: Path, tmp_path: Path) -> None:
    counts = extract(folder, tmp_path / "images", layout="folder", classes=("contempt", "happiness", "anger"))
    assert tree_classes(tmp_path / "images") == ("contempt", "happiness", "anger")
    assert counts["faces"]["Training"] == {"contempt": 9, "happiness": 9, "anger": 18}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("happiness", "anger")}, "emotion folder 'contempt'; expected happiness, anger"),
        ({"classes": ("happiness", "anger", "bored")}, "no image of the class bored; .* folders are .*anger"),
        ({"classes": ("a/b", "c")}, "--classes is a/b c; expected two or more names"),
        ({"classes": ("anger", "angry")}, "--classes is anger angry"),
        ({"classes": ("anger",)}, "--classes is anger; expected two or more"),
        ({"classes": ("anger", "sad"), "contempt": "keep"}, "--contempt is keep, but --classes names all"),
        ({"frames": 2}, "--frames is given, but .* holds no sequences"),
        ({"neutral": True}, "--neutral is given, but"),
        ({"contempt": "maybe"}, "--contempt is maybe; expected drop or keep"),
        ({"layout": "jaffe"}, "--layout is jaffe; expected one of fer2013, ckplus"),
    ],
)
def test_options_that_the_folder_does_not_have(folder: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(StageError, match=message):
        extract(folder, tmp_path / "images", **{"layout": "folder", **options})
    assert not (tmp_path / "images").exists()


def test_images_are_read_as_opencv_reads_them(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    grey = np.arange(6, dtype=np.uint16).reshape(2, 3) * 8000
    write(source / "train/sad/deep.png", grey)
    upright = np.repeat(np.array([[0, 255, 0, 255]], np.uint8), 4, 0)
    jpeg = cv2.imencode(".jpg", np.kron(upright, np.ones((8, 8), np.uint8)))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # orientation 6: a quarter turn
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    (source / "train/sad/turned.jpg").write_bytes(turned)
    write(source / "test/sad/a.png", face("sad", 9, 9, 0))
    extract(source, tmp_path / "images", layout="folder")
    images = [image for file, image in tree(tmp_path / "images").items() if not file.startswith("PrivateTest")]
    deep, other = sorted(images, key=lambda image: image.size)
    assert deep.tolist() == (grey // 256).tolist()
    assert abs(int(other[0, 0]) - int(other[0, -1])) < 50  # stripes that lay down
    assert abs(int(other[4, 4]) - int(other[12, 4])) > 200


# ---- CK+ ------------------------------------------------------------------------------------------------------------


def persons(count: int) -> dict[str, int | None]:
    """A sequence of each person, and one without a label."""
    sequences: dict[str, int | None] = {f"S{5 + i:03d}/001": i % 7 + 1 for i in range(count)}
    return {**sequences, "S005/002": None}


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("cohn-kanade-images", "Emotion"),
        ("CK+/extended-cohn-kanade-images/cohn-kanade-images", "CK+/Emotion_labels/Emotion"),
    ],
)
def test_the_last_frames_of_ckplus_carry_the_label(tmp_path: Path, images: str, labels: str) -> None:
    source = write_ckplus(tmp_path / "CK+", persons(14), images=images, labels=labels)
    counts = extract(source, tmp_path / "images", layout="ckplus")
    found = tree(tmp_path / "images")
    assert counts["written"] == 3 * 12  # of 14 persons two show contempt
    assert counts["left_out"] == {"contempt": 6, "sequences without a label": 1}
    # persons 0 to 13 in order show anger, contempt, disgust, fear, happiness, sadness, surprise, and again
    order = [0, None, 1, 2, 3, 4, 5]
    expected: dict[str, list[int]] = {}
    for person in range(14):
        label = order[person % 7]
        if label is not None:
            expected.setdefault(f"{label}_{SEVEN[label]}", []).extend(range(3 * person, 3 * person + 3))
    assert by_class(found) == expected
    for file, image in found.items():
        assert image.shape == (49, 64)
        assert image[0, 0] == 3 + int(Path(file).stem) % 3  # frames 3, 4 and 5 of five
    assert len(manifest(tmp_path / "images")["inputs"]) == 14


def test_a_person_of_ckplus_is_the_same_in_any_case(tmp_path: Path) -> None:
    source = write_ckplus(tmp_path / "CK+", {"S011/001": 1, "S011/002": 3})
    (source / "cohn-kanade-images/S011").rename(source / "cohn-kanade-images/s011")
    label = source / "Emotion/S011/002/S011_002_00000005_emotion.txt"
    label.rename(label.with_name("s011_002_00000005_emotion.txt"))
    listing = read_ckplus(source)
    assert (listing.rejected, listing.left_out) == ([], {})
    assert [(item.person, item.emotion) for item in listing.items] == [("S011", "angry")] * 3 + [
        ("S011", "disgust")
    ] * 3


def test_neutral_is_the_first_frame_and_contempt_the_eighth_class(tmp_path: Path) -> None:
    source = write_ckplus(tmp_path / "CK+", persons(14))
    counts = extract(source, tmp_path / "images", layout="ckplus", contempt="keep", frames=2, neutral=True)
    found = tree(tmp_path / "images")
    totals = {name: sum(counts["faces"][split][name] for split in SPLITS) for name in EIGHT}
    assert totals == dict.fromkeys(EIGHT, 4) | {"neutral": 14}
    assert {image[0, 0] for file, image in found.items() if "6_neutral" in file} == {1}
    assert {image[0, 0] for file, image in found.items() if "7_contempt" in file} == {4, 5}
    settings = manifest(tmp_path / "images")["settings"]
    assert re.fullmatch("[0-9a-f]{64}", settings.pop("folder_sha256"))
    assert settings.pop("splits").startswith("10 folds that share no person")
    assert settings == {
        "folder": str(source),
        "layout": "ckplus",
        "contempt": "keep",
        "classes": list(EIGHT),
        "skip_bad": False,
        "frames": 2,
        "neutral": True,
    }


def test_a_sequence_has_its_first_frame_and_the_last_ones(tmp_path: Path) -> None:
    source = write_ckplus(tmp_path / "CK+", {"S011/001": 1})  # of five frames
    items = read_ckplus(source, frames=4, neutral=True).items
    assert [(item.file[-5], item.emotion) for item in items] == [
        ("1", "neutral"),
        *((str(i), "angry") for i in range(2, 6)),
    ]
    ((_, reason),) = read_ckplus(source, frames=5, neutral=True).rejected
    assert reason == "5 frames up to the peak; expected 6 or more (5 of the expression, and the first as neutral)"


def test_folds_share_no_person(tmp_path: Path) -> None:
    source = write_ckplus(tmp_path / "CK+", persons(23))
    counts = extract(source, tmp_path / "images", layout="ckplus", contempt="keep")
    rows = [line.split(",") for line in (tmp_path / "images/folds.csv").read_text().splitlines()]
    assert rows[0] == ["file", "person", "fold"]
    assert sorted(row[0] for row in rows[1:]) == list(tree(tmp_path / "images"))
    folds_of: dict[str, set[str]] = {}
    for file, person, fold in rows[1:]:
        folds_of.setdefault(person, set()).add(fold)
        split = file.split("/")[0]
        assert split == {"1": "PrivateTest", "2": "PublicTest"}.get(fold, "Training")
    assert len(folds_of) == counts["persons"] == 23
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert {fold for folds in folds_of.values() for fold in folds} == {str(fold) for fold in range(1, 11)}


def test_fewer_persons_than_folds(tmp_path: Path) -> None:
    source = write_ckplus(tmp_path / "CK+", persons(9))
    with pytest.raises(StageError, match=r"CK\+: 9 persons with a label; expected 10 or more"):
        extract(source, tmp_path / "images", layout="ckplus", contempt="keep")


def test_bad_sequences_of_ckplus_are_named(tmp_path: Path) -> None:
    source = write_ckplus(tmp_path / "CK+", persons(20))
    emotion = source / "Emotion"
    shutil.rmtree(source / "cohn-kanade-images/S005/001")
    (source / "cohn-kanade-images/S007/001/S007_001_00000005.png").unlink()
    for number in (1, 2, 3):
        (source / f"cohn-kanade-images/S008/001/S008_001_0000000{number}.png").unlink()
    (emotion / "S009/001/S009_001_00000005_emotion.txt").write_text("")
    (emotion / "S010/001/S010_001_00000005_emotion.txt").write_text("   8.0000000e+00\n")
    (emotion / "S011/001/S011_001_00000004_emotion.txt").write_text("   3.0000000e+00\n")
    expected = [
        ("S005/001/S005_001_00000005", "no images of this sequence"),
        ("S007/001/S007_001_00000005", r"no frame S007_001_00000005\.png among the 4 images"),
        ("S008/001/S008_001_00000005", "2 frames up to the peak; expected 3 or more"),
        ("S009/001/S009_001_00000005", r"label ''; expected a number of 0\.\.7"),
        ("S010/001/S010_001_00000005", r"label '8\.0000000e\+00'; expected a number"),
        ("S011/001/S011_001_00000005", "a second label of this sequence, after .*00000004_emotion"),
    ]
    with pytest.raises(StageError, match=f"file Emotion/{expected[0][0]}_emotion.txt: {expected[0][1]}; --skip-bad"):
        extract(source, tmp_path / "images", layout="ckplus")
    extract(source, tmp_path / "images", layout="ckplus", skip_bad=True)
    rejected = manifest(tmp_path / "images")["rejected"]
    assert len(rejected) == len(expected)
    for entry, (name, reason) in zip(rejected, expected, strict=True):
        assert entry["file"] == f"Emotion/{name}_emotion.txt"
        assert re.search(reason, entry["reason"]), entry


def test_what_is_not_ckplus(tmp_path: Path) -> None:
    source = write_ckplus(tmp_path / "CK+", persons(12))
    write(source / "copy/S005/001/S005_001_00000001.png", face("sad", 20, 20, 0))
    with pytest.raises(StageError, match="sequence S005/001 lies in cohn-kanade-images/S005/001 and in copy/S005/001"):
        read_ckplus(source)
    shutil.rmtree(source / "copy")
    shutil.rmtree(source / "Emotion")
    with pytest.raises(StageError, match=r"no labels \*_emotion\.txt anywhere below it"):
        read_ckplus(source)
    with pytest.raises(StageError, match="no images S005/001"):
        read_ckplus(tmp_path / "CK+/cohn-kanade-images/S005")
    with pytest.raises(StageError, match="--frames is 0; expected 1 or more"):
        extract(source, tmp_path / "images", layout="ckplus", frames=0)


def test_the_cropped_faces_of_ckplus(tmp_path: Path) -> None:
    folders = ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
    sequences = {f"S{person:03d}_{i + 1:03d}": folders[i] for person in range(10, 22) for i in range(7)}
    source = write_ck48(tmp_path / "archive/CK+48", sequences).parent
    for frames in (3, 1):
        counts = extract(source, tmp_path / "images", layout="ckplus", contempt="keep", frames=frames)
        assert (counts["written"], counts["persons"]) == (12 * 7 * frames, 12)
        found = tree(tmp_path / "images")
        classes = ("angry", "contempt", "disgust", "fear", "happy", "sad", "surprise")
        for file, image in found.items():
            sequence, frame = divmod(int(image[0, 0]), 10)
            assert file.split("/")[1].split("_")[1] == classes[sequence - 1]
            assert frame > 3 - frames
        with open(tmp_path / "images/folds.csv", newline="") as f:
            rows = [(row["file"], row["person"], row["fold"]) for row in csv.DictReader(f)]
        assert {file for file, _, _ in rows} == set(found)
        assert len({(person, fold) for _, person, fold in rows}) == 12
        assert {fold for _, _, fold in rows} == set(map(str, range(1, 11)))
    with pytest.raises(StageError, match="3 frames up to the peak; expected 4 or more"):
        extract(source, tmp_path / "images", layout="ckplus", frames=4)
    with pytest.raises(StageError, match="--neutral is given, but these faces have no first frames"):
        extract(source, tmp_path / "images", layout="ckplus", neutral=True)
    write_ck48(source / "CK+48", {"S030_001": "scorn"})
    with pytest.raises(StageError, match=r"S030_001_00000003\.png: emotion folder 'scorn'; expected one of neutral"):
        extract(source, tmp_path / "images", layout="ckplus")
    write_ck48(source / "CK+48", {"S010_001": "fear"})
    with pytest.raises(StageError, match=r"sequence S010/001 lies in .*anger and in .*fear; expected one"):
        extract(source, tmp_path / "images", layout="ckplus")


@pytest.mark.parametrize("contempt", ["drop", "keep"])
def test_the_csv_form_of_ckplus_has_contempt_as_7(tmp_path: Path, contempt: str) -> None:
    image = faces(16)
    usages = ["Training"] * 8 + ["PublicTest"] * 4 + ["PrivateTest"] * 4
    rows = [[i % 8, pixels(image[i]), usages[i]] for i in range(16)]
    (tmp_path / "ckextended.csv").write_bytes(csv_bytes(rows))
    counts = extract(tmp_path / "ckextended.csv", tmp_path / "images", layout="ckplus", contempt=contempt)
    found = tree(tmp_path / "images")
    kept = {f"PrivateTest/{15 % 8}_contempt/00015.png", "Training/7_contempt/00007.png"} & set(found)
    assert len(kept) == (2 if contempt == "keep" else 0)
    assert counts["left_out"] == ({} if contempt == "keep" else {"contempt": 2})
    assert counts["written"] == len(found) == (16 if contempt == "keep" else 14)
    np.testing.assert_array_equal(found["PublicTest/2_fear/00010.png"], image[10])
    assert not (tmp_path / "images/folds.csv").exists()
    with pytest.raises(StageError, match=r"row 9: label '7'; expected 0\.\.6"):
        extract(tmp_path / "ckextended.csv", tmp_path / "images")
    with pytest.raises(StageError, match=r"--frames is given, but .* holds no sequences"):
        extract(tmp_path / "ckextended.csv", tmp_path / "images", layout="ckplus", frames=3)


# ---- RAF-DB ---------------------------------------------------------------------------------------------------------

LINES = [(f"train_{i + 1:05d}.jpg", i % 7 + 1) for i in range(21)] + [
    (f"test_{i + 1:04d}.jpg", i + 1) for i in range(7)
]
RAFDB = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")


@pytest.mark.parametrize(("images", "above"), [("aligned", False), ("original", True)])
def test_rafdb(tmp_path: Path, images: str, above: bool) -> None:
    write_rafdb(tmp_path / "RAF DB/basic", LINES, images)
    source = tmp_path / "RAF DB" if above else tmp_path / "RAF DB/basic"
    counts = extract(source, tmp_path / "images", layout="rafdb")
    found = tree(tmp_path / "images")
    # sorted, the seven test images come first, then the training images; each label is 1 + its number modulo 7
    for file, image in found.items():
        number = int(Path(file).stem)
        assert file.split("/")[1].split("_")[1] == RAFDB[number % 7]
        assert file.startswith("PrivateTest") == (number < 7)
        assert image.shape == (100, 100)
        assert abs(int(image[0, 0]) - ((number - 7) % 28)) < 12  # the line that it stands on; JPEG blurs it
    assert len(found) == 28
    assert [sum(counts["faces"][split].values()) for split in SPLITS] == [14, 7, 7]
    assert manifest(tmp_path / "images")["inputs"][0]["file"].endswith("EmoLabel/list_patition_label.txt")


@pytest.mark.parametrize("above", [False, True])
def test_rafdb_in_folders_that_are_labels(tmp_path: Path, above: bool) -> None:
    write_rafdb_folders(tmp_path / "archive", LINES)
    source = tmp_path / "archive" if above else tmp_path / "archive/DATASET"
    counts = extract(source, tmp_path / "images", layout="rafdb")
    found = tree(tmp_path / "images")
    assert len(found) == 28
    for file, image in found.items():
        assert file.split("/")[1].split("_")[1] == RAFDB[round(int(image[0, 0]) / 30) - 1]
    assert [sum(counts["faces"][split].values()) for split in SPLITS] == [14, 7, 7]
    write(tmp_path / "archive/DATASET/train/8/train_00099_aligned.jpg", face("sad", 100, 100, 0))
    with pytest.raises(StageError, match=r"train/8/train_00099_aligned\.jpg: expected train/LABEL/NAME or"):
        extract(source, tmp_path / "images", layout="rafdb")
    assert list(tree(tmp_path / "images")) == list(found)


def test_bad_lines_of_rafdb_are_named(tmp_path: Path) -> None:
    source = write_rafdb(tmp_path / "basic", LINES)
    bad = ["train_00001.jpg 3", "train_00030.jpg 8", "photo.jpg 1", "train_00031.jpg", "", "train_00032.jpg 2"]
    with open(source / "EmoLabel/list_patition_label.txt", "a") as f:
        f.write("\n".join(bad) + "\n")
    with pytest.raises(StageError, match=r"label\.txt, line 29: train_00001\.jpg again, after line 1"):
        extract(source, tmp_path / "images", layout="rafdb")
    counts = extract(source, tmp_path / "images", layout="rafdb", skip_bad=True)
    reasons = [entry["reason"] for entry in manifest(tmp_path / "images")["rejected"]]
    assert [reason.split(";")[0] for reason in reasons] == [
        "train_00001.jpg again, after line 1",
        "label '8'",
        "'photo.jpg 1'",
        "'train_00031.jpg'",
        "no such file",
    ]
    assert (counts["written"], counts["rejected"]) == (28, 5)


def test_what_is_not_rafdb(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"neither EmoLabel/list_.*\.txt nor train/1 to train/7; expected RAF-DB's"):
        extract(tmp_path / "empty", tmp_path / "images", layout="rafdb")
    source = write_rafdb(tmp_path / "basic", LINES)
    shutil.rmtree(source / "Image/aligned")
    with pytest.raises(StageError, match="neither Image/aligned nor Image/original"):
        extract(source, tmp_path / "images", layout="rafdb")
    (tmp_path / "a.csv").touch()
    with pytest.raises(StageError, match="a file; expected RAF-DB's folder basic"):
        extract(tmp_path / "a.csv", tmp_path / "images", layout="rafdb")
    with pytest.raises(StageError, match="--contempt is keep, but the layout rafdb has no contempt"):
        extract(source, tmp_path / "images", layout="rafdb", contempt="keep")
    with pytest.raises(StageError, match="nothing: no such file or folder; expected RAF-DB's folder"):
        extract(tmp_path / "nothing", tmp_path / "images", layout="rafdb")


# ---- AffectNet ------------------------------------------------------------------------------------------------------

AFFECTNET = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")
TRAINING = [affectnet_row(f"{i % 3}/{i:03d}.jpg", i % 11, (40, 30, 50, 50)) for i in range(44)]
VALIDATION = [affectnet_row(f"9/{i:03d}.jpg", i) for i in range(8)]


@pytest.mark.parametrize("header", [True, False])
def test_affectnet(tmp_path: Path, header: bool) -> None:
    source = write_affectnet(tmp_path / "AffectNet", TRAINING, VALIDATION, header)
    counts = extract(source, tmp_path / "images", layout="affectnet", contempt="keep")
    assert counts["faces"]["PrivateTest"] == dict.fromkeys(EIGHT, 1)
    assert counts["faces"]["PublicTest"] == dict.fromkeys(EIGHT, 1)  # one of four
    assert counts["faces"]["Training"] == dict.fromkeys(EIGHT, 3)
    assert counts["left_out"] == {"none": 4, "uncertain": 4, "no face": 4}
    found = tree(tmp_path / "images")
    rows = sorted([*TRAINING, *VALIDATION], key=lambda row: str(row[0]))
    labelled = [row for row in rows if row[6] < 8]
    for file, image in found.items():
        row = labelled[int(Path(file).stem)]
        assert file.split("/")[1].split("_")[1] == AFFECTNET[row[6]]
        assert image.shape == (75, 75)
    dropped = extract(source, tmp_path / "dropped", layout="affectnet")
    assert dropped["left_out"]["contempt"] == 5


def test_a_box_is_enlarged_by_half_about_its_middle() -> None:
    image = np.add.outer(100 * np.arange(2, dtype=np.uint8).repeat(60), np.arange(160, dtype=np.uint8) // 2)
    np.testing.assert_array_equal(crop(image, Box(40, 20, 40, 60)), image[5:95, 30:90])
    np.testing.assert_array_equal(crop(image, Box(0, 0, 40, 60)), image[:75, :50])  # cut off at the borders
    np.testing.assert_array_equal(crop(image, Box(150, 110, 40, 60)), image[95:, 140:])
    for outside in (Box(200, 10, 20, 20), Box(-90, 10, 20, 20)):
        with pytest.raises(ValueError, match="lies outside of the image of 160x120 pixels"):
            crop(image, outside)


def test_bad_rows_of_affectnet_are_named(tmp_path: Path) -> None:
    source = write_affectnet(tmp_path / "AffectNet", TRAINING, VALIDATION)
    extra = [
        affectnet_row("0/000.jpg", 1),
        affectnet_row("0/missing.jpg", 1),
        affectnet_row("0/a.jpg", 11),
        affectnet_row("0/b.jpg", 1, ("NULL", 1, 2, 3)),
        affectnet_row("0/c.jpg", 1, (1, 1, 0, 3)),
        affectnet_row("../training.csv", 1),
        affectnet_row("/etc/a.jpg", 1),
        ["0/d.jpg", 1],
        affectnet_row("0/e.jpg", 9, ("NULL", "NULL", "NULL", "NULL")),  # has no face, and needs none
        affectnet_row("", 1),
        affectnet_row("0", 1),
        affectnet_row("0/000.jpg/f.jpg", 1),
        affectnet_row(f"0/{'g' * 300}.jpg", 1),
    ]
    with open(source / "Manually_Annotated_file_lists/training.csv", "a") as f:
        f.writelines(",".join(map(str, row)) + "\n" for row in extra)
    with pytest.raises(StageError, match=r"training\.csv, row 46: 0/000\.jpg again, after .*training\.csv, row 2"):
        extract(source, tmp_path / "images", layout="affectnet")
    counts = extract(source, tmp_path / "images", layout="affectnet", skip_bad=True)
    rejected = manifest(tmp_path / "images")["rejected"]
    assert [entry["reason"].split(";")[0] for entry in rejected] == [
        "0/000.jpg again, after Manually_Annotated_file_lists/training.csv, row 2",
        "expression '11'",
        "face_x is 'NULL'",
        "a face of 0x3 pixels",
        "../training.csv",
        "/etc/a.jpg",
        "more or fewer fields than there are columns",
        "a folder",
        "a folder",
        "Not a directory",
        "File name too long",
        "no such file",
    ]
    assert counts["left_out"]["uncertain"] == 5


def test_what_is_not_affectnet(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"neither training\.csv and validation\.csv nor train_set and val_set"):
        extract(tmp_path / "empty", tmp_path / "images", layout="affectnet")
    source = write_affectnet(tmp_path / "AffectNet", TRAINING, VALIDATION)
    shutil.rmtree(source / "Manually_Annotated")
    with pytest.raises(StageError, match=r"no 0/000\.jpg, the first image of training\.csv; expected it in Manually"):
        extract(source, tmp_path / "images", layout="affectnet")
    (source / "Manually_Annotated_file_lists/training.csv").write_text(AFFECTNET_HEADER + "\n")
    with pytest.raises(StageError, match=r"training\.csv: no rows; expected AffectNet's annotations"):
        extract(source, tmp_path / "images", layout="affectnet")
    (source / "training.csv").write_text(AFFECTNET_HEADER + "\n")
    with pytest.raises(StageError, match=r"training\.csv stands in .*AffectNet and in .*file_lists; expected one"):
        extract(source, tmp_path / "images", layout="affectnet")


def test_tables_of_affectnet_that_are_none(tmp_path: Path) -> None:
    source = write_affectnet(tmp_path / "AffectNet", TRAINING, VALIDATION)
    table = source / "Manually_Annotated_file_lists/validation.csv"
    for text, message in (
        (b"\xff\xfe0/1.jpg\n", r"validation\.csv: not UTF-8 text in CSV format"),
        (
            AFFECTNET_HEADER.replace("face_height", "face_h").encode(),
            r"row 1: no column 'face_height'; expected Affect",
        ),
    ):
        table.write_bytes(text + b"\n")
        with pytest.raises(StageError, match=message):
            extract(source, tmp_path / "images", layout="affectnet")
    (tmp_path / "later/val_set/images").mkdir(parents=True)
    (tmp_path / "later/val_set/images/.DS_Store").touch()
    with pytest.raises(StageError, match="later: no images in train_set/images and val_set/images"):
        extract(tmp_path / "later", tmp_path / "images", layout="affectnet")


def test_the_later_release_of_affectnet(tmp_path: Path) -> None:
    labels = {"train_set": [*range(8), *map(str, range(8)), 8], "val_set": [5, "3", 7]}
    source = write_affectnet_arrays(tmp_path / "AffectNet", labels)
    counts = extract(source, tmp_path / "images", layout="affectnet")
    assert counts["faces"]["PrivateTest"] == dict.fromkeys(SEVEN, 0) | {"disgust": 1, "surprise": 1}
    assert counts["faces"]["PublicTest"] == dict.fromkeys(SEVEN, 1)  # one of two
    assert counts["left_out"] == {"contempt": 3, "none": 1}
    assert {image.shape for image in tree(tmp_path / "images").values()} == {(224, 224)}
    (source / "train_set/annotations/4_exp.npy").unlink()
    (source / "train_set/annotations/5_exp.npy").write_bytes(b"\x93NUMPY")
    (source / "train_set/annotations/6_exp.npy").write_bytes(b"PK\x03\x04 cut off")
    array = (source / "train_set/annotations/7_exp.npy").read_bytes()
    (source / "train_set/annotations/7_exp.npy").write_bytes(array.replace(b"}", b" "))  # a header without an end
    np.save(source / "val_set/annotations/0_exp.npy", np.arange(2))
    np.save(source / "val_set/annotations/1_exp.npy", np.array({"a": 1}, dtype=object))  # would have to be unpickled
    extract(source, tmp_path / "images", layout="affectnet", skip_bad=True)
    rejected = manifest(tmp_path / "images")["rejected"]
    assert [entry["file"] for entry in rejected] == [
        *(f"train_set/annotations/{i}_exp.npy" for i in (4, 5, 6, 7)),
        *(f"val_set/annotations/{i}_exp.npy" for i in (0, 1)),
    ]
    assert "no such file" in rejected[0]["reason"]


def test_the_manifest_tells_labels_apart_that_lie_in_arrays(tmp_path: Path) -> None:
    source = write_affectnet_arrays(tmp_path / "AffectNet", {"train_set": [*range(7)] * 3, "val_set": [5, 3]})
    hashes = []
    for workers, label in ((1, 5), (4, 5), (1, 4)):
        np.save(source / "val_set/annotations/0_exp.npy", np.array(label))
        extract(source, tmp_path / "images", layout="affectnet", workers=workers)
        hashes.append(manifest(tmp_path / "images")["settings"]["folder_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


# ---- as a program ---------------------------------------------------------------------------------------------------


def test_the_program_reads_a_layout_and_leaves_the_old_output_when_it_is_stopped(tmp_path: Path) -> None:
    source = write_rafdb(tmp_path / "RAF DB", LINES)
    command = [sys.executable, "-m", "preprocessing.extract", str(source), str(tmp_path / "images")]
    done = subprocess.run([*command, "--layout", "rafdb"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("extract: 28 faces (14 Training, 7 PublicTest, 7 PrivateTest), 0 blank, 0 rejected")
    before = tree(tmp_path / "images")
    (source / "Image/aligned/train_00021_aligned.jpg").write_bytes(b"\xff\xd8 cut off \xff\xda")
    failed = subprocess.run([*command, "--layout", "rafdb"], cwd=ROOT, capture_output=True, text=True)
    assert (failed.returncode, failed.stderr.split(":")[0]) == (1, "error")
    assert "train_00021_aligned.jpg: the image is cut off" in failed.stderr
    assert list(tree(tmp_path / "images")) == list(before)
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]
