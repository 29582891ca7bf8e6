"""Caffe's convert_cifar_data: CIFAR-10's binary version to two LMDBs or LevelDBs of Datum, of training and of test.

python -m caffe.tools.convert_cifar_data [FLAGS] INPUT_FOLDER OUTPUT_FOLDER BACKEND

INPUT_FOLDER has data_batch_1.bin to data_batch_5.bin and test_batch.bin (A. Krizhevsky: Learning multiple layers of
features from tiny images, 2009): for each image a byte that is its label, then its 32×32 pixels' red, green and blue
values. They become OUTPUT_FOLDER/cifar10_train_BACKEND and cifar10_test_BACKEND; BACKEND is lmdb or leveldb. A record's
key is its number, from 0, in five digits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from caffe import glog as log
from caffe.database import Record
from caffe.errors import CaffeError
from caffe.files import StrPath, read_file
from caffe.io import array_to_datum
from caffe.tools.backends import backend, writer
from caffe.tools.flags import FlagParser, run

SIDE = 32
BATCHES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}


def read_batch(path: StrPath) -> np.ndarray:
    """The records of a file, uint8 N×3073.

    Raises CaffeError for a file that cannot be read, and one that does not hold whole records.
    """
    data, size = read_file(path), 1 + 3 * SIDE * SIDE
    if not data or len(data) % size:
        raise CaffeError(f"{path}: {len(data)} bytes; expected records of {size}, as in CIFAR-10's binary version")
    return np.frombuffer(data, np.uint8).reshape(-1, size)


def parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("convert_cifar_data", "Convert CIFAR-10's binary version to databases of Datum records.")
    parser.add_argument("input_folder", metavar="INPUT_FOLDER")
    parser.add_argument("output_folder", metavar="OUTPUT_FOLDER")
    parser.add_argument("backend", metavar="BACKEND")
    return parser


def convert(flags: argparse.Namespace) -> None:
    """Run the tool."""
    kind = backend(flags.backend, "BACKEND")
    batches = {
        split: np.concatenate([read_batch(Path(flags.input_folder) / name) for name in names])
        for split, names in BATCHES.items()
    }

    def records(images: np.ndarray) -> Iterator[Record]:
        for number, record in enumerate(images):
            datum = array_to_datum(record[1:].reshape(3, SIDE, SIDE), int(record[0]))
            yield b"%05d" % number, datum.SerializeToString()

    for split, images in batches.items():
        log.info("convert_cifar_data.py", f"Writing {split.capitalize()}ing data")
        writer(kind)(Path(flags.output_folder) / f"cifar10_{split}_{flags.backend}", records(images))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run(parser(), convert, arguments)


if __name__ == "__main__":
    sys.exit(main())
