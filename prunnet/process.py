"""What a process is set to before it computes. Whoever starts its work calls `prepare`, once: a training worker, an
evaluation actor, an actor of trials, a job without Ray, a benchmark. Sums depend on the number of threads."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"


def prepare(threads: float | None = None) -> None:
    """Sets the threads of torch, NumPy and faiss (None: as they are), at least one, and keeps freed memory.

    Args:
        threads: processors that the process may use, such as `cluster.cpus_per_worker`.
    """
    if threads is not None:
        _use_threads(max(1, int(threads)))
    keep_freed_memory()


def _use_threads(threads: int) -> None:
    """The same number of threads for every library: NumPy's matrix products round differently with two than with one,
    and Ray gives its workers one where a process of the shell has as many as there are processors."""
    import threadpoolctl  # not at the top: a process that does not compute need not import it
    import torch

    os.environ.update(dict.fromkeys(_THREADS, str(threads)))  # for libraries that are not loaded yet
    threadpoolctl.threadpool_limits(threads)  # for those that are
    torch.set_num_threads(threads)


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
