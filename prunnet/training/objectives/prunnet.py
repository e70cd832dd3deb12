"""PrunNet's step (arXiv 2504.11879, CVPR 2025; docs/METHODS.md, section 2): N + 1 passes over one batch, whose
gradients are integrated without conflict.

The dense network always runs first; beside it the capacities of `train.capacities`, or as many drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prunnet.config.recipe import TrainConfig
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.training.objectives.base import Context, Term
from prunnet.training.objectives.masked import Masked


class PrunNet(Masked):
    """Projection, block and weighting as `config` says; `uncertainty` learns one log-variance a pass (Kendall et
    al. 2018): minimising exp(-s_i) L_i + s_i, it settles at s_i = log L_i, and the passes weigh exp(-s_i)."""

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context, term: Term | None = None) -> None:
        super().__init__(net, config, context, term)
        device = next(net.parameters()).device
        self.log_variances = nn.Parameter(torch.zeros(len(self.capacities), device=device))

    def draw(self, step: int) -> list[float]:
        return [1.0, *drawn(self.config, step)]

    def pass_names(self) -> list[str]:
        if self.config.capacity_sampling in ("fixed", None):
            return super().pass_names()
        return ["loss_1", *(f"loss_drawn_{i}" for i in range(1, len(self.capacities)))]

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"log_variances": self.log_variances} if self.config.weighting == "uncertainty" else {}

    @torch.no_grad()
    def pass_weights(self, losses: Sequence[Tensor]) -> Tensor | None:
        if self.config.weighting != "uncertainty":
            return None
        (mean,) = self.reducer.average([torch.stack(list(losses))])
        precision = torch.exp(-self.log_variances)
        self.log_variances.grad = (1 - precision * mean).to(self.log_variances)
        return precision


def drawn(config: TrainConfig, step: int) -> list[float]:
    """Capacities of a step beside the dense network, by falling size where they are drawn."""
    capacities = config.capacities
    if config.capacity_sampling in ("fixed", None):  # None: another package's method that leaves it open to nobody
        return list(capacities)
    rng = np.random.default_rng([config.seed, step, 3])
    smallest, largest = min(capacities), max(capacities)
    certain = [smallest] if config.capacity_sampling == "sandwich" else []
    rest = rng.uniform(smallest, largest, len(capacities) - len(certain))
    return sorted([*certain, *(float(c) for c in rest)], reverse=True)
