"""A quick look at a network while it trains: cross-test accuracy of a few capacities on some classes, so that a
hopeless training can be stopped early. The training does not notice: nothing of the network is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunnet.config.recipe import Recipe
from prunnet.data.base import Dataset, some_of
from prunnet.experiments.stages import Family
from prunnet.experiments.work_units import identity_columns
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.results.table import ranked_by
from prunnet.storage import hashing
from prunnet.subnetworks.batchnorm import calibration_batches, calibration_indices
from prunnet.subnetworks.embed import embed_test
from prunnet.subnetworks.subnet import subnetwork
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.trainer import Trainer


@dataclass(frozen=True)
class ProbeConfig:
    """What is looked at after every epoch."""

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
        chosen = calibration_indices(len(dataset.train), config.calibration_images, sweep.seed)
        self.pixels = dataset.preprocessing.crop(dataset.train.read(chosen))
        self.metric = ranked_by(self.test.protocol_name)

    def look(self, net: RetrievalNet, reducer: Reducer) -> dict[float, float]:
        """Capacity -> accuracy of its queries in the dense gallery, in [0, 1]. Every worker calls it: each tests a
        share of the capacities, and all are told all."""
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
        allocation = self.recipe.train.allocation or "layer"
        cut = subnetwork(net, capacity, allocation=allocation, weights_sha="")
        sweep = self.recipe.sweep
        if sweep.calibrate:
            cut.calibrate(calibration_batches(self.pixels, self.dataset.preprocessing, sweep.batch_size))
        return embed_test(cut, self.test, sweep.batch_size)

    def rows(self, trainer: Trainer, seen: dict[float, float], trial: str) -> list[dict[str, Any]]:
        """What was seen as rows of the results table, `partial`: a training that is stopped leaves no others."""
        last = trainer.progress.history[-1]
        header = {
            "recipe": self.recipe.trained_part(),
            "net": trainer.net.spec,
            "workers": trainer.reducer.world,
            "epoch": int(last["epoch"]),
            "images_seen": int(last["images_seen"]),
            "train_seconds": sum(entry["seconds"] for entry in trainer.progress.history),
        }
        common = identity_columns(self.recipe, Family({1.0: (trainer.net, header)}), self.dataset, trial)
        return [
            {
                **common,
                "status": "partial",
                "unit_key": hashing.of_json(["probe", trial, header["epoch"], capacity, self.config.images]),
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
    """One number of a look, for whoever stops trials: the mean over the capacities."""
    return sum(seen.values()) / len(seen)


def spread(capacities: Sequence[float], most: int = 3) -> tuple[float, ...]:
    """At most so many of a sweep's capacities, evenly over its range, the dense one left out."""
    below = sorted({c for c in capacities if c < 1.0}, reverse=True) or [1.0]
    places = np.linspace(0, len(below) - 1, min(most, len(below))).round().astype(int)
    return tuple(below[place] for place in sorted(set(places.tolist())))
