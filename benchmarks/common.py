"""What the benchmarks share: progress on stderr, a time limit, timing by turns, and one JSON object as the last line.

    with Benchmark(minutes) as benchmark:
        with benchmark.stage("steps"):
            taken = benchmark.interleaved({"dense": dense, "prunnet": step}, rounds)
            benchmark.found(ratio=median(taken["prunnet"]) / median(taken["dense"]))

A benchmark prints its figures when the block ends, also when its time limit ended it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import platform
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter
from typing import Any

import torch

from prunnet.training.precision import fast_bf16

_LINE_SECONDS, _STILL_SECONDS = 1.0, 10.0
"""At least between two lines of rounds; at most between two lines of a stage that has no rounds."""
_GRACE_SECONDS = 60.0
"""After the limit; a call that Python cannot interrupt ends the process then."""
_REPORT_SECONDS = 5.0
"""After a limit in the midst of rounds, for figures of the whole ones."""
MINUTES_HELP = "Time limit; what is not measured by then is left out, and named."


def parser_of(doc: str | None, minutes: float) -> argparse.ArgumentParser:
    """A parser with a benchmark's docstring as its help and the option --minutes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=minutes, help=f"{MINUTES_HELP} Default: {minutes:g}.")
    return parser


class _LimitReached(BaseException):
    """Raised in the main thread at the time limit."""


class Benchmark:
    """Progress, time limit and figures of one run of a benchmark; a context of the main thread.

    Everything that it reports while it runs goes to stderr. At the limit the stage that runs is interrupted, named on
    stderr and in `left_out`, and the figures that were found until then are printed.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes, self.figures = minutes, dict[str, Any]()
        self.rounds: dict[str, str] = {}
        """Stage -> "measured of asked", where rounds were cut."""
        self.left_out: list[str] = []
        self._stage, self._started, self._spoke = "start", time.monotonic(), 0.0

    def __enter__(self) -> Benchmark:
        self._started = time.monotonic()
        self._handler = signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
        faulthandler.dump_traceback_later(max(self.left, 0.0) + _GRACE_SECONDS, exit=True, file=2)
        self.say(f"limit {self.minutes:g} min (--minutes)")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, self._handler)
        faulthandler.cancel_dump_traceback_later()
        if kind is _LimitReached:
            self.leave_out(f"{self._stage} and what follows it")
        if kind in (None, _LimitReached):
            cut = {"rounds_cut": self.rounds} if self.rounds else {}
            show(**self.figures, **cut, **({"left_out": self.left_out} if self.left_out else {}))
        return kind is _LimitReached

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return 60 * self.minutes - (time.monotonic() - self._started)

    def say(self, text: str) -> None:
        """A line on stderr, with the seconds since the start."""
        self._spoke = time.monotonic()
        print(f"[{self._spoke - self._started:6.1f} s] {text}", file=sys.stderr, flush=True)

    def found(self, **figures: Any) -> None:
        """Keeps figures for the last line."""
        self.figures |= figures

    def leave_out(self, what: str) -> None:
        """Says that the limit leaves something out."""
        self.left_out.append(what)
        self.say(f"the limit of {self.minutes:g} min is reached (--minutes raises it): left out: {what}")

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Names what runs from here on, on a line at once and in every later one; for a `with` block, too."""
        self._stage = name
        self.say(name)
        return nullcontext()

    def interleaved(
        self,
        actions: Mapping[str, Callable[[], object]],
        rounds: int,
        warmup: int = 2,
        agree: Callable[[bool], bool] = bool,
    ) -> dict[str, list[float]]:
        """Seconds of each action, one after the other in every round, in a random order: a slow spell of the machine
        hits all, and none always follows the same other.

        No round begins that would, as long as the longest until then, pass the limit; one is measured in any case.
        `agree` makes the answer of all processes out of this one's, where they must take the same rounds.
        """
        seconds: dict[str, list[float]] = {name: [] for name in actions}
        order, longest = random.Random(0), 0.0
        for turn in range(warmup + rounds):
            if turn > warmup and not agree(self.left > longest):
                measured = f"{turn - warmup} of {rounds}"
                self.rounds[self._stage] = measured
                self.say(f"{self._stage}: the limit of {self.minutes:g} min is near: {measured} rounds")
                break
            began = time.monotonic()
            number = f"round {turn - warmup + 1} of {rounds}" if turn >= warmup else f"warm-up {turn + 1} of {warmup}"
            try:
                for name, action in order.sample(sorted(actions.items(), key=itemgetter(0)), len(actions)):
                    if turn == 0 or time.monotonic() - self._spoke > _LINE_SECONDS:
                        self.say(f"{self._stage}: {name}, {number}")
                    started = time.perf_counter()
                    action()
                    if turn >= warmup:
                        seconds[name].append(time.perf_counter() - started)
            except _LimitReached:
                if turn <= warmup:
                    raise
                measured = f"{turn - warmup} of {rounds}"
                self.rounds[self._stage] = measured
                self.leave_out(f"{self._stage}: rounds after {measured}")
                signal.setitimer(signal.ITIMER_REAL, _REPORT_SECONDS)
                return {name: values[: turn - warmup] for name, values in seconds.items()}
            longest = max(longest, time.monotonic() - began) if turn else 0.0  # the first one compiles and loads
        return seconds

    def _tick(self, *_: object) -> None:
        if self.left <= 0:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            raise _LimitReached
        if time.monotonic() - self._spoke >= _STILL_SECONDS:
            self.say(f"{self._stage}: still running")


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def speed_of(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """How many times as fast as `to` the action `of` is: the median of the rounds' own ratios."""
    return median([slow / fast for fast, slow in zip(seconds[of], seconds[to], strict=True)])


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, relative to the median; nan of a single value."""
    if len(values) < 2:
        return float("nan")
    first, _, third = statistics.quantiles(values, n=4)
    return (third - first) / 2 / median(values)


def show(**figures: Any) -> None:
    """The last line: one JSON object, numbers rounded to four digits, and where they were taken."""
    rounded = {k: _rounded(v) if isinstance(v, float) else v for k, v in figures.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(json.dumps({**rounded, "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}))


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")


def precisions(device: str = "cpu") -> tuple[str, ...]:
    """Those that are worth a measurement: a CPU without bf16 instructions emulates bf16, many times slower."""
    if device == "cuda" or fast_bf16():
        return "fp32", "bf16"
    print("bf16 is left out: this CPU has no bf16 instructions and would emulate it", file=sys.stderr, flush=True)
    return ("fp32",)
