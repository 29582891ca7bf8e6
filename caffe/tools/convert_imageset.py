"""Caffe's convert_imageset: a list of images and labels to an LMDB or LevelDB of Datum.

python -m caffe.tools.convert_imageset [FLAGS] ROOTFOLDER LISTFILE DB_NAME

LISTFILE has a line `FILE LABEL` for each image, FILE relative to ROOTFOLDER. A record's key is the line's number
(from 0, after shuffling) in eight digits, `_`, and FILE. A file that is no image is logged and left out.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np

from caffe import glog as log
from caffe.database import write_lmdb
from caffe.errors import CaffeError
from caffe.files import StrPath, read_bytes, read_file
from caffe.io import array_to_datum, decode_image, planes
from caffe.proto.caffe_pb2 import Datum
from caffe.tools.backends import Writer, backend, writer
from caffe.tools.flags import FlagParser, run

BATCH_IMAGES = 128  # images a thread reads before it hands them over


class Line(NamedTuple):
    """An image of the list: its file, relative to the root folder, and its label."""

    file: str
    label: int


class Record(NamedTuple):
    """What became of one line.

    `shape` is the image's (channels, height, width). `datum` is the serialised Datum, or None where the file could
    not be read, and then `problem` says why.
    """

    file: str
    shape: tuple[int, int, int]
    datum: bytes | None
    problem: str = ""


def read_list(path: StrPath) -> list[Line]:
    """The lines `FILE LABEL` of a list; FILE may hold spaces. Empty lines do not count.

    Raises CaffeError naming the line that has no label, or no number as label.
    """
    lines = []
    for number, line in enumerate(os.fsdecode(read_file(path)).split("\n"), 1):
        parts = line.rsplit(None, 1)
        if not parts:
            continue
        try:
            label = int(parts[-1])
        except ValueError:
            label = None
        if len(parts) != 2 or label is None or not -(2**31) <= label < 2**31:
            raise CaffeError(f"{path}, line {number}: {line.strip()!r}; expected FILE LABEL, LABEL a whole number")
        lines.append(Line(parts[0], label))
    return lines


def shuffled(lines: Sequence[Line], seed: int = 0) -> list[Line]:
    """The lines in an order that depends on the seed and their number alone."""
    lines = list(lines)
    random.Random(seed).shuffle(lines)
    return lines


def pixels_to_datum(image: np.ndarray, label: int) -> Datum:
    """The Datum of an image H×W or H×W×C (uint8, BGR as OpenCV has it): its bytes as C×H×W."""
    datum = array_to_datum(planes(image), label)
    datum.encoded = False  # which Caffe writes too
    return datum


def _read(root: str, line: Line, flags: int, size: tuple[int, int], encoding: str | None) -> Record:
    """One image as convert_imageset reads it; see read_images."""
    # Caffe joins by writing one after the other, so that "/x.png" in a list lies in the root folder as well.
    separator = "" if not root or root.endswith("/") or line.file.startswith("/") else "/"
    try:
        data = read_bytes(root + separator + line.file)
        image = decode_image(data, flags)
    except CaffeError as error:
        return Record(line.file, (0, 0, 0), None, str(error))
    height, width = size
    if height > 0 and width > 0:
        image = cv2.resize(image, (width, height))
    shape = (1 if image.ndim == 2 else image.shape[2], image.shape[0], image.shape[1])
    if encoding is None:
        datum = pixels_to_datum(image, line.label)
    else:
        suffix = line.file.rpartition(".")[2].lower()
        encoding = encoding.lower() or suffix
        same = encoding == suffix or (encoding, suffix) == ("jpg", "jpeg")
        if same and not height and not width:
            datum = Datum(data=data, label=line.label, encoded=True)  # no shape: Caffe stores the file as it is
        else:
            try:
                _, buffer = cv2.imencode(f".{encoding}", image)
            except cv2.error:
                raise CaffeError(f"{line.file}: OpenCV cannot encode as {encoding!r}; expected png, jpg, …") from None
            datum = Datum(channels=shape[0], height=shape[1], width=shape[2])
            datum.data, datum.label, datum.encoded = buffer.tobytes(), line.label, True
    return Record(line.file, shape, datum.SerializeToString())


def read_images(
    root: StrPath,
    lines: Sequence[Line],
    flags: int = cv2.IMREAD_COLOR,
    size: tuple[int, int] = (0, 0),
    encoding: str | None = None,
    workers: int | None = None,
) -> Iterator[Record]:
    """Read images by threads and yield a Record for each line, in order; a few hundred are in memory at a time.

    Parameters
    ----------
    root: the folder that the files of `lines` lie in.
    flags: OpenCV's IMREAD_COLOR (three channels), IMREAD_GRAYSCALE (one) or IMREAD_UNCHANGED.
    size: (height, width) to which every image is resized, bilinearly; (0, 0) leaves it as it is.
    encoding: None stores pixels. "png", "jpg", … stores a compressed image of that type, "" of the type that the
        file's suffix names; a file of that type which is not resized is stored as it is.
    workers: threads (default: one for each core).
    """
    folder = os.fspath(root)

    def work(batch: Sequence[Line]) -> list[Record]:
        return [_read(folder, line, flags, size, encoding) for line in batch]

    workers = workers or os.cpu_count() or 1
    batches = iter([lines[i : i + BATCH_IMAGES] for i in range(0, len(lines), BATCH_IMAGES)])
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[list[Record]]] = deque(pool.submit(work, batch) for batch in islice(batches, 2 * workers))
        try:
            while pending:
                yield from pending.popleft().result()
                pending.extend(pool.submit(work, batch) for batch in islice(batches, 1))
        finally:
            for future in pending:
                future.cancel()


def key(index: int, file: str) -> bytes:
    """A record's key: the line's number in eight digits, `_`, the file."""
    return b"%08d_%s" % (index, os.fsencode(file))


def alike(records: Iterable[Record], first: Record | None = None) -> Iterator[Record]:
    """The records, up to one whose image differs in channels, height or width from `first` (default: the first one).

    Raises CaffeError naming both files.
    """
    for record in records:
        if record.datum is not None:
            first = first or record
            if record.shape != first.shape:
                raise CaffeError(
                    f"{record.file} has {_shape_text(record.shape)}; expected {_shape_text(first.shape)}, "
                    f"as {first.file} has"
                )
        yield record


def write_imageset(
    path: StrPath,
    records: Iterable[Record],
    skip: Callable[[Record], None] | None = None,
    write: Writer = write_lmdb,
) -> int:
    """Write records to a database at `path`, all or nothing; returns how many were written.

    Parameters
    ----------
    path: the database, which must not exist yet.
    records: as `read_images` yields them.
    skip: called with each record that has no datum, which is then left out; its number is left out of the keys
        too, as in Caffe. Without it such a record is a CaffeError that names the file.
    write: what writes the database: an LMDB, or as `backends.writer` says.
    """

    def items() -> Iterator[tuple[bytes, bytes]]:
        for index, record in enumerate(records):
            if record.datum is not None:
                yield key(index, record.file), record.datum
            elif skip is None:
                raise CaffeError(f"{record.file}: {record.problem}")
            else:
                skip(record)

    return write(path, items())


def _shape_text(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{channels} channel{'s' if channels != 1 else ''} of {width}x{height} pixels"


def parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("convert_imageset", "Convert a list of images to a database of Datum records.")
    parser.flag("gray", False, "read images as grey ones")
    parser.flag("shuffle", False, "shuffle the list, by --seed")
    parser.flag("seed", 0, "the order of --shuffle: the same seed gives the same order")
    parser.flag("backend", "lmdb", "the database's kind: lmdb, or leveldb (with the package plyvel)")
    parser.flag("resize_width", 0, "width in pixels that images are resized to, with --resize_height")
    parser.flag("resize_height", 0, "height in pixels that images are resized to, with --resize_width")
    parser.flag("check_size", False, "stop at an image whose size differs from the first one's")
    parser.flag("encoded", False, "store compressed images instead of pixels")
    parser.flag("encode_type", "", "type to compress as (png, jpg, …); the default is the file's own")
    parser.add_argument("rootfolder", metavar="ROOTFOLDER")
    parser.add_argument("listfile", metavar="LISTFILE")
    parser.add_argument("db_name", metavar="DB_NAME")
    return parser


def convert(flags: argparse.Namespace) -> None:
    """Run the tool."""
    kind = backend(flags.backend)
    lines = read_list(flags.listfile)
    if flags.shuffle:
        log.info("convert_imageset.cpp:83", "Shuffling data")
        lines = shuffled(lines, flags.seed)
    log.info("convert_imageset.cpp:86", f"A total of {len(lines)} images.")
    if flags.encode_type and not flags.encoded:
        log.info("convert_imageset.cpp:89", "encode_type specified, assuming encoded=true.")
    resize = (max(0, flags.resize_height), max(0, flags.resize_width))
    if (resize[0] > 0) != (resize[1] > 0):
        raise CaffeError(
            f"--resize_height is {resize[0]} and --resize_width {resize[1]}; expected both above 0, or neither"
        )
    log.info(f"db_{flags.backend}.cpp:35", f"Opened {flags.backend} {flags.db_name}")
    records = _logged(
        read_images(
            flags.rootfolder,
            lines,
            cv2.IMREAD_GRAYSCALE if flags.gray else cv2.IMREAD_COLOR,
            resize,
            flags.encode_type if flags.encoded or flags.encode_type else None,
        )
    )
    write_imageset(flags.db_name, alike(records) if flags.check_size else records, _log_unreadable, writer(kind))


def _log_unreadable(record: Record) -> None:
    log.error("io.cpp:80", f"Could not open or find file {record.file} ({record.problem})")


def _logged(records: Iterator[Record]) -> Iterator[Record]:
    count = 0
    for record in records:
        yield record
        count += record.datum is not None
        if record.datum is not None and count % 1000 == 0:
            log.info("convert_imageset.cpp:144", f"Processed {count} files.")
    if count % 1000:
        log.info("convert_imageset.cpp:150", f"Processed {count} files.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run(parser(), convert, arguments)


if __name__ == "__main__":
    sys.exit(main())
