"""pycaffe's detect.py: a net's predictions for windows of images, saved as CSV or HDF5.

python -m caffe.tools.detect WINDOWS.csv OUTPUT.csv --crop_mode list --model_def … --pretrained_model …

With --crop_mode list the input is a .csv with the columns filename, ymin, xmin, ymax, xmax. With selective_search, the
default as in pycaffe, it is a .txt of image files, one a line (or such a .csv, of which the files are taken), and the
windows come from the Python package selective_search_ijcv_with_python.

An OUTPUT that ends in .csv gets the columns filename, ymin, xmin, ymax, xmax, class0, class1, …, a row for each window.
Any other is HDF5: in the group `df` the datasets `filename` (text), `window` (N×4) and `prediction` (N×C, float32).
(pycaffe writes the table of pandas there, which pandas alone reads.) There is no default model nor mean, as neither
comes along.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import caffe
from caffe.detector import Window
from caffe.errors import CaffeError
from caffe.files import StrPath, replace_bytes
from caffe.tools.scripts import add_model_arguments, choose_device, load_mean_file, run

COORDINATES = ("ymin", "xmin", "ymax", "xmax")

Windows = dict[StrPath, list[Window]]


def read_windows(path: str) -> Windows:
    """The windows of each image file in a .csv, in the order in which the files come first; none for a .txt of files.

    Raises CaffeError, naming the line, for columns that are missing and what is no number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CaffeError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CaffeError(f"{path}: not a text file") from None
    if path.lower().endswith("txt"):
        return {line.strip(): [] for line in text.splitlines() if line.strip()}
    if not path.lower().endswith("csv"):
        raise CaffeError(f"{path}: expected a .txt or a .csv file")
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    missing = {"filename", *COORDINATES} - set(reader.fieldnames or [])
    if missing:
        raise CaffeError(f"{path}:1: the column {', '.join(sorted(missing))} is missing")
    windows: Windows = {}
    for row in reader:
        try:
            window = np.array([float(row[name]) for name in COORDINATES])
        except (TypeError, ValueError):
            values = ", ".join(str(row[name]) for name in COORDINATES)
            raise CaffeError(f"{path}:{reader.line_num}: the window is {values}; expected four numbers") from None
        windows.setdefault(row["filename"], []).append(window.astype(int))
    return windows


def csv_bytes(detections: list[dict[str, Any]]) -> bytes:
    """The detections as CSV."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    classes = detections[0]["prediction"].size if detections else 0
    writer.writerow(["filename", *COORDINATES, *(f"class{i}" for i in range(classes))])
    writer.writerows([d["filename"], *d["window"], *d["prediction"].ravel()] for d in detections)
    return file.getvalue().encode()


def hdf5_bytes(detections: list[dict[str, Any]]) -> bytes:
    """The detections as an HDF5 file."""
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        group = file.create_group("df")
        names = [d["filename"] for d in detections]
        group.create_dataset("filename", (len(names),), h5py.string_dtype(), np.array(names, object))
        group["window"] = np.array([d["window"] for d in detections], int).reshape(-1, 4)
        group["prediction"] = np.array([d["prediction"].ravel() for d in detections], np.float32)
    return data.getvalue()


def detect(options: argparse.Namespace) -> None:
    """Run the tool. Raises CaffeError."""
    mean = load_mean_file(options.mean_file)
    if mean is not None and mean.ndim == 3:
        mean = mean.mean((1, 2))  # a window may be anywhere in an image
    choose_device(options.gpu)
    detector = caffe.Detector(
        options.model_def,
        options.pretrained_model,
        mean=mean,
        input_scale=options.input_scale,
        raw_scale=options.raw_scale,
        channel_swap=options.channel_swap or None,
        context_pad=options.context_pad,
    )
    start = time.perf_counter()
    print("Loading input...")
    windows = read_windows(options.input_file)
    if options.crop_mode == "selective_search":
        detections = detector.detect_selective_search(windows)
    elif options.input_file.lower().endswith("txt"):
        raise CaffeError(f"{options.input_file}: has no windows; --crop_mode list needs a .csv")
    else:
        detections = detector.detect_windows(windows.items())
    print(f"Processed {len(detections)} windows in {time.perf_counter() - start:.3f} s.")
    start = time.perf_counter()
    as_csv = options.output_file.lower().endswith("csv")
    replace_bytes(options.output_file, (csv_bytes if as_csv else hdf5_bytes)(detections))
    print(f"Saved to {options.output_file} in {time.perf_counter() - start:.3f} s.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("detect", description="Save a net's predictions for windows of images.")
    parser.add_argument("input_file", help="a .csv of windows, or a .txt of image files")
    parser.add_argument("output_file", help="the .csv or HDF5 file to write")
    add_model_arguments(parser)
    parser.add_argument(
        "--crop_mode",
        default="selective_search",
        choices=("list", "selective_search"),
        help="where the windows come from (default: selective_search)",
    )
    parser.add_argument(
        "--context_pad",
        type=int,
        default=16,
        help="pixels of the net's input on each side that show what is around a window (default: 16)",
    )
    return run("detect", detect, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
