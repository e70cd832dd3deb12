"""Timing and printing that the benchmarks share."""

from __future__ import annotations

import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch

from prunnet.training.precision import fast_bf16


def interleaved(actions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each action, one after the other in every round, in a random order: a slow spell of the machine hits
    all, and none always follows the same other."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    order = random.Random(0)
    for turn in range(warmup + rounds):
        for name, action in order.sample(sorted(actions.items(), key=itemgetter(0)), len(actions)):
            started = time.perf_counter()
            action()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def speed_of(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """How many times as fast as `to` the action `of` is: the median of the rounds' own ratios."""
    return median([slow / fast for fast, slow in zip(seconds[of], seconds[to], strict=True)])


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, relative to the median."""
    first, _, third = statistics.quantiles(values, n=4)
    return (third - first) / 2 / median(values)


def show(**figures: Any) -> None:
    """The last line: one JSON object, numbers rounded to four digits, and where they were taken."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(json.dumps({**rounded, "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}))


def precisions() -> tuple[str, ...]:
    """Those that are worth a measurement here: without bf16 instructions bf16 is emulated, many times slower."""
    if torch.cuda.is_available() or fast_bf16():
        return "fp32", "bf16"
    print("no bf16 instructions: bf16 is left out")
    return ("fp32",)
