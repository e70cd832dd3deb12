"""Data sets by name, one file each.

A data set is read as a `Listing` (its lists, nothing opened), then made into a `Dataset` (images to train on, tests).
What is rendered here has no files and is made at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

from prunnet import storage
from prunnet.config.recipe import DataConfig, Recipe
from prunnet.data import holdout, listing, packed
from prunnet.data.base import Dataset, ImageSet, MemoryImages, RetrievalTest, some_classes
from prunnet.data.datasets import (
    cifar100,
    colour_glyphs,
    cub200,
    gldv2,
    glyphs,
    imagefolder,
    inshop,
    market1501,
    omniglot,
    revisited,
    sop,
    veri776,
)
from prunnet.data.listing import Listing
from prunnet.data.transforms import Augmentation, Preprocessing
from prunnet.errors import DataError, DataWarning, unknown

READERS: dict[str, Callable[[DataConfig], Listing]] = {
    "cifar100": cifar100.read,
    "cub200": cub200.read,
    "gldv2": gldv2.read,
    "imagefolder": imagefolder.read,
    "inshop": inshop.read,
    "market1501": market1501.read,
    "omniglot": omniglot.read,
    **revisited.READERS,
    "sop": sop.read,
    "veri776": veri776.read,
}
RENDERED: dict[str, Callable[[DataConfig], Dataset]] = {
    "colour_glyphs": colour_glyphs.load,
    "glyphs": glyphs.load,
}
DATASETS = (*READERS, *RENDERED)

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "ImageSet",
    "Listing",
    "MemoryImages",
    "Preprocessing",
    "RetrievalTest",
    "load",
    "load_for",
    "read",
]


def read(config: DataConfig) -> Listing:
    """The lists of a data set, its classes held out as the recipe asks; see `whole`."""
    found = whole(config)
    if config.skip_unreadable:
        found = listing.readable(found)
    return holdout.held_out(found, config) if found.pool is not None else validated(found, config)


def whole(config: DataConfig) -> Listing:
    """The lists of a data set, from its folder or a packed store, with notes on what this copy lacks; opens no image.

    Raises:
        DataError: an unknown name, missing or broken lists, no image at all.
    """
    if config.name in RENDERED:
        raise DataError(f"{config.name} is rendered; it has no files; valid: {', '.join(READERS)}")
    if config.name not in READERS:
        raise DataError(unknown("data.name", config.name, DATASETS))
    if config.root and storage.is_url(config.root):
        config = config.model_copy(update={"root": _copied(config.root)})
    if config.root and packed.is_store(config.root):
        found = packed.read(config.root)
        if found.name != config.name:
            raise DataError(f"data.root={config.root!r} is a packed store of {found.name!r}, not {config.name!r}")
    else:
        found = READERS[config.name](config)
        listing.check(found)
        found = replace(found, notes=(*found.notes, *found.differences()))
    return listing.present(found)


def _copied(url: str) -> str:
    """This machine's copy of a data set on an object store: a .zip, a packed store, or a whole folder."""
    found = storage.local(url)
    if storage.is_url(found):
        raise DataError(f"data.root={url!r}: nothing is there")
    return str(found)


def validated(found: Listing, config: DataConfig) -> Listing:
    """With a share of the training classes held out for validation, where the recipe asks a benchmark for that."""
    share = config.validation_fraction
    if not share or found.train is None or "validation" in found.splits:
        return found
    return holdout.some_for_validation(found, config, share)


def load(config: DataConfig) -> Dataset:
    """The data set that a recipe names; DataError for an unknown name or data that cannot serve."""
    if config.name in RENDERED:
        dataset = RENDERED[config.name](config)
    else:
        dataset = listing.dataset(read(config), config)
        for note in dataset.notes:
            warnings.warn(note, DataWarning, stacklevel=2)
    return dataset if config.train_fraction == 1.0 else some_classes(dataset, config.train_fraction, config.seed)


def load_for(recipe: Recipe) -> Dataset:
    """A recipe's training set with the tests that its `sweep` section asks for: those of another data set
    (`sweep.dataset`), of whole images (`sweep.long_side`), at several scales. The images of the split that is asked for
    are in memory where they are few enough, so an unreadable one is found here."""
    return _tested_as_asked(recipe).holding(recipe.sweep.split)


def _tested_as_asked(recipe: Recipe) -> Dataset:
    dataset, sweep = load(recipe.data), recipe.sweep
    if sweep.dataset is None and sweep.long_side is None and sweep.scales == (1.0,):
        return dataset
    elsewhere = {} if sweep.dataset is None else {"name": sweep.dataset, "root": sweep.root}
    config = recipe.data.model_copy(update=elsewhere)
    seen = replace(dataset.preprocessing, long_side=sweep.long_side, scales=sweep.scales)
    if config.name in RENDERED:
        if sweep.long_side or sweep.scales != (1.0,):
            raise DataError(f"sweep.long_side and sweep.scales need images that are files, not {config.name}")
        other = RENDERED[config.name](config)
        return replace(dataset, name=other.name, test=other.test, validation=other.validation)
    found = read(config)
    tests = listing.tests(found, seen)
    notes = dataset.notes if sweep.dataset is None else (*dataset.notes, *found.notes)
    return replace(dataset, name=found.name, test=tests["test"], validation=tests.get("validation"), notes=notes)
