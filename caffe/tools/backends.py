"""The databases that Caffe's tools read and write, by the names that --backend and the tools' arguments give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from caffe.database import COMMIT_RECORDS, ascending, new_database, write_lmdb
from caffe.errors import CaffeError
from caffe.files import StrPath
from caffe.io import Record
from caffe.proto.caffe_pb2 import DataParameter

Writer = Callable[[StrPath, Iterable[Record]], int]


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


def write_leveldb(path: StrPath, records: Iterable[Record]) -> int:
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
    count, checked = 0, ascending(records, path)
    with new_database(path) as partial:
        try:
            with plyvel.DB(str(partial), create_if_missing=True, error_if_exists=True) as database:
                while chunk := list(islice(checked, COMMIT_RECORDS)):
                    with database.write_batch() as batch:
                        for key, value in chunk:
                            batch.put(key, value)
                    count += len(chunk)
        except plyvel.Error as error:
            raise CaffeError(f"{path}: cannot write the database: {error}") from error
    return count
