"""`data.augment`: training images through torchvision.transforms.v2, one at a time.

torchvision draws from torch's global generator. It is seeded for each image, by a number that depends on (seed, epoch,
image) alone, so that an image looks the same whatever its batch, the worker, their number, and wherever the run was
stopped. Seeding the generator of the CPU takes a microsecond; `torch.manual_seed`, which looks at all kinds of
devices, 150.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunnet.config.augmentations import Stated, parameters
from prunnet.config.recipe import DataConfig
from prunnet.data.transforms import Augmentation
from prunnet.lazy import imported


@dataclass(frozen=True)
class Transforms:
    """A chain of augmentations.

    Args:
        stated: the recipe's list.
        image_size: pixels a side of the result. Images that are larger after the chain are cropped at a random place.
    """

    stated: Sequence[Stated]
    image_size: int

    @cached_property
    def _chain(self) -> Any:
        v2 = imported("torchvision.transforms.v2")  # 20 ms; torch's compiler would take 3 s
        steps = [parameters(each).transform(v2, self.image_size) for each in self.stated]
        return v2.Compose([*steps, v2.RandomCrop(self.image_size)])

    @staticmethod
    @lru_cache(maxsize=2)
    def seeds(images: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """[images] one for each image of an epoch."""
        return np.random.default_rng([seed, epoch, 4]).integers(2**63, size=images)

    def __call__(self, pixels: Tensor, seeds: npt.NDArray[np.int64]) -> Tensor:
        """uint8 [n, C, R, R] on the CPU, and their seeds [n] -> uint8 [n, C, S, S]. torch's generator is left as it
        was."""
        threads, generator = torch.get_num_threads(), torch.default_generator
        torch.set_num_threads(1)  # the last bit of a mean (contrast) depends on how many share it
        try:
            with torch.random.fork_rng(devices=[]):
                made = []
                for image, seed in zip(pixels, seeds.tolist(), strict=True):
                    generator.manual_seed(seed)
                    made.append(self._chain(image))
        finally:
            torch.set_num_threads(threads)
        return torch.stack(made)


def augmentation_of(data: DataConfig) -> Augmentation | Transforms:
    """What a recipe's section does to training images."""
    return Augmentation.from_config(data) if data.augment is None else Transforms(data.augment, data.image_size)
