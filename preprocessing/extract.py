"""Stage 1: a data set of faces, as a CSV, an archive or a folder, to grey PNG files by split and emotion.

python -m preprocessing.extract fer2013.csv data/fer2013/images
python -m preprocessing.extract CK+/ data/ckplus/images --layout ckplus
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from preprocessing.classes import CONTEMPT
from preprocessing.datasets import BATCH_ROWS, EMOTIONS, SPLITS, CsvReader, Line, Rows, is_blank, make_tree, write_grey
from preprocessing.folds import FOLDS, HELD_OUT, HELD_OUT_SEEDS, deal_folds, hold_out, split_of_fold, write_folds
from preprocessing.images import decode_image, read_file
from preprocessing.layouts import FRAMES, LAYOUTS, Box, Item, canonical, read_layout
from preprocessing.stage import Stage, StageError, check_output, progress, replace_directory, run_main, worker_count

T = TypeVar("T")

LISTED_REJECTS = 10_000  # the manifest lists this many rejected rows and counts the others
# By how much a box around a face is enlarged before it is cut out. AffectNet's boxes reach from the brows to the chin;
# MTCNN, which aligns afterwards, wants the forehead and some of what is around the face, and a turned head's corners.
BOX_SCALE = 1.5
WITH_CONTEMPT = ("ckplus", "affectnet", "folder")
EXPECTED = {
    "fer2013": "fer2013.csv, fer2013.tar.gz or a folder of images",
    "ckplus": "CK+'s folder with its images and emotions, CK+48, or ckextended.csv",
    "rafdb": "RAF-DB's folder basic, with EmoLabel/ and Image/, or Kaggle's, with train/1 to test/7",
    "affectnet": "AffectNet's folder, with training.csv and Manually_Annotated_Images/, or train_set/ and val_set/",
    "folder": "a folder train/EMOTION/*.jpg, test/EMOTION/*.jpg, or EMOTION/*.jpg",
}


@dataclass
class Written:
    """What became of one batch.

    faces: (splits, classes) counts.  blank: how many of them show nothing.  left_out: good ones that are not taken, by
    reason.  rejected: (row or file, reason) of bad ones.  persons: (file in the tree, person) where the data set tells.
    digest: of the files that were read, for a folder: a line each, with what it shows and its SHA-256.
    """

    faces: np.ndarray
    blank: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[int | str, str]] = field(default_factory=list)
    persons: list[tuple[str, str]] = field(default_factory=list)
    digest: str = ""


@dataclass(frozen=True)
class Tree:
    """Where faces are written, and the names of their classes in the order of the labels."""

    folder: Path
    classes: tuple[str, ...]

    def nothing(self) -> Written:
        """No face yet."""
        return Written(np.zeros((len(SPLITS), len(self.classes)), np.int64))

    def file(self, split: str, label: int, number: int) -> str:
        """The path of a face in the tree, such as `Training/3_happy/00042.png`."""
        return f"{split}/{label}_{self.classes[label]}/{number:05d}.png"


def extract(
    source: Path,
    output: Path,
    skip_bad: bool = False,
    workers: int | None = None,
    layout: str = "fer2013",
    contempt: str = "drop",
    frames: int | None = None,
    neutral: bool = False,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the faces of `source` to `output/SPLIT/LABEL_EMOTION/NNNNN.png` and `output/manifest.json`.

    Images stay as large as they are. A data set without a validation split gets one, `folds.hold_out`; so
    does a folder without a test split, unless it has a validation split, which is its test split then. One that tells
    who the persons are gets `output/folds.csv` (file, person, fold; `folds.deal_folds`) and the splits of fold 1.

    Parameters
    ----------
    source: FER2013's or CK+'s CSV, a tar archive with FER2013's, or the folder of a data set.
    output: the folder that is replaced when everything has been written. NNNNN is the row's number in the CSV, counted
        from 0 (the first row after the header), or the image's place among those that the folder's reader lists.
    skip_bad: leave bad rows or files out, and list them in the manifest; otherwise the first one ends the stage.
    workers: threads (default: one for each core).
    layout: one of LAYOUTS. A folder in fer2013's is read as `folder`: `train|validation|test/EMOTION/*.jpg`.
    contempt: `drop` leaves faces of contempt out, and counts them; `keep` makes contempt the eighth class, label 7.
    frames: of CK+'s sequences, how many of the last frames carry the label (default: 3).
    neutral: of CK+'s sequences, take the first frame as neutral as well.
    classes: names of one's own for the folders of the layout `folder`, in the order of the labels.

    Returns the manifest's counts. Raises StageError on bad input, on an option that the layout does not have, and when
    no face is left.
    """
    source, output = Path(source), Path(output)
    workers = worker_count(workers)
    if layout not in LAYOUTS:
        raise StageError(f"--layout is {layout}; expected one of {', '.join(LAYOUTS)}")
    if not source.exists():
        raise StageError(f"{source}: no such file or folder; expected {EXPECTED[layout]}")
    layout = "folder" if layout == "fer2013" and source.is_dir() else layout
    _check_options(source, layout, contempt, frames, neutral, classes)
    check_output(source, output)
    names = tuple(classes) or (*EMOTIONS, *([CONTEMPT] if contempt == "keep" else []))
    settings: dict[str, Any] = {"layout": layout, "contempt": contempt, "classes": names, "skip_bad": skip_bad}
    with replace_directory(output) as folder:
        began = folder.stat().st_mtime_ns  # by the clock of its file system
        tree = Tree(folder, names)
        make_tree(folder, names)
        if source.is_dir():
            stage = Stage("extract", settings={"folder": str(source), **settings})
            if layout == "ckplus":
                stage.settings |= {"frames": FRAMES if frames is None else frames, "neutral": neutral}
            total, note = _extract_folder(source, tree, stage, classes, workers)
        else:
            stage, note = Stage("extract", [source], settings), ""
            with CsvReader(source, contempt=layout == "ckplus") as reader:
                parts = _ordered(lambda batch: _write_rows(reader, batch, tree), reader.batches(), workers)
                total = _sum_up(progress(parts, None, "extract", " batches"), tree, source, "row", stage)
        _count(total, tree, source, stage)
        stage.write_manifest(folder / "manifest.json")
        stage.check_inputs()  # after it: a CSV that changes from now on is newer for make
        if source.is_dir():  # of which what comes while it is read is no error: it is newer for make
            os.utime(folder / "manifest.json", ns=(began, began))
    stage.summary(_summary(total, stage) + note)
    return stage.counts


