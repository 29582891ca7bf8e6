"""The options of `python -m train`, and what of them does not go together."""

from __future__ import annotations

import argparse
import math

from preprocessing.stage import StageError, add_device_argument
from train.distill import SHARE, TEMPERATURE
from train.finetune import RATE_OF_REBUILT
from train.minutes import LARGEST_COUNT

LARGEST_SEED = 2**63 - 1  # of SolverParameter's int64; PyTorch's and NumPy's generators take that and one more


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train", description=description)
    parser.add_argument("network", help="folder with solver.prototxt, train_val.prototxt and deploy.prototxt")
    parser.add_argument(
        "--solver", metavar="NAME", help="train by the folder's solver_NAME.prototxt and the net that it names"
    )
    parser.add_argument("--train", required=True, help="LMDB to train on")
    parser.add_argument("--val", required=True, help="LMDB to choose the epoch on")
    parser.add_argument("--mean", required=True, help="the training set's mean.binaryproto")
    parser.add_argument("--output", required=True, help="the run's folder")
    parser.add_argument(
        "--epochs", type=int, help="how many to train (default: the solver prototxt's max_iter / test_interval)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="in place of --epochs: as many as fit into this time, with the learning rate's schedule fitted to them",
    )
    parser.add_argument(
        "--train-on",
        choices=("train", "train+val"),
        default="train",
        help="train+val: both splits, without a choice of the epoch (default: train)",
    )
    parser.add_argument(
        "--seed", type=int, help="of all that is random (default: the solver prototxt's random_seed, 1)"
    )
    parser.add_argument(
        "--init",
        metavar="WEIGHTS.caffemodel",
        help="start from these weights, layer by layer as names and shapes are the same; the last layer starts anew "
        f"where the classes are others, and learns {RATE_OF_REBUILT} times as fast",
    )
    parser.add_argument(
        "--freeze",
        metavar="LAYERS",
        help="with --init: conv (all up to the last convolution) or layers' names, with commas, that do not learn",
    )
    parser.add_argument("--batch", type=int, help="images a training iteration (default: the prototxt's)")
    parser.add_argument("--lr", type=float, help="the learning rate base_lr (default: the solver prototxt's)")
    parser.add_argument(
        "--teachers",
        nargs="+",
        metavar="FOLDER",
        help="learn from the answers of these trained nets too (folders of finished runs, or of models that ship)",
    )
    parser.add_argument(
        "--temperature", type=float, help=f"with --teachers: what softens their answers (default: {TEMPERATURE:g})"
    )
    parser.add_argument(
        "--teacher-share",
        type=float,
        help=f"with --teachers: their share of the loss, above 0 to 1 (default: {SHARE:g})",
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="default: the solver prototxt's")
    add_device_argument(parser)
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Raise StageError for an option out of its range, and for one without another that it needs, or beside one that
    excludes it."""
    if options.epochs is not None and options.epochs < 1:
        raise StageError(f"--epochs is {options.epochs}; expected 1 or more")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise StageError(f"--minutes is {options.minutes}; expected a number above 0")
    if options.minutes is not None and options.epochs is not None:
        raise StageError(f"--minutes is {options.minutes:g} and --epochs {options.epochs}; expected one of the two")
    if options.batch is not None and options.batch < 1:
        raise StageError(f"--batch is {options.batch}; expected 1 or more")
    if options.batch is not None and options.batch > LARGEST_COUNT:
        raise StageError(f"--batch is {options.batch}; expected at most {LARGEST_COUNT}")
    if options.seed is not None and not 0 <= options.seed <= LARGEST_SEED:
        raise StageError(f"--seed is {options.seed}; expected 0 to {LARGEST_SEED}")
    if options.lr is not None and not 0 < options.lr < math.inf:
        raise StageError(f"--lr is {options.lr}; expected a number above 0")
    if options.freeze and not options.init:
        raise StageError(f"--freeze is {options.freeze} without --init; expected weights that are worth keeping")
    for name in ("temperature", "teacher_share"):
        value = getattr(options, name)
        if value is not None and not options.teachers:
            raise StageError(
                f"--{name.replace('_', '-')} is {value} without --teachers; expected trained nets to learn from"
            )
