"""FER+ (Barsoum et al. 2016): what ten people saw in each face of FER2013, as soft labels of our seven emotions.

The file is `fer2013new.csv` of the authors' repository: a row for each row of `fer2013.csv`, in the same order. (The
numbers in its image names are no row numbers: rows without a face have no name, and some are not counted.)
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.datasets import EMOTIONS, Face
from preprocessing.stage import StageError

COLUMNS = (
    "Usage", "Image name", "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt",
    "unknown", "NF",
)  # fmt: skip
VOTES = COLUMNS[2:]
# FER+'s columns in the order of EMOTIONS; contempt is none of them
OURS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
LEFT_OUT = {
    "NF": "most votes say that it shows no face (NF)",
    "unknown": "most votes say that the emotion is unknown",
    "contempt": "most votes say that it shows contempt",
}
NO_VOTE = "no vote for any of " + ", ".join(EMOTIONS)


@dataclass(frozen=True)
class SoftLabel:
    """What the raters make of a face.

    label: the emotion of the most votes, 0..6; of equals FER2013's own label if it is one of them, else the first.
    probability: float32, 7, the shares of the votes for our emotions, of sum 1.
    """

    label: int
    probability: np.ndarray


def read_votes(path: Path) -> tuple[list[str], np.ndarray]:
    """The Usage of each row, and the votes: int64, rows×10, columns as VOTES.

    Raises StageError, naming the row (the header is row 1), for another header, a row of another length, and votes
    that are not whole numbers from 0 to 10.
    """
    usages, votes = [], []
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(f, strict=True)
            header = tuple(name.strip() for name in next(reader, []))
            if header != COLUMNS:
                shown = ",".join(header)[:120]
                raise StageError(f"{path}, row 1: {shown!r}; expected the header {','.join(COLUMNS)} of FER+")
            for number, row in enumerate(reader, 2):
                if len(row) != len(COLUMNS):
                    raise StageError(f"{path}, row {number}: {len(row)} fields; expected {len(COLUMNS)}, as the header")
                usages.append(row[0].strip())
                votes.append([_vote(path, number, *field) for field in zip(VOTES, row[2:], strict=True)])
    except (UnicodeDecodeError, csv.Error) as error:
        raise StageError(f"{path}: not UTF-8 text in CSV format ({error}); expected FER+'s fer2013new.csv") from error
    return usages, np.array(votes, np.int64).reshape(-1, len(VOTES))


def _vote(path: Path, number: int, column: str, text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 2 or int(text) > 10:
        raise StageError(f"{path}, row {number}: {column} is {text[:40]!r}; expected a number of votes, 0 to 10")
    return int(text)


def soft_label(votes: np.ndarray, fer_label: int) -> SoftLabel | str:
    """The label that ten votes (10 numbers, as VOTES) make, or the reason why the face is left out.

    Left out is a face for which `NF`, `unknown` or `contempt` has the most votes, more than each of our seven emotions,
    and one with no vote for these. Other votes for those three do not count in the probabilities.
    """
    by_name = dict(zip(VOTES, votes.tolist(), strict=True))
    highest = max(by_name[name] for name in OURS)
    for name, reason in LEFT_OUT.items():
        if by_name[name] == max(by_name.values()) > highest:
            return reason
    counts = np.array([by_name[name] for name in OURS])
    if not counts.sum():
        return NO_VOTE
    most = np.flatnonzero(counts == counts.max()).tolist()
    return SoftLabel(fer_label if fer_label in most else most[0], (counts / counts.sum()).astype(np.float32))


def soft_labels(path: Path, faces: Sequence[Face]) -> list[SoftLabel | str]:
    """For each face what FER+ says of it: `soft_label` of the row that its file's number names.

    Parameters
    ----------
    path: FER+'s fer2013new.csv.
    faces: those of a tree that `extract` made of fer2013.csv; NNNNN.png is row NNNNN, counted from 0.

    Raises StageError for what `read_votes` refuses, and where the file does not fit the faces: another number of rows
    than the faces' highest number says, or another split.
    """
    usages, votes = read_votes(path)
    numbers = [_number(face) for face in faces]
    if len(usages) != max(numbers) + 1:
        raise StageError(
            f"{path}: {len(usages):,} rows after the header; expected {max(numbers) + 1:,}, one for each row of the "
            f"CSV that the faces come from"
        )
    labels = []
    for face, number in zip(faces, numbers, strict=True):
        if usages[number] != face.split:
            raise StageError(
                f"{path}, row {number + 2}: Usage is {usages[number]!r}; expected {face.split}, as {face.file} is, "
                "whose number is its row where extract reads fer2013.csv, not a folder"
            )
        labels.append(soft_label(votes[number], face.label))
    return labels


def _number(face: Face) -> int:
    stem = Path(face.file).stem
    if not (stem.isascii() and stem.isdigit()):
        raise StageError(f"{face.file}: its name is no number; FER+ needs the images that extract makes of fer2013.csv")
    return int(stem)
