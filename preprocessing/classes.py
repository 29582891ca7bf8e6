"""The names of a data set's classes: `classes.txt`, a name a line, in the order of the labels.

It stands beside a data set's LMDBs and beside the weights that were trained on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preprocessing.datasets import EMOTIONS
from preprocessing.stage import StageError

CLASSES_FILE = "classes.txt"
CONTEMPT = "contempt"


def default_classes(count: int) -> tuple[str, ...]:
    """The names of `count` classes that no file names: the seven emotions, these and contempt, else `class_0`, ….

    Old models have no classes.txt.
    """
    known = (*EMOTIONS, CONTEMPT)
    return known[:count] if count in (len(EMOTIONS), len(known)) else tuple(f"class_{i}" for i in range(count))


def read_classes(folder: Path) -> tuple[str, ...] | None:
    """The names in the folder's classes.txt, None where it has none.

    Raises StageError for a file that is not UTF-8, is empty, or has an empty or a repeated line, naming the line.
    """
    path = Path(folder) / CLASSES_FILE
    if not path.is_file():
        return None
    expected = "expected a name a line, each once"
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise StageError(f"{path}: not UTF-8 text ({error}); {expected}") from error
    if not names:
        raise StageError(f"{path}: empty; {expected}")
    for number, name in enumerate(names, 1):
        if not name or name in names[: number - 1]:
            raise StageError(f"{path}, line {number}: {name!r}; {expected}")
    return names


def write_classes(folder: Path, names: Sequence[str]) -> None:
    """Write the folder's classes.txt."""
    (Path(folder) / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
