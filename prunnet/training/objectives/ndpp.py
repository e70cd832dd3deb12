"""NDPP: neighbour-driven prototype perturbation (arXiv 2503.14824; METHODS section 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prunnet.training.objectives.prototypes import Prototypes

S_OLD, S_NEW = 0.4, 0.01
SCALES = {"paper": (S_OLD, S_NEW), "released": (S_OLD**2, S_OLD * S_NEW)}
"""`train.ndpp_scale`: (s_old, s_new). The release multiplies by 0.4 twice."""


class Ndpp(Prototypes):
    """Old prototypes pushed away from their nearest old and new neighbours, anew every epoch."""

    moves = True

    def perturb(self, old: Tensor, new: Tensor, epoch: int) -> Tensor:
        neighbours = self.config.neighbours or max(5, len(old) // 240)
        return perturb(old, new, neighbours, *SCALES[self.config.ndpp_scale])


@torch.no_grad()
def perturb(old: Tensor, new: Tensor, neighbours: int, s_old: float = S_OLD, s_new: float = S_NEW) -> Tensor:
    """p~_c = normalize(p_c + s_old * mean_k a_ck (p_c - p_k) + s_new * mean_k b_ck (p_c - q_k)).

    The means run over the `neighbours` nearest *other* old prototypes p_k and new prototypes q_k, weighted by the
    similarities a_ck = <p_c, p_k> and b_ck = <p_c, q_k>, clamped at 0; where all are 0 there is no push.

    Args:
        old, new: [classes, d] unit prototypes. neighbours: K, at most classes - 1 are used.
    """
    return F.normalize(old + s_old * _push(old, old, neighbours) + s_new * _push(old, new, neighbours))


def _push(old: Tensor, others: Tensor, neighbours: int) -> Tensor:
    """sum_k a_ck (p_c - o_k) / sum_k a_ck over the nearest o_k of other classes [classes, d]."""
    similarity = (old @ others.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(neighbours, len(old) - 1), dim=1)
    weights = nearest.values.clamp(min=0)  # [classes, K]
    total = weights.sum(dim=1, keepdim=True)
    mean = (weights[:, :, None] * others[nearest.indices]).sum(dim=1) / torch.where(total > 0, total, 1)
    return torch.where(total > 0, old - mean, torch.zeros_like(old))
