"""What every reader of a data set gives: its images, each with its class by name."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ALIASES = {
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "contemptuous": "contempt",
}


class Box(NamedTuple):
    """A rectangle in pixels: its left upper corner, its width and height."""

    x: int
    y: int
    width: int
    height: int


class Item(NamedTuple):
    """An image of a data set.

    file: its path relative to the source, with '/'.  split: one of SPLITS, or None where the data set has none.
    emotion: its class by name.  person: who it shows, where the data set tells.  box: where the face is in it.
    """

    file: str
    split: str | None
    emotion: str
    person: str | None = None
    box: Box | None = None


@dataclass
class Listing:
    """What a reader finds.

    items: the images with an emotion, sorted by their files.
    rejected: (where, reason) of what is wrong, in the order in which it was found.
    left_out: what has no emotion that could be learned, counted by reason.
    annotations: the files that the labels come from.
    others: files that are no images, where the reader looks at all files.
    """

    items: list[Item] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    annotations: list[Path] = field(default_factory=list)
    others: int | None = None


def canonical(name: str) -> str:
    """An emotion's name as this project has it: in lower case, `anger` as `angry`, and so on.

    Accents are one character with their letter, which in archives made by macOS they are not.
    """
    name = unicodedata.normalize("NFC", name).lower()
    return ALIASES.get(name, name)


def walk(folder: Path) -> Iterator[str]:
    """The files below a folder that are not hidden, as relative paths with '/', in no particular order.

    Links to folders are followed, since a large data set may lie on several disks, but not round in a circle. Raises
    OSError for a folder that cannot be listed.
    """
    for path, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(path, name)]
        place = Path(path).relative_to(folder)
        yield from ((place / name).as_posix() for name in names if not name.startswith("."))


def _fail(error: OSError) -> None:
    raise error


def _leads_back(path: str, name: str) -> bool:
    """Whether the folder `name` in `path` is a link to one of the folders that it lies in."""
    link = Path(path, name)
    return link.is_symlink() and any(link.resolve() == parent.resolve() for parent in link.parents)
