"""Granularity `weight`: a score for every weight (the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

from torch import Tensor

from prunnet.pruning.granularities.base import Selection
from prunnet.pruning.masks import LayerMasks, update_all
from prunnet.pruning.network import PrunableNet


class WeightSelection(Selection):
    """A score for every weight: the k best of a layer, or of the network."""

    layers: dict[str, LayerMasks]

    def __init__(
        self, net: PrunableNet, scores: Mapping[str, Tensor], capacities: Sequence[float], allocation: str
    ) -> None:
        self.scores, self.allocation = scores, allocation
        self.layers = {name: LayerMasks(score, capacities) for name, score in scores.items()}
        if allocation != "layer":
            self.update(capacities)

    def update(self, capacities: Sequence[float], threads: Executor | None = None) -> None:
        masks, scores = list(self.layers.values()), list(self.scores.values())
        update_all(masks, scores, threads, capacities=capacities, allocation=self.allocation)
