"""Embeddings of an image set, and the file they are kept in, stamped with what made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prunnet.checkpoint import load_tensors, save_tensors
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError
from prunnet.retrieval.search import Features
from prunnet.subnetworks import Subnetwork

FORMAT = "prunnet-features"


@dataclass(frozen=True)
class StoredFeatures:
    """Query and gallery embeddings of one subnetwork on one split; the same array where the test is
    leave-one-out."""

    queries: Features
    """[Q, d], L2-normalised."""
    gallery: Features
    """[G, d]."""
    identity: dict[str, Any]
    """What determines them (weights, capacity, mask, calibration, split, preprocessing), and `cost`."""


def embed(
    subnetwork: Subnetwork, pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing, batch_size: int = 256
) -> Features:
    """uint8 images [n, C, S, S] -> embeddings [n, d]."""
    device = next(subnetwork.net.parameters()).device
    parts = []
    for start in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(pixels[start : start + batch_size].copy()).to(device)
        parts.append(subnetwork.embed(preprocessing.normalise(batch)).cpu().numpy())
    return np.concatenate(parts)


def save_features(path: str | Path, features: StoredFeatures) -> None:
    """Atomic, synced."""
    tensors = {"queries": torch.from_numpy(features.queries)}
    if features.gallery is not features.queries:
        tensors["gallery"] = torch.from_numpy(features.gallery)
    save_tensors(path, tensors, FORMAT, features.identity)


def load_features(path: str | Path, key: str | None = None) -> StoredFeatures:
    """The stored features; CheckpointError where the file is torn or was made for another key."""
    tensors, header = load_tensors(path, FORMAT)
    if key is not None and header.get("key") != key:
        raise CheckpointError(f"features {str(path)!r} were made for another key; remove the file")
    queries = tensors["queries"].numpy()
    return StoredFeatures(queries, tensors["gallery"].numpy() if "gallery" in tensors else queries, header)
