"""What pycaffe's scripts have in common: the options of a net and its preprocessing, and errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np

import caffe
from caffe.errors import CaffeError
from caffe.io import load_mean


def run(name: str, tool: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a tool; returns its exit code: 0, or 1 for an error, which is printed."""
    try:
        tool(options)
    except (CaffeError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that classify and detect share: the net, where it computes, and its preprocessing."""
    parser.add_argument("--model_def", required=True, help="the net's deploy prototxt")
    parser.add_argument("--pretrained_model", required=True, help="its .caffemodel")
    parser.add_argument("--gpu", action="store_true", help="compute on a GPU")
    parser.add_argument(
        "--mean_file",
        default="",
        help="what to subtract: a .npy of K values or of K×H×W of the net's size, or a .binaryproto (default: nothing)",
    )
    parser.add_argument("--input_scale", type=float, help="a factor for what the net is given, behind all else")
    parser.add_argument(
        "--raw_scale", type=float, default=255.0, help="a factor for the image, whose range is 0..1 (default: 255)"
    )
    parser.add_argument(
        "--channel_swap",
        type=whole_numbers,
        default=[2, 1, 0],
        help="the image's channels (red, green, blue) in the net's order (default: 2,1,0; '' leaves them)",
    )


def whole_numbers(text: str) -> list[int]:
    """The type of an option like `256,256`; empty for an empty text."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers with commas between them") from None


def choose_device(gpu: bool) -> None:
    """GPU or CPU mode, and say so."""
    if gpu:
        caffe.set_mode_gpu()
    else:
        caffe.set_mode_cpu()
    print("GPU mode" if gpu else "CPU mode")


def load_mean_file(path: str) -> np.ndarray | None:
    """The mean of --mean_file, None where there is none."""
    if not path:
        return None
    return load_mean(path) if path.endswith(".binaryproto") else load_array(path)


def load_array(path: str) -> np.ndarray:
    """The array of a .npy file; CaffeError if it is none."""
    try:
        array = np.load(path)
    except OSError as error:
        raise CaffeError(f"{path}: {error.strerror}") from None
    except (ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray):
        raise CaffeError(f"{path}: not an array of numpy (.npy)")
    return array
