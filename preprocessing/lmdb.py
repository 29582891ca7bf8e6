"""Stage 3: the faces of a folder tree to train_lmdb, val_lmdb and test_lmdb, shuffled, as Caffe's Datum records.

python -m preprocessing.lmdb data/fer2013/aligned data/fer2013/lmdb --seed 0 [--ferplus fer2013new.csv]
python -m preprocessing.lmdb data/ckplus/aligned data/ckplus/fold1/lmdb --fold 1
python -m preprocessing.lmdb data/fer2013/aligned data/fer2013/both/lmdb --beside data/fer2013/images
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from caffe.errors import CaffeError
from caffe.io import decode_image
from caffe.proto.caffe_pb2 import Datum
from caffe.tools.convert_imageset import (
    Line,
    Record,
    alike,
    pixels_to_datum,
    read_images,
    shuffled,
    write_imageset,
)
from preprocessing.alignment import SIZE, align_face
from preprocessing.classes import write_classes
from preprocessing.datasets import EMOTIONS, SPLITS, Face, list_faces, tree_classes
from preprocessing.ferplus import SoftLabel, soft_labels
from preprocessing.folds import FOLDS, read_folds, split_of_fold
from preprocessing.stage import Stage, StageError, check_output, progress, replace_directory, run_main, worker_count

DATABASES = dict(zip(SPLITS, ("train_lmdb", "val_lmdb", "test_lmdb"), strict=True))


def write_databases(
    images: Path,
    output: Path,
    seed: int = 0,
    workers: int | None = None,
    ferplus: Path | None = None,
    size: int | None = None,
    fold: int | None = None,
    beside: Path | None = None,
) -> dict[str, Any]:
    """Write `output/{train,val,test}_lmdb`, `classes.txt` and `manifest.json` from the tree of faces `images`.

    A record is what Caffe's `convert_imageset --shuffle` writes: a Datum of the image's pixels (uint8, 1×48×48 for
    FER2013) and its label, under the key `%08d_FILE`, where the number is the record's place and FILE the image's path
    in the tree. classes.txt names the labels: the classes of the tree's folders.

    Parameters
    ----------
    images: the folder `{Training,PublicTest,PrivateTest}/{0_angry,…}/NNNNN.png` that extract or align wrote.
    output: the folder that is replaced when everything has been written.
    seed: decides the order; the same files and seed give the same databases.
    workers: threads that read images (default: one for each core).
    ferplus: FER+'s fer2013new.csv. Then each record's label is the one that most raters chose, and its
        `label_probability` their shares; faces that they left open are left out, and listed in the manifest.
    size: side in pixels that every image is brought to, as `align` does where it finds no face; default: as they are.
    fold: 1..10, the fold of the tree's folds.csv that is the test set, whatever split its images' folders say; the next
        fold (after 10 comes 1) is the validation set, the other eight train. Default: the splits of the folders.
    beside: a folder of images of the same names, such as the faces before they were aligned. Then a record has the
        channels of the image in `images` and behind them those of its namesake there, both of `size`, 48 by default.

    Returns the manifest's counts. Raises StageError for a split without images, an image that cannot be read, one
    whose size or number of channels differs from the first one's, naming the file, a `ferplus` that does not fit or is
    given for other classes than FER2013's, and a `fold` for a tree without folds.
    """
    images, output = Path(images), Path(output)
    workers = worker_count(workers)
    for option, value, highest in (("--size", size, None), ("--fold", fold, FOLDS)):
        if value is not None and (value < 1 or (highest is not None and value > highest)):
            raise StageError(f"{option} is {value}; expected {f'1..{highest}' if highest else '1 or more'}")
    folders = [images] if beside is None else [images, Path(beside)]
    for folder in folders:
        check_output(folder, output)
    inputs = [*(folder / "manifest.json" for folder in folders), *([Path(ferplus)] if ferplus is not None else [])]
    stage = Stage("lmdb", [path for path in inputs if path.is_file()], {"images": str(images), "seed": seed})
    if beside is not None and size is None:
        size = SIZE
    settings = {"size": size, "fold": fold, "beside": None if beside is None else str(beside)}
    stage.settings |= {name: value for name, value in settings.items() if value is not None}
    classes, faces = tree_classes(images), list_faces(images)
    if ferplus is not None and classes != EMOTIONS:
        raise StageError(f"--ferplus: its labels are FER2013's, but the classes in {images} are {', '.join(classes)}")
    if fold is not None:
        faces = _split_by_fold(images, faces, fold)
    soft = None if ferplus is None else _soft_labels(ferplus, faces, stage)
    lines = _lines_by_split(faces, soft)
    for split, of_split in lines.items():
        if not of_split:
            where = images / split if fold is None else f"{images}, {split} of fold {fold}"
            raise StageError(f"{where}: no images; expected PNG files in {split}/0_{classes[0]} and so on")
    first = next(_read(folders, lines[SPLITS[0]][:1], size, workers))
    written: dict[str, int] = {}
    with replace_directory(output) as folder:
        try:
            for split, name in DATABASES.items():
                order = shuffled(lines[split], seed)
                records = alike(_read(folders, order, size, workers), first)
                labelled = records if soft is None else _with_probabilities(records, soft)
                written[name] = write_imageset(folder / name, progress(labelled, len(order), name))
        except CaffeError as error:  # of an image it names the file in the tree, of the database the whole path
            text = str(error).replace(str(folder), str(output))
            raise StageError(text if text.startswith(str(output)) else f"{images}: {text}") from error
        stage.check_inputs()
        channels, height, width = first.shape
        stage.counts |= {"read": len(faces), "written": written}
        stage.counts |= {"channels": channels, "height": height, "width": width, "classes": list(classes)}
        write_classes(folder, classes)
        stage.write_manifest(folder / "manifest.json")
    text = ", ".join(f"{count:,} in {name}" for name, count in written.items()) + f", {width}x{height} pixels"
    left_out = f", {len(stage.rejected):,} left out by FER+" if ferplus is not None else ""
    stage.summary(text + left_out + _absent(lines, classes))
    return stage.counts


def _split_by_fold(images: Path, faces: list[Face], fold: int) -> list[Face]:
    """The faces with the splits that they have when `fold` is the test set."""
    folds = read_folds(images)
    for face in faces:
        if face.file not in folds:
            raise StageError(f"{images / face.file}: not in folds.csv; expected the images that extract wrote")
    return [face._replace(split=split_of_fold(folds[face.file], fold)) for face in faces]


def _lines_by_split(faces: Sequence[Face], soft: dict[str, SoftLabel] | None) -> dict[str, list[Line]]:
    """Each split's images with their labels: those of the folders, or of `soft`, which lacks what is left out."""
    lines: dict[str, list[Line]] = {split: [] for split in SPLITS}
    for face in faces:
        if soft is None:
            lines[face.split].append(Line(face.file, face.label))
        elif face.file in soft:
            lines[face.split].append(Line(face.file, soft[face.file].label))
    return lines


