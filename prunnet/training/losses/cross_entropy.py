"""Cross-entropy through the network's linear classifier: PrunNet's loss, and the default."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prunnet.training.losses.base import NetworkLoss


class CrossEntropy(NetworkLoss):
    """With `train.label_smoothing`. A mean over this worker's images."""

    def forward(self, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.setting.label_smoothing)
