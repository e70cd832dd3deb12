"""Selections whose masks follow a rule of their own and are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import torch
from torch import Tensor

from prunnet.pruning import prunable
from prunnet.pruning.granularities.base import Cut, ScoreRows, Selection
from prunnet.pruning.masks import StoredMasks
from prunnet.pruning.network import PrunableNet


class StoredSelection(Selection):
    """Masks that are made by a rule of their own, `mask`, layer by layer, and kept.

    Scores may stand for several weights each (`score_shape`); `fused` must be False then.
    """

    layers: dict[str, StoredMasks]

    def __init__(
        self, net: PrunableNet, scores: Mapping[str, Tensor], capacities: Sequence[float], allocation: str
    ) -> None:
        self.net, self.scores = net, scores
        self.weights = {name: layer.get_parameter("weight") for name, layer in prunable.layers(net).items()}
        self.layers = {name: StoredMasks(weight) for name, weight in self.weights.items()}
        self.update(capacities)

    @torch.no_grad()
    def update(self, capacities: Sequence[float], threads: Executor | None = None) -> None:
        for name, masks in self.layers.items():
            masks.set([self.mask(name, capacity) for capacity in capacities])

    def mask(self, name: str, capacity: float) -> Tensor:
        """A layer's mask, boolean, of its weight's shape."""
        raise NotImplementedError

    @torch.no_grad()
    def score_rows(self, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> list[ScoreRows]:
        return [(s, self._rows(name, s, gradients, cuts)) for name, s in self.scores.items()]  # type: ignore[misc]

    def _rows(self, name: str, score: Tensor, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> Tensor:
        """Sums of g * w over the weights that a score stands for, times its sign."""
        weight = self.weights[name].detach()
        given = (
            self.layers[name].apply(g[name], cut) if isinstance(cut, int) else g[name]
            for g, cut in zip(gradients, cuts, strict=True)
        )
        places = prunable.shared_over(score, weight)
        sums = [(g * weight).sum(places, keepdim=True) if places else g * weight for g in given]
        return torch.stack(sums) * score.detach().sign()
