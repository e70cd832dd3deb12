"""Revisited mAP against the public evaluation's form, and its memory.

    python -m benchmarks.metrics [--queries 1000] [--gallery 100000]

1,000 queries x 100,000 gallery images, 100 easy, 100 hard and 50 junk images a query, int32 ranks. `speedup` is
against `isin` per query and protocol, timed on a part of the queries; `peak_mib` is the process' peak less what
was resident before the call, ranks excluded. Ends after `--minutes 10`.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import psutil

from benchmarks.common import Benchmark, parser_of
from prunnet.retrieval import revisited

PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def public_form(ranks: np.ndarray, gnd: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """As the public evaluation computes it: per protocol and query, `isin` over the whole ranking."""
    result = {}
    for protocol, (good, bad) in PROTOCOLS.items():
        aps = []
        for query, truth in enumerate(gnd):
            positives = np.concatenate([truth[g] for g in good])
            junk = np.concatenate([truth[b] for b in bad])
            place = np.flatnonzero(np.isin(ranks[:, query], positives))
            removed = np.flatnonzero(np.isin(ranks[:, query], junk))
            place = place - np.searchsorted(removed, place)
            ap = 0.0
            for nth, position in enumerate(place):
                before = 1.0 if position == 0 else nth / position
                ap += (before + (nth + 1) / (position + 1)) / (2 * len(positives))
            aps.append(ap)
        result[protocol] = float(np.mean(aps))
    return result


class Peak:
    """The highest resident memory while the block runs, in MiB above what it was before."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.mib, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.mib = max(self.mib, (self._process.memory_info().rss - self._before) / 2**20)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    parser = parser_of(__doc__, minutes=10)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--gallery", type=int, default=100_000)
    arguments = parser.parse_args()
    with Benchmark(arguments.minutes) as benchmark:
        measure(benchmark, arguments.queries, arguments.gallery)


def measure(benchmark: Benchmark, queries: int, gallery: int) -> None:
    benchmark.stage("making ranks")
    rng = np.random.default_rng(0)
    ranks = np.empty((gallery, queries), dtype=np.int32)
    gnd: list[dict[str, np.ndarray]] = []
    for query in range(queries):
        ranks[:, query] = rng.permutation(gallery)
        chosen = rng.choice(gallery, 250, replace=False)
        gnd.append({"easy": chosen[:100], "hard": chosen[100:200], "junk": chosen[200:]})
    sample = min(50, queries)
    with benchmark.stage("revisited mAP"), Peak() as peak:
        started = time.perf_counter()
        ours = revisited(ranks, gnd)
        seconds = time.perf_counter() - started
    benchmark.found(peak_mib=peak.mib, seconds=seconds, map_medium=ours["medium"])
    part = ranks[:, :sample]  # as the public evaluation reads it: columns of the whole array
    with benchmark.stage(f"the public form, {sample} queries"):
        started = time.perf_counter()
        theirs = public_form(part, gnd[:sample])
        public_seconds = (time.perf_counter() - started) * queries / sample
    again = revisited(part, gnd[:sample])
    assert all(abs(theirs[p] - again[p]) < 1e-9 for p in PROTOCOLS), (theirs, again)
    benchmark.found(speedup=public_seconds / seconds, public_seconds=public_seconds, public_queries_timed=sample)


if __name__ == "__main__":
    main()
