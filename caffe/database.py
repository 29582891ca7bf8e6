"""Databases, LMDB or LevelDB: reading the Datum of their records, and writing new ones, all or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb
import numpy as np
from google.protobuf.message import DecodeError

from .errors import CaffeError
from .files import StrPath
from .io import datum_to_array
from .lmdb_pages import LmdbPages
from .proto.caffe_pb2 import DataParameter, Datum

Record = tuple[bytes, bytes]  # key and value

COMMIT_RECORDS = 1000  # records a transaction, as Caffe's tools commit them
FIRST_MAP_BYTES = 16 << 20  # the map doubles when it is full; what is on disk is only what is used
MAX_KEY_BYTES = 511  # LMDB's limit


# Reading


def _real_path(source: StrPath) -> Path:
    try:
        return Path(os.path.realpath(source))
    except ValueError as error:  # a 0 in the name
        raise CaffeError(f"{source}: {error}") from None


def _lmdb_pages(source: StrPath) -> LmdbPages:
    data = _real_path(source) / "data.mdb"
    try:
        data.stat()
    except OSError as error:
        raise CaffeError(f"{source}: not an LMDB that can be opened (data.mdb: {error.strerror})") from None
    return LmdbPages(data, str(source))


def open_lmdb(source: StrPath) -> lmdb.Environment:
    """An LMDB for reading records by their keys, without writing a lock file. A process opens an LMDB once."""
    path = _lmdb_pages(source).path.parent
    try:
        return lmdb.open(str(path), readonly=True, lock=False, create=False)
    except lmdb.Error as error:
        raise CaffeError(f"{source}: not an LMDB that can be opened ({error})") from None


class LevelDB:
    """A LevelDB for reading, through the package plyvel. Opening one writes into its folder: its lock and its log.

    Attributes
    ----------
    entries: number of records. A LevelDB does not know it: they are counted, which reads the whole database once.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import plyvel
        except ImportError:
            raise CaffeError(
                f"{folder}: reading a LevelDB needs the package plyvel: "
                "pip install 'face-emotion-net[leveldb]', or convert the database to an LMDB"
            ) from None
        self.folder = folder
        self.error: type[Exception] = plyvel.Error
        with self._errors():
            self._database = plyvel.DB(str(folder), create_if_missing=False, paranoid_checks=True)
            with self._database.iterator(include_value=False) as keys:
                self.entries = sum(1 for _ in keys)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self.error as error:
            raw = error.args[0] if error.args else b""
            what = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
            raise CaffeError(f"{self.folder}: not a LevelDB that can be read ({what})") from None

    def items(self) -> Iterator[Record]:
        """All records (key, value) in key order."""
        with self._errors(), self._database.iterator(verify_checksums=True) as items:
            yield from items


_leveldbs: WeakValueDictionary[tuple[int, int], LevelDB] = WeakValueDictionary()


def open_leveldb(source: StrPath) -> LevelDB:
    """A LevelDB for reading. Only one may be open in all processes together, so the readers of one process share it."""
    folder = _real_path(source)
    try:
        # LevelDB makes files in any folder that it is given: look before it is asked
        Path(folder, "CURRENT").stat()
        stat = folder.stat()
    except OSError as error:
        hint = "; it is an LMDB: expected `backend: LMDB`" if Path(folder, "data.mdb").exists() else ""
        raise CaffeError(f"{source}: not a LevelDB that can be opened (CURRENT: {error.strerror}){hint}") from None
    identity = (stat.st_dev, stat.st_ino)
    database = _leveldbs.get(identity)
    if database is None:
        database = _leveldbs[identity] = LevelDB(folder)
    return database


