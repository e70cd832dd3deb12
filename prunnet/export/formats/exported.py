"""An exported subnetwork, opened, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunnet.data.transforms import Preprocessing
from prunnet.networks.headers import Identity


@dataclass(frozen=True)
class Exported:
    """An exported subnetwork, opened."""

    identity: Identity
    run: Callable[[Tensor], Tensor]
    """Normalised images [B, C, H, W] -> embeddings [B, embedding_dim], float32."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    @property
    def embedding_dim(self) -> int:
        return self.identity.embedding_dim

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images are made."""
        return Preprocessing.from_json(self.identity.preprocessing)

    def embed(self, images: Tensor) -> Tensor:
        """As `Subnetwork.embed`."""
        with torch.inference_mode():
            return self.run(images.float())
