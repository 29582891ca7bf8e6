"""FER+'s votes as soft labels: by hand-worked rows, and in the LMDBs of a small tree."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
from trees import make_folders

import caffe
from caffe.proto.caffe_pb2 import Datum
from preprocessing.datasets import EMOTION_FOLDERS, EMOTIONS, Face, list_faces
from preprocessing.ferplus import SoftLabel, read_votes, soft_label, soft_labels
from preprocessing.lmdb import write_databases, write_imageset
from preprocessing.stage import StageError, sha256

Change = Callable[[list[str]], list[str]]
ROOT = Path(__file__).resolve().parents[2]
HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
NAMES = HEADER.split(",")[2:]
SPLITS = ("Training", "Training", "Training", "Training", "PublicTest", "PrivateTest", "Training")
LABELS = (0, 3, 6, 4, 3, 5, 2)  # as FER2013 has them
VOTES = (
    {"anger": 6, "disgust": 2, "fear": 2},
    {"happiness": 5, "neutral": 5},  # as many for each: FER2013's label, happy
    {"NF": 10},
    {"unknown": 5, "sadness": 4, "neutral": 1},
    {"contempt": 4, "happiness": 5, "unknown": 1},
    {"surprise": 9, "unknown": 1},
    {"contempt": 9, "unknown": 1},
)


def row(split: str, votes: dict[str, int], name: str = "fer0000000.png") -> str:
    return ",".join([split, name, *(str(votes.get(column, 0)) for column in NAMES)])


def lines() -> list[str]:
    """FER+'s file for the tree: a face without a name has no number, so that the names are no row numbers."""
    names = ("" if "NF" in votes else "fer0000007.png" for votes in VOTES)
    return [HEADER, *map(row, SPLITS, VOTES, names)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fer2013new.csv"
    path.write_text("\n".join(lines()) + "\n")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    make_folders(tmp_path / "images")
    for number, (split, label) in enumerate(zip(SPLITS, LABELS, strict=True)):
        folder = tmp_path / "images" / split / EMOTION_FOLDERS[label]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number:05d}.png"), noise.integers(0, 256, (8, 8), dtype=np.uint8))
    return tmp_path / "images"


def label_of(votes: dict[str, int], fer_label: int = 0) -> SoftLabel | str:
    return soft_label(np.array([votes.get(name, 0) for name in NAMES]), fer_label)


def test_each_column_is_its_emotion() -> None:
    columns = {"angry": "anger", "disgust": "disgust", "fear": "fear", "happy": "happiness", "sad": "sadness"}
    columns |= {"surprise": "surprise", "neutral": "neutral"}
    for k, emotion in enumerate(EMOTIONS):
        found = label_of({columns[emotion]: 7, "contempt": 2, "unknown": 1})
        assert isinstance(found, SoftLabel)
        assert found.label == k
        assert found.probability.tolist() == np.eye(7)[k].tolist()  # contempt and unknown do not count


def test_shares_of_the_votes() -> None:
    found = label_of({"neutral": 4, "sadness": 3, "anger": 1, "contempt": 2})
    assert isinstance(found, SoftLabel)
    assert found.label == EMOTIONS.index("neutral")
    expected = dict.fromkeys(EMOTIONS, 0.0) | {"neutral": 4 / 8, "sad": 3 / 8, "angry": 1 / 8}
    assert found.probability.dtype == np.float32
    assert found.probability.tolist() == list(expected.values())


def test_of_equals_the_own_label_else_the_first() -> None:
    for own, label in ((3, 3), (6, 6), (0, 3)):
        found = label_of({"happiness": 5, "neutral": 5}, own)
        assert isinstance(found, SoftLabel)
        assert found.label == label


def test_what_is_left_out() -> None:
    assert label_of({"NF": 6, "happiness": 4}) == "most votes say that it shows no face (NF)"
    assert label_of({"unknown": 4, "sadness": 3, "fear": 3}) == "most votes say that the emotion is unknown"
    assert isinstance(label_of({"unknown": 4, "sadness": 4, "fear": 2}), SoftLabel)  # as many, not more
    assert label_of({"contempt": 4, "neutral": 3, "happiness": 3}) == "most votes say that it shows contempt"
    assert isinstance(label_of({"contempt": 4, "neutral": 4, "happiness": 2}), SoftLabel)
    for most in combinations(("NF", "unknown", "contempt"), 2):  # as many for two of them: neither is one of the seven
        assert isinstance(label_of(dict.fromkeys(most, 4) | {"sadness": 2}), str)
    assert str(label_of({})).startswith("no vote for any of angry, disgust")


def test_a_row_belongs_to_the_face_of_its_number(file: Path, tree: Path) -> None:
    faces = list_faces(tree)
    found = dict(zip((int(Path(face.file).stem) for face in faces), soft_labels(file, faces), strict=True))
    for number, expected in {0: 0, 1: 3, 4: 3, 5: 5}.items():
        label = found[number]
        assert isinstance(label, SoftLabel)
        assert label.label == expected
    assert all(isinstance(found[number], str) for number in (2, 3, 6))


