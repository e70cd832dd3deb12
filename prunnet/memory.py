"""Keeps freed memory in the process instead of giving it back to the system after every pass."""

from __future__ import annotations

import ctypes
import functools
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Tells glibc not to return freed blocks; True where that worked, elsewhere nothing happens.

    A training step allocates and frees the same hundreds of MiB again and again. Returned to the system, each
    comes back as fresh pages that the kernel must clear: a third of the step's time (docs/PERFORMANCE.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(_M_MMAP_THRESHOLD, 2**31 - 1))
