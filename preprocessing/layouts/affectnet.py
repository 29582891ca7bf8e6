"""AffectNet, faces from the internet (Mollahosseini, Hasani and Mahoor 2017): the manually annotated part."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from preprocessing.layouts.listing import Box, Item, Listing
from preprocessing.stage import StageError

EMOTIONS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")
OTHERS = ("none", "uncertain", "no face")  # the labels 8, 9 and 10
COLUMNS = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
)
TABLES = {"training.csv": "Training", "validation.csv": "PrivateTest"}
FOLDERS = {"train_set": "Training", "val_set": "PrivateTest"}
IMAGES = "Manually_Annotated_Images"


def read_affectnet(source: Path) -> Listing:
    """The manually annotated part of AffectNet (Mollahosseini, Hasani and Mahoor 2017), in either of its releases.

    The first has `training.csv` and `validation.csv` (with or without a header), at most two folders down, whose images
    are below `Manually_Annotated_Images`; each row tells the face's box. The later one has
    `train_set/images/N.jpg`, faces of 224x224 pixels, with labels `train_set/annotations/N_exp.npy`, and `val_set`
    alike. The validation set is what results are published on, and becomes PrivateTest. The labels 8 to 10 (none,
    uncertain, no face) are left out. Raises StageError for a folder that is neither.
    """
    if any((source / name).is_dir() for name in FOLDERS):
        return _arrays(source)
    tables = {name: _find(source, name) for name in TABLES}
    images = _images(source, [path for path in tables.values() if path is not None])
    listing = Listing(annotations=[path for path in tables.values() if path is not None])
    rows: dict[str, str] = {}
    for name, path in tables.items():
        if path is None:
            continue
        for number, row in _rows(path):
            where = f"{path.relative_to(source).as_posix()}, row {number}"
            try:
                if not row:
                    raise ValueError("more or fewer fields than there are columns")
                emotion = _emotion(row["expression"])
                if emotion in OTHERS:
                    listing.left_out[emotion] += 1
                    continue
                file = row["subDirectory_filePath"]
                if file.startswith("/") or ".." in file.split("/"):
                    raise ValueError(f"{file}; expected a path within {images.name}/")
                if file in rows:
                    raise ValueError(f"{file} again, after {rows[file]}; expected each image once")
                rows[file] = where
                box = Box(*(_whole(row, f"face_{side}") for side in Box._fields))
                if box.width < 1 or box.height < 1:
                    raise ValueError(f"a face of {box.width}x{box.height} pixels; expected 1x1 or more")
            except ValueError as error:
                listing.rejected.append((where, str(error)))
                continue
            path_of_image = (images / file).relative_to(source).as_posix()
            listing.items.append(Item(path_of_image, TABLES[name], emotion, box=box))
    listing.items.sort()
    return listing


def _find(source: Path, name: str) -> Path | None:
    found = [path for depth in ("", "*/", "*/*/") for path in sorted(source.glob(f"{depth}{name}"))]
    if len(found) > 1:
        raise StageError(f"{source}: {name} stands in {found[0].parent} and in {found[1].parent}; expected one")
    return found[0] if found else None


def _images(source: Path, tables: Sequence[Path]) -> Path:
    """The folder that the paths in the tables are relative to: one that holds an image of the first hundred rows."""
    if not tables:
        raise StageError(
            f"{source}: neither training.csv and validation.csv nor train_set and val_set; expected AffectNet's folder "
            "(layout affectnet), or train/EMOTION/*.jpg (layout folder)"
        )
    firsts = [row["subDirectory_filePath"] for _, row in islice(_rows(tables[0]), 100) if row]
    if not firsts:
        raise StageError(f"{tables[0]}: no rows; expected AffectNet's annotations, {', '.join(COLUMNS)}")
    folders = [path for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}{IMAGES}")]
    for folder in (*sorted(folders), source, tables[0].parent):
        if any((folder / file).is_file() for file in firsts):
            return folder
    raise StageError(f"{source}: no {firsts[0]}, the first image of {tables[0].name}; expected it in {IMAGES}/")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of an annotation file by column, each with its number; the header, where there is one, is row 1.

    A row with more or fewer fields than there are columns is empty; blank lines are none.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            columns: tuple[str, ...] = COLUMNS
            for number, row in enumerate(csv.reader(f, strict=True), 1):
                if number == 1 and "expression" in row:
                    columns = tuple(name.strip() for name in row)
                    lacking = [name for name in COLUMNS[:5] if name not in columns]
                    if lacking:
                        raise StageError(f"{path}, row 1: no column {lacking[0]!r}; expected AffectNet's columns")
                elif row:
                    yield number, dict(zip(columns, row, strict=True)) if len(row) == len(columns) else {}
    except (UnicodeDecodeError, csv.Error) as error:
        raise StageError(f"{path}: not UTF-8 text in CSV format ({error}); expected AffectNet's annotations") from error


def _emotion(text: str) -> str:
    names = {str(label): name for label, name in enumerate((*EMOTIONS, *OTHERS))}
    if text.strip() not in names:
        raise ValueError(f"expression {text[:40]!r}; expected 0..{len(names) - 1}")
    return names[text.strip()]


def _whole(row: dict[str, str], column: str) -> int:
    try:
        value = float(row[column])
    except ValueError:
        value = float("nan")
    if not value.is_integer():
        raise ValueError(f"{column} is {row[column][:40]!r}; expected a whole number of pixels")
    return int(value)


def _arrays(source: Path) -> Listing:
    """The later release: an image and arrays with its annotations for each face."""
    listing = Listing()
    for folder, split in FOLDERS.items():
        images = source / folder / "images"
        names = sorted(name for name in os.listdir(images) if not name.startswith(".")) if images.is_dir() else []
        for name in names:
            label = source / folder / "annotations" / f"{Path(name).stem}_exp.npy"
            try:
                emotion = _emotion(_array_text(label))
            except ValueError as error:
                listing.rejected.append((f"{folder}/annotations/{label.name}", str(error)))
                continue
            if emotion in OTHERS:
                listing.left_out[emotion] += 1
            else:
                listing.items.append(Item(f"{folder}/images/{name}", split, emotion))
    if not listing.items and not listing.rejected:
        raise StageError(f"{source}: no images in train_set/images and val_set/images; expected AffectNet's N.jpg")
    listing.items.sort()
    return listing


def _array_text(path: Path) -> str:
    """The one value of an array file, a number or a text, as text."""
    try:
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.ndarray) and array.size == 1:
            return str(array.reshape(-1)[0])
    except FileNotFoundError:
        raise ValueError("no such file; expected the expression of the image of this number") from None
    except Exception as error:  # of a damaged file numpy passes on whatever Python says of its header or text
        raise ValueError(f"not a readable array ({error}); expected the number of an expression") from None
    raise ValueError("expected an array of one value, the number of an expression")
