"""What a process is set to before it computes. Whoever starts its work calls `prepare`, once: a training worker, an
evaluation actor, an actor of trials, a job without Ray, a benchmark. Sums depend on the number of threads."""

from __future__ import annotations

import ctypes
import functools
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def prepare(threads: float | None = None) -> None:
    """Sets torch's threads (None: as they are), of which there is at least one, and keeps freed memory.

    Args:
        threads: processors that the process may use, such as `cluster.cpus_per_worker`.
    """
    if threads is not None:
        import torch  # the process imports it anyway, but whoever only imports this module need not

        torch.set_num_threads(max(1, int(threads)))
    keep_freed_memory()


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
