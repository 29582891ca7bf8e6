"""The lmdb stage on small trees of drawn faces, its databases read with lmdb and OpenCV alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from caffe.errors import CaffeError
from caffe.proto.caffe_pb2 import Datum
from preprocessing.lmdb import write_databases
from preprocessing.stage import StageError, sha256

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"Training": 23, "PublicTest": 4, "PrivateTest": 5}
NAMES = {"Training": "train_lmdb", "PublicTest": "val_lmdb", "PrivateTest": "test_lmdb"}
FOLDERS = ("0_angry", "1_disgust", "2_fear", "3_happy", "4_sad", "5_surprise", "6_neutral")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree as extract writes it, in a folder with a space in its name."""
    tree, number = tmp_path / "my data" / "images", 0
    noise = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for index in range(count):
            folder = tree / split / FOLDERS[index % 7]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{number:05d}.png"), noise.integers(0, 256, (8, 6), dtype=np.uint8))
            number += 1
    (tree / "manifest.json").write_text("{}")
    return tree


def records(path: Path) -> dict[str, Datum]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return {key.decode(): Datum.FromString(value) for key, value in transaction.cursor()}


def first(tree: Path) -> Path:
    return next((tree / "Training" / "3_happy").iterdir())


def test_every_image_is_a_record_of_its_split(tree: Path, tmp_path: Path) -> None:
    write_databases(tree, tmp_path / "lmdb", seed=3)
    assert sorted(os.listdir(tmp_path / "lmdb")) == ["classes.txt", "manifest.json", *sorted(NAMES.values())]
    assert (tmp_path / "lmdb/classes.txt").read_text().split() == [name[2:] for name in FOLDERS]
    for split, name in NAMES.items():
        found = records(tmp_path / "lmdb" / name)
        assert [int(key[:8]) for key in found] == list(range(COUNTS[split]))
        files = [key[9:] for key in found]
        assert sorted(files) == sorted(str(path.relative_to(tree)) for path in tree.glob(f"{split}/*/*.png"))
        for file, datum in zip(files, found.values(), strict=True):
            assert (datum.channels, datum.height, datum.width, datum.encoded) == (1, 8, 6, False)
            assert datum.data == cv2.imread(str(tree / file), cv2.IMREAD_GRAYSCALE).tobytes()
            assert FOLDERS[datum.label] == Path(file).parent.name


def test_the_seed_decides_the_order(tree: Path, tmp_path: Path) -> None:
    orders = []
    for run, seed in enumerate((0, 0, 1)):
        write_databases(tree, tmp_path / str(run), seed=seed, workers=run + 1)
        orders.append(list(records(tmp_path / str(run) / "train_lmdb")))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    write_databases(tree, tmp_path / "default")
    assert list(records(tmp_path / "default" / "train_lmdb")) == orders[0]
    labels = [datum.label for datum in records(tmp_path / "0" / "train_lmdb").values()]
    assert labels != sorted(labels)


def test_the_manifest_says_what_was_read_and_written(tree: Path, tmp_path: Path) -> None:
    counts = write_databases(tree, tmp_path / "lmdb", seed=7)
    manifest = json.loads((tmp_path / "lmdb/manifest.json").read_text())
    assert manifest["counts"] == counts
    assert counts["read"] == 32
    assert counts["written"] == {"train_lmdb": 23, "val_lmdb": 4, "test_lmdb": 5}
    assert manifest["settings"]["seed"] == 7
    assert manifest["inputs"] == [{"file": str(tree / "manifest.json"), "sha256": sha256(tree / "manifest.json")}]


def test_colour_images_stay_colour(tree: Path, tmp_path: Path) -> None:
    for path in tree.glob("*/*/*.png"):
        cv2.imwrite(str(path), np.random.default_rng(1).integers(0, 256, (8, 6, 3), dtype=np.uint8))
    assert write_databases(tree, tmp_path / "lmdb")["channels"] == 3


def test_images_of_any_size_are_brought_to_one(tree: Path, tmp_path: Path) -> None:
    large = np.random.default_rng(2).integers(0, 256, (30, 40), dtype=np.uint8)
    cv2.imwrite(str(first(tree)), large)
    with pytest.raises(StageError, match="1 channel of 40x30 pixels; expected 1 channel of 6x8"):
        write_databases(tree, tmp_path / "lmdb")
    for workers in (1, 3):
        counts = write_databases(tree, tmp_path / "lmdb", size=5, workers=workers)
        assert (counts["width"], counts["height"]) == (5, 5)
        found = records(tmp_path / "lmdb" / "train_lmdb")
        assert [int(key[:8]) for key in found] == list(range(COUNTS["Training"]))
        (datum,) = [datum for key, datum in found.items() if key[9:] == str(first(tree).relative_to(tree))]
        # each pixel the mean of 6 by 8 pixels, which area averaging is where they divide evenly
        expected = large.reshape(5, 6, 5, 8).mean((1, 3))
        assert np.abs(np.frombuffer(datum.data, np.uint8).reshape(5, 5) - expected).max() <= 0.5
        assert datum.label == 3


