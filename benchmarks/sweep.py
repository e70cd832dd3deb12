"""What a sweep costs beyond its work: a unit's overhead, the start, and the results table.

    python -m benchmarks.sweep [--units 40] [--rows 4000]

`overhead_ms`: median over units, on one warm actor, of the driver's wait less the unit's own time; images are packed in
the actor's memory. `first_result_s`: from the start of `sweeps/capacity.py`, with a trained network, to its first part.
`rows_per_s`: rows that eight writers put into one results folder, ten a part, every part synced and read back.
Ends after `--minutes 10`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this process, on loopback, for minutes

import ray

from benchmarks.common import Benchmark, median, parser_of, spread
from cluster.evaluation import Subject, start_actor
from cluster.session import session
from prunnet import data, results
from prunnet.config import Recipe, load_recipe
from prunnet.experiments.stages import make_net
from prunnet.experiments.trained_networks import Family
from prunnet.experiments.work_units import evaluation_plan, plan_units
from prunnet.subnetworks.trained import TrainedHeader, TrainedNetwork

WRITERS, ROWS_A_PART = 8, 10
ROOT = Path(__file__).parent.parent
SETTINGS = [
    "data.image_size=28",
    "data.classes=100",
    "data.images_per_class=10",
    "model.embedding_dim=64",
    "model.options={layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}",
    "train.epochs=1",
    "sweep.calibration_images=256",
]


def unit_overhead(recipe: Recipe, folder: Path, units: int) -> list[float]:
    """Milliseconds that the driver waits for a unit beyond the unit's own time."""
    dataset = data.load_for(recipe)
    net = make_net(recipe, dataset)
    header = TrainedHeader("w", recipe=recipe.trained_part(), workers=1, epoch=1, images_seen=1)
    family = Family({1.0: TrainedNetwork(net, header)})
    planned = plan_units(recipe, family, dataset)
    plan = evaluation_plan(recipe, family, features=folder / "features", results=folder / "results")
    subject = Subject.put(plan, family.arrays(), planned.calibration, dataset.test)
    actor = start_actor(recipe.cluster)
    example = next(iter(planned.features.values()))
    waits = []
    for number in range(units + 3):
        unit = replace(example, key=f"{number:032d}", cut=replace(example.cut, capacity=0.5))
        started = time.perf_counter()
        made = ray.get(actor.features.remote(subject, unit))
        if number >= 3:  # the actor is warm
            waits.append(1000 * (time.perf_counter() - started - made["seconds"]))
    ray.kill(actor)
    return waits


def seconds_to_first_result(folder: Path) -> float:
    """Of the main job on a trained network, as a user starts it."""
    sets = [*SETTINGS, f"cluster.storage={folder}", "cluster.workers=1", "cluster.actors=2", "name=job"]
    command = [sys.executable, str(ROOT / "sweeps" / "capacity.py")]
    command += [part for setting in sets for part in ("--set", setting)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for kind in ("results", "features"):
        subprocess.run(["rm", "-r", str(folder / "job" / kind)], check=True)
    started = time.perf_counter()
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not list(folder.glob("job/results/part-*.parquet")):
            assert job.poll() is None, "the job ended without a result"
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        assert job.wait() == 0
        return seconds
    finally:
        if job.poll() is None:
            job.terminate()


def write(folder: str, writer: int, parts: int, barrier: multiprocessing.synchronize.Barrier) -> None:
    barrier.wait()
    for part in range(parts):
        rows = [
            {"unit_key": f"{writer}-{part}-{n}", "status": "complete", "map": 0.5, "config_json": "{}" * 400}
            for n in range(ROWS_A_PART)
        ]
        results.write_part(folder, rows)


def rows_per_second(folder: Path, rows: int) -> float:
    context = multiprocessing.get_context("spawn")
    parts, barrier = rows // (WRITERS * ROWS_A_PART), context.Barrier(WRITERS + 1)
    writers = [
        context.Process(target=write, args=(str(folder), n, parts, barrier), daemon=True) for n in range(WRITERS)
    ]
    for process in writers:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    for process in writers:
        process.join()
    seconds = time.perf_counter() - started
    written = len(results.read(folder))
    assert written == parts * WRITERS * ROWS_A_PART
    return written / seconds


def main() -> None:
    parser = parser_of(__doc__, minutes=10)
    parser.add_argument("--units", type=int, default=40)
    parser.add_argument("--rows", type=int, default=4000)
    given = parser.parse_args()
    recipe = load_recipe(None, [*SETTINGS, "cluster.workers=1", "cluster.actors=1"])
    with Benchmark(given.minutes) as benchmark, tempfile.TemporaryDirectory() as temporary:
        benchmark.found(ray=ray.__version__)
        folder = Path(temporary)
        with benchmark.stage("overhead of units"), session(recipe.cluster):
            waits = unit_overhead(recipe, folder, given.units)
        benchmark.found(overhead_ms=median(waits), overhead_spread=spread(waits), units=given.units)
        with benchmark.stage("first result of the main job"):
            benchmark.found(first_result_s=seconds_to_first_result(folder))
        with benchmark.stage("rows of eight writers"):
            benchmark.found(rows_per_s=rows_per_second(folder / "table", given.rows), writers=WRITERS)


if __name__ == "__main__":
    main()
