"""The options that commands share which take a trained net and look at the faces in images."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from preprocessing.network_input import FaceNetwork
from preprocessing.stage import add_device_argument

from .recognizer import DEFAULT_MODEL, FACES, Recognizer, model_files, shipped_models


def add_model_arguments(parser: argparse.ArgumentParser, faces: bool = True) -> None:
    """`--model NAME`, or `--deploy`, `--weights` and `--mean`; `--device`; with `faces`, `--face`, `--min-face`,
    `--min-confidence`."""
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"one that ships: {', '.join(shipped_models())} (default: %(default)s)"
    )
    parser.add_argument("--deploy", type=Path, help="deploy.prototxt of a net of your own, with --weights and --mean")
    parser.add_argument("--weights", type=Path, help="its .caffemodel")
    parser.add_argument("--mean", type=Path, help="its mean.binaryproto")
    if faces:
        parser.add_argument(
            "--face",
            choices=FACES,
            default="detect",
            help="detect: find the faces in photos; one: each image shows one face, aligned as training images are; "
            "none: each image is a cropped face, for a net that was trained on such (default: %(default)s)",
        )
        parser.add_argument(
            "--min-face",
            type=pixels,
            metavar="N",
            help="leave out faces whose longer side has fewer than N pixels; the larger N, the quicker "
            "(default: the detector's own, about 20)",
        )
        parser.add_argument(
            "--min-confidence",
            type=probability,
            metavar="P",
            help="leave out faces that the detector is less sure of than P, 0 to 1 (default: all that it finds, of "
            "which it is at least 0.8 sure; 0.3 by --face one)",
        )
    add_device_argument(parser)


def pixels(text: str) -> float:
    """A number of pixels, 1 or more, for argparse."""
    return _number(text, 1, math.inf, "a number of pixels, 1 or more")


def probability(text: str) -> float:
    """A number of 0 to 1, for argparse."""
    return _number(text, 0, 1, "a probability, 0 to 1")


def _number(text: str, lowest: float, highest: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not lowest <= value <= highest or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
    return value


def check_model_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the usage where only some of a net's three files are given, or the detector's settings without it."""
    if len({args.deploy is None, args.weights is None, args.mean is None}) == 2:
        parser.error("--deploy, --weights and --mean belong together: expected all three or none")
    if getattr(args, "face", None) == "none":
        for name, value in (("--min-face", args.min_face), ("--min-confidence", args.min_confidence)):
            if value is not None:
                parser.error(f"{name} is {value:g}, but --face none looks for no faces; expected detect or one")


def make_network(args: argparse.Namespace) -> FaceNetwork:
    """The net that these options ask for, without the finding of faces. Raises StageError as it does."""
    deploy, weights, mean = model_files(args.model) if args.deploy is None else (args.deploy, args.weights, args.mean)
    return FaceNetwork(deploy, weights, mean, args.device)


def make_recognizer(args: argparse.Namespace, views: str | None = None) -> Recognizer:
    """The recogniser that these options ask for. Raises StageError as it does."""
    return Recognizer(
        args.deploy,
        args.weights,
        args.mean,
        args.face,
        args.device,
        views,
        args.model,
        args.min_face,
        args.min_confidence,
    )


def print_any_name() -> None:
    """A file's name may hold what the terminal cannot show: then it is printed with backslashes, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
