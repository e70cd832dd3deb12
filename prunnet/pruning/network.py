"""What selections of masks and passes of subnetworks ask of a network beside its modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunnet.pruning.channel_scores import Channels


class PrunableNet(nn.Module):
    """A network with scores: its description, the granularity of its scores, its channel groups."""

    spec: dict[str, Any]
    """Arguments that make the network again."""
    channels: Channels | None
    """Scores and groups of granularity `channel`."""

    @property
    def granularity(self) -> str:
        """What one score stands for."""
        return self.spec.get("granularity", "weight")

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> L2-normalised embeddings [B, embedding_dim], float32."""
        raise NotImplementedError
