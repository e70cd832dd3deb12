"""Granularity `nm`: of each four weights that follow each other along the input, two stay (2:4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunnet.config.granularities import check_density
from prunnet.pruning.granularities.stored import StoredSelection


class NmSelection(StoredSelection):
    """Of each four weights that follow each other along the input (of a group), the two best (2:4)."""

    prunes = "whose inputs come in fours"

    @classmethod
    def score_shape(cls, weight: Tensor) -> Sequence[int] | None:
        return weight.shape if weight.shape[1] % 4 == 0 else None

    def mask(self, name: str, capacity: float) -> Tensor:
        check_density("nm", [capacity])
        score = self.scores[name].detach().abs()
        if capacity == 1.0:
            return torch.ones_like(score, dtype=torch.bool)
        fours = score.unflatten(1, (-1, 4))
        order = fours.argsort(dim=2, descending=True, stable=True)
        return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, order[:, :, :2], True).flatten(1, 2)
