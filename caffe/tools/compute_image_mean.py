"""Caffe's compute_image_mean: the mean image of an LMDB or LevelDB of Datum.

python -m caffe.tools.compute_image_mean [--backend lmdb|leveldb] INPUT_DB [OUTPUT_FILE]

OUTPUT_FILE is a .binaryproto; the mean of each channel is logged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from caffe import glog as log
from caffe.errors import CaffeError
from caffe.files import StrPath
from caffe.io import DatumReader, save_mean
from caffe.proto.caffe_pb2 import DataParameter
from caffe.tools.backends import backend
from caffe.tools.flags import FlagParser, run

BATCH_IMAGES = 256  # images summed in one step


def compute_image_mean(source: StrPath, kind: DataParameter.DB = DataParameter.LMDB) -> tuple[np.ndarray, int]:
    """The mean image of a database of kind LMDB or LEVELDB, and the number of its images.

    The mean is float32 C×H×W in the images' own range (0..255 for bytes; encoded images are decoded as they were
    written, colour ones in OpenCV's order B, G, R). Sums of bytes are exact. Caffe adds in float32, which is exact
    up to 2^24, so that both give the same bits for up to 65,793 images.

    Raises CaffeError for what is no database of images, an empty one, and a record of another size than the first,
    naming its key.
    """
    reader = DatumReader(source, backend=kind)
    first, _ = reader.read(0)
    total = np.zeros(first.shape, np.float64)
    for start in range(0, len(reader), BATCH_IMAGES):
        batch = [reader.read(i)[0] for i in range(start, min(start + BATCH_IMAGES, len(reader)))]
        for i, image in enumerate(batch):
            if image.shape != first.shape:
                name = reader.keys()[start + i].decode("utf-8", "replace")
                raise CaffeError(f"{source}: record {name!r} has the shape {image.shape}; expected {first.shape}")
        stacked = np.stack(batch)
        total += stacked.sum(0, dtype=np.uint32 if stacked.dtype == np.uint8 else np.float64)
    return total.astype(np.float32) / np.float32(len(reader)), len(reader)


def parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("compute_image_mean", "Compute the mean image of a database of Datum records.")
    parser.flag("backend", "lmdb", "the database's kind: lmdb, or leveldb (with the package plyvel)")
    parser.add_argument("input_db", metavar="INPUT_DB")
    parser.add_argument("output_file", metavar="OUTPUT_FILE", nargs="?")
    return parser


def compute(flags: argparse.Namespace) -> None:
    """Run the tool."""
    kind = backend(flags.backend)
    log.info(f"db_{flags.backend}.cpp:35", f"Opened {flags.backend} {flags.input_db}")
    log.info("compute_image_mean.cpp:70", "Starting iteration")
    mean, count = compute_image_mean(flags.input_db, kind)
    log.info("compute_image_mean.cpp:101", f"Processed {count} files.")
    if flags.output_file:
        log.info("compute_image_mean.cpp:108", f"Write to {flags.output_file}")
        save_mean(flags.output_file, mean)
    log.info("compute_image_mean.cpp:111", f"Number of channels: {len(mean)}")
    for channel, values in enumerate(mean):
        average = values.mean(dtype=np.float64)
        log.info("compute_image_mean.cpp:116", f"mean_value channel [{channel}]: {log.number(average)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run(parser(), compute, arguments)


if __name__ == "__main__":
    sys.exit(main())
