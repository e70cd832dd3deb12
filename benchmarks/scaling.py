"""Units of known length on a Ray cluster of many small logical nodes: what the pool of actors adds as it grows.

    python -m benchmarks.scaling [--seconds 10] [--units 8] [--workers 64] [--plot docs/scaling.png]

`efficiency` = units x seconds / (workers x makespan), at 1, 2, 4, … workers: the pool of `cluster.pool`, actors warm,
each unit a sleep, on at most four raylets of one machine. So it measures how work is handed out, not how it is done.
Ends after `--minutes 30`.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this process, on loopback, for minutes

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import ray
from ray.cluster_utils import Cluster

from benchmarks.common import Benchmark, parser_of
from cluster.pool import Pool

RAYLETS = 4


class Sleeper:
    """A worker whose work takes a given time."""

    def work(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


def efficiency(workers: int, units: int, seconds: float) -> tuple[float, float]:
    """(efficiency, seconds from the first unit to the last) of so many units a worker."""
    cluster = Cluster()
    raylets = min(RAYLETS, workers)
    try:
        for number in range(raylets):
            cluster.add_node(num_cpus=workers // raylets + (number < workers % raylets), object_store_memory=80 * 2**20)
        ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        actor = ray.remote(num_cpus=1)(Sleeper)
        pool: Pool[float] = Pool(lambda: actor.remote(), workers, attempts=1)
        ray.get([actor.work.remote(0.0) for actor in pool.actors])
        started = time.perf_counter()
        outcome = pool.run([seconds] * units * workers, lambda actor, unit: actor.work.remote(unit))
        makespan = time.perf_counter() - started
        assert len(outcome.done) == units * workers
        pool.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    return units * seconds / makespan, makespan


def plot(found: dict[int, float], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axes.plot(list(found), list(found.values()), marker="o", color="#0072B2")
    axes.axhline(0.9, color="#999999", ls="--", lw=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(found), [f"{workers}" for workers in found])
    axes.set(xlabel="logical workers", ylabel="efficiency", ylim=(0, 1.05))
    axes.grid(color="#999999", alpha=0.25)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = parser_of(__doc__, minutes=30)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--units", type=int, default=8, help="of each worker")
    parser.add_argument("--workers", type=int, default=64, help="up to so many, doubled from 1")
    parser.add_argument("--plot", type=Path, default=None)
    given = parser.parse_args()
    found: dict[int, float] = {}
    with Benchmark(given.minutes) as benchmark:
        benchmark.found(unit_seconds=given.seconds, units_a_worker=given.units, raylets=RAYLETS, ray=ray.__version__)
        workers = 1
        while workers <= given.workers:
            with benchmark.stage(f"{workers} of {given.workers} workers"):
                found[workers], span = efficiency(workers, given.units, given.seconds)
            print(
                f"{workers:4} workers: {given.units * workers} units in {span:.1f} s, {found[workers]:.3f}", flush=True
            )
            benchmark.found(efficiency={str(n): round(value, 4) for n, value in found.items()})
            workers *= 2
        if given.plot:
            plot(found, given.plot)


if __name__ == "__main__":
    main()
