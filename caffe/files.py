"""Files as bytes, for all that the engine reads and writes: one kind of error, and no file that is half written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CaffeError

StrPath = str | os.PathLike[str]


def read_bytes(path: StrPath) -> bytes:
    """The bytes of a file.

    Raises CaffeError, without the file's name, where it cannot be read, or is a device, which may have no end.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # unbuffered: it is read in one go
            kind = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
                raise CaffeError("it is a device; expected a file")
            return file.read()
    except OSError as error:
        raise CaffeError(str(error.strerror)) from None
    except ValueError as error:  # a 0 in the name
        raise CaffeError(str(error)) from None


def read_file(path: StrPath) -> bytes:
    """A file's bytes; CaffeError naming it where it cannot be read."""
    try:
        return read_bytes(path)
    except CaffeError as error:
        raise CaffeError(f"{path}: {error}") from None


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """Yield a path beside `path`; the file written there takes its place at the end, or is removed on an error."""
    path = Path(path)
    partial = path.with_name(f".partial.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # as of a full disk
            error.filename = str(path)
        partial.unlink(missing_ok=True)
        raise


def replace_bytes(path: StrPath, data: bytes) -> None:
    """Write a file all or nothing: beside its target, then renamed."""
    with replacing(path) as partial:
        partial.write_bytes(data)