def test_images_of_two_folders_beside_each_other(tree: Path, tmp_path: Path) -> None:
    """Each channel is what a database of its folder alone has, under the same keys."""
    other = tmp_path / "other"
    for path in tree.glob("*/*/*.png"):
        (other / path.relative_to(tree)).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(other / path.relative_to(tree)), 255 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED).repeat(2, 0))
    counts = write_databases(tree, tmp_path / "both", seed=4, size=6, beside=other)
    assert (counts["channels"], counts["height"], counts["width"]) == (2, 6, 6)
    for name, folder in (("a", tree), ("b", other)):
        write_databases(folder, tmp_path / name, seed=4, size=6)
    for name in NAMES.values():
        both, *apart = (records(tmp_path / folder / name) for folder in ("both", "a", "b"))
        assert list(both) == list(apart[0])
        for key, datum in both.items():
            assert datum.data == apart[0][key].data + apart[1][key].data
            assert datum.label == apart[0][key].label
    write_databases(tree, tmp_path / "both", beside=other)
    datum = next(iter(records(tmp_path / "both/train_lmdb").values()))
    assert (datum.channels, datum.height, datum.width) == (2, 48, 48), "as large as aligned faces"
    (other / "manifest.json").write_text("{}")
    write_databases(tree, tmp_path / "both", beside=other)
    manifest = json.loads((tmp_path / "both/manifest.json").read_text())
    assert manifest["settings"] == {"images": str(tree), "seed": 0, "size": 48, "beside": str(other)}
    assert [entry["file"] for entry in manifest["inputs"]] == [
        str(folder / "manifest.json") for folder in (tree, other)
    ]
    inside = tmp_path / "both/train_lmdb"
    with pytest.raises(StageError, match=f"both: overlaps with the input {inside}"):  # it would be replaced
        write_databases(tree, tmp_path / "both", beside=inside)
    assert first(other).is_file()
    (missing := other / first(tree).relative_to(tree)).unlink()
    with pytest.raises(StageError, match=f"{missing.relative_to(other)}: No such file or directory .in {other}."):
        write_databases(tree, tmp_path / "both", beside=other)


def test_images_of_the_size_already_stay_as_they_are(tree: Path, tmp_path: Path) -> None:
    for path in tree.glob("*/*/*.png"):
        cv2.imwrite(str(path), np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8))
    write_databases(tree, tmp_path / "as they are")
    write_databases(tree, tmp_path / "sized", size=8)
    for name in NAMES.values():
        assert records(tmp_path / "as they are" / name) == records(tmp_path / "sized" / name)


def test_an_image_that_cannot_be_read_is_named_when_it_would_be_resized(tree: Path, tmp_path: Path) -> None:
    first(tree).write_bytes(b"no image")
    with pytest.raises(StageError, match=f"{first(tree).relative_to(tree)}: its 8 bytes are not an image"):
        write_databases(tree, tmp_path / "lmdb", size=5)


@pytest.mark.parametrize("fold", [1, 9, 10])
def test_a_fold_tests_the_next_one_validates_and_the_others_train(tree: Path, tmp_path: Path, fold: int) -> None:
    files = sorted(path.relative_to(tree).as_posix() for path in tree.glob("*/*/*.png"))
    folds = {file: i % 10 + 1 for i, file in enumerate(files)}
    rows = [f"{file},S{folds[file]:03d},{folds[file]}" for file in files]
    (tree / "folds.csv").write_text("\n".join(["file,person,fold", *rows, ""]))
    write_databases(tree, tmp_path / "lmdb", fold=fold)
    validation = {1: 2, 9: 10, 10: 1}[fold]
    parts = {name: {key[9:] for key in records(tmp_path / "lmdb" / name)} for name in NAMES.values()}
    assert parts["test_lmdb"] == {file for file in files if folds[file] == fold}
    assert parts["val_lmdb"] == {file for file in files if folds[file] == validation}
    assert parts["train_lmdb"] == set(files) - parts["test_lmdb"] - parts["val_lmdb"]
    assert json.loads((tmp_path / "lmdb/manifest.json").read_text())["settings"]["fold"] == fold


@pytest.mark.parametrize(
    ("content", "fold", "message"),
    [
        (None, 1, "does not tell who the persons are"),
        ("file,person,fold\n", 11, "--fold is 11; expected 1..10"),
        ("file,person,fold\n", 1, r"0_angry/00000\.png: not in folds\.csv"),
        ("file,fold\n", 1, "row 1: .*; expected file, person, fold"),
        ("file,person,fold\nTraining/0_angry/00000.png,S1,11\n", 1, "row 2: .*; expected"),
    ],
)
def test_folds_that_are_not_there(tree: Path, tmp_path: Path, content: str | None, fold: int, message: str) -> None:
    if content is not None:
        (tree / "folds.csv").write_text(content)
    with pytest.raises(StageError, match=message):
        write_databases(tree, tmp_path / "lmdb", fold=fold)
    assert not (tmp_path / "lmdb").exists()


