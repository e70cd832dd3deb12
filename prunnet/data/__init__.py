"""Data sets by name, one file each."""

from __future__ import annotations

from collections.abc import Callable

from prunnet.config import DataConfig
from prunnet.data import colour_glyphs, glyphs, imagefolder
from prunnet.data.base import Dataset, ImageSet, MemoryImages, RetrievalTest, some_classes
from prunnet.data.transforms import Augmentation, Preprocessing
from prunnet.errors import DataError, unknown

DATASETS: dict[str, Callable[[DataConfig], Dataset]] = {
    "colour_glyphs": colour_glyphs.load,
    "glyphs": glyphs.load,
    "imagefolder": imagefolder.load,
}

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "ImageSet",
    "MemoryImages",
    "Preprocessing",
    "RetrievalTest",
    "load",
]


def load(config: DataConfig) -> Dataset:
    """The data set that a recipe names; DataError for an unknown name or data that cannot serve."""
    if config.name not in DATASETS:
        raise DataError(unknown("data.name", config.name, DATASETS))
    dataset = DATASETS[config.name](config)
    return dataset if config.train_fraction == 1.0 else some_classes(dataset, config.train_fraction, config.seed)
