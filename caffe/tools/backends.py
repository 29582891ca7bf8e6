"""The databases that Caffe's tools read and write, by the names that --backend and the tools' arguments give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from caffe.database import Record, write_leveldb, write_lmdb
from caffe.errors import CaffeError
from caffe.files import StrPath
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