def _absent(lines: dict[str, list[Line]], classes: Sequence[str]) -> str:
    """For the summary: the classes that a split has no image of."""
    text = ""
    for split, name in DATABASES.items():
        present = {line.label for line in lines[split]}
        if absent := [emotion for label, emotion in enumerate(classes) if label not in present]:
            text += f", {name} lacks {', '.join(absent)}"
    return text


def _read(folders: Sequence[Path], lines: Sequence[Line], size: int | None, workers: int) -> Iterator[Record]:
    """A record for each line, in order, by threads: its image in each folder, brought to size x size pixels; without a
    size as it is, in the one folder.

    Caffe's own resizing, bilinear, passes over pixels where an image shrinks to a small part of itself.
    """
    if size is None:
        yield from read_images(folders[0], lines, cv2.IMREAD_UNCHANGED, workers=workers)
        return
    remaining = iter(lines)
    with ThreadPoolExecutor(workers) as pool:
        while batch := list(islice(remaining, 64 * workers)):
            yield from pool.map(lambda line: _read_resized(folders, line, size), batch)


def _read_resized(folders: Sequence[Path], line: Line, size: int) -> Record:
    images = []
    for folder in folders:
        try:
            images.append(align_face(decode_image((folder / line.file).read_bytes(), cv2.IMREAD_UNCHANGED), None, size))
        except (OSError, CaffeError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return Record(line.file, (0, 0, 0), None, reason if len(folders) == 1 else f"{reason} (in {folder})")
    datum = pixels_to_datum(images[0] if len(images) == 1 else np.dstack(images), line.label)
    return Record(line.file, (datum.channels, datum.height, datum.width), datum.SerializeToString())


def _soft_labels(ferplus: Path, faces: list[Face], stage: Stage) -> dict[str, SoftLabel]:
    """FER+'s labels by file; what it leaves out is counted by reason and listed in the stage's manifest."""
    answers = soft_labels(ferplus, faces)
    stage.rejected += [
        {"file": face.file, "reason": answer}
        for face, answer in zip(faces, answers, strict=True)
        if isinstance(answer, str)
    ]
    stage.counts["left_out"] = dict(Counter(entry["reason"] for entry in stage.rejected))
    return {face.file: a for face, a in zip(faces, answers, strict=True) if isinstance(a, SoftLabel)}


def _with_probabilities(records: Iterable[Record], soft: dict[str, SoftLabel]) -> Iterator[Record]:
    """The records with `label_probability` in their Datum: in protobuf's encoding, fields that come later are added."""
    for record in records:
        if record.datum is None:
            yield record
            continue
        probabilities = Datum(label_probability=soft[record.file].probability.tolist())
        yield record._replace(datum=record.datum + probabilities.SerializeToString())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.lmdb", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", type=Path, help="folder of faces that extract or align wrote")
    parser.add_argument("output", type=Path, help="folder for train_lmdb, val_lmdb, test_lmdb")
    parser.add_argument("--seed", type=int, default=0, help="decides the order of the records (default: 0)")
    parser.add_argument("--workers", type=int, help="threads (default: one for each core)")
    parser.add_argument(
        "--ferplus", type=Path, metavar="fer2013new.csv", help="take the labels, hard and soft, from FER+'s ten raters"
    )
    parser.add_argument("--size", type=int, help="side in pixels that images are brought to (default: as they are)")
    parser.add_argument(
        "--fold", type=int, help=f"1..{FOLDS}: the fold that is the test set (CK+; default: the splits of the folders)"
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="FOLDER",
        help=f"images of the same names, whose channels go behind the others' (--size is {SIZE} then, unless given)",
    )
    write_databases(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_main(main)
