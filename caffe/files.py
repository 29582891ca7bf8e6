"""A file's bytes, for all that the engine reads: what may go wrong is one kind of error."""

from __future__ import annotations

import os
import stat

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