@pytest.mark.parametrize("option", ["size", "workers", "fold"])
def test_numbers_below_1(tree: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(StageError, match=f"--{option} is 0; expected 1"):
        write_databases(tree, tmp_path / "lmdb", **{option: 0})


def test_classes_of_ones_own(tree: Path, tmp_path: Path) -> None:
    names = ("bored", "confused", "engaged")
    for split in COUNTS:
        for old, new in zip(FOLDERS, names, strict=False):
            (tree / split / old).rename(tree / split / f"{old[0]}_{new}")
        for old in FOLDERS[3:]:
            shutil.rmtree(tree / split / old, ignore_errors=True)
    assert write_databases(tree, tmp_path / "lmdb")["classes"] == list(names)
    assert (tmp_path / "lmdb/classes.txt").read_text().split() == list(names)
    labels = {key.split("/")[1]: datum.label for key, datum in records(tmp_path / "lmdb/train_lmdb").items()}
    assert labels == {"0_bored": 0, "1_confused": 1, "2_engaged": 2}


def test_ferplus_is_for_the_seven_emotions(tree: Path, tmp_path: Path) -> None:
    (tree / "Training" / "7_contempt").mkdir()
    with pytest.raises(StageError, match=r"its labels are FER2013's, but the classes in .* are angry, .*, contempt"):
        write_databases(tree, tmp_path / "lmdb", ferplus=tmp_path / "fer2013new.csv")


def test_the_summary_names_the_classes_that_a_split_lacks(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_databases(tree, tmp_path / "lmdb")
    line = capsys.readouterr().out
    assert "val_lmdb lacks sad, surprise, neutral, test_lmdb lacks surprise, neutral" in line
    assert "train_lmdb lacks" not in line


@pytest.mark.parametrize("split", COUNTS)
def test_a_split_without_images(tree: Path, tmp_path: Path, split: str) -> None:
    for path in (tree / split).glob("*/*.png"):
        path.unlink()
    with pytest.raises(StageError, match=f"{split}: no images; expected PNG files in {split}/0_angry"):
        write_databases(tree, tmp_path / "lmdb")
    assert not (tmp_path / "lmdb").exists()


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        with pytest.raises(StageError, match=f"{folder}: no .*; expected"):
            write_databases(tmp_path / folder, tmp_path / "lmdb")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 7), "1 channel of 7x8 pixels; expected 1 channel of 6x8"),
        ((8, 6, 3), "3 channels of 6x8"),
        (None, "not an"),
    ],
)
def test_an_image_unlike_the_others_is_named(tree: Path, tmp_path: Path, shape: tuple | None, message: str) -> None:
    path = first(tree)
    path.write_bytes(b"no image" if shape is None else cv2.imencode(".png", np.zeros(shape, np.uint8))[1].tobytes())
    with pytest.raises(StageError, match=message) as caught:
        write_databases(tree, tmp_path / "lmdb")
    assert str(path.relative_to(tree)) in str(caught.value)
    assert not (tmp_path / "lmdb").exists()


def test_a_database_that_cannot_be_written_is_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, records: object) -> int:
        raise CaffeError(f"{path}: cannot write the database: Input/output error")  # as LMDB calls a full disk

    monkeypatch.setattr("preprocessing.lmdb.write_imageset", refuse)
    with pytest.raises(StageError) as error:
        write_databases(tree, tmp_path / "lmdb")
    assert str(error.value) == f"{tmp_path}/lmdb/train_lmdb: cannot write the database: Input/output error"


def test_what_must_not_be_replaced(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").touch()
    for output, message in (
        (tmp_path / "home", "did not write"),
        (tmp_path / "file", "a file; expected a folder"),
        (tree, "overlaps"),
        (tree.parent, "overlaps"),
        (tree / "Training", "overlaps"),
    ):
        with pytest.raises(StageError, match=message):
            write_databases(tree, output)
    assert (tmp_path / "home" / "letter.txt").exists()
    assert first(tree).exists()


def run(tree: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "preprocessing.lmdb", str(tree), str(output), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command(tree: Path, tmp_path: Path) -> None:
    done = run(tree, tmp_path / "lm db", "--seed", "0", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("lmdb: 23 in train_lmdb, 4 in val_lmdb, 5 in test_lmdb")
    first(tree).write_bytes(b"")
    failed = run(tree, tmp_path / "lm db")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
    assert len(records(tmp_path / "lm db" / "train_lmdb")) == 23


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_killed_halfway_the_old_output_stays(tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "lmdb"
    write_databases(tree, output)
    before = records(output / "train_lmdb")
    pipe = tree / "PrivateTest" / "0_angry" / "99999.png"
    os.mkfifo(pipe)  # reading it waits forever, with two of the three databases written
    command = [sys.executable, "-m", "preprocessing.lmdb", str(tree), str(output), "--seed", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".partial-*/val_lmdb")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert records(output / "train_lmdb") == before

    pipe.unlink()
    write_databases(tree, output, seed=1)
    assert list(records(output / "train_lmdb")) != list(before)
    assert sorted(os.listdir(tmp_path)) == ["lmdb", "my data"]
