"""BCT: backward-compatible training (Shen et al. 2020, arXiv 2003.11942; METHODS section 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prunnet.config import TrainConfig
from prunnet.errors import ConfigError
from prunnet.nets import RetrievalNet
from prunnet.objectives import Context, Term


class Bct(Term):
    """Cross-entropy through the old network's frozen classifier, beside the own loss.

    Images of classes that the old network was not trained on have no old label: they count as zero, and the sum
    over the others is divided by all images, so that workers with different shares of them still agree.

    Raises ConfigError where the old file holds no classifier, the embeddings differ in length, or no class is shared.
    """

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context) -> None:
        assert context.old is not None
        old = context.old
        if old.classifier is None:
            raise ConfigError(f"bct needs the old network's classifier, which {old.path!r} does not hold")
        weight, bias = old.classifier
        self.weight, self.bias = weight.detach(), bias.detach()
        self.old_label = old.labels
        """[classes]: the old network's label of each new class, -1 where it had none."""
        if not bool((self.old_label >= 0).any()):
            raise ConfigError(f"bct: the old network {old.path!r} was trained on none of the new classes")

    def targets(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return (self.old_label[labels],)

    def loss(self, features: Tensor, labels: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        (old_labels,) = targets
        logits = F.linear(features, self.weight.to(features.dtype), self.bias.to(features.dtype))
        return F.cross_entropy(logits, old_labels, ignore_index=-1, reduction="sum") / len(labels)
