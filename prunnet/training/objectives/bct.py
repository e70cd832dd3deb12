"""BCT: backward-compatible training (Shen et al. 2020, arXiv 2003.11942; docs/METHODS.md, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prunnet.config.recipe import TrainConfig
from prunnet.errors import ConfigError
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.training.objectives.base import Context, Term
from prunnet.training.objectives.prototypes import class_prototypes


class Bct(Term):
    """Cross-entropy through the old network's frozen classifier, beside the own loss.

    Images of classes that the old network was not trained on have no old label. Under `train.bct_unknown: skip` they
    count as zero, and the sum over the others is divided by all images, so that workers with different shares of them
    still agree. Under `synthesise` the old classifier gets a row for each such class: the direction of the mean of its
    images' old embeddings, the mean length of the old rows, the mean of the old biases.

    Raises ConfigError where the old file holds no trained classifier, or no class is shared (`skip`).
    """

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context) -> None:
        assert context.old is not None
        old = context.old
        if old.classifier is None:
            raise ConfigError(f"bct needs the old network's classifier, which {old.path!r} does not hold")
        if "classifier" in old.untrained:
            raise ConfigError(
                f"bct needs the old network's classifier, which the training of {old.path!r} never reached "
                "(asymmetric, regression and every train.loss but cross_entropy have no loss through it); valid: a "
                "network whose classifier was trained"
            )
        weight, bias = old.classifier
        self.weight, self.bias = weight.detach(), bias.detach()
        self.old_label = old.labels
        """[classes]: the row of the old classifier of each new class, -1 where it has none."""
        unknown = self.old_label < 0
        if config.bct_unknown == "synthesise" and bool(unknown.any()):
            directions = class_prototypes(old.embed, context)[unknown].to(self.weight)
            rows = len(self.weight) + torch.arange(len(directions), device=unknown.device)
            self.old_label = self.old_label.masked_scatter(unknown, rows)
            self.weight = torch.cat([self.weight, directions * self.weight.norm(dim=1).mean()])
            self.bias = torch.cat([self.bias, self.bias.mean().expand(len(directions))])
        if not bool((self.old_label >= 0).any()):
            raise ConfigError(
                f"bct: the old network {old.path!r} was trained on none of the new classes; "
                "train.bct_unknown=synthesise makes rows of its classifier for them"
            )

    def targets(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return (self.old_label[labels],)

    def loss(self, features: Tensor, labels: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        (old_labels,) = targets
        logits = F.linear(features, self.weight.to(features.dtype), self.bias.to(features.dtype))
        return F.cross_entropy(logits, old_labels, ignore_index=-1, reduction="sum") / len(labels)
