"""The folders of a tree of images, as extract makes them: every class in every split, empty ones too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preprocessing.datasets import EMOTIONS, SPLITS, class_folders


def make_folders(tree: Path, classes: Sequence[str] = EMOTIONS) -> Path:
    for split in SPLITS:
        for folder in class_folders(classes):
            (tree / split / folder).mkdir(parents=True, exist_ok=True)
    return tree
