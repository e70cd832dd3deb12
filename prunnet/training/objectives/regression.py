"""Regression: the student's embeddings regress the teacher's (METHODS section 4), strong for asymmetric tests."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prunnet.config.recipe import TrainConfig
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.training.objectives.base import Context, Term


class Regression(Term):
    """Squared distance of the normalised embeddings, 2 - 2 cos, mean over the images. The classifier is not trained."""

    own_loss = False

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context) -> None:
        assert context.old is not None
        self.old, self.dtype = context.old, context.dtype

    def targets(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return (self.old.embed(images, self.dtype),)

    def loss(self, features: Tensor, labels: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        return (F.normalize(features) - targets[0].to(features.dtype)).square().sum(dim=1).mean()
