"""Granularity `channel`: one score for all channels that are tied to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

import torch
from torch import Tensor

from prunnet.pruning.granularities.base import Cut, ScoreRows, Selection
from prunnet.pruning.masks import StoredMasks
from prunnet.pruning.narrow_pass import Narrow, can_be_narrow
from prunnet.pruning.network import PrunableNet


class ChannelSelection(Selection):
    """One score for all channels that are tied to each other; capacity is the fraction of prunable MACs."""

    layers: dict[str, StoredMasks]
    fused = False

    def __init__(
        self,
        net: PrunableNet,
        scores: Mapping[str, Tensor],
        capacities: Sequence[float],
        allocation: str,
    ) -> None:
        assert net.channels is not None
        self.net, self.channels, self.scores, self.allocation = net, net.channels, list(scores.values()), allocation
        weights = {name: net.get_submodule(name).get_parameter("weight") for name in net.channels.touched}
        self.weights: Mapping[str, Tensor] = weights
        self._narrows = can_be_narrow(net)
        self.layers = {name: StoredMasks(weight) for name, weight in weights.items()}
        self.update(capacities)

    @torch.no_grad()
    def update(self, capacities: Sequence[float], threads: Executor | None = None) -> None:
        kept = self._kept = [self.channels.keep(self.scores, capacity, self.allocation) for capacity in capacities]
        self._ends = [{name: self.channels.ends(name, units) for name in self.layers} for units in kept]
        for name, masks in self.layers.items():
            masks.set([partial(_both_ends, self.weights[name], *ends[name]) for ends in self._ends])

    def narrow(self, mask: int) -> Narrow | None:
        return Narrow(self.net, self._ends[mask], self._kept[mask]) if self._narrows else None

    @torch.no_grad()
    def score_rows(self, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> list[ScoreRows]:
        """Straight through the mask wherever it stands: the sum of g * w over all weights that a unit's mask touches,
        those that make its channels and those that read them. Behind a BatchNorm the former sum is 0, since the loss
        does not depend on a filter's norm: the gradient comes from the weights that read the channel."""
        rows = [[torch.zeros_like(score) for score in self.scores] for _ in gradients]
        for number, (of_pass, cut) in enumerate(zip(gradients, cuts, strict=True)):
            for name, weight in self.weights.items():
                product = of_pass[name] * (cut.small[name] if isinstance(cut, Narrow) else weight).detach()
                product = product.flatten(2).sum(2) if product.dim() > 2 else product
                if isinstance(cut, int):
                    made, read = self._ends[cut][name]
                    product = product * made[:, None] * (read[None] if len(read) == product.shape[1] else 1)
                self.channels.gather(name, product, rows[number], cut.ends[name] if isinstance(cut, Narrow) else None)
        return [
            (score, torch.stack([row[i] for row in rows]) * score.detach().sign())  # type: ignore[misc]
            for i, score in enumerate(self.scores)
        ]


def _both_ends(weight: Tensor, made: Tensor, read: Tensor) -> Tensor:
    """The mask of a weight [O, I, …] whose output and input channels are kept as said; a grouped convolution's inputs
    go with its outputs."""
    mask = made.view(-1, *[1] * (weight.dim() - 1))
    if len(read) == weight.shape[1]:
        mask = mask & read.view(1, -1, *[1] * (weight.dim() - 2))
    return mask.expand_as(weight)
