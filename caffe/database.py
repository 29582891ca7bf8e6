"""Writing databases of records as Caffe's tools write them: new ones, all or nothing, of keys that ascend."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import lmdb

from .errors import CaffeError
from .files import StrPath
from .io import Record

COMMIT_RECORDS = 1000  # records a transaction, as Caffe's tools commit them
FIRST_MAP_BYTES = 16 << 20  # the map doubles when it is full; what is on disk is only what is used
MAX_KEY_BYTES = 511  # LMDB's limit


@contextmanager
def new_database(path: StrPath) -> Iterator[Path]:
    """Yield the path `.NAME.partial` beside `path`, where a database is written that is renamed to `path` at the end.

    What a killed run left behind there is cleared, and what stands there is, where the block ends with an error.

    Raises CaffeError when `path` exists already: as in Caffe, a database is never overwritten.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise CaffeError(f"{path}: exists already; expected a new name for the database")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def ascending(records: Iterable[Record], name: StrPath) -> Iterator[Record]:
    """The records. Raises CaffeError, which names the database, at a key that is not above the one before."""
    last = b""
    for key, value in records:
        if key <= last:
            raise CaffeError(f"{name}: key {key!r} after {last!r}; expected keys that ascend")
        last = key
        yield key, value


def write_lmdb(path: StrPath, records: Iterable[Record]) -> int:
    """Write a new LMDB from (key, value) pairs whose keys ascend, all or nothing; returns how many there were.

    There is no lock file in it.

    Raises CaffeError as `new_database` and `ascending` do, for a key that is too long, and when the disk is full.
    """
    count, checked = 0, ascending(_short_keys(records, path), path)
    # Unsynchronised until the end: a crash before it leaves nothing under the final name anyway.
    with new_database(path) as partial:
        try:
            with lmdb.open(str(partial), map_size=FIRST_MAP_BYTES, lock=False, sync=False, metasync=False) as env:
                while batch := list(islice(checked, COMMIT_RECORDS)):
                    _commit(env, batch)
                    count += len(batch)
                env.sync(True)
        except lmdb.Error as error:
            raise CaffeError(f"{path}: cannot write the database: {error}") from error
    return count


def _short_keys(records: Iterable[Record], name: StrPath) -> Iterator[Record]:
    for key, value in records:
        if len(key) > MAX_KEY_BYTES:
            raise CaffeError(f"{name}: a key of {len(key)} bytes, {key!r}; LMDB takes {MAX_KEY_BYTES}")
        yield key, value


def _commit(env: lmdb.Environment, batch: list[Record]) -> None:
    while True:
        try:
            with env.begin(write=True) as transaction, transaction.cursor() as cursor:
                cursor.putmulti(batch, append=True)
            return
        except lmdb.MapFullError:
            env.set_mapsize(2 * env.info()["map_size"])