class DatumReader:
    """The records of an LMDB or LevelDB of Datum, by their number in key order.

    Parameters
    ----------
    source: the database's folder.
    force_color, force_gray: how encoded images are decoded.
    backend: DataParameter.LMDB or LEVELDB (with the package plyvel).

    Raises
    ------
    CaffeError: no such database, an empty one, or (on reading) a record that is not a Datum, naming its key.
    """

    def __init__(
        self,
        source: StrPath,
        force_color: bool = False,
        force_gray: bool = False,
        backend: DataParameter.DB = DataParameter.LMDB,
    ) -> None:
        self.source = str(source)
        self.force_color, self.force_gray = force_color, force_gray
        self._leveldb: LevelDB | None = None
        if backend == DataParameter.LEVELDB:
            self._leveldb = open_leveldb(self.source)
            self._count = self._leveldb.entries
        else:
            self._count = _lmdb_pages(self.source).meta.entries
        if not self._count:
            raise CaffeError(f"{source}: the database has no records")
        self._sequence: Iterator[Record] = iter(())
        self._next = self._count  # the number of the record that the sequence gives next; at first it is at its end

    def __len__(self) -> int:
        return self._count

    def items(self) -> Iterator[Record]:
        """All records (key, value) in order, not decoded. CaffeError where they are not as many as there were."""
        if self._leveldb is not None:
            return self._leveldb.items()
        pages = _lmdb_pages(self.source)
        if pages.meta.entries != self._count:
            raise CaffeError(
                f"{self.source}: has {pages.meta.entries} records, and had {self._count} when it was opened; expected "
                "that nothing writes it while it is read"
            )
        return pages.records()

    def decode(self, key: bytes, value: bytes) -> tuple[np.ndarray, int]:
        """Image C×H×W and label of a record."""
        datum = Datum()
        try:
            datum.ParseFromString(value)
            return datum_to_array(datum, self.force_color, self.force_gray), datum.label
        except (DecodeError, CaffeError) as error:
            name = key.decode("utf-8", "replace")
            raise CaffeError(f"{self.source}: record {name!r}: {error or 'not a Datum'}") from None

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Image C×H×W and label of record `index`; quick where records are read in order."""
        if index < self._next:
            self._sequence, self._next = self.items(), 0
        record = next(islice(self._sequence, index - self._next, None), None)
        if record is None:
            raise CaffeError(f"{self.source}: has no record {index}; there were {self._count} when it was opened")
        self._next = index + 1
        return self.decode(*record)

    def keys(self) -> list[bytes]:
        """All keys in order."""
        return [key for key, _ in self.items()]

    def read_all(self) -> tuple[np.ndarray, np.ndarray] | None:
        """All images N×C×H×W and labels N (int64), in key order; None where the images differ in size or kind."""
        first, _ = self.read(0)
        images = np.empty((self._count, *first.shape), first.dtype)
        labels = np.empty(self._count, np.int64)
        for i, (key, value) in enumerate(self.items()):
            image, labels[i] = self.decode(key, value)
            if image.shape != first.shape or image.dtype != first.dtype:
                return None
            images[i] = image
        return images, labels

    def soft_labels(self, classes: int) -> np.ndarray:
        """The probability of each class for all records: N×classes, float32, in key order.

        A record's `label_probability` where it has one, else 1 for its label. Raises CaffeError, naming the record,
        where these are not as many as there are classes, do not sum to 1, or the label is no class.
        """
        labels = np.zeros((self._count, classes), np.float32)
        for row, (key, value) in zip(labels, self.items(), strict=True):
            datum = Datum.FromString(value)
            given = np.array(datum.label_probability, np.float32)
            if len(given) == classes and (given >= 0).all() and abs(given.sum() - 1) < 1e-3:
                row[:] = given
            elif not len(given) and 0 <= datum.label < classes:
                row[datum.label] = 1
            else:
                what = f"label_probability is {given.tolist()}" if len(given) else f"the label is {datum.label}"
                expected = f"{classes} numbers of sum 1" if len(given) else f"0 to {classes - 1}"
                name = key.decode("utf-8", "replace")
                raise CaffeError(f"{self.source}: record {name!r}: {what}; expected {expected}")
        return labels


# Writing


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
