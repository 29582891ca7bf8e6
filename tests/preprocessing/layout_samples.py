"""Small data sets of drawn faces in the layouts in which the real ones are handed out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from preprocessing.datasets import EMOTIONS
from preprocessing.sample import draw_face

CKPLUS_LABELS = ("neutral", "angry", "contempt", "disgust", "fear", "happy", "sad", "surprise")
AFFECTNET_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)


@cache
def _drawn(emotion: str) -> np.ndarray:
    shown = emotion if emotion in EMOTIONS else "neutral"  # contempt is not drawn
    return draw_face(shown, np.random.default_rng(len(emotion)))


def face(emotion: str, width: int, height: int, mark: int) -> np.ndarray:
    """A drawn face of this size; its left upper corner tells images apart: it has the grey level `mark`."""
    image = cv2.resize(_drawn(emotion), (width, height), interpolation=cv2.INTER_AREA)
    image[:2, :2] = mark % 256
    return image


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_ckplus(
    root: Path,
    sequences: dict[str, int | None],
    frames: int = 5,
    images: str = "cohn-kanade-images",
    labels: str = "Emotion",
    size: tuple[int, int] = (64, 49),
) -> Path:
    """CK+: of each sequence, such as `S005/001`, that many frames and its label or none; mark is the frame."""
    for place, label in sequences.items():
        name = place.replace("/", "_")
        for number in range(1, frames + 1):
            shown = "neutral" if label is None or number == 1 else CKPLUS_LABELS[label]
            picture = face(shown, *size, mark=number)
            if place.startswith("S005"):
                picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)  # some subjects were filmed in colour
            write(root / images / place / f"{name}_{number:08d}.png", picture)
        (root / labels / place).mkdir(parents=True, exist_ok=True)  # there are empty folders as well
        if label is not None:
            path = root / labels / place / f"{name}_{frames:08d}_emotion.txt"
            path.write_text(f"   {label:.7e}\n")
    return root


def write_ck48(root: Path, sequences: dict[str, str], frames: int = 3) -> Path:
    """Kaggle's CK+48: of each sequence, such as `S005_001`, the last frames, in the folder that names its emotion; mark
    is ten times the sequence and the frame."""
    for name, folder in sequences.items():
        for number in range(1, frames + 1):
            mark = 10 * int(name[-3:]) + number
            write(root / folder / f"{name}_{number:08d}.png", face("happy", 48, 48, mark))
    return root


def write_rafdb(root: Path, lines: Sequence[tuple[str, int]], images: str = "aligned") -> Path:
    """RAF-DB's folder `basic`; mark is the line's number, from 0."""
    for number, (name, label) in enumerate(lines):
        shown = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")[label - 1]
        file = name.replace(".jpg", "_aligned.jpg") if images == "aligned" else name
        write(root / "Image" / images / file, face(shown, 100, 100, number))
    (root / "EmoLabel").mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name} {label}\n" for name, label in lines)
    (root / "EmoLabel/list_patition_label.txt").write_text(text)
    return root


def write_rafdb_folders(root: Path, lines: Sequence[tuple[str, int]]) -> Path:
    """Kaggle's form of it, `SPLIT/LABEL/NAME` in `DATASET`, with tables beside that; mark is 30 times the label."""
    for name, label in lines:
        split = name.partition("_")[0]
        path = root / "DATASET" / split / str(label) / name.replace(".jpg", "_aligned.jpg")
        write(path, face("happy", 100, 100, 30 * label))
        with open(root / f"{split}_labels.csv", "a") as f:
            f.write(f"{path.name},{label}\n")
    return root


def affectnet_row(file: str, label: int, box: tuple[object, ...] = (40, 30, 50, 50)) -> list[object]:
    return [file, *box, "1;2;3;4", label, -0.2, 0.1]


def write_affectnet(
    root: Path, training: Sequence[Sequence[object]], validation: Sequence[Sequence[object]], header: bool = True
) -> Path:
    """AffectNet's first release; the photos have 160x120 pixels, the face in the box's middle, mark in the corner."""
    for table, rows in (("training.csv", training), ("validation.csv", validation)):
        folder = root / "Manually_Annotated_file_lists"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / table, "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerows([AFFECTNET_HEADER.split(","), *rows] if header or table == "training.csv" else rows)
        for number, row in enumerate(rows):
            photo = np.full((120, 160), 90, np.uint8)
            photo[30:80, 40:90] = face("happy", 50, 50, number)
            write(root / "Manually_Annotated/Manually_Annotated_Images" / str(row[0]), photo)
    return root


def write_affectnet_arrays(root: Path, labels: dict[str, Sequence[object]]) -> Path:
    """AffectNet's later release: of each folder the labels of 0.jpg, 1.jpg, …"""
    for folder, values in labels.items():
        (root / folder / "annotations").mkdir(parents=True, exist_ok=True)
        for number, value in enumerate(values):
            write(root / folder / "images" / f"{number}.jpg", face("sad", 224, 224, number))
            np.save(root / folder / "annotations" / f"{number}_exp.npy", np.array(value))
    return root
