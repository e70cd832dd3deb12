"""Data sets by name, one file each.

A data set is read as a `Listing` (its lists, nothing opened), then made into a `Dataset` (images to train on, tests).
Rendered data sets have no files and are made directly. The file of a data set says which of the two it is
(`prunnet.data.description`).
"""

from __future__ import annotations

import warnings
from dataclasses import replace

from prunnet import storage
from prunnet.config.recipe import DataConfig, Recipe
from prunnet.data import holdout, listing, packed, pixel_values
from prunnet.data.base import Dataset, ImageSet, MemoryImages, RetrievalTest, some_classes
from prunnet.data.description import Described, Reader, Rendered
from prunnet.data.listing import Listing
from prunnet.data.transforms import Augmentation, Preprocessing
from prunnet.errors import DataError, DataWarning, unknown
from prunnet.registry import Registry

DATASETS: Registry[Described] = Registry(
    "data.name",
    "prunnet.datasets",
    {
        "cifar100": "prunnet.data.datasets.cifar100:DATASET",
        "cub200": "prunnet.data.datasets.cub200:DATASET",
        "gldv2": "prunnet.data.datasets.gldv2:DATASET",
        "grocery": "prunnet.data.datasets.grocery:DATASET",
        "imagefolder": "prunnet.data.datasets.imagefolder:DATASET",
        "inshop": "prunnet.data.datasets.inshop:DATASET",
        "market1501": "prunnet.data.datasets.market1501:DATASET",
        "omniglot": "prunnet.data.datasets.omniglot:DATASET",
        "roxford5k": "prunnet.data.datasets.revisited:ROXFORD5K",
        "rparis6k": "prunnet.data.datasets.revisited:RPARIS6K",
        "sop": "prunnet.data.datasets.sop:DATASET",
        "veri776": "prunnet.data.datasets.veri776:DATASET",
        "colour_glyphs": "prunnet.data.datasets.colour_glyphs:DATASET",
        "glyphs": "prunnet.data.datasets.glyphs:DATASET",
    },
    Described,
)
"""Imported when they are asked for."""

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
    described = _described(config)
    assert isinstance(described, Reader)
    return described.hold_out(found, config) if found.pool is not None else validated(found, config)


def whole(config: DataConfig) -> Listing:
    """The lists of a data set, from its folder or a packed store, with notes on what this copy lacks; opens no image.

    Raises:
        DataError: an unknown name, missing or broken lists, no image at all.
    """
    described = _described(config)
    if not isinstance(described, Reader):
        readers = ", ".join(name for name, each in DATASETS.items() if isinstance(each, Reader))
        raise DataError(f"{config.name} is rendered; it has no files; valid: {readers}")
    if config.root and storage.is_url(config.root):
        config = config.model_copy(update={"root": _copied(config.root)})
    if config.root and packed.is_store(config.root):
        found = packed.read(config.root)
        if found.name != config.name:
            raise DataError(f"data.root={config.root!r} is a packed store of {found.name!r}, not {config.name!r}")
    else:
        found = described.read(config)
        listing.check(found)
        found = replace(found, notes=(*found.notes, *found.differences()))
    return listing.present(found)


def _described(config: DataConfig) -> Described:
    if config.name not in DATASETS:
        raise DataError(unknown("data.name", config.name, DATASETS))
    described = DATASETS[config.name]
    if config.protocol not in described.protocols:
        valid = ", ".join(described.protocols)
        raise DataError(f"{config.name} has no protocol {config.protocol!r}; valid: {valid}")
    return described


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
    described = _described(config)
    if isinstance(described, Rendered):
        dataset = described.load(config)
    else:
        dataset = listing.dataset(read(config), config)
        for note in dataset.notes:
            warnings.warn(note, DataWarning, stacklevel=2)
    return dataset if config.train_fraction == 1.0 else some_classes(dataset, config.train_fraction, config.seed)


def load_for(recipe: Recipe) -> Dataset:
    """A recipe's training set with the tests that its `sweep` section asks for: those of another data set
    (`sweep.dataset`), under another protocol (`sweep.protocol`), of whole images (`sweep.long_side`), in several views
    (`sweep.scales`, `sweep.flip`); pixels as its network sees them (`pixel_values`). The images of the split that is
    asked for are in memory where they are few enough, so an unreadable one is found here."""
    return _tested_as_asked(recipe).holding(recipe.sweep.split)


def _tested_as_asked(recipe: Recipe) -> Dataset:
    seen_by_network, sweep = pixel_values.data_seen(recipe), recipe.sweep
    dataset = load(seen_by_network)
    if said := pixel_values.note(recipe):
        dataset = replace(dataset, notes=(*dataset.notes, said))
    seen = replace(dataset.preprocessing, long_side=sweep.long_side, scales=sweep.scales, flip=sweep.flip)
    if sweep.dataset is None and sweep.protocol is None and seen == dataset.preprocessing:
        return dataset
    elsewhere: dict[str, str | None] = {} if sweep.dataset is None else {"name": sweep.dataset, "root": sweep.root}
    if sweep.protocol is not None:
        elsewhere["protocol"] = sweep.protocol
    config = seen_by_network.model_copy(update=elsewhere)
    described = _described(config)
    if isinstance(described, Rendered):
        if sweep.long_side:
            raise DataError(f"sweep.long_side needs images that are files, not {config.name}")
        other = described.load(config)
        validation = other.validation and other.validation.seen_as(seen)
        return replace(dataset, name=other.name, test=other.test.seen_as(seen), validation=validation)
    found = read(config)
    tests = listing.tests(found, seen)
    notes = dataset.notes if sweep.dataset is None else (*dataset.notes, *found.notes)
    return replace(dataset, name=found.name, test=tests["test"], validation=tests.get("validation"), notes=notes)
