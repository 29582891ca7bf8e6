"""Stage 3: the faces of a folder tree to train_lmdb, val_lmdb and test_lmdb, shuffled, as Caffe's Datum records.

python -m preprocessing.lmdb data/fer2013/aligned data/fer2013/lmdb --seed 0 [--ferplus fer2013new.csv]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2

from caffe.errors import CaffeError
from caffe.proto.caffe_pb2 import Datum
from caffe.tools.convert_imageset import Line, Record, alike, read_images, shuffled, write_imageset
from preprocessing.datasets import EMOTIONS, SPLITS, Face, list_faces
from preprocessing.ferplus import SoftLabel, soft_labels
from preprocessing.stage import Stage, StageError, check_output, progress, replace_directory, run_main

DATABASES = dict(zip(SPLITS, ("train_lmdb", "val_lmdb", "test_lmdb"), strict=True))


def write_databases(
    images: Path, output: Path, seed: int = 0, workers: int | None = None, ferplus: Path | None = None
) -> dict[str, Any]:
    """Write `output/{train,val,test}_lmdb` and `output/manifest.json` from the tree of faces `images`.

    A record is what Caffe's `convert_imageset --shuffle` writes: a Datum of the image's pixels (uint8, 1×48×48 for
    FER2013) and its label 0..6, under the key `%08d_FILE`, where the number is the record's place and FILE the
    image's path in the tree.

    Parameters
    ----------
    images: the folder `{Training,PublicTest,PrivateTest}/{0_angry,…}/NNNNN.png` that extract or align wrote.
    output: the folder that is replaced when everything has been written.
    seed: decides the order; the same files and seed give the same databases.
    workers: threads that read images (default: one for each core).
    ferplus: FER+'s fer2013new.csv. Then each record's label is the one that most raters chose, and its
        `label_probability` their shares; faces that they left open are left out, and listed in the manifest.

    Returns the manifest's counts. Raises StageError for a split without images, an image that cannot be read, one
    whose size or number of channels differs from the first one's, naming the file, and a `ferplus` that does not fit.
    """
    images, output = Path(images), Path(output)
    if workers is not None and workers < 1:
        raise StageError(f"--workers is {workers}; expected 1 or more")
    check_output(images, output)
    manifest = images / "manifest.json"
    stage = Stage("lmdb", [manifest] if manifest.is_file() else [], {"images": str(images), "seed": seed})
    faces = list_faces(images)
    soft = _soft_labels(ferplus, faces, stage) if ferplus is not None else {}
    lines: dict[str, list[Line]] = {split: [] for split in SPLITS}
    for face in faces:
        if ferplus is None:
            lines[face.split].append(Line(face.file, face.label))
        elif face.file in soft:
            lines[face.split].append(Line(face.file, soft[face.file].label))
    for split, of_split in lines.items():
        if not of_split:
            raise StageError(f"{images / split}: no images; expected PNG files in {split}/0_{EMOTIONS[0]} and so on")
    first = next(read_images(images, lines[SPLITS[0]][:1], cv2.IMREAD_UNCHANGED))
    written: dict[str, int] = {}
    with replace_directory(output) as folder:
        try:
            for split, name in DATABASES.items():
                order = shuffled(lines[split], seed)
                records = alike(read_images(images, order, cv2.IMREAD_UNCHANGED, workers=workers), first)
                labelled = _with_probabilities(records, soft) if ferplus is not None else records
                written[name] = write_imageset(folder / name, progress(labelled, len(order), name))
        except CaffeError as error:
            raise StageError(f"{images}: {error}") from error
        channels, height, width = first.shape
        stage.counts |= {"read": len(faces), "written": written}
        stage.counts |= {"channels": channels, "height": height, "width": width}
        stage.write_manifest(folder / "manifest.json")
    text = ", ".join(f"{count:,} in {name}" for name, count in written.items()) + f", {width}x{height} pixels"
    left_out = f", {len(stage.rejected):,} left out by FER+" if ferplus is not None else ""
    stage.summary(text + left_out)
    return stage.counts


def _soft_labels(ferplus: Path, faces: list[Face], stage: Stage) -> dict[str, SoftLabel]:
    """FER+'s labels by file; what it leaves out is counted by reason and listed in the stage's manifest."""
    answers = soft_labels(ferplus, faces)
    stage.inputs.append(ferplus)
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
    options = parser.parse_args()
    write_databases(options.images, options.output, options.seed, options.workers, options.ferplus)


if __name__ == "__main__":
    run_main(main)
