"""Exact search in a gallery of a million embeddings on disk, and mAP@100 of its results.

    python -m benchmarks.search [--queries 1000] [--gallery 1000000] [--dim 256] [--depth 100]

The gallery is a memory-mapped .npy file. `seconds` is `retrieval.exact_search`; `numpy_seconds` the same by matrix
products and `argpartition` in chunks of queries, timed on a part of them and scaled. `peak_mib` is the process' peak of
resident memory less what was resident before, mapped pages of the gallery included.
Ends after `--minutes 15`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import Benchmark, parser_of
from benchmarks.metrics import Peak
from prunnet.retrieval import map_at_k
from prunnet.retrieval.exact_search import search


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make(folder: Path, queries: int, gallery: int, dim: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Random unit vectors; each query has 20 gallery images near it."""
    rng = np.random.default_rng(0)
    asked = unit(rng.standard_normal((queries, dim), dtype=np.float32))
    kept = np.lib.format.open_memmap(folder / "gallery.npy", "w+", np.float32, (gallery, dim))
    for start in range(0, gallery, 100_000):
        size = min(100_000, gallery - start)
        kept[start : start + size] = unit(rng.standard_normal((size, dim), dtype=np.float32))
    places = rng.choice(gallery, (queries, 20), replace=False)
    for query, near in enumerate(places):
        noise = rng.standard_normal((20, dim), dtype=np.float32) * rng.uniform(0.05, 0.4, (20, 1)).astype(np.float32)
        kept[near] = unit(asked[query] + noise)
    kept.flush()
    return asked, np.load(folder / "gallery.npy", mmap_mode="r"), list(places)


def by_numpy(queries: np.ndarray, gallery: np.ndarray, depth: int) -> np.ndarray:
    found = []
    for start in range(0, len(queries), 16):
        similarity = queries[start : start + 16] @ gallery.T
        best = np.argpartition(-similarity, depth, axis=1)[:, :depth]
        order = np.argsort(-np.take_along_axis(similarity, best, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(found)


def main() -> None:
    parser = parser_of(__doc__, minutes=15)
    for name, default in (("queries", 1000), ("gallery", 1_000_000), ("dim", 256), ("depth", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with Benchmark(given.minutes) as benchmark, tempfile.TemporaryDirectory() as folder:
        benchmark.stage(f"making {given.gallery} embeddings")
        queries, gallery, relevant = make(Path(folder), given.queries, given.gallery, given.dim)
        with benchmark.stage("exact search"), Peak() as peak:
            started = time.perf_counter()
            ranks, _ = search(queries, gallery, given.depth)
            seconds = time.perf_counter() - started
            score = map_at_k(ranks, relevant, given.depth)
        benchmark.found(seconds=seconds, peak_mib=peak.mib, map_at_100=score)
        sample = min(64, given.queries)
        with benchmark.stage(f"numpy, {sample} queries"):
            started = time.perf_counter()
            theirs = by_numpy(queries[:sample], gallery, given.depth)
            numpy_seconds = (time.perf_counter() - started) * given.queries / sample
        same = float((theirs == ranks[:sample]).mean())  # blocked products round differently, so near ties may swap
        assert same > 0.99, same
        benchmark.found(numpy_seconds=numpy_seconds, agreement=same, numpy_queries_timed=sample)


if __name__ == "__main__":
    main()
