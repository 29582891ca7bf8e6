"""Writing an LMDB of records as Caffe's tools write it: all or nothing, and no larger than what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import lmdb

from .errors import CaffeError
from .io import StrPath

COMMIT_RECORDS = 1000  # records a transaction, as Caffe's tools commit them
FIRST_MAP_BYTES = 16 << 20  # the map doubles when it is full; what is on disk is only what is used
MAX_KEY_BYTES = 511  # LMDB's limit


def write_lmdb(path: StrPath, records: Iterable[tuple[bytes, bytes]]) -> int:
    """Write an LMDB at `path` from (key, value) pairs whose keys ascend; returns how many there were.

    It is written as `.NAME.partial` beside `path` and renamed at the end; what a killed run left behind is cleared.
    There is no lock file in it.

    Raises CaffeError when `path` exists already (as in Caffe, a database is never overwritten), for keys that do not
    ascend or are too long, and when the disk is full.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise CaffeError(f"{path}: exists already; expected a new name for the database")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        count = _fill(partial, records, path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return count


def _fill(folder: Path, records: Iterable[tuple[bytes, bytes]], name: Path) -> int:
    count, last, records = 0, b"", iter(records)
    try:
        # Unsynchronised until the end: a crash before it leaves nothing under the final name anyway.
        with lmdb.open(str(folder), map_size=FIRST_MAP_BYTES, lock=False, sync=False, metasync=False) as env:
            while batch := list(islice(records, COMMIT_RECORDS)):
                for key, _ in batch:
                    if len(key) > MAX_KEY_BYTES:
                        raise CaffeError(f"{name}: a key of {len(key)} bytes, {key!r}; LMDB takes {MAX_KEY_BYTES}")
                    if key <= last:
                        raise CaffeError(f"{name}: key {key!r} after {last!r}; expected keys that ascend")
                    last = key
                _commit(env, batch)
                count += len(batch)
            env.sync(True)
    except lmdb.Error as error:
        raise CaffeError(f"{name}: cannot write the database: {error}") from error
    return count


def _commit(env: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    while True:
        try:
            with env.begin(write=True) as transaction, transaction.cursor() as cursor:
                cursor.putmulti(batch, append=True)
            return
        except lmdb.MapFullError:
            env.set_mapsize(2 * env.info()["map_size"])
