"""Revisited mAP against the public evaluation's form, and its memory.

    python -m benchmarks.metrics [--queries 1000] [--gallery 100000]

1,000 queries x 100,000 gallery images, 100 easy, 100 hard and 50 junk images a query, int32 ranks. `speedup` is
against `isin` per query and protocol, timed on a part of the queries; `peak_mib` is the process' peak less what
was resident before the call, ranks excluded.
"""

from __future__ import annotations

import argparse
import threading
import time

import numpy as np
import psutil

from benchmarks.common import show
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--gallery", type=int, default=100_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    ranks = np.empty((arguments.gallery, arguments.queries), dtype=np.int32)
    gnd = []
    for query in range(arguments.queries):
        ranks[:, query] = rng.permutation(arguments.gallery)
        chosen = rng.choice(arguments.gallery, 250, replace=False)
        gnd.append({"easy": chosen[:100], "hard": chosen[100:200], "junk": chosen[200:]})
    sample = min(50, arguments.queries)
    with Peak() as peak:
        started = time.perf_counter()
        ours = revisited(ranks, gnd)
        seconds = time.perf_counter() - started
    part = ranks[:, :sample]  # as the public evaluation reads it: columns of the whole array
    started = time.perf_counter()
    theirs = public_form(part, gnd[:sample])
    public_seconds = (time.perf_counter() - started) * arguments.queries / sample
    again = revisited(part, gnd[:sample])
    assert all(abs(theirs[p] - again[p]) < 1e-9 for p in PROTOCOLS), (theirs, again)
    show(
        speedup=public_seconds / seconds,
        peak_mib=peak.mib,
        seconds=seconds,
        public_seconds=public_seconds,
        public_queries_timed=sample,
        map_medium=ours["medium"],
    )


if __name__ == "__main__":
    main()
