"""BatchNorm statistics: which there are, and the images that they are re-estimated on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.data.base import ImageSet
from prunnet.data.transforms import Preprocessing
from prunnet.networks.retrieval_net import RetrievalNet


def calibration_indices(total: int, images: int, seed: int) -> np.ndarray:
    """The recorded list of training images that statistics are re-estimated on, drawn from the seed."""
    return np.sort(np.random.default_rng([seed, 2]).permutation(total)[:images])


def calibration_batches(pixels: np.ndarray, preprocessing: Preprocessing, batch_size: int) -> Iterator[Tensor]:
    """uint8 [n, C, R, R] -> normalised batches of (nearly) one size, under the evaluation transform."""
    for part in np.array_split(pixels, max(1, round(len(pixels) / batch_size))):
        yield preprocessing.normalise(torch.from_numpy(part.copy()))


def calibration_loader(
    images: ImageSet, *, count: int = 1024, seed: int = 0, batch_size: int = 256
) -> Iterator[Tensor]:
    """Batches for `Subnetwork.calibrate` from a training set."""
    indices = calibration_indices(len(images), count, seed)
    return calibration_batches(images.read(indices), images.preprocessing, batch_size)


def running_statistics(net: RetrievalNet) -> Iterator[tuple[str, Tensor]]:
    """The BatchNorm buffers of a network by name: what each capacity has of its own."""
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            yield from ((f"{name}.{key}", buffer) for key, buffer in module.named_buffers())
