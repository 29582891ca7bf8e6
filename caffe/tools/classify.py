"""pycaffe's classify.py: a net's predictions for images, saved as a numpy array.

python -m caffe.tools.classify INPUT OUTPUT.npy --model_def deploy.prototxt --pretrained_model net.caffemodel

INPUT is an image, a folder of them (taken in the order of their names), or a .npy of images N×H×W×K; OUTPUT gets a row
of the net's first output for each. There is no default model nor mean, as neither comes along.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import caffe
from caffe.errors import CaffeError
from caffe.files import replace_bytes
from caffe.tools.scripts import add_model_arguments, choose_device, load_array, load_mean_file, run, whole_numbers


def load_inputs(path: str, extension: str) -> list[np.ndarray]:
    """The images of a .npy, of a folder's files that end in .EXTENSION, or of one image file."""
    path = os.path.expanduser(path)
    if path.endswith("npy"):
        print(f"Loading file: {path}")
        return list(load_array(path))
    if not os.path.isdir(path):
        print(f"Loading file: {path}")
        return [caffe.io.load_image(path)]
    print(f"Loading folder: {path}")
    files = sorted(Path(path).glob(f"*.{extension}"))
    if not files:
        raise CaffeError(f"{path}: no file in it ends in .{extension}")
    return [caffe.io.load_image(file) for file in files]


def classify(options: argparse.Namespace) -> None:
    """Run the tool. Raises CaffeError."""
    mean = load_mean_file(options.mean_file)
    choose_device(options.gpu)
    classifier = caffe.Classifier(
        options.model_def,
        options.pretrained_model,
        image_dims=options.images_dim,
        mean=mean,
        input_scale=options.input_scale,
        raw_scale=options.raw_scale,
        channel_swap=options.channel_swap or None,
    )
    inputs = load_inputs(options.input_file, options.ext)
    print(f"Classifying {len(inputs)} inputs.")
    start = time.perf_counter()
    predictions = classifier.predict(inputs, not options.center_only)
    print(f"Done in {time.perf_counter() - start:.2f} s.")
    output = options.output_file if options.output_file.endswith(".npy") else f"{options.output_file}.npy"
    print(f"Saving results into {output}")
    file = io.BytesIO()
    np.save(file, predictions)
    replace_bytes(output, file.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("classify", description="Save a net's predictions for images.")
    parser.add_argument("input_file", help="an image, a folder, or a .npy of images")
    parser.add_argument("output_file", help="the .npy to write")
    add_model_arguments(parser)
    parser.add_argument(
        "--center_only", action="store_true", help="look at the centre alone (default: the average over ten crops)"
    )
    parser.add_argument(
        "--images_dim",
        type=whole_numbers,
        default=[256, 256],
        help="height,width to which images are resized before they are cropped (default: 256,256)",
    )
    parser.add_argument("--ext", default="jpg", help="how the images in a folder end (default: jpg)")
    return run("classify", classify, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
