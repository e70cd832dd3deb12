"""A PrunNet step against a plain dense step of the same network, interleaved in one run.

    python -m benchmarks.train_step [--rounds 15]
    python -m benchmarks.train_step --device cuda --side 224 --batch 128

resnet18 (released stem, 32 px, batch 64, 4 subnetworks, 1 process, 2 threads, SGD, no data loading). The floor
is 5 passes for 1: `ratio` 5.0. On a GPU every step waits for the device before its time is taken. `ratio_bf16`: bf16
autocast, channels-last, against a bf16 dense step. `ratio_channel`: granularity `channel`, whose passes run on the
channels that are kept (1 + 0.8 + 0.6 + 0.4 + 0.2 of the multiply-adds: the floor is 3.0); `ratio_channel_masked`: the
same by masks. Ends after `--minutes 15`; bf16 is left out on a CPU that emulates it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import Benchmark, median, parser_of, precisions, spread
from prunnet import process
from prunnet.config.recipe import TrainConfig
from prunnet.data.base import MemoryImages
from prunnet.data.transforms import Preprocessing
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.training.objectives.prunnet import PrunNet
from prunnet.training.trainer import Trainer

CLASSES = 100


@dataclass(frozen=True)
class Setting:
    """What is measured on what."""

    device: str
    side: int
    """Pixels of an image's side."""
    batch: int
    rounds: int

    def interleaved(
        self, benchmark: Benchmark, actions: Mapping[str, Callable[[], object]], rounds: int
    ) -> dict[str, list[float]]:
        """Seconds of each action by turns; on a GPU an action ends when the device has done its work."""
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None

        def waiting(action: Callable[[], object]) -> Callable[[], object]:
            return lambda: (action(), wait())

        return benchmark.interleaved({name: waiting(action) for name, action in actions.items()}, rounds, warmup=4)


def make(
    setting: Setting, precision: str, granularity: str = "weight"
) -> tuple[Trainer, Callable[[], None], torch.Tensor, torch.Tensor]:
    """A trainer, a dense step on an equal network, and a batch."""
    side, batch = setting.side, setting.batch
    preprocessing = Preprocessing(side, side, 3, False, (0.5,) * 3, (0.5,) * 3)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (batch, 3, side, side), dtype=np.uint8)
    images = MemoryImages(pixels, rng.integers(0, CLASSES, batch), preprocessing)
    config = TrainConfig(precision=precision, batch_size=batch, lr=0.01, granularity=granularity)  # type: ignore[arg-type]
    net = RetrievalNet("resnet18", CLASSES, stem="released", granularity=granularity, image_size=side)
    trainer = Trainer(net, images, config, preprocessing=preprocessing, device=setting.device)
    inputs, labels = next(iter(trainer._batches(0, 0)))
    return trainer, dense_step(trainer, inputs, labels), inputs, labels


def dense_step(trainer: Trainer, inputs: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Forward, backward, SGD of the plain network: no masks, no scores."""
    net = RetrievalNet("resnet18", CLASSES, stem="released").to(inputs.device).to(memory_format=trainer.layout)
    weights = [p for name, p in net.named_parameters() if not name.endswith(".score")]
    config = trainer.config
    optimizer = torch.optim.SGD(weights, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)

    def step() -> None:
        with torch.autocast(inputs.device.type, trainer.dtype, enabled=trainer.dtype != torch.float32):
            logits = net(inputs)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    net.train()
    return step


def shares(benchmark: Benchmark, setting: Setting, trainer: Trainer, rounds: int) -> dict[str, float]:
    """Seconds of a step spent on selecting and applying masks, on integration, on communication (none here)."""
    objective = trainer.objective
    assert isinstance(objective, PrunNet)
    count = range(len(trainer.config.capacities))

    def apply_all() -> None:
        for name, weight in objective.weights.items():
            for index in count:
                objective.masks[name].apply(weight, index)

    shapes = [*objective.weights.values(), *objective.readers.values(), *objective.shared.values()]
    passes = [[torch.randn_like(t) for t in shapes] for _ in range(len(count) + 1)]
    taken = setting.interleaved(
        benchmark,
        {
            "select": objective.update_masks,
            "apply": apply_all,
            "integrate": lambda: objective.integrate(passes, 0),
            "reduce": lambda: objective.reducer.average(passes[0]),
        },
        rounds,
    )
    return {name: median(values) for name, values in taken.items()}


def measure(benchmark: Benchmark, setting: Setting, precision: str) -> dict[str, float]:
    """Ratio of the steps, and what a step of PrunNet spends on what."""
    rounds = setting.rounds
    trainer, dense, inputs, labels = make(setting, precision)
    actions = {"dense": dense, "prunnet": lambda: trainer.step(inputs, labels)}
    taken = setting.interleaved(benchmark, actions, rounds)
    dense_seconds, step_seconds = median(taken["dense"]), median(taken["prunnet"])
    parts = shares(benchmark, setting, trainer, max(5, rounds // 2))
    return {
        "ratio": step_seconds / dense_seconds,
        "dense_seconds": dense_seconds,
        "step_seconds": step_seconds,
        "spread": spread(taken["prunnet"]),
        "masks_share": (parts["select"] + parts["apply"]) / step_seconds,
        "integration_share": parts["integrate"] / step_seconds,
        "communication_share": parts["reduce"] / step_seconds,
        "masks_in_dense_steps": (parts["select"] + parts["apply"]) / dense_seconds,
        "integration_in_dense_steps": parts["integrate"] / dense_seconds,
    }


def measure_channels(benchmark: Benchmark, setting: Setting, precision: str) -> dict[str, float]:
    """Steps of granularity `channel`, on kept channels and by masks, against a dense step."""
    trainer, dense, inputs, labels = make(setting, precision, "channel")
    objective = trainer.objective
    assert isinstance(objective, PrunNet)

    def step(narrows: bool) -> None:
        objective._narrows = narrows
        trainer.step(inputs, labels)

    actions = {"dense": dense, "channel": lambda: step(True), "channel_masked": lambda: step(False)}
    taken = setting.interleaved(benchmark, actions, setting.rounds)
    return {f"ratio_{n}": median(v) / median(taken["dense"]) for n, v in taken.items() if n != "dense"}


def main() -> None:
    parser = parser_of(__doc__, minutes=15)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--side", type=int, default=32, help="pixels of an image's side")
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    setting = Setting(given.device, given.side, given.batch, given.rounds)
    process.prepare(2)
    started = time.perf_counter()
    with Benchmark(given.minutes) as benchmark:
        for precision in precisions(given.device):
            for stage, measured in (("single weights", measure), ("channels", measure_channels)):
                with benchmark.stage(f"{precision}, {stage}"):
                    taken = measured(benchmark, setting, precision)
                benchmark.found(**{f"{n}_bf16" if precision == "bf16" else n: value for n, value in taken.items()})
        benchmark.found(seconds=time.perf_counter() - started)


if __name__ == "__main__":
    main()
