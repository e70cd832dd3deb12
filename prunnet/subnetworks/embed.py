"""Embeddings of the images of a test, by a subnetwork or by one that was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prunnet.data.base import ImageSet, RetrievalTest
from prunnet.data.loading import prefetched
from prunnet.data.transforms import Preprocessing
from prunnet.retrieval.exact_search import Features


class Embedder(Protocol):
    """A subnetwork, or one that was exported."""

    @property
    def embedding_dim(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] -> embeddings [B, embedding_dim], L2-normalised, float32."""
        ...


def embed(subnetwork: Embedder, images: ImageSet, batch_size: int = 256, *, to: Path | None = None) -> Features:
    """Embeddings [n, d] of a test's images; written to a .npy file as they come, where `to` names one.

    Images of different sizes (a preprocessing with `long_side`) pass one by one. A preprocessing with `scales` or
    `flip` asks for several views of each image, whose normalised embeddings are averaged, and the mean is normalised.
    """
    preprocessing, dim = images.preprocessing, subnetwork.embedding_dim
    shape = (len(images), dim)
    out = np.empty(shape, np.float32) if to is None else np.lib.format.open_memmap(to, "w+", np.float32, shape)
    device = subnetwork.device
    step = 1 if preprocessing.long_side else batch_size
    parts = [np.arange(start, min(start + step, len(images))) for start in range(0, len(images), step)]
    for indices, pixels in zip(parts, prefetched(images, parts), strict=True):
        batch = preprocessing.normalise(torch.from_numpy(np.array(pixels)).to(device))
        out[indices] = _embedded(subnetwork, batch, preprocessing).cpu().numpy()
    return out


def _embedded(subnetwork: Embedder, batch: Tensor, preprocessing: Preprocessing) -> Tensor:
    if preprocessing.scales == (1.0,) and not preprocessing.flip:
        return subnetwork.embed(batch)
    total = torch.zeros((), device=batch.device)
    for scale in preprocessing.scales:
        resized = batch
        if scale != 1.0:
            resized = F.interpolate(batch, scale_factor=scale, mode="bilinear", align_corners=False)
        total = total + subnetwork.embed(resized)
        if preprocessing.flip:
            total = total + subnetwork.embed(resized.flip(3))
    return F.normalize(total, dim=1)


def embed_test(subnetwork: Embedder, test: RetrievalTest, batch_size: int = 256) -> tuple[Features, Features]:
    """Query and gallery embeddings; one array where the test is leave-one-out."""
    queries = embed(subnetwork, test.queries, batch_size)
    return queries, queries if test.leave_one_out else embed(subnetwork, test.gallery, batch_size)
