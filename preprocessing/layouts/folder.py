"""The folder form, SPLIT/EMOTION/NAME or EMOTION/NAME: FER2013 as Kaggle has it, and data sets of one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from preprocessing.classes import CONTEMPT
from preprocessing.datasets import EMOTIONS, SPLITS
from preprocessing.images import SUFFIXES
from preprocessing.layouts.listing import Item, Listing, canonical, walk
from preprocessing.stage import StageError

SPLIT_FOLDERS = {
    "train": "Training",
    "training": "Training",
    "val": "PublicTest",
    "valid": "PublicTest",
    "validation": "PublicTest",
    "publictest": "PublicTest",
    "test": "PrivateTest",
    "privatetest": "PrivateTest",
}


def split_and_class(file: str, classes: Sequence[str], numbered: bool = False) -> tuple[str, str]:
    """Split and class of an image in the folder form, from its path relative to the folder, with '/'.

    The path is `SPLIT/CLASS/NAME`: `train`, `validation` or `test`, then the class's name, either in any case, this
    also as `0_angry`. A name that begins with `Training_`, `PublicTest_` or `PrivateTest_` tells the split whatever the
    folder is called (Kaggle's `test/` holds PublicTest and PrivateTest). Emotions are also known by another word, as
    `anger`; and where the classes are `numbered`, by their label alone, `0`. Raises ValueError.
    """
    parts = file.split("/")
    if len(parts) != 3:
        raise ValueError("expected SPLIT/EMOTION/NAME, such as train/happy/1.jpg, or without splits EMOTION/NAME")
    split = SPLIT_FOLDERS.get(parts[0].lower())
    if split is None:
        raise ValueError(f"split folder {parts[0]!r}; expected train, validation or test")
    named = [s for s in SPLITS if parts[2].lower().startswith(s.lower() + "_")]
    known = {canonical(name): label for label, name in enumerate(classes)}
    number, name = re.fullmatch(r"(?:([0-9]+)_)?(.*)", parts[1]).groups()  # type: ignore[union-attr]  # matches all
    label = known.get(canonical(name), known.get(canonical(parts[1])))
    if label is None and numbered and re.fullmatch(r"0|[1-9][0-9]{0,8}", parts[1]):
        label = int(parts[1]) if int(parts[1]) < len(classes) else None
    if label is None:
        others = "" if numbered else ", or names of your own by --classes (make: CLASSES)"
        raise ValueError(f"emotion folder {parts[1]!r}; expected {', '.join(classes)}{others}")
    if number is not None and canonical(parts[1]) not in known and int(number) != label:
        raise ValueError(f"emotion folder {parts[1]!r}; expected '{label}_{classes[label]}'")
    return (named[0] if named else split), classes[label]


def list_images(folder: Path) -> tuple[list[str], int]:
    """Every image file below `folder`, as sorted relative paths with '/', and the number of other files.

    An image is what has one of `preprocessing.images.SUFFIXES`, in any case. Hidden files and folders are left out
    of both. Raises StageError when there is no image.
    """
    images, others = [], 0
    for file in walk(folder):
        if file.lower().endswith(SUFFIXES):
            images.append(file)
        else:
            others += 1
    if not images:
        raise StageError(f"{folder}: no images; expected train/EMOTION/*.jpg and test/EMOTION/*.jpg")
    return sorted(images), others


def read_folder(source: Path, classes: Sequence[str] = ()) -> Listing:
    """The images of a folder `train|validation|test/EMOTION/*`, as Kaggle has FER2013; see `split_and_class`.

    Where no folder is a split's, but they are `EMOTION/*`, all images are Training.

    classes: names in the order of the labels, by which a folder may then be called too: `0`. Default: the seven
    emotions and contempt, by name alone, since data sets number these in different ways. Raises StageError for a folder
    without images, and for a class of one's own that no image has.
    """
    files, others = list_images(source)
    listing = Listing(others=others)
    above = "" if any(file.split("/")[0].lower() in SPLIT_FOLDERS for file in files) else "train/"
    for file in files:
        try:
            split, name = split_and_class(above + file, classes or (*EMOTIONS, CONTEMPT), numbered=bool(classes))
        except ValueError as error:
            listing.rejected.append((file, str(error)))
        else:
            listing.items.append(Item(file, split, name))
    present = {item.emotion for item in listing.items}
    if absent := [name for name in classes if name not in present]:
        folders = sorted({file.split("/")[1] for file in (above + file for file in files) if file.count("/") == 2})
        raise StageError(
            f"{source}: no image of the class {absent[0]}; expected images of each of {', '.join(classes)}, "
            f"but the folders are {', '.join(folders) or 'not SPLIT/CLASS/NAME'}"
        )
    return listing
