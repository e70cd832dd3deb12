"""A kill campaign: the main job as a real process, something of it killed at a random moment, the same command again
until it is done; the table must be that of an undisturbed run, and nothing may be left behind.

    python -m tests.campaign --rounds 30 --seed 0
    python -m tests.campaign --rounds 5 --seed 0 --first 10      # rounds 10 to 14 of the same campaign

A round's victim and moment follow from seed and number. Every other round of what does not take the cluster with it
runs on a cluster that lives on, whose CPUs must all be free again. Exit code: 1 where a round failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from tests.conftest import REPOSITORY, image_folder
from tests.test_jobs import asked, command, outcome, run
from tests.test_nodes import nodes

TITLES = {"worker": "RayTrainWorker", "actor": "ray::EvaluationActor", "controller": "TrainController"}
NAMES = {"raylet": "raylet", "gcs_server": "gcs_server"}
VICTIMS = ("driver", *TITLES, *NAMES, "everything")
SURVIVED = ("driver", *TITLES)
"""Victims that a cluster outlives."""
FEW = ("train.epochs=6", "sweep.capacities=[1.0,0.4,0.2]", "train.checkpoint_every_steps=3")
LEFT_SECONDS = 60
TRIES = 3
"""Of a round, to kill before the job is over: machines are not always equally fast."""
REGISTERING = "Failed to register worker to Raylet"
"""Ray's C++ code prints it and ends a driver with exit code 1 whose node or head dies while it registers with them. It
holds Python's lock meanwhile, so that no watch of ours runs."""
RUNS = 4
"""Runs of a round, the disturbed one among them, after which the job must be done."""


@dataclass(frozen=True)
class Round:
    """What is done to one job."""

    number: int
    victim: str
    wait: float
    """Seconds after the driver's start, or, of a victim that was not there then, 0 to 1 times the time to the end of
    its work."""
    joined: bool
    """Whether the job joins a cluster that lives on."""

    @classmethod
    def of(cls, seed: int, number: int, seconds: float) -> Round:
        """A round of a campaign whose job takes `seconds` undisturbed. Every victim has its turn."""
        dice = random.Random(f"{seed}-{number}")
        order = random.Random(f"{seed}-order-{number // len(VICTIMS)}").sample(VICTIMS, len(VICTIMS))
        victim = order[number % len(VICTIMS)]
        return cls(number, victim, dice.uniform(2, seconds), victim in SURVIVED and dice.random() < 0.5)


@dataclass
class Report:
    """How a round went."""

    round: Round
    moment: str = "not killed"
    codes: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        where = "joined" if self.round.joined else "own"
        codes = ", ".join(map(str, self.codes))
        said = "; ".join(self.faults) or "equal, nothing left"
        return (
            f"round {self.round.number:<3} {self.round.victim:<11} {where:<7} {self.moment:<28} exit {codes:<12} "
            f"{self.seconds:4.0f} s  {said}"
        )


