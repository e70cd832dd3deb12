"""Losses with weights for the classes: pytorch-metric-learning's, which normalises embeddings and weights itself.

The weights start as the library starts them. Importing the library takes scipy and a second, so this file is imported
only where one of its losses is asked for.
"""

from __future__ import annotations

from pytorch_metric_learning import losses
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn

from prunnet.training.losses.base import NetworkLoss, Setting


class _ClassWeights(NetworkLoss):
    library: type[nn.Module]

    def __init__(self, setting: Setting, **more: object) -> None:
        super().__init__(setting)
        self.theirs = self.library(
            num_classes=setting.classes, embedding_size=setting.embedding_dim, **setting.options, **more
        )

    def forward(self, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = self.theirs(features, labels)
        return found


class _Softmax(_ClassWeights):
    """A mean over the images, as cross-entropy is."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, reducer=MeanReducer())


class NormFace(_Softmax):
    """-log softmax_y(cos(f, w) / temperature)."""

    library = losses.NormalizedSoftmaxLoss


class CosFace(_Softmax):
    """-log softmax_y(scale * (cos(f, w) - margin * [class is y]))."""

    library = losses.CosFaceLoss


class ArcFace(_Softmax):
    """-log softmax_y(scale * cos(angle(f, w) + margin * [class is y])). Where the sum would exceed 180 degrees, the own
    logit is scale * (cos(angle) - margin * sin(margin)), so that it falls further with the angle."""

    library = losses.ArcFaceLoss


class SubCenterArcFace(_Softmax):
    """ArcFace, where the cosine to a class is the largest of those to its `sub_centers` weights."""

    library = losses.SubCenterArcFaceLoss


class ProxyAnchor(_ClassWeights):
    """Mean over the classes of the batch of log(1 + sum over their images of exp(-alpha (cos(f, p) - margin))), plus
    the mean over all classes of log(1 + sum over images of others of exp(alpha (cos(f, p) + margin)))."""

    library = losses.ProxyAnchorLoss
