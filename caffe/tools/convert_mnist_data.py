"""Caffe's convert_mnist_data: MNIST's files of images and labels, unpacked, to an LMDB or LevelDB of Datum.

python -m caffe.tools.convert_mnist_data [FLAGS] IMAGE_FILE LABEL_FILE DB_NAME

The files are IDX files (Y. LeCun, C. Cortes, C. Burges: The MNIST database): big-endian numbers of 32 bits, which are a
magic one, the count of items and, of images, rows and columns; then a byte for each pixel or label. A record's key is
its number, from 0, in eight digits.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from caffe import glog as log
from caffe.database import Record
from caffe.errors import CaffeError
from caffe.files import StrPath, read_file
from caffe.io import array_to_datum
from caffe.tools.backends import backend, writer
from caffe.tools.flags import FlagParser, run

IMAGES, LABELS = 2051, 2049  # IDX's magic numbers: bytes along three axes, and along one


def read_idx(path: StrPath, magic: int) -> np.ndarray:
    """The bytes of an IDX file as uint8, N×rows×columns or N.

    Raises CaffeError for a file that cannot be read, of another magic number, or of another size than it says.
    """
    data = read_file(path)
    axes = magic % 256  # the lowest byte counts them
    header = np.frombuffer(data, ">u4", count=min(1 + axes, len(data) // 4)).tolist()
    if header[:1] != [magic]:
        what = "images" if magic == IMAGES else "labels"
        packed = "; it is packed, see gunzip" if data[:2] == b"\x1f\x8b" else ""
        raise CaffeError(f"{path}: begins with {header[:1]}; expected {magic}, as MNIST's files of {what}{packed}")
    if len(header) <= axes:
        raise CaffeError(f"{path}: {len(data)} bytes; expected a header of {4 * (1 + axes)}")
    shape, values = header[1:], np.frombuffer(data, np.uint8, offset=4 * len(header))
    if values.size != math.prod(shape):
        raise CaffeError(f"{path}: {values.size} bytes behind the header; expected {' × '.join(map(str, shape))}")
    return values.reshape(shape)


def parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("convert_mnist_data", "Convert MNIST's files to a database of Datum records.")
    parser.flag("backend", "lmdb", "the database's kind: lmdb, or leveldb (with the package plyvel)")
    parser.add_argument("image_file", metavar="IMAGE_FILE")
    parser.add_argument("label_file", metavar="LABEL_FILE")
    parser.add_argument("db_name", metavar="DB_NAME")
    return parser


def convert(flags: argparse.Namespace) -> None:
    """Run the tool."""
    kind = backend(flags.backend)
    images, labels = read_idx(flags.image_file, IMAGES), read_idx(flags.label_file, LABELS)
    count, rows, columns = images.shape
    if len(labels) != count:
        raise CaffeError(f"{flags.label_file}: {len(labels)} labels; expected {count}, as many as images")
    log.info("convert_mnist_data.py", f"A total of {count} items.")
    log.info("convert_mnist_data.py", f"Rows: {rows} Cols: {columns}")

    def records() -> Iterator[Record]:
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield b"%08d" % number, array_to_datum(image[None], label).SerializeToString()

    writer(kind)(flags.db_name, records())
    log.info("convert_mnist_data.py", f"Processed {count} files.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run(parser(), convert, arguments)


if __name__ == "__main__":
    sys.exit(main())
