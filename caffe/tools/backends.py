"""The databases that Caffe's tools read and write, by the names that --backend and the tools' arguments give them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from caffe.database import COMMIT_RECORDS, write_lmdb
from caffe.errors import CaffeError
from caffe.io import StrPath
from caffe.proto.caffe_pb2 import DataParameter

Writer = Callable[[StrPath, Iterable[tuple[bytes, bytes]]], int]


def backend(name: str, what: str = "--backend") -> DataParameter.DB:
    """The backend that a name means.

    Raises CaffeError, naming the argument `what`, for a name that is none.
    """
    try:
        return {"lmdb": DataParameter.LMDB, "leveldb": DataParameter.LEVELDB}[name]
    except KeyError:
        raise CaffeError(f"{what} is {name!r}; expected lmdb or leveldb") from None


def writer(kind: DataParameter.DB) -> Writer:
    """The function that writes such a database."""
    return write_leveldb if kind == DataParameter.LEVELDB else write_lmdb


def write_leveldb(path: StrPath, records: Iterable[tuple[bytes, bytes]]) -> int:
    """Write a LevelDB, under `write_lmdb`'s terms: a new one, all or nothing, of keys that ascend.

    Raises CaffeError as that does, and where the package plyvel is missing.
    """
    try:
        import plyvel
    except ImportError:
        raise CaffeError(
            f"{path}: writing a LevelDB needs the package plyvel: pip install 'face-emotion-net[leveldb]'; "
            "or write an LMDB"
        ) from None
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise CaffeError(f"{path}: exists already; expected a new name for the database")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    count, checked = 0, _ascending(records, path)
    try:
        with plyvel.DB(str(partial), create_if_missing=True, error_if_exists=True) as database:
            while chunk := list(islice(checked, COMMIT_RECORDS)):
                with database.write_batch() as batch:
                    for key, value in chunk:
                        batch.put(key, value)
                count += len(chunk)
        partial.rename(path)
    except plyvel.Error as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CaffeError(f"{path}: cannot write the database: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return count


def _ascending(records: Iterable[tuple[bytes, bytes]], name: Path) -> Iterator[tuple[bytes, bytes]]:
    last = b""
    for key, value in records:
        if key <= last:
            raise CaffeError(f"{name}: key {key!r} after {last!r}; expected keys that ascend")
        last = key
        yield key, value
