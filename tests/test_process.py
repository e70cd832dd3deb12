"""What a process is set to before it computes."""

from __future__ import annotations

import subprocess
import sys

COUNT = """
import numpy, faiss, torch, threadpoolctl  # loaded before: their pools have as many threads as there are processors
from prunnet import process
process.prepare(1)
import scipy.linalg  # brings a library of its own, loaded afterwards
pools = threadpoolctl.threadpool_info()
print(torch.get_num_threads(), faiss.omp_get_max_threads(), *(pool["num_threads"] for pool in pools))
"""


def test_every_library_has_the_threads_that_a_process_may_use():
    """Else a search without Ray has other last digits than with it: Ray gives its workers one thread for NumPy."""
    said = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    assert set(map(int, said.stdout.split())) == {1}