def _check_options(
    source: Path, layout: str, contempt: str, frames: int | None, neutral: bool, classes: Sequence[str]
) -> None:
    """Raises StageError for options that the source's layout does not have, and values that none has."""
    if not source.is_dir() and layout not in ("fer2013", "ckplus"):
        raise StageError(f"{source}: a file; expected {EXPECTED[layout]}")
    if contempt not in ("drop", "keep"):
        raise StageError(f"--contempt is {contempt}; expected drop or keep")
    if contempt == "keep" and (layout not in WITH_CONTEMPT or classes):
        why = "--classes names all classes" if classes else f"the layout {layout} has no contempt"
        raise StageError(f"--contempt is keep, but {why}; expected drop")
    if (frames is not None or neutral) and (layout != "ckplus" or not source.is_dir()):
        option = "--neutral" if frames is None else "--frames"
        raise StageError(f"{option} is given, but {source} holds no sequences; expected CK+'s folder (layout ckplus)")
    if frames is not None and frames < 1:
        raise StageError(f"--frames is {frames}; expected 1 or more")
    if classes and layout != "folder":
        raise StageError(f"--classes is given, but the layout {layout} has its own; expected the layout folder")
    bad = [name for name in classes if not re.fullmatch(r"\w[\w-]*", name)]
    if bad or len({canonical(name) for name in classes}) != len(classes) or len(classes) == 1:
        raise StageError(
            f"--classes is {' '.join(classes)}; expected two or more names of letters, digits, - and _, each once"
        )


def _extract_folder(
    source: Path, tree: Tree, stage: Stage, classes: Sequence[str], workers: int
) -> tuple[Written, str]:
    """Read the folder of a data set and write its images; what became of them, and a note on the splits."""
    settings = stage.settings
    listing = read_layout(
        source, settings["layout"], settings.get("frames", FRAMES), settings.get("neutral", False), classes
    )
    stage.inputs += listing.annotations
    if listing.others is not None:
        stage.counts["other_files"] = listing.others
    kept = [(number, item) for number, item in enumerate(listing.items) if item.emotion in tree.classes]
    numbers, items = [number for number, _ in kept], [item for _, item in kept]
    try:
        items, folds, note = _with_splits(items, stage)
    except StageError as error:
        raise StageError(f"{source}: {error}") from error

    start = tree.nothing()
    start.rejected += listing.rejected
    start.left_out = listing.left_out + Counter(
        item.emotion for item in listing.items if item.emotion not in tree.classes
    )
    numbered = list(zip(numbers, items, strict=True))
    batches = [numbered[i : i + BATCH_ROWS] for i in range(0, len(numbered), BATCH_ROWS)]
    parts = _ordered(lambda batch: _write_images(source, batch, tree), batches, workers)
    total = _sum_up(chain([start], progress(parts, len(batches), "extract", " batches")), tree, source, "file", stage)
    stage.settings["folder_sha256"] = total.digest
    if folds:
        write_folds(tree.folder, [(file, person, folds[person]) for file, person in sorted(total.persons)])
    return total, note


