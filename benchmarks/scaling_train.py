"""Training steps with one and with two workers, and how much of the communication hides behind the passes.

    python -m benchmarks.scaling_train [--rounds 12]

resnet18 (released stem, 32 px, 4 subnetworks, fp32), batch 64 shared by the workers, one thread each, gloo over the
loopback. `speedup_2`: seconds of a step of one worker over those of two (the ideal is 2, or what two cores give at
once: `compute_2` is the same without any communication). `hidden_share`: the part of the all-reduces' own time that
a step does not show. `sharded_ratio`: the time of a reduce-scatter of all passes' gradients and an all-gather of the
one result (weights and scores) over that of the all-reduces: what sharding the integration would make of it. Ends after
`--minutes 10`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor

from benchmarks.common import Benchmark, median, parser_of
from prunnet import process
from prunnet.config.recipe import TrainConfig
from prunnet.data.base import MemoryImages
from prunnet.data.transforms import Preprocessing
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.training.gradients.reducer import Pending, Reducer
from prunnet.training.trainer import Trainer

BATCH, SIDE, CLASSES = 64, 32, 100


class Silent(Reducer):
    """A reducer that sends nothing: gradients stay each worker's own."""

    def start(self, tensors: Any) -> Pending:
        return Pending(tensors)


def make() -> tuple[Trainer, Tensor, Tensor]:
    """A trainer and this worker's share of a batch."""
    preprocessing = Preprocessing(SIDE, SIDE, 3, False, (0.5,) * 3, (0.5,) * 3)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (BATCH, 3, SIDE, SIDE), dtype=np.uint8)
    images = MemoryImages(pixels, rng.integers(0, CLASSES, BATCH), preprocessing)
    config = TrainConfig(precision="fp32", batch_size=BATCH, lr=0.01)
    trainer = Trainer(RetrievalNet("resnet18", CLASSES, stem="released"), images, config, preprocessing=preprocessing)
    inputs, labels = next(iter(trainer._batches(0, 0)))
    return trainer, inputs, labels


def collectives(trainer: Trainer) -> dict[str, Callable[[], object]]:
    """The communication of a step alone: as it is, and as a sharded integration would have it."""
    passes = len(trainer.config.capacities) + 1
    weights = [p for name, p in trainer.net.named_parameters() if not name.endswith(".score")]
    gradients = [torch.randn_like(p) for p in weights]
    size = sum(g.numel() for g in gradients)
    rows = torch.randn(size + size % 2)
    half, result = torch.empty(rows.numel() // 2), torch.randn(rows.numel())  # of weights and scores, a half each

    def sharded() -> None:
        for _ in range(passes):
            dist.reduce_scatter_tensor(half, rows)
        dist.all_gather_into_tensor(torch.empty(2 * result.numel()), result)

    def reduced() -> None:
        for pending in [trainer.reducer.start(gradients) for _ in range(passes)]:
            pending.wait()

    return {"reduced": reduced, "sharded": sharded}


class Quiet(Benchmark):
    """Of a worker beside the one that speaks."""

    def say(self, text: str) -> None:
        """Says nothing."""


def agreed(more: bool) -> bool:
    """Whether all workers have time for another round: each must take the same ones."""
    votes = torch.tensor(int(more))
    dist.all_reduce(votes, dist.ReduceOp.MIN)
    return bool(votes)


def worker(rank: int, world: int, rounds: int, folder: str, minutes: float) -> None:
    """Measures in one process of `world`; the first writes medians and the rounds to the folder."""
    process.prepare(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    trainer, inputs, labels = make()
    actions: dict[str, Callable[[], object]] = {"step": lambda: trainer.step(inputs, labels)}
    if world > 1:
        loud, silent = trainer.reducer, Silent()

        def step(reducer: Reducer) -> None:
            trainer.objective.reducer = reducer
            trainer.step(inputs, labels)
            dist.barrier()

        actions = {"step": lambda: step(loud), "silent": lambda: step(silent), **collectives(trainer)}
    benchmark = Quiet(minutes) if rank else Benchmark(minutes)
    with benchmark.stage(f"{world} workers"):
        taken = benchmark.interleaved(actions, rounds, warmup=3, agree=agreed if world > 1 else bool)
    if rank == 0:
        found = {name: median(seconds) for name, seconds in taken.items()}
        torch.save((found, len(taken["step"])), Path(folder) / "found.pt")
    if world > 1:
        dist.destroy_process_group()


def measured(world: int, rounds: int, minutes: float) -> tuple[dict[str, float], int]:
    """(median seconds by action, rounds) of so many workers."""
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(worker, (world, rounds, folder, minutes), nprocs=world, daemon=True)
        return torch.load(Path(folder) / "found.pt")


def main() -> None:
    parser = parser_of(__doc__, minutes=10)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    with Benchmark(given.minutes) as benchmark:
        one, rounds = measured(1, given.rounds, benchmark.left / 120)
        benchmark.found(step_seconds_1=one["step"], rounds_1=rounds)
        two, rounds = measured(2, given.rounds, benchmark.left / 60 - 0.5)
        benchmark.found(**compared(one, two), rounds_2=rounds)


def compared(one: dict[str, float], two: dict[str, float]) -> dict[str, float]:
    """Figures of two workers against one."""
    return {
        "speedup_2": one["step"] / two["step"],
        "compute_2": one["step"] / two["silent"],
        "hidden_share": 1 - max(0.0, two["step"] - two["silent"]) / two["reduced"],
        "sharded_ratio": two["sharded"] / two["reduced"],
        "step_seconds_2": two["step"],
        "communication_seconds": two["reduced"],
    }


if __name__ == "__main__":
    main()
