"""Granularity `kernel`: one score for the kernel from one input channel to one output channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunnet.pruning.granularities.base import Cut, ScoreRows
from prunnet.pruning.granularities.stored import _Stored
from prunnet.pruning.masks import top_k_mask


class KernelSelection(_Stored):
    """One score for the kernel from one input channel to one output channel; of a linear layer that is a weight."""

    fused = False

    def _mask(self, name: str, capacity: float) -> Tensor:
        return top_k_mask(self.scores[name], capacity).expand_as(self.weights[name])

    @torch.no_grad()
    def score_rows(self, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> list[ScoreRows]:
        return [(s, self._rows(name, s, gradients, cuts)) for name, s in self.scores.items()]  # type: ignore[misc]

    def _rows(self, name: str, score: Tensor, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> Tensor:
        weight = self.weights[name].detach()
        given = (
            self.layers[name].apply(g[name], cut) if isinstance(cut, int) else g[name]
            for g, cut in zip(gradients, cuts, strict=True)
        )
        places = tuple(range(2, weight.dim()))
        sums = [(g * weight).sum(places, keepdim=True) if places else g * weight for g in given]
        return torch.stack(sums) * score.detach().sign()
