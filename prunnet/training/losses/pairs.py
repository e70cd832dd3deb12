"""Losses of pairs and triplets within a batch: pytorch-metric-learning's. No weights for classes; the network's
classifier is not trained.

Cosines, or Euclidean distances, of embeddings that the library normalises. The mean is over the images (or triplets)
whose loss is above 0, except for `multi_similarity`, where it is over all images: the library's own choice for each. A
batch in which nothing is left to learn gives 0, and gradients of 0.
"""

from __future__ import annotations

from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from prunnet.training.losses.base import NetworkLoss, Setting


class _Pairs(NetworkLoss):
    """Args:
    theirs: a loss of the library. miner: chooses the pairs or triplets, without gradient; None: all.
    """

    def __init__(self, setting: Setting, theirs: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__(setting)
        self.theirs, self.miner = theirs, miner

    def forward(self, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        chosen = None if self.miner is None else self.miner(features.detach(), labels)
        found: Tensor = self.theirs(features, labels, chosen)
        return found


class SupCon(_Pairs):
    """For each image: minus the mean over its positives p of log(exp(cos(f, p) / t) / sum over all others)."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, losses.SupConLoss(temperature=setting.number("temperature")))


class MultiSimilarity(_Pairs):
    """For each image: log(1 + sum over positives of exp(-alpha (cos - base))) / alpha + log(1 + sum over negatives of
    exp(beta (cos - base))) / beta. The miner keeps positives less similar than the nearest negative plus epsilon, and
    negatives more similar than the farthest positive less epsilon."""

    def __init__(self, setting: Setting) -> None:
        alpha, beta, base = map(setting.number, ("alpha", "beta", "base"))
        mined = setting.options["miner"] != "none"
        super().__init__(
            setting,
            losses.MultiSimilarityLoss(alpha=alpha, beta=beta, base=base),
            miners.MultiSimilarityMiner(epsilon=setting.number("epsilon")) if mined else None,
        )


class Triplet(_Pairs):
    """max(0, d(a, p) - d(a, n) + margin), or its softplus, of the triplets that the miner chose."""

    def __init__(self, setting: Setting) -> None:
        margin, chosen = setting.number("margin"), setting.options["miner"]
        loss = losses.TripletMarginLoss(
            margin=margin, swap=bool(setting.options["swap"]), smooth_loss=bool(setting.options["smooth_loss"])
        )
        miner = {
            "none": lambda: None,
            "hard": miners.BatchHardMiner,
            "semihard": lambda: miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard"),
        }[str(chosen)]()
        super().__init__(setting, loss, miner)


class Circle(_Pairs):
    """For each image: softplus(log sum over positives of exp(-gamma [1 + m - cos]+ (cos - 1 + m)) + log sum over
    negatives of exp(gamma [cos + m]+ (cos - m))); the factors [.]+ = max(0, .) have no gradient."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, losses.CircleLoss(m=setting.number("m"), gamma=setting.number("gamma")))
