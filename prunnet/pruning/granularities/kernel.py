"""Granularity `kernel`: one score for the kernel from one input channel to one output channel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunnet.pruning.granularities.stored import StoredSelection
from prunnet.pruning.masks import top_k_mask


class KernelSelection(StoredSelection):
    """One score for the kernel from one input channel to one output channel; of a linear layer that is a weight."""

    fused = False

    @classmethod
    def score_shape(cls, weight: Tensor) -> Sequence[int]:
        return *weight.shape[:2], *[1] * (weight.dim() - 2)

    def mask(self, name: str, capacity: float) -> Tensor:
        return top_k_mask(self.scores[name], capacity).expand_as(self.weights[name])
