"""A training pass of a subnetwork through torch.compile, against the same pass as training runs it.

    python -m benchmarks.compiled [--rounds 15]

ResNet-18 and the batch of `benchmarks.train_step`: forward and backward of one masked pass. `speedup`: how many times
as fast the compiled one is; `compile_seconds`: its first run, which every worker pays for every shape; `difference`: of
the largest gradient, by how much both ways differ. Ends after `--minutes 15`.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.common import Benchmark, median, parser_of, precisions, speed_of, spread
from benchmarks.train_step import Setting, make
from prunnet import process
from prunnet.training.objectives.masked import Both
from prunnet.training.objectives.prunnet import PrunNet


class Compiled(Both):
    """`Both`, whose forward runs through torch.compile."""

    def __init__(self, both: Both) -> None:
        super().__init__(both.net)
        self.compiled = torch.compile(
            lambda tensors, images: functional_call(both, tensors, (images,), tie_weights=False)
        )

    def run(self, images: Tensor, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits, features = self.compiled(tensors, images)
        return logits.float(), features.float()


def measure(benchmark: Benchmark, precision: str, rounds: int) -> dict[str, float]:
    trainer, _, inputs, labels = make(Setting("cpu", 32, 64, rounds), precision)
    objective = trainer.objective
    assert isinstance(objective, PrunNet)
    objective.update_masks()
    trainer.net.train()
    ways = {"eager": objective._both, "compiled": Compiled(objective._both)}

    def one(way: str) -> list[Tensor]:
        objective._both = ways[way]
        return objective._pass([(inputs, labels, ())], 1).pending.wait()

    benchmark.say(f"{precision}: compiling")
    started = time.perf_counter()
    found = one("compiled")
    seconds = time.perf_counter() - started
    expected = one("eager")
    largest = max(float(e.abs().max()) for e in expected)
    difference = max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True)) / largest
    taken = benchmark.interleaved({way: lambda way=way: one(way) for way in ways}, rounds)  # type: ignore[misc]
    return {
        "speedup": speed_of(taken, "compiled", "eager"),
        "eager_seconds": median(taken["eager"]),
        "spread": spread(taken["compiled"]),
        "compile_seconds": seconds,
        "difference": difference,
    }


def main() -> None:
    parser = parser_of(__doc__, minutes=15)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    process.prepare(2)
    with Benchmark(given.minutes) as benchmark:
        for precision in precisions():
            with benchmark.stage(precision):
                measured = measure(benchmark, precision, given.rounds)
            benchmark.found(**{f"{n}_bf16" if precision == "bf16" else n: value for n, value in measured.items()})


if __name__ == "__main__":
    main()
