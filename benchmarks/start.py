"""How long commands take until their work begins: `python -m benchmarks.start`.

    help, refusal   `prunnet --help`, a recipe with an unknown key
    first_step      the demo's recipe, from the command to the first step of its training (its first checkpoint)
    finished        the same command again, when all is done

Seconds of all processors, of the command and all processes below it: they say more than the clock's on a machine that
others use, too. `first_step_s` is by the clock. `torch` is what `import torch` takes in the same run, `of_torch` the
ratio to that. Medians of `--rounds`. Ends after `--minutes 15`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.common import Benchmark, median, parser_of

PRUNNET = [sys.executable, "-m", "sweeps.cli"]
DEMO = [sys.executable, "sweeps/capacity.py", "--recipe", "sweeps/recipes/demo.yaml"]
SMALLER = ("train.epochs=1", "data.classes=60", "sweep.capacities=[1.0,0.5]")
"""Changes of the demo's recipe: its start is what is looked at."""
_LOOK_EVERY_SECONDS = 0.25


def main() -> None:
    parser = parser_of(__doc__, minutes=15)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    rounds: list[dict[str, float]] = []
    with Benchmark(arguments.minutes) as benchmark:
        for number in range(arguments.rounds):
            with benchmark.stage(f"round {number + 1} of {arguments.rounds}"):
                rounds.append(measured(benchmark))
            benchmark.found(**{name: median([r[name] for r in rounds]) for name in rounds[0]}, rounds=len(rounds))


def measured(benchmark: Benchmark) -> dict[str, float]:
    """Seconds of processors by name, and what the clock says of the first step."""
    benchmark.say("import torch, help, a recipe with an unknown key")
    torch, _ = spent([sys.executable, "-c", "import torch"])
    found = {"torch": torch, "help": spent([*PRUNNET, "--help"])[0]}
    found["refusal"], _ = spent([*DEMO, "--set", "train.epoch=1"])
    with tempfile.TemporaryDirectory() as folder:
        sets = [*SMALLER, f"cluster.storage={folder}"]
        words = [part for each in sets for part in ("--set", each)]
        run = [*DEMO, *words]
        steps = lambda: next(Path(folder).glob("demo/training/*/checkpoint_*/*.safetensors"), None)  # noqa: E731
        benchmark.say("the demo to its first step")
        found["first_step"], found["first_step_s"] = spent([*run, "--set", "train.checkpoint_every_steps=1"], steps)
        benchmark.say("the demo to its end, and once more")
        spent(run)
        found["finished"], found["finished_s"] = spent(run)
    of_torch = {f"{name}_of_torch": found[name] / torch for name in ("help", "refusal", "first_step", "finished")}
    return {name: round(value, 2) for name, value in {**found, **of_torch}.items()}


def spent(command: list[str], until: Callable[[], object] = lambda: None) -> tuple[float, float]:
    """(seconds of processors, seconds by the clock) that a command and all processes below it take, to its end or until
    something is there; it is stopped then."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as job:
        taken: dict[tuple[int, float], float] = {}
        top = psutil.Process(job.pid)
        try:
            while job.poll() is None and not until():
                for process in family(top):
                    try:
                        times = process.cpu_times()
                        taken[process.pid, process.create_time()] = times.user + times.system
                    except psutil.Error:
                        continue
                time.sleep(_LOOK_EVERY_SECONDS)
            seconds = time.monotonic() - started
        finally:
            if job.poll() is None:
                job.terminate()
    return sum(taken.values()), seconds


def family(top: psutil.Process) -> list[psutil.Process]:
    """A process and all below it, as far as they are still there."""
    try:
        return [top, *top.children(recursive=True)]
    except psutil.Error:
        return []


if __name__ == "__main__":
    main()