def test_the_records_have_labels_and_probabilities(file: Path, tree: Path, tmp_path: Path) -> None:
    counts = write_databases(tree, tmp_path / "lmdb", ferplus=file)
    assert counts["written"] == {"train_lmdb": 2, "val_lmdb": 1, "test_lmdb": 1}
    assert counts["read"] == 7
    assert sorted(counts["left_out"].values()) == [1, 1, 1]
    manifest = json.loads((tmp_path / "lmdb/manifest.json").read_text())
    assert manifest["inputs"][-1] == {"file": str(file), "sha256": sha256(file)}
    reasons = {entry["file"]: entry["reason"] for entry in manifest["rejected"]}
    assert "NF" in reasons["Training/6_neutral/00002.png"]
    assert "unknown" in reasons["Training/4_sad/00003.png"]
    assert "contempt" in reasons["Training/2_fear/00006.png"]
    with lmdb.open(str(tmp_path / "lmdb/train_lmdb"), readonly=True, lock=False) as env, env.begin() as transaction:
        data = {key.decode()[9:]: Datum.FromString(value) for key, value in transaction.cursor()}
    assert {file: datum.label for file, datum in data.items()} == {
        "Training/0_angry/00000.png": 0,
        "Training/3_happy/00001.png": 3,
    }
    first = data["Training/0_angry/00000.png"]
    assert list(first.label_probability) == pytest.approx([0.6, 0.2, 0.2, 0, 0, 0, 0])
    assert first.data == cv2.imread(str(tree / "Training/0_angry/00000.png"), cv2.IMREAD_GRAYSCALE).tobytes()


def test_votes_that_are_replaced_meanwhile_leave_no_output(
    file: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the records of the old votes would be newer than the new ones, and never made of these."""

    def replace(*arguments: Any) -> int:
        file.write_text("another version's")
        return write_imageset(*arguments)

    monkeypatch.setattr("preprocessing.lmdb.write_imageset", replace)
    with pytest.raises(StageError, match=r"fer2013new\.csv: changed while lmdb was reading"):
        write_databases(tree, tmp_path / "lmdb", ferplus=file)
    assert not (tmp_path / "lmdb").exists()


def test_the_data_layer_reads_them_as_soft_labels(file: Path, tree: Path, tmp_path: Path) -> None:
    write_databases(tree, tmp_path / "lmdb", ferplus=file)
    (tmp_path / "net.prototxt").write_text(
        f'layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ backend: LMDB batch_size: 1 '
        f'source: "{tmp_path}/lmdb/val_lmdb" classes: 7 }} }}'
    )
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    net.forward()
    assert net.blobs["label"].data.tolist() == [[0, 0, 0, 1, 0, 0, 0]]  # contempt's four votes do not count


def test_without_it_nothing_changes(tree: Path, tmp_path: Path) -> None:
    counts = write_databases(tree, tmp_path / "lmdb")
    assert sum(counts["written"].values()) == 7
    assert "left_out" not in counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"fer2013new\.csv: 6 rows after the header; expected 7, one for each row"),
        (lambda rows: [*rows, rows[1]], r"8 rows after the header; expected 7"),
        (lambda rows: [], r"row 1: ''; expected the header Usage,Image name,neutral"),
        (lambda rows: [rows[0].replace("anger", "angry"), *rows[1:]], r"row 1: 'Usage,.*; expected the header"),
        (lambda rows: [*rows[:2], "Training,x.png,1,2", *rows[3:]], r"row 3: 4 fields; expected 12"),
        (lambda rows: [*rows[:2], rows[2].replace("5", "many", 1), *rows[3:]], r"row 3: neutral is 'many'; expected"),
        (lambda rows: [*rows[:2], rows[2].replace("5", "-5", 1), *rows[3:]], r"row 3: neutral is '-5'; expected"),
        (lambda rows: [*rows[:2], rows[2].replace("5", "11", 1), *rows[3:]], r"row 3: neutral is '11'; expected a num"),
        (lambda rows: [*rows[:2], rows[2].replace("5", "\u0665", 1), *rows[3:]], r"row 3: neutral is '\u0665'"),
        (lambda rows: [*rows[:2], rows[2].replace("5", "9" * 5000, 1), *rows[3:]], r"row 3: neutral is '9{40}'; e"),
        (lambda rows: [*rows[:5], rows[5].replace("PublicTest", "Training"), *rows[6:]],
         r"row 6: Usage is 'Training'; expected PublicTest, as PublicTest/3_happy/00004\.png is"),
        (lambda rows: [*rows[:2], '"' + rows[2], *rows[3:]], r"fer2013new\.csv: not UTF-8 text in CSV format"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(file: Path, tree: Path, tmp_path: Path, change: Change, message: str) -> None:
    file.write_text("\n".join(change(lines())) + "\n")
    with pytest.raises(StageError, match=message):
        write_databases(tree, tmp_path / "lmdb", ferplus=file)
    assert not (tmp_path / "lmdb").exists()


def test_faces_without_numbers(file: Path) -> None:
    for name in ("smile", "²"):
        with pytest.raises(StageError, match=rf"{name}\.png: its name is no number"):
            soft_labels(file, [Face(f"Training/3_happy/{name}.png", "Training", 3)])


def test_a_byte_order_mark_crlf_and_spaces_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(("\ufeff" + "\r\n".join(line.replace(",", " , ") for line in lines()) + "\r\n").encode())
    usages, votes = read_votes(path)
    assert usages == list(SPLITS)
    assert votes.tolist() == [[of_row.get(name, 0) for name in NAMES] for of_row in VOTES]
    path.write_text(HEADER)
    assert read_votes(path)[1].shape == (0, 10)


def test_the_command(file: Path, tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "preprocessing.lmdb", str(tree), str(tmp_path / "lmdb"), "--ferplus"]
    done = subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 in train_lmdb, 1 in val_lmdb, 1 in test_lmdb, 8x8 pixels, 3 left out by FER+" in done.stdout
    missing = subprocess.run([*command, str(tmp_path / "none.csv")], cwd=ROOT, capture_output=True, text=True)
    assert (missing.returncode, missing.stderr) == (1, f"error: {tmp_path}/none.csv: No such file or directory\n")
