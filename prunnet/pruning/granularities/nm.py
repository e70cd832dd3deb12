"""Granularity `nm`: of each four weights that follow each other along the input, two stay (2:4)."""

from __future__ import annotations

import torch
from torch import Tensor

from prunnet.config.choices import check_density
from prunnet.pruning.granularities.stored import _Stored


class NmSelection(_Stored):
    """Of each four weights that follow each other along the input, the two best (2:4)."""

    def _mask(self, name: str, capacity: float) -> Tensor:
        check_density("nm", [capacity])
        score = self.scores[name].detach().abs()
        if capacity == 1.0:
            return torch.ones_like(score, dtype=torch.bool)
        fours = score.unflatten(1, (-1, 4))
        order = fours.argsort(dim=2, descending=True, stable=True)
        return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, order[:, :, :2], True).flatten(1, 2)
