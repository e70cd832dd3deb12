"""Selections whose masks follow a rule of their own and are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import torch
from torch import Tensor

from prunnet.pruning import prunable
from prunnet.pruning.granularities.base import Selection
from prunnet.pruning.masks import StoredMasks
from prunnet.pruning.network import PrunableNet


class _Stored(Selection):
    """Masks that are made by a rule of their own and kept."""

    layers: dict[str, StoredMasks]

    def __init__(self, net: PrunableNet, scores: Mapping[str, Tensor], capacities: Sequence[float]) -> None:
        self.net, self.scores = net, scores
        self.weights = {name: layer.get_parameter("weight") for name, layer in prunable.layers(net).items()}
        self.layers = {name: StoredMasks(weight) for name, weight in self.weights.items()}
        self.update(capacities)

    @torch.no_grad()
    def update(self, capacities: Sequence[float], threads: Executor | None = None) -> None:
        for name, masks in self.layers.items():
            masks.set([self._mask(name, capacity) for capacity in capacities])

    def _mask(self, name: str, capacity: float) -> Tensor:
        raise NotImplementedError
