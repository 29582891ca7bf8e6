"""Splits for data sets that lack one: a tenth of the training images, and folds that share no person."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from preprocessing.datasets import SPLITS
from preprocessing.layouts import Item
from preprocessing.stage import StageError

HELD_OUT = 0.1  # of each class's training images, where a data set has no validation split, or no test split
HELD_OUT_SEEDS = {SPLITS[1]: 0, SPLITS[2]: 1}
FOLDS = 10
FOLDS_FILE = "folds.csv"
COLUMNS = ("file", "person", "fold")


def hold_out(items: Sequence[Item], split: str = SPLITS[1]) -> list[Item]:
    """The items with a tenth of each class's Training images moved to `split`, always the same ones.

    They are drawn at random by the split's seed, class by class, so that what one class holds changes no other's; a
    class of two images or more gives at least one.
    """
    moved: set[int] = set()
    for emotion in sorted({item.emotion for item in items}):
        places = [i for i, item in enumerate(items) if item.emotion == emotion and item.split == SPLITS[0]]
        count = max(round(HELD_OUT * len(places)), 1) if len(places) > 1 else 0
        rng = np.random.default_rng([HELD_OUT_SEEDS[split], *emotion.encode()])
        moved |= {places[i] for i in rng.permutation(len(places))[:count]}
    return [item._replace(split=split) if i in moved else item for i, item in enumerate(items)]


def deal_folds(items: Sequence[Item], folds: int = FOLDS) -> dict[str, int]:
    """A fold, 1..folds, for each person, so that no two folds share one and they are alike in size and emotions.

    Nothing is drawn at random: the persons, those with the most images first (of equals by name), go one by one to the
    fold where they add least to the sum, over the emotions and over all images together, of the folds' squared
    counts, each divided by the emotion's count in the whole (of equals the first fold).

    Raises StageError where there are fewer persons than folds.
    """
    emotions = sorted({item.emotion for item in items})
    of_person: dict[str, np.ndarray] = {}
    for item in items:
        assert item.person is not None
        counts = of_person.setdefault(item.person, np.zeros(len(emotions) + 1))
        counts[emotions.index(item.emotion)] += 1
        counts[-1] += 1
    if len(of_person) < folds:
        raise StageError(f"{len(of_person)} persons with a label; expected {folds} or more, one for each fold")
    whole = sum(of_person.values())
    dealt, counts_of = {}, np.zeros((folds, len(emotions) + 1))
    for person, counts in sorted(of_person.items(), key=lambda entry: (-entry[1][-1], entry[0])):
        added = ((2 * counts_of * counts + counts**2) / whole).sum(1)
        fold = int(added.round(9).argmin())
        counts_of[fold] += counts
        dealt[person] = fold + 1
    return dealt


def split_of_fold(fold: int, test: int) -> str:
    """The split of what lies in `fold` when the fold `test` is the test set: the next one validates."""
    if fold == test:
        return SPLITS[2]
    return SPLITS[1] if fold == test % FOLDS + 1 else SPLITS[0]


def write_folds(tree: Path, rows: Iterable[tuple[str, str, int]]) -> None:
    """Write the tree's folds.csv: of each image its file, relative to the tree, the person, and the fold."""
    with open(tree / FOLDS_FILE, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def read_folds(tree: Path) -> dict[str, int]:
    """The fold of each image of the tree by its file, from folds.csv.

    Raises StageError where there is none, and, naming the row, for what `write_folds` did not write.
    """
    path = tree / FOLDS_FILE
    if not path.is_file():
        raise StageError(
            f"{path}: no such file: the data set does not tell who the persons are, so that no folds could be made of "
            "it; expected images that extract made of CK+'s folder (layout ckplus)"
        )
    folds: dict[str, int] = {}
    with open(path, newline="", encoding="utf-8") as f:
        for number, row in enumerate(csv.reader(f), 1):
            known = [str(fold) for fold in range(1, FOLDS + 1)]
            if tuple(row) != COLUMNS if number == 1 else len(row) != len(COLUMNS) or row[2] not in known:
                raise StageError(f"{path}, row {number}: {row}; expected {', '.join(COLUMNS)}, the fold 1..{FOLDS}")
            if number > 1:
                folds[row[0]] = int(row[2])
    return folds
