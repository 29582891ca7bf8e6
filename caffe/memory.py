"""How the C library keeps memory that tensors no longer need: for the next tensor, instead of giving it back."""

from __future__ import annotations

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@cache
def keep_freed_memory() -> None:
    """Have freed blocks of up to 64 MiB kept for the next ones: a large net then runs in two thirds of the time.

    Linux's malloc gives large blocks back to the system at once, and the next ones come page by page, each cleared.
    So the process holds up to 256 MiB more than it needs. Where the C library is another, this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; not Linux
        return
    mallopt(M_MMAP_THRESHOLD, 64 << 20)
    mallopt(M_TRIM_THRESHOLD, 256 << 20)
