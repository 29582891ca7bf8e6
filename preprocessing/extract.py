"""Stage 1: FER2013 as a CSV, an archive or a folder of images, to 48x48 PNG files by split and emotion.

python -m preprocessing.extract fer2013.csv data/fer2013/images
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from preprocessing.datasets import (
    BATCH_ROWS,
    EMOTION_FOLDERS,
    EMOTIONS,
    SIZE,
    SPLITS,
    CsvReader,
    Line,
    face_file,
    is_blank,
    list_images,
    split_and_label,
)
from preprocessing.stage import Stage, StageError, check_output, progress, replace_directory, run_main

T = TypeVar("T")

PNG_LEVEL = 1  # zlib's fastest: level 9 saves 3 % of such small files
LISTED_REJECTS = 10_000  # the manifest lists this many rejected rows and counts the others


@dataclass
class Written:
    """What became of one batch: faces by split and emotion, blank and resized ones, and what was rejected."""

    faces: np.ndarray = field(default_factory=lambda: np.zeros((len(SPLITS), len(EMOTIONS)), np.int64))
    blank: int = 0
    resized: int = 0
    rejected: list[tuple[int | str, str]] = field(default_factory=list)  # (row or file, reason)
    digest: str = ""  # of the files that were read, for a folder


def extract(source: Path, output: Path, skip_bad: bool = False, workers: int | None = None) -> dict[str, Any]:
    """Write the faces of `source` to `output/SPLIT/LABEL_EMOTION/NNNNN.png` and `output/manifest.json`.

    Parameters
    ----------
    source: the CSV, a tar archive with it, or a folder `train|validation|test/EMOTION/*.jpg`.
    output: the folder that is replaced when everything has been written. NNNNN is the row's number in the CSV, counted
        from 0 (the first row after the header), or the image's place among the sorted files of the folder.
    skip_bad: leave bad rows or files out, and list them in the manifest; otherwise the first one ends the stage.
    workers: threads (default: one for each core).

    Returns the manifest's counts. Raises StageError on bad input, and when no face is left.
    """
    source, output = Path(source), Path(output)
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise StageError(f"--workers is {workers}; expected 1 or more")
    if not source.exists():
        raise StageError(
            f"{source}: no such file or folder; expected fer2013.csv, fer2013.tar.gz or a folder of images"
        )
    check_output(source, output)
    total = Written()
    with replace_directory(output) as folder:
        for split in SPLITS:
            for emotion in EMOTION_FOLDERS:
                (folder / split / emotion).mkdir(parents=True)
        if source.is_dir():
            stage = Stage("extract", settings={"folder": str(source), "skip_bad": skip_bad})
            unit = "file"
            files, others = list_images(source)
            stage.counts["other_files"] = others
            firsts = range(0, len(files), BATCH_ROWS)
            parts = _ordered(lambda i: _write_images(source, files[i : i + BATCH_ROWS], i, folder), firsts, workers)
            _sum_up(progress(parts, len(firsts), "extract", " batches"), total, source, unit, skip_bad, stage)
            stage.settings["folder_sha256"] = total.digest
        else:
            stage = Stage("extract", [source], {"skip_bad": skip_bad})
            unit = "row"
            with CsvReader(source) as reader:
                parts = _ordered(lambda batch: _write_rows(reader, batch, folder), reader.batches(), workers)
                _sum_up(progress(parts, None, "extract", " batches"), total, source, unit, skip_bad, stage)
        written = int(total.faces.sum())
        if not written:
            raise StageError(f"{source}: no faces: {stage.counts['rejected']} bad {unit}s and no good one")
        stage.counts |= {
            "read": written + stage.counts["rejected"],
            "written": written,
            "faces": {
                split: dict(zip(EMOTIONS, map(int, row), strict=True))
                for split, row in zip(SPLITS, total.faces, strict=True)
            },
            "blank": total.blank,
            "resized": total.resized,
        }
        stage.write_manifest(folder / "manifest.json")
    splits = ", ".join(f"{n:,} {split}" for split, n in zip(SPLITS, total.faces.sum(1), strict=True))
    resized = f", {total.resized:,} resized" if total.resized else ""
    stage.summary(f"{written:,} faces ({splits}), {total.blank} blank, {stage.counts['rejected']} rejected{resized}")
    return stage.counts


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


def _sum_up(parts: Iterable[Written], total: Written, source: Path, unit: str, skip_bad: bool, stage: Stage) -> None:
    """Add the parts up; the first rejected row ends the stage unless bad ones are skipped."""
    stage.counts["rejected"] = 0
    digest = hashlib.sha256()
    for part in parts:
        total.faces += part.faces
        total.blank += part.blank
        total.resized += part.resized
        digest.update(part.digest.encode())
        for where, reason in part.rejected:
            if not skip_bad:
                raise StageError(
                    f"{source}, {unit} {where}: {reason}; --skip-bad (make: SKIP_BAD=1) goes on without it"
                )
            stage.counts["rejected"] += 1
            if len(stage.rejected) < LISTED_REJECTS:
                stage.rejected.append({unit: where, "reason": reason})
    total.digest = digest.hexdigest()


def _write_face(path: str, face: np.ndarray) -> None:
    _, data = cv2.imencode(".png", face, (cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL))
    with open(path, "wb") as f:  # not cv2.imwrite, which says nothing but False when the disk is full
        f.write(data.data)


def _write_rows(reader: CsvReader, batch: list[Line], folder: Path) -> Written:
    """One batch of the CSV."""
    rows = reader.parse(batch)
    written = Written(rejected=list(rows.rejected))
    for line, label, split, face in zip(rows.lines, rows.labels, rows.splits, rows.pixels, strict=True):
        _write_face(f"{folder}/{face_file(SPLITS[split], label, line - 2)}", face)  # the header is line 1
    np.add.at(written.faces, (rows.splits, rows.labels), 1)
    written.blank = int(is_blank(rows.pixels).sum())
    return written


def _write_images(source: Path, files: list[str], first: int, folder: Path) -> Written:
    """One batch of a folder's images, numbered from `first`, made grey and 48x48 where they are not."""
    written = Written()
    for number, file in enumerate(files, first):
        data = (source / file).read_bytes()
        written.digest += f"{file} {hashlib.sha256(data).hexdigest()}\n"
        try:
            split, label = split_and_label(file)
            face = _decode(data)
        except ValueError as error:
            written.rejected.append((file, str(error)))
            continue
        if face.shape != (SIZE, SIZE):
            shrinks = min(face.shape) > SIZE
            face = cv2.resize(face, (SIZE, SIZE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            written.resized += 1
        _write_face(f"{folder}/{face_file(split, label, number)}", face)
        written.faces[SPLITS.index(split), label] += 1
        written.blank += int(is_blank(face[None])[0])
    return written


def _decode(data: bytes) -> np.ndarray:
    """An image file's grey levels as (height, width) uint8; ValueError when it is broken or cut off."""
    if not data:
        raise ValueError("an empty file; expected an image")
    # OpenCV fills what a cut-off file lacks with grey and only prints a warning, so look for the end marks here.
    cut_jpeg = data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    cut_png = data.startswith(b"\x89PNG") and b"IEND" not in data
    if cut_jpeg or cut_png:
        raise ValueError("the image is cut off; expected a whole file")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        raise ValueError(f"not a readable image ({error.err}); expected JPEG or PNG") from error
    if image is None:
        raise ValueError("not a readable image; expected JPEG or PNG")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m preprocessing.extract", description=__doc__)
    parser.add_argument(
        "source", type=Path, help="fer2013.csv, icml_face_data.csv, fer2013.tar.gz, or a folder of images"
    )
    parser.add_argument("output", type=Path, help="the folder to write, replaced as a whole")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out and list them in the manifest")
    parser.add_argument("--workers", type=int, default=None, help="threads (default: one for each core)")
    args = parser.parse_args()
    extract(args.source, args.output, args.skip_bad, args.workers)


if __name__ == "__main__":
    run_main(main)
