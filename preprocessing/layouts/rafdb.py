"""RAF-DB, faces from the internet that about forty people labelled (Li, Deng and Du 2017): its single-label subset."""

from __future__ import annotations

import re
from pathlib import Path

from preprocessing.layouts.folder import list_images
from preprocessing.layouts.listing import Item, Listing
from preprocessing.stage import StageError

EMOTIONS = {"1": "surprise", "2": "fear", "3": "disgust", "4": "happy", "5": "sad", "6": "angry", "7": "neutral"}
SPLITS = {"train": "Training", "test": "PrivateTest"}
KAGGLE = "DATASET"  # the folder that train and test lie in on Kaggle


def read_rafdb(source: Path) -> Listing:
    """The single-label subset of RAF-DB (Li, Deng and Du 2017): the folder `basic`, or the one above it.

    `EmoLabel/list_patition_label.txt` (so it is spelled) has lines `train_00001.jpg 5`; the images are
    `Image/aligned/train_00001_aligned.jpg`, of 100x100 pixels, or where there is no such folder
    `Image/original/train_00001.jpg`. On Kaggle the same images, aligned, lie in folders that are their labels:
    `train/5/train_00001_aligned.jpg` and `test/` alike, in a folder `DATASET`. Raises StageError for what is neither.
    """
    list_name = "EmoLabel/list_patition_label.txt"
    roots = [root for root in (source, source / "basic") if (root / list_name).is_file()]
    if not roots:
        for root in (source, source / KAGGLE):
            if (root / "train").is_dir():
                return _label_folders(source, root)
        raise StageError(
            f"{source}: neither {list_name} nor train/1 to train/7; expected RAF-DB's folder basic, Kaggle's {KAGGLE}, "
            "or the folder above it"
        )
    root = roots[0]
    aligned = (root / "Image/aligned").is_dir()
    images = root / "Image" / ("aligned" if aligned else "original")
    if not images.is_dir():
        raise StageError(f"{root}: neither Image/aligned nor Image/original; expected one of them, unpacked")
    listing = Listing(annotations=[root / list_name])
    lines: dict[str, int] = {}
    for number, line in enumerate((root / list_name).read_bytes().decode("latin-1").splitlines(), 1):
        try:
            if not line.strip():
                continue
            name, split, emotion = _line(line)
            if name in lines:
                raise ValueError(f"{name} again, after line {lines[name]}; expected each image once")
            lines[name] = number
        except ValueError as error:
            listing.rejected.append((f"{list_name}, line {number}", str(error)))
            continue
        path = images / (f"{name[:-4]}_aligned.jpg" if aligned else name)
        listing.items.append(Item(path.relative_to(source).as_posix(), split, emotion))
    listing.items.sort()
    return listing


def _label_folders(source: Path, root: Path) -> Listing:
    """Kaggle's form: the images of `root`, whose paths are `SPLIT/LABEL/NAME`."""
    files, others = list_images(root)
    listing = Listing(others=others)
    for file in files:
        path = (root / file).relative_to(source).as_posix()
        match = re.fullmatch(r"(train|test)/([1-7])/[^/]+", file)
        if match:
            listing.items.append(Item(path, SPLITS[match[1]], EMOTIONS[match[2]]))
        else:
            reason = "expected train/LABEL/NAME or test/LABEL/NAME, LABEL 1..7; for names of emotions the layout folder"
            listing.rejected.append((path, reason))
    return listing


def _line(line: str) -> tuple[str, str, str]:
    fields = line.split()
    if len(fields) != 2 or not re.fullmatch(r"(train|test)_[0-9]+\.jpg", fields[0]):
        raise ValueError(f"{line[:60]!r}; expected a line such as 'train_00001.jpg 5'")
    if fields[1] not in EMOTIONS:
        raise ValueError(f"label {fields[1][:40]!r}; expected 1..7")
    return fields[0], SPLITS[fields[0].partition("_")[0]], EMOTIONS[fields[1]]
