"""Say which emotion each face in some images shows, and draw it on them.

python -m predict photo.jpg [more images, folders, 'patterns/*.png'] [--face one] [--json] [--output DIR]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from preprocessing.images import ImageError, find_images, read_image
from preprocessing.network_input import VIEWS
from preprocessing.stage import StageError, replace_file, run_main

from .annotate import annotate
from .options import add_model_arguments, check_model_arguments, make_recognizer
from .recognizer import Prediction, Recognizer

OUTPUT = Path("data/predictions")
CHUNK_IMAGES, CHUNK_PIXELS = 64, 16 << 20  # images that are held at a time


def read_chunks(found: Sequence[tuple[str, str | None]]) -> Iterator[list[tuple[str, np.ndarray | str]]]:
    """The images in the order of their names, some at a time; what cannot be read comes as its error's text."""
    chunk: list[tuple[str, np.ndarray | str]] = []
    pixels = 0
    for path, problem in found:
        image: np.ndarray | str
        try:
            image = problem or read_image(path)
        except ImageError as error:
            image = str(error)
        if isinstance(image, np.ndarray):
            size = image.shape[0] * image.shape[1]
            if chunk and (len(chunk) == CHUNK_IMAGES or pixels + size > CHUNK_PIXELS):
                yield chunk
                chunk, pixels = [], 0
            pixels += size
        chunk.append((path, image))
    if chunk:
        yield chunk


def output_files(paths: Sequence[str], folder: Path) -> dict[str, Path]:
    """Where each image's annotated copy goes: the same name, as .jpg or .png, with a number where two are alike.

    Raises StageError where that would replace one of the images themselves.
    """
    files: dict[str, Path] = {}
    used: set[Path] = set()
    for path in paths:
        name = Path(path)
        suffix = name.suffix if name.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
        file, number = folder / f"{name.stem}{suffix}", 2
        while file in used:
            file, number = folder / f"{name.stem}-{number}{suffix}", number + 1
        used.add(file)
        files[path] = file
    originals = {Path(path).resolve() for path in paths if Path(path).exists()}
    for file in used:
        if file.resolve() in originals:
            raise StageError(f"{file}: would be replaced by its annotated copy; expected another --output folder")
    return files


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image as its name says, all or nothing."""
    written, data = cv2.imencode(path.suffix.lower(), image)
    if not written:
        raise StageError(f"{path}: OpenCV cannot encode {image.shape[1]}×{image.shape[0]} pixels so")
    with replace_file(path) as partial:
        partial.write_bytes(data.tobytes())


def table(predictions: Sequence[Prediction]) -> str:
    """A line a face: its box, how sure it is a face, its emotion, and the probability of each emotion in percent."""
    names = list(predictions[0].probabilities)
    widths = [max(len(name), 5) for name in names]
    heads = " ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    emotions = max(len("emotion"), *(len(name) for name in names))
    lines = [f"   #  {'box (x y w h)':<19}  {'face':>4}  {'emotion':<{emotions}}  {heads}"]
    for number, face in enumerate(predictions, 1):
        box = " ".join(f"{value:.0f}" for value in face.box)
        sure = "-" if face.confidence is None else f"{100 * face.confidence:.0f}%"
        values = zip(face.probabilities.values(), widths, strict=True)
        shares = " ".join(f"{100 * value:>{width - 1}.1f}%" for value, width in values)
        lines.append(f"  {number:>2}  {box:<19}  {sure:>4}  {face.emotion:<{emotions}}  {shares}")
    return "\n".join(lines)


def describe(path: str, image: np.ndarray, predictions: Sequence[Prediction]) -> str:
    """What is printed for people about one image."""
    count = {0: "no face found", 1: "1 face"}.get(len(predictions), f"{len(predictions)} faces")
    head = f"{path} ({image.shape[1]}×{image.shape[0]}): {count}"
    return f"{head}\n{table(predictions)}" if predictions else head


def run(args: argparse.Namespace) -> int:
    """Recognise in all images; returns the exit code."""
    start = time.perf_counter()
    found = find_images(args.images)
    files = output_files([path for path, problem in found if problem is None], args.output)
    recognizer: Recognizer | None = None
    results: list[dict[str, Any]] = []
    faces = failed = 0
    for chunk in read_chunks(found):
        images = [image for _, image in chunk if isinstance(image, np.ndarray)]
        if images and recognizer is None:  # loaded when there is something to look at
            recognizer = make_recognizer(args, args.views)
        answers = iter(recognizer.predict_batch(images) if recognizer else [])
        for path, image in chunk:
            if isinstance(image, str):
                failed += 1
                print(f"error: {image}", file=sys.stderr)
                results.append({"file": path, "error": image})
                continue
            predictions = next(answers)
            faces += len(predictions)
            write_image(files[path], annotate(image, predictions))
            result = {"file": path, "width": image.shape[1], "height": image.shape[0], "annotated": str(files[path])}
            results.append({**result, "faces": [face.to_dict() for face in predictions]})
            if not args.json:
                print(describe(path, image, predictions), flush=True)
    if args.json:
        print(json.dumps(results, indent=1))
    elif len(found) > failed:
        done = f"{len(found) - failed:,} image{'s' * (len(found) - failed != 1)}, {faces:,} face{'s' * (faces != 1)}"
        print(f"predict: {done}; annotated in {args.output} ({time.perf_counter() - start:.1f} s)")
    return 1 if failed else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m predict", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of them, or quoted patterns")
    add_model_arguments(parser)
    parser.add_argument(
        "--views",
        choices=tuple(VIEWS),
        help="average over views of each face: centre 1, mirror 2, ten_crop 10 (default: mirror; centre for a net that "
        "sees each face aligned and as it is)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs, and nothing else")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder for annotated images (default: %(default)s)"
    )
    args = parser.parse_args()
    check_model_arguments(parser, args)
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return run(args)


if __name__ == "__main__":
    run_main(main)
