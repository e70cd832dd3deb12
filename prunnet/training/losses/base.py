"""What a loss computes, and how it sees the batch of all workers (docs/METHODS.md, section 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunnet.config.losses import Value
from prunnet.training.gradients.reducer import Reducer


@dataclass(frozen=True)
class Setting:
    """What a loss is made for."""

    classes: int
    embedding_dim: int
    options: Mapping[str, Value]
    """All of the loss' options, with their defaults."""
    label_smoothing: float = 0.0
    """cross_entropy only."""

    def number(self, key: str) -> float:
        return float(self.options[key])


class NetworkLoss(nn.Module):
    """The loss of one pass of a network on a batch.

    Its parameters (class weights, proxies) are its own, and not those of the network's classifier. One mechanism so
    serves a loss with one weight a class, with several (`subcenter_arcface`) and whatever another package brings; a
    cosine has no bias, which in the network's `nn.Linear` would be left over; and no file of a network changes, since
    embeddings need no class weights. The price: the network's classifier stays as it began (`Objective.untrained`), so
    that such a network cannot teach `bct`.

    The parameters belong to what all subnetworks share: every pass goes through them, the main pass alone trains them.
    They are in every checkpoint of a training. Buffers are not: a loss keeps nothing else from step to step.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting

    def forward(self, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """A scalar, at least float32, that has a gradient even where nothing is to be learned.

        Args:
            logits: [B, classes] of the network's classifier. Only for a `Loss` with `classifier=True`.
            features: [B, d], the neck's output, not normalised. [B, d] of *all* workers where the loss compares images.
            labels: [B], 0 … classes-1, of the same images.
        """
        raise NotImplementedError


class _Gathered(torch.autograd.Function):
    """[b, d] of each worker -> [workers * b, d] of all, in the order of the ranks.

    L is a function of all embeddings, e_1 … e_W, and every worker computes it whole. Worker r has the path through its
    own embeddings only: (dL/de_r)(de_r/dtheta). The sum of these over the workers is dL/dtheta, but the reducer
    averages: hence the factor W, in the gradient and not in L. A parameter of the loss itself gets all of its gradient
    on every worker, and no factor.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, reducer: Reducer) -> Tensor:
        ctx.rank, ctx.world, ctx.images = reducer.rank, reducer.world, len(own)
        return reducer.gather(own.detach()).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        first = ctx.rank * ctx.images
        return gradient[first : first + ctx.images] * ctx.world, None


def gathered(own: Tensor, reducer: Reducer) -> Tensor:
    """[b, d] of this worker -> [B, d] of all, with gradients for its own rows; see `_Gathered`."""
    if reducer.world == 1:
        return own
    found: Tensor = _Gathered.apply(own, reducer)
    return found
