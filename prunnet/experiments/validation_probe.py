"""A short validation test of a network while it trains: cross-test accuracy of a few capacities on some classes, so
that a poor training can be stopped early. The network is not changed, and the training stays the same to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from prunnet.config.recipe import Recipe
from prunnet.data.base import Dataset, some_of
from prunnet.experiments.row_identity import identity_columns
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.results.table import ranked_by
from prunnet.storage import hashing
from prunnet.subnetworks.embed import embed_test
from prunnet.subnetworks.trained import Calibration, CalibrationImages, Cut, TrainedHeader, TrainedNetwork
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.trainer import Trainer


@dataclass(frozen=True)
class ProbeConfig:
    """What is tested after every epoch."""

    capacities: tuple[float, ...]
    """Each searches the dense network's gallery."""
    images: int | None
    """So many images of the split's gallery, whole classes; None: all."""
    calibration_images: int = 256


class Probe:
    """Tests capacities of a network on part of a recipe's split."""

    def __init__(self, recipe: Recipe, config: ProbeConfig, dataset: Dataset) -> None:
        sweep = recipe.sweep
        whole = dataset.split(sweep.split)
        self.test = whole if config.images is None else some_of(whole, config.images, sweep.seed)
        self.truth = self.test.truth()
        self.recipe, self.config, self.dataset = recipe, config, dataset
        self.calibration = None
        if sweep.calibrate:
            self.calibration = Calibration(config.calibration_images, sweep.seed, sweep.batch_size)
            self.images = CalibrationImages.chosen(dataset.train, self.calibration)
        self.metric = ranked_by(self.test.protocol_name)

    def look(self, net: RetrievalNet, reducer: Reducer) -> dict[float, float]:
        """Capacity -> accuracy of its queries in the dense gallery, in [0, 1]. Every worker calls it: each tests a
        share of the capacities, and all get all results."""
        capacities = self.config.capacities
        found = torch.zeros(len(capacities), dtype=torch.float64)
        training = net.training
        _, gallery = self._embedded(net, 1.0)
        for place in range(reducer.rank, len(capacities), reducer.world):
            queries, _ = self._embedded(net, capacities[place])
            found[place] = float(self.truth.score(queries, gallery)[self.metric])
        net.train(training)
        return dict(zip(capacities, reducer.gather(found).sum(0).tolist(), strict=True))

    def _embedded(self, net: RetrievalNet, capacity: float) -> tuple[np.ndarray, np.ndarray]:
        sweep = self.recipe.sweep
        network = TrainedNetwork(net, TrainedHeader(recipe={"train": {"allocation": self.recipe.train.allocation}}))
        cut = replace(Cut.of_sweep(sweep, capacity), calibration=self.calibration)
        made = network.subnetwork(cut, None if cut.calibration is None else self.images)
        return embed_test(made, self.test, sweep.batch_size)

    def rows(self, trainer: Trainer, seen: dict[float, float], trial: str) -> list[dict[str, Any]]:
        """The results as rows with status `partial`; a training that is stopped early has no others."""
        last = trainer.progress.history[-1]
        header = TrainedHeader(
            recipe=self.recipe.trained_part(),
            workers=trainer.reducer.world,
            epoch=int(last["epoch"]),
            images_seen=int(last["images_seen"]),
            train_seconds=sum(entry["seconds"] for entry in trainer.progress.history),
        )
        members = {1.0: TrainedNetwork(trainer.trained, header)}
        common = identity_columns(self.recipe, members, self.dataset, trial)
        return [
            {
                **common,
                "status": "partial",
                "unit_key": hashing.of_json(["probe", trial, header.epoch, capacity, self.config.images]),
                "query_capacity": capacity,
                "gallery_capacity": 1.0,
                "gallery_source": "own",
                self.metric: value,
                "queries": len(self.test.queries),
                "gallery_size": len(self.test.gallery),
                "embedding_dim": trainer.net.spec["embedding_dim"],
            }
            for capacity, value in seen.items()
        ]


def score(seen: dict[float, float]) -> float:
    """One number for the scheduler that stops trials: the mean over the capacities."""
    return sum(seen.values()) / len(seen)


def spread(capacities: Sequence[float], most: int = 3) -> tuple[float, ...]:
    """At most so many of a sweep's capacities, evenly over its range, the dense one left out."""
    below = sorted({c for c in capacities if c < 1.0}, reverse=True) or [1.0]
    places = np.linspace(0, len(below) - 1, min(most, len(below))).round().astype(int)
    return tuple(below[place] for place in sorted(set(places.tolist())))