def _with_splits(items: list[Item], stage: Stage) -> tuple[list[Item], dict[str, int], str]:
    """The items, each with a split, the fold of each person if there are persons, and a note for the summary."""
    if any(item.person is not None for item in items):
        folds = deal_folds(items)
        stage.counts["persons"] = len(folds)
        stage.settings["splits"] = f"{FOLDS} folds that share no person; the tree's splits are those of fold 1"
        items = [item._replace(split=split_of_fold(folds[item.person or ""], 1)) for item in items]
        return items, folds, f", {len(folds)} persons in {FOLDS} folds, split as in fold 1"
    training, validation, test = SPLITS
    note, splits, held_out = "", [], 0
    present = {item.split for item in items}
    if stage.settings["layout"] == "folder" and present == {training, validation}:
        # as of AffectNet, results are on what there is besides the training images
        items = [item._replace(split=test) if item.split == validation else item for item in items]
        note, splits = f", no test split: {test} is the validation split", [f"{test}: the validation split"]
    for split, name in (test, "test"), (validation, "validation"):
        if any(item.split == split for item in items) or (split == test and stage.settings["layout"] != "folder"):
            continue
        items = hold_out(items, split)
        held_out += sum(item.split == split for item in items)
        splits.append(f"{split}: {HELD_OUT:.0%} of each class of Training, seed {HELD_OUT_SEEDS[split]}")
        note += f", no {name} split: {split} is {HELD_OUT:.0%} of each class's training images"
    if splits:
        stage.counts["held_out"] = held_out
        stage.settings["splits"] = "; ".join(splits)
    return items, {}, note


def _count(total: Written, tree: Tree, source: Path, stage: Stage) -> None:
    """Fill in the manifest's counts. Raises StageError where there is no face."""
    written = int(total.faces.sum())
    if not written:
        raise StageError(f"{source}: no faces: {stage.counts['rejected']} bad ones and no good one")
    stage.counts |= {
        "read": written + stage.counts["rejected"] + total.left_out.get(CONTEMPT, 0),
        "written": written,
        "faces": {
            split: dict(zip(tree.classes, map(int, row), strict=True))
            for split, row in zip(SPLITS, total.faces, strict=True)
        },
        "blank": total.blank,
        "left_out": dict(total.left_out),
    }


def _summary(total: Written, stage: Stage) -> str:
    splits = ", ".join(f"{n:,} {split}" for split, n in zip(SPLITS, total.faces.sum(1), strict=True))
    text = f"{total.faces.sum():,} faces ({splits}), {total.blank} blank, {stage.counts['rejected']} rejected"
    if total.left_out:
        text += ", left out " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(total.left_out.items()))
    if others := stage.counts.get("other_files"):
        text += f", {others:,} other file{'s' * (others != 1)} passed over"
    absent = [name for name, count in stage.counts["faces"][SPLITS[0]].items() if not count]
    text += f", {SPLITS[0]} lacks {', '.join(absent)}" if absent else ""
    empty = [split for split, count in zip(SPLITS, total.faces.sum(1), strict=True) if not count]
    return text + (f", no images in {' and '.join(empty)}, without which lmdb stops" if empty else "")


