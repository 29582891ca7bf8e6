"""Caffe's extract_features: what a trained net computes for the images of its data layer, as databases of Datum.

python -m caffe.tools.extract_features WEIGHTS PROTOTXT BLOB,… DATABASE,… BATCHES lmdb|leveldb [CPU | GPU [DEVICE]]

Each blob's database has a record an image: its part of the blob as float data, under its number in ten digits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Full, Queue

import caffe
from caffe import glog as log
from caffe.blob import Blob
from caffe.database import Record
from caffe.errors import CaffeError
from caffe.files import StrPath
from caffe.proto.caffe_pb2 import DataParameter, Datum
from caffe.tools.backends import backend, writer
from caffe.tools.flags import FlagParser, run

QUEUED_BATCHES = 4  # batches that wait for their database, at most
LOG_IMAGES = 1000

Records = list[Record]


class _Stopped(Exception):  # noqa: N818 (no error of its own: it ends a writer after one elsewhere)
    """Raised in the writers when the extraction ends early, so that they leave nothing behind."""


class _Output:
    """A database that is written by a thread of its own, batch by batch."""

    def __init__(self, path: StrPath, kind: DataParameter.DB, pool: ThreadPoolExecutor) -> None:
        self._queue: Queue[Records | _Stopped | None] = Queue(QUEUED_BATCHES)
        self._written: Future[int] = pool.submit(writer(kind), path, self._records())

    def _records(self) -> Iterator[Record]:
        while (batch := self._queue.get()) is not None:
            if isinstance(batch, _Stopped):
                raise batch
            yield from batch

    def put(self, batch: Records | _Stopped | None) -> None:
        """Hand over records, or what ends them: None, or _Stopped to leave no database. Nothing where it has failed."""
        while not self._written.done():
            try:
                self._queue.put(batch, timeout=0.1)
                return
            except Full:
                continue

    def check(self) -> None:
        """Raise what the thread has raised, if it has ended."""
        if self._written.done():
            self._written.result()

    def result(self) -> int:
        """How many records were written, once all are."""
        return self._written.result()


def records_of(blob: Blob, first: int) -> Records:
    """A record for each image of a blob, numbered from `first`.

    The Datum's channels, height and width are the sizes of the blob's axes 1 to 3, or 1. Raises CaffeError for a blob
    of more than four axes.
    """
    shape = {"channels": blob.channels, "height": blob.height, "width": blob.width}
    return [
        (b"%010d" % (first + i), Datum(float_data=values.tolist(), **shape).SerializeToString())
        for i, values in enumerate(blob.data.reshape(blob.num, -1))
    ]


def extract_features(
    net: caffe.Net,
    blobs: Sequence[str],
    databases: Sequence[StrPath],
    batches: int,
    kind: DataParameter.DB = DataParameter.LMDB,
) -> int:
    """Run a net and write what it computes to databases, all or nothing; returns the number of images of the first.

    Parameters
    ----------
    net: with a data layer; it is run from its current position.
    blobs: their names.
    databases: a new database for each.
    batches: how many to run.
    kind: LMDB or LEVELDB.

    Raises
    ------
    CaffeError: for a blob that the net lacks, databases that exist or are not one a blob, fewer than 1 batch.
    """
    if len(blobs) != len(databases) or len(set(databases)) != len(databases):
        raise CaffeError(
            f"{len(blobs)} blobs for {len(set(databases))} databases; expected as many, of different names"
        )
    for name in blobs:
        if name not in net.blobs:
            raise CaffeError(
                f"feature blob {name!r} is not in the network {net.source}; there are {', '.join(net.blobs)}"
            )
    for path in databases:
        if Path(path).exists():
            raise CaffeError(f"{path}: exists already; expected a new name for the database")
    if batches < 1:
        raise CaffeError(f"the number of batches is {batches}; expected at least 1")
    counts = dict.fromkeys(blobs, 0)
    with ThreadPoolExecutor(len(blobs)) as pool:
        outputs = [_Output(path, kind, pool) for path in databases]
        end: _Stopped | None = _Stopped()
        try:
            for _ in range(batches):
                net.compute(gradient=False, fuse=False)
                for name, output in zip(blobs, outputs, strict=True):
                    output.check()
                    records = records_of(net.blobs[name], counts[name])
                    output.put(records)
                    before, counts[name] = counts[name], counts[name] + len(records)
                    if counts[name] // LOG_IMAGES > before // LOG_IMAGES:
                        _log_count(counts[name], name)
            end = None
        finally:
            for output in outputs:
                output.put(end)
        for name, output in zip(blobs, outputs, strict=True):
            _log_count(output.result(), name)
    return counts[blobs[0]]


def _log_count(count: int, blob: str) -> None:
    log.info("extract_features.cpp:173", f"Extracted features of {count} query images for feature blob {blob}")


def parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("extract_features", "Write what a net computes for the images of its data layer to databases.")
    parser.add_argument("weights", metavar="WEIGHTS", help="the .caffemodel")
    parser.add_argument("prototxt", metavar="PROTOTXT", help="the net, with a data layer")
    parser.add_argument("blobs", metavar="BLOB,…", help="names of blobs, separated by commas")
    parser.add_argument("databases", metavar="DATABASE,…", help="a new database for each, separated by commas")
    parser.add_argument("batches", metavar="BATCHES", type=int, help="how many batches to run")
    parser.add_argument("db_type", metavar="DB_TYPE", help="lmdb, or leveldb (with the package plyvel)")
    parser.add_argument("mode", metavar="MODE", nargs="?", default="CPU", help="CPU (default) or GPU")
    parser.add_argument("device", metavar="DEVICE", nargs="?", type=int, default=0, help="the GPU's number (default 0)")
    return parser


def extract(flags: argparse.Namespace) -> None:
    """Run the tool."""
    if flags.mode not in ("CPU", "GPU"):
        raise CaffeError(f"the mode is {flags.mode!r}; expected CPU or GPU")
    kind = backend(flags.db_type, "the database type")
    log.info("extract_features.cpp:54", f"Using {flags.mode}")
    if flags.mode == "GPU":
        log.info("extract_features.cpp:60", f"Using Device_id={flags.device}")
    caffe.use_device("cpu" if flags.mode == "CPU" else f"cuda:{flags.device}")
    net = caffe.Net(flags.prototxt, flags.weights, caffe.TEST)
    databases = flags.databases.split(",")
    for name in databases:
        log.info("extract_features.cpp:128", f"Opening dataset {name}")
    log.info("extract_features.cpp:136", "Extracting Features")
    extract_features(net, flags.blobs.split(","), databases, flags.batches, kind)
    log.info("extract_features.cpp:178", "Successfully extracted the features!")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run(parser(), extract, arguments)


if __name__ == "__main__":
    sys.exit(main())