class Campaign:
    """The job, what it gives undisturbed, and the cluster that some rounds share."""

    def __init__(self, folder: Path, cluster: Callable[[], str]) -> None:
        self.folder, self.cluster = folder, cluster
        self.data = image_folder(folder / "images", classes=10, per_class=10, side=16)
        began = time.monotonic()
        done = run(self.command(folder / "undisturbed"))
        assert done.returncode == 0, done.stdout + done.stderr
        self.seconds = time.monotonic() - began
        self.wanted = outcome(folder / "undisturbed")

    def command(self, storage: Path) -> list[str]:
        return command(self.data, storage, *(part for setting in FEW for part in ("--set", setting)))

    def play(self, asked_for: Round) -> Report:
        """One round; again, with an earlier moment, where the job was over before its moment came."""
        for sooner in range(TRIES):
            report = self._play(replace(asked_for, wait=asked_for.wait / 2**sooner))
            if report.faults or report.moment.startswith("killed"):
                return report
            shutil.rmtree(self.folder / f"round-{asked_for.number}", ignore_errors=True)
        report.faults.append("nothing was killed")
        return report

    def _play(self, asked_for: Round) -> Report:
        report, began = Report(asked_for), time.monotonic()
        storage, seen = self.folder / f"round-{asked_for.number}", set[psutil.Process]()
        environment = {**os.environ, **({"RAY_ADDRESS": self.cluster()} if asked_for.joined else {})}
        said = ""
        for attempt in range(RUNS):
            with (storage.parent / f"{storage.name}.log").open("a+") as log:
                job = subprocess.Popen(
                    self.command(storage), cwd=REPOSITORY, env=environment, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
                with noting(job, seen):
                    if attempt == 0:
                        report.moment = self._kill(job, asked_for)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        job.wait(timeout=180)
                if job.poll() is None:
                    report.faults.append("it hangs")
                    for process in seen:
                        with contextlib.suppress(psutil.Error):
                            process.kill()
                    break
                report.codes.append(job.returncode)
                log.seek(0)
                said = log.read()
            if report.codes[-1] == 0:
                break
        expected = {0, 2, -9} if asked_for.victim in ("driver", "everything") else {0, 2}
        if asked_for.victim in NAMES and REGISTERING in said:
            expected |= {1}
        if not set(report.codes[:1]) <= expected or report.codes[-1:] != [0] or set(report.codes[1:]) - {0}:
            report.faults.append(f"exit codes, see {storage}.log")
        if report.codes[-1:] == [0] and outcome(storage) != self.wanted:
            report.faults.append("another table")
        if "Traceback" in said:
            report.faults.append(f"a traceback, see {storage}.log")
        if left := self._left(seen, asked_for):
            report.faults.append(f"left after {LEFT_SECONDS} s: {left}")
        if asked_for.joined:
            free = asked("{free} of {every} CPUs free, {held} groups held", self.cluster(), 60)
            if free != "2.0 of 2.0 CPUs free, 0 groups held":
                report.faults.append(free)
        report.seconds = time.monotonic() - began
        return report

    def _kill(self, job: subprocess.Popen[bytes], asked_for: Round) -> str:
        """Kills at the moment, or a random while after the victim is there; returns when it was."""
        began = time.monotonic()
        time.sleep(asked_for.wait if asked_for.victim not in TITLES else min(asked_for.wait, 1))
        found: list[psutil.Process] = []
        while job.poll() is None and not (found := self._victims(job, asked_for)):
            time.sleep(0.05)
        if asked_for.victim in TITLES:
            time.sleep(asked_for.wait / self.seconds * 4)  # they live for some seconds
            found = [process for process in found if process.is_running()] or self._victims(job, asked_for)
        if job.poll() is not None or not found:
            return f"over before ({time.monotonic() - began:.1f} s)"
        for process in found if asked_for.victim == "everything" else found[:1]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return f"killed after {time.monotonic() - began:.1f} s"

    def _victims(self, job: subprocess.Popen[bytes], asked_for: Round) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(job.pid)
            if asked_for.victim == "driver":
                return [driver]
            below = psutil.Process().children(recursive=True) if asked_for.joined else driver.children(recursive=True)
            if asked_for.victim == "everything":
                return [driver, *below]
            if asked_for.victim in NAMES:
                return [process for process in below if process.name() == NAMES[asked_for.victim]]
            return [process for process in below if TITLES[asked_for.victim] in _title(process)]
        return []

    def _left(self, seen: set[psutil.Process], asked_for: Round) -> list[str]:
        """Names of processes of a round that are still there after a minute."""
        deadline = time.monotonic() + LEFT_SECONDS
        while True:
            left = [process for process in seen if alive(process)]
            if asked_for.joined:  # a cluster's workers are not the driver's children, but bear their actor's name
                below = psutil.Process().children(recursive=True)
                left += [p for p in below if any(title in _title(p) for title in (*TITLES.values(), "ray::Board"))]
            if not left or time.monotonic() > deadline:
                return [_title(process)[:40] for process in left]
            time.sleep(0.5)


@contextmanager
def noting(job: subprocess.Popen[bytes], seen: set[psutil.Process]) -> Iterator[None]:
    """Notes all processes that are ever below the job: when it is gone, they are nobody's children."""
    over = threading.Event()

    def note() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(psutil.Error):
                driver = psutil.Process(job.pid)
                seen.update([driver, *driver.children(recursive=True)])

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


@contextmanager
def campaign(folder: Path) -> Iterator[Campaign]:
    """A campaign in a folder; the shared cluster starts when the first round asks for it."""
    with ExitStack() as stack:
        address: list[str] = []

        def cluster() -> str:
            if not address:
                address.append(stack.enter_context(nodes(2)).address)
            return address[0]

        yield Campaign(folder, cluster)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--folder", type=Path, help="kept afterwards; a temporary one otherwise")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        held = stack.enter_context(campaign(folder))
        print(f"undisturbed: {held.seconds:.0f} s", flush=True)
        reports = []
        for number in range(given.first, given.first + given.rounds):
            reports.append(held.play(Round.of(given.seed, number, held.seconds)))
            print(reports[-1].line(), flush=True)
        failed = [report for report in reports if report.faults]
        print(f"{len(reports) - len(failed)} of {len(reports)} rounds: tables equal, nothing left behind", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