def _ordered(work: Callable[[T], Written], items: Iterable[T], workers: int) -> Iterator[Written]:
    """`work` on each item by threads, results in order, with only a few items in memory at a time.

    Threads are enough: parsing, PNG encoding and writing all release Python's global lock.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Written]] = deque(pool.submit(work, item) for item in islice(iterator, 2 * workers))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(work, item) for item in islice(iterator, 1))
        finally:
            for future in pending:
                future.cancel()


def _sum_up(parts: Iterable[Written], tree: Tree, source: Path, unit: str, stage: Stage) -> Written:
    """The parts in one; the first rejected row ends the stage unless bad ones are skipped."""
    stage.counts["rejected"] = 0
    total, digest = tree.nothing(), hashlib.sha256()
    for part in parts:
        total.faces += part.faces
        total.blank += part.blank
        total.left_out += part.left_out
        total.persons += part.persons
        digest.update(os.fsencode(part.digest))  # a file's name need not be UTF-8
        for where, reason in part.rejected:
            if not stage.settings["skip_bad"]:
                raise StageError(
                    f"{source}, {unit} {where}: {reason}; --skip-bad (make: SKIP_BAD=1) goes on without it"
                )
            stage.counts["rejected"] += 1
            if len(stage.rejected) < LISTED_REJECTS:
                stage.rejected.append({unit: where, "reason": reason})
    total.digest = digest.hexdigest()
    return total


def _write_rows(reader: CsvReader, batch: list[Line], tree: Tree) -> Written:
    """One batch of the CSV."""
    rows = reader.parse(batch)
    written = tree.nothing()
    written.rejected += rows.rejected
    taken = rows.labels < len(tree.classes)
    if not taken.all():
        written.left_out[CONTEMPT] = int((~taken).sum())
        rows = Rows(rows.lines[taken], rows.labels[taken], rows.splits[taken], rows.pixels[taken], rows.rejected)
    for line, label, split, face in zip(rows.lines, rows.labels, rows.splits, rows.pixels, strict=True):
        write_grey(f"{tree.folder}/{tree.file(SPLITS[split], label, line - 2)}", face)  # the header is line 1
    np.add.at(written.faces, (rows.splits, rows.labels), 1)
    written.blank = int(is_blank(rows.pixels).sum())
    return written


def _write_images(source: Path, batch: Sequence[tuple[int, Item]], tree: Tree) -> Written:
    """One batch of a folder's images with their numbers, made grey, and cut to the face where its box is known."""
    written = tree.nothing()
    for number, item in batch:
        try:
            data = read_file(source / item.file)
            written.digest += f"{item.file} {item.emotion} {hashlib.sha256(data).hexdigest()}\n"
            face = cv2.cvtColor(decode_image(data), cv2.COLOR_BGR2GRAY)  # as prediction makes a photo grey
            face = face if item.box is None else crop(face, item.box)
        except ValueError as error:
            written.rejected.append((item.file, str(error)))
            continue
        assert item.split is not None
        label = tree.classes.index(item.emotion)
        file = tree.file(item.split, label, number)
        write_grey(f"{tree.folder}/{file}", face)
        written.faces[SPLITS.index(item.split), label] += 1
        written.blank += int(is_blank(face[None])[0])
        if item.person is not None:
            written.persons.append((file, item.person))
    return written


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of an image (height, width) that its face's box shows, enlarged by BOX_SCALE about the box's middle.

    What lies outside the image is not there. Raises ValueError where that is all of it.
    """
    grown_width, grown_height = round(BOX_SCALE * box.width), round(BOX_SCALE * box.height)
    left, top = box.x - (grown_width - box.width) // 2, box.y - (grown_height - box.height) // 2
    part = image[max(top, 0) : max(top + grown_height, 0), max(left, 0) : max(left + grown_width, 0)]
    if not part.size:
        height, width = image.shape
        raise ValueError(f"the face at {tuple(box)} lies outside of the image of {width}x{height} pixels")
    return part


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.extract", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "source", type=Path, help="fer2013.csv, icml_face_data.csv, fer2013.tar.gz, or the folder of a data set"
    )
    parser.add_argument("output", type=Path, help="the folder to write, replaced as a whole")
    parser.add_argument("--layout", choices=LAYOUTS, default="fer2013", help="what the source is (default: fer2013)")
    parser.add_argument(
        "--contempt", choices=("drop", "keep"), default="drop", help="leave it out, or make it class 7 (default: drop)"
    )
    parser.add_argument("--frames", type=int, help=f"CK+: the last frames of a sequence to take (default: {FRAMES})")
    parser.add_argument("--neutral", action="store_true", help="CK+: take each sequence's first frame as neutral")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=(),
        metavar="NAME",
        help="folder: names of one's own, in the order of the labels",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out and list them in the manifest")
    parser.add_argument("--workers", type=int, default=None, help="threads (default: one for each core)")
    extract(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_main(main)
