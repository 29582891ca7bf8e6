"""Stage 2: finds the face in each image by MTCNN and turns, scales and shifts it to the five-point template.

python -m preprocessing.align data/fer2013/images data/fer2013/aligned
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from preprocessing import datasets
from preprocessing.alignment import SIZE, TEMPLATE, align_face
from preprocessing.datasets import SPLITS, list_faces, make_tree, read_grey, tree_classes, write_grey
from preprocessing.folds import FOLDS_FILE
from preprocessing.mtcnn import LANDMARKS, Face, PatientDetector
from preprocessing.stage import (
    Stage,
    StageError,
    add_device_argument,
    check_output,
    progress,
    replace_directory,
    run_main,
    worker_count,
)

BATCH = 256  # images that a worker detects in together
BATCH_PIXELS = 1 << 24  # fewer where they are large: at most so many pixels, or a single image
SHEET_PAIRS = 4  # faces a class on the contact sheet
COLORS = ("#ff3b30", "#34c759", "#00c7ff", "#ff9500", "#ff2d95")  # of the landmarks there

COLUMNS = (
    *("file", "x", "y", "width", "height"),
    *(f"{name}_{axis}" for name in LANDMARKS for axis in "xy"),
    "confidence",
)


@dataclass(frozen=True)
class Aligned:
    """What became of one image: where it stands, the face that was taken (None: none found), how many there were."""

    source: datasets.Face
    face: Face | None
    faces: int


def align(
    images: Path,
    aligned: Path,
    size: int = SIZE,
    device: str = "auto",
    workers: int | None = None,
    batch: int = BATCH,
) -> dict[str, Any]:
    """Align every image of the tree `images` into the same tree under `aligned`.

    Parameters
    ----------
    images: the folder that `extract` wrote: `SPLIT/LABEL_EMOTION/NNNNN.png`. Any image size; read as grey.
    aligned: the folder that is replaced when all has been written: the aligned faces as 8-bit grey PNG files,
        `faces.csv` (box, landmarks and confidence in the original's pixels, empty where no face was found), the
        contact sheet `align.png`, `manifest.json`, and the images' `folds.csv` where they have one.
    size: side of an aligned face in pixels.
    device: of the detector: auto, cpu, cuda or cuda:N.
    workers: threads, each reading, detecting, aligning and writing batches of its own; default: one for each core.
    batch: images in a batch.

    An image with several faces is aligned by the one that `main_face` takes; one without is resized as it is. Returns
    the manifest's counts. Raises StageError for an empty folder, an unreadable image, or an argument out of range.
    """
    images, aligned = Path(images), Path(aligned)
    workers = worker_count(workers)
    for option, value in (("--size", size), ("--batch", batch)):
        if value < 1:
            raise StageError(f"{option} is {value}; expected 1 or more")
    check_output(images, aligned)
    manifest = images / "manifest.json"
    stage = Stage("align", [manifest] if manifest.is_file() else [], {"detector": "mtcnn", "size": size})
    classes, sources = tree_classes(images), list_faces(images)
    try:
        detector = PatientDetector(device, certain=True)
    except RuntimeError as error:  # CaffeError included
        raise StageError(str(error)) from error
    with replace_directory(aligned) as folder:
        make_tree(folder, classes)
        if (images / FOLDS_FILE).is_file():
            shutil.copyfile(images / FOLDS_FILE, folder / FOLDS_FILE)
        results: list[Aligned] = []
        chunks = [sources[start : start + batch] for start in range(0, len(sources), batch)]
        for part in progress(_run(detector, images, folder, chunks, size, workers), len(chunks), "align", " batches"):
            results += part
        write_faces(folder / "faces.csv", results)
        contact_sheet(images, folder, results, classes, folder / "align.png")
        stage.check_inputs()
        stage.counts = _counts(results)
        stage.write_manifest(folder / "manifest.json")
    read, found = stage.counts["read"], stage.counts["found"]
    stage.summary(
        f"{read:,} images, a face found in {found:,} ({found / read:.1%}), {read - found:,} resized as they are"
    )
    return stage.counts


def _run(
    detector: PatientDetector, images: Path, folder: Path, chunks: list[list[datasets.Face]], size: int, workers: int
) -> Iterator[list[Aligned]]:
    """Align the chunks by threads, and give what became of each, in order.

    Each thread does all of a chunk's work and computes on one core: OpenCV and PyTorch release Python's global lock, so
    that one thread reads and writes while another detects.
    """
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    one_each = workers >= (os.cpu_count() or 1)
    if one_each:
        cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1 if one_each else torch_threads,))
    try:
        yield from pool.map(lambda chunk: list(_align_chunk(detector, images, folder, chunk, size)), chunks)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)


def _align_chunk(
    detector: PatientDetector, images: Path, folder: Path, chunk: Sequence[datasets.Face], size: int
) -> Iterator[Aligned]:
    """Read, detect, align, write; in parts where the images are large."""
    sources: list[datasets.Face] = []
    pixels: list[np.ndarray] = []
    for number, source in enumerate(chunk, 1):
        sources.append(source)
        pixels.append(read_grey(images / source.file))
        if number < len(chunk) and sum(image.size for image in pixels) < BATCH_PIXELS:
            continue
        for source, image, faces in zip(sources, pixels, detector.detect_batch(pixels), strict=True):
            face = main_face(faces, *image.shape)
            try:
                result = align_face(image, None if face is None else face.landmarks, size)
            except ValueError as error:
                raise StageError(f"{images / source.file}: {error}") from error
            write_grey(folder / source.file, result)
            yield Aligned(source, face, len(faces))
        sources, pixels = [], []


def main_face(faces: Sequence[Face], height: int, width: int) -> Face | None:
    """Of the faces in an image of one person the one that is meant: large and near the middle; None of no faces.

    It has the greatest area, less twice the squared distance of the box's centre from the image's.
    """

    def weight(face: Face) -> float:
        x, y, box_width, box_height = face.box
        away = (x + box_width / 2 - width / 2) ** 2 + (y + box_height / 2 - height / 2) ** 2
        return box_width * box_height - 2 * away

    return max(faces, key=weight, default=None)


def _counts(results: Sequence[Aligned]) -> dict[str, Any]:
    def count(part: Sequence[Aligned]) -> dict[str, int]:
        found = sum(result.face is not None for result in part)
        return {"read": len(part), "found": found, "not_found": len(part) - found}

    splits = {split: count([result for result in results if result.source.split == split]) for split in SPLITS}
    return {**count(results), "several_faces": sum(result.faces > 1 for result in results), "splits": splits}


def write_faces(path: Path, results: Sequence[Aligned]) -> None:
    """faces.csv: one row an image, with COLUMNS; pixels to 3 places, of the original image."""
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        for result in results:
            numbers = [""] * (len(COLUMNS) - 1)
            if (face := result.face) is not None:
                places = [f"{value:.3f}" for value in (*face.box, *face.landmarks.ravel().tolist())]
                numbers = [*places, f"{face.confidence:.6f}"]
            writer.writerow([result.source.file, *numbers])


# ---------------------------------------------------------------------------------------------------------------------
# The contact sheet
# ---------------------------------------------------------------------------------------------------------------------


def _spread(results: list[Aligned], count: int) -> list[Aligned]:
    """Up to `count` results from all over the list, always the same ones."""
    places = np.linspace(0, len(results) - 1, min(count, len(results))).round().astype(int)
    return [results[place] for place in places]


def contact_sheet(images: Path, aligned: Path, results: Sequence[Aligned], classes: Sequence[str], path: Path) -> None:
    """A picture from which a person sees whether detection and alignment are right.

    A row a class: originals with the box and the landmarks that were found, each with its aligned face, on which
    small crosses are where the template wants the landmarks; below, images in which no face was found.
    """
    from matplotlib.figure import Figure  # half a second to load; only a whole run of the stage needs it

    found = [result for result in results if result.face is not None]
    missed = [result for result in results if result.face is None]
    rows = [
        (name, _spread([r for r in found if r.source.label == label], SHEET_PAIRS))
        for label, name in enumerate(classes)
    ]
    rows = [(name, row) for name, row in rows if row]
    columns = 2 * SHEET_PAIRS
    figure = Figure(figsize=(1.6 * columns + 1, 1.85 * (len(rows) + 1) + 0.9), dpi=80)
    axes = figure.subplots(len(rows) + 1, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.075, right=0.99, bottom=0.01, top=1 - 1.0 / figure.get_figheight(), wspace=0.06, hspace=0.24
    )
    share = len(found) / max(1, len(results))
    figure.suptitle(
        f"A face found in {len(found):,} of {len(results):,} images ({share:.1%})\n"
        "in pairs: the original with box, landmarks and confidence, then the aligned face with the template's points",
        fontsize=14,
        y=1 - 0.12 / figure.get_figheight(),
    )
    for axis in axes.flat:
        axis.axis("off")
    for row, (name, pairs) in zip(axes, rows, strict=False):
        row[0].text(-0.12, 0.5, name, fontsize=14, rotation=90, ha="center", va="center", transform=row[0].transAxes)
        for column, result in enumerate(pairs):
            _draw_pair(row[2 * column], row[2 * column + 1], result, images, aligned)
    last = axes[len(rows)]
    last[0].text(
        -0.12, 0.5, "none found", fontsize=14, rotation=90, ha="center", va="center", transform=last[0].transAxes
    )
    if not missed:
        last[0].text(0.5, 0.5, "(there are none)", fontsize=12, ha="center", va="center", transform=last[0].transAxes)
    for axis, result in zip(last, _spread(missed, columns), strict=False):
        _show(axis, read_grey(images / result.source.file))
        axis.set_title(f"{classes[result.source.label]} {Path(result.source.file).stem}", fontsize=10, pad=3)
    figure.savefig(path)


def _show(axis: Any, image: np.ndarray) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def _draw_pair(original: Any, result_axis: Any, result: Aligned, images: Path, aligned: Path) -> None:
    from matplotlib.patches import Rectangle

    face = result.face
    assert face is not None
    x, y, width, height = face.box
    _show(original, read_grey(images / result.source.file))
    original.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="#ffd400", linewidth=1.6))
    original.set_title(f"{Path(result.source.file).stem}  {face.confidence:.2f}", fontsize=10, pad=3)
    _show(result_axis, image := read_grey(aligned / result.source.file))
    for axis, points, marker in ((original, face.landmarks, "o"), (result_axis, TEMPLATE * (len(image) / SIZE), "+")):
        axis.scatter(
            *points.T, c=COLORS, s=16 if marker == "o" else 40, marker=marker, linewidths=1.2 if marker == "+" else 0
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.align", description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, metavar="IMAGES_DIR", help="the folder that extract wrote")
    parser.add_argument("aligned", type=Path, metavar="ALIGNED_DIR", help="the folder to write")
    parser.add_argument("--size", type=int, default=SIZE, help=f"side of an aligned face in pixels (default: {SIZE})")
    add_device_argument(parser)
    parser.add_argument("--workers", type=int, help="threads (default: one for each core)")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images in a batch (default: {BATCH})")
    arguments = parser.parse_args()
    align(**vars(arguments))


if __name__ == "__main__":
    run_main(main)
