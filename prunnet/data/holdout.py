"""Whole classes held out of a training set, for the test and for validation."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from prunnet.config.recipe import DataConfig
from prunnet.data.base import check_classes, split_queries
from prunnet.data.listing import Listing, Part, Split
from prunnet.errors import DataError, printable, unknown


def held_out(listing: Listing, config: DataConfig) -> Listing:
    """A collection with whole classes held out for validation and test.

    Raises:
        DataError: fewer than two classes in a part, a hold-out name that is not there.
    """
    pool = listing.pool
    assert pool is not None
    occurring = np.unique(pool.labels)
    part_of = _hold_out([listing.classes[int(label)] for label in occurring], config)
    by_label = {int(label): part_of[listing.classes[int(label)]] for label in occurring}
    chosen = np.array([by_label[label] for label in pool.labels.tolist()])
    names: tuple[str, ...] = ("train", "test", "validation")
    parts = {name: pool.some(chosen == name) for name in names if (chosen == name).any()}
    for name, part in parts.items():
        check_classes(part.labels, f"{name} part of {listing.files.where!r}")
    for name in ("train", "test"):
        if name not in parts:
            left = "training" if name == "train" else name
            raise DataError(f"{listing.files.where!r}: the hold-out leaves no {left} classes")
    splits = {name: retrieval(parts[name], config) for name in names[1:] if name in parts}
    return replace(listing, train=parts["train"], splits=splits, pool=None)


def some_for_validation(listing: Listing, config: DataConfig, share: float) -> Listing:
    """A benchmark with a share of its training classes, drawn from the seed, as a validation split of its own kind."""
    assert listing.train is not None
    occurring = np.unique(listing.train.labels)
    count = max(2, round(share * len(occurring)))
    if len(occurring) - count < 2:
        raise DataError(f"data.validation_fraction={share} leaves fewer than two of {len(occurring)} training classes")
    chosen = np.isin(listing.train.labels, np.random.default_rng(config.seed).permutation(occurring)[:count])
    split = retrieval(listing.train.some(chosen), config)
    return replace(listing, train=listing.train.some(~chosen), splits={**listing.splits, "validation": split})


def retrieval(part: Part, config: DataConfig) -> Split:
    """A test among some images, as `data.protocol` says."""
    if config.protocol == "leave_one_out":
        return Split(part, None, "leave_one_out")
    queries, gallery = split_queries(part.labels, config.queries_per_class, config.seed)
    if not len(queries) or not len(gallery):
        raise DataError(
            f"data.queries_per_class={config.queries_per_class} leaves no gallery: classes have at most "
            f"{np.unique(part.labels, return_counts=True)[1].max()} images"
        )
    return Split(part.some(queries), part.some(gallery), "query_gallery")


def _hold_out(classes: list[str], config: DataConfig) -> dict[str, str]:
    """Class folder -> train, validation or test."""
    common = os.path.commonpath(classes) if len(classes) > 1 else ""
    groups = {c: _group(c, common, config.holdout) for c in classes}
    names = sorted(set(groups.values()))
    test = _chosen(config.test, names, config)
    validation = _chosen(config.validation, names, config)
    if both := sorted(test & validation):
        raise DataError(f"held out for test and validation at once: {', '.join(map(printable, both[:5]))}")
    shuffled = [names[i] for i in np.random.default_rng(config.seed).permutation(len(names))]
    rest = [name for name in shuffled if name not in test | validation]
    if not test and config.test_fraction:
        count = max(_least(config), round(config.test_fraction * len(names)))
        test, rest = set(rest[:count]), rest[count:]
    share = 0.1 if config.validation_fraction is None else config.validation_fraction
    if not validation and share:
        count = round(share * len(names))
        validation = set(rest[:count]) if count >= _least(config) else set()
    return {c: "test" if g in test else "validation" if g in validation else "train" for c, g in groups.items()}


def _least(config: DataConfig) -> int:
    return 1 if config.holdout == "top_folder" else 2


def _group(folder: str, common: str, holdout: str) -> str:
    """What hold-out names speak of: the top folder below the common one, or the class folder itself."""
    if holdout == "top_folder":
        return PurePosixPath(os.path.relpath(folder, common) if common else folder).parts[0]
    return folder


def _chosen(given: tuple[str, ...], names: list[str], config: DataConfig) -> set[str]:
    """The groups that a recipe names: in full, or by the end of their path where that is unique."""
    if config.holdout == "list":
        given = tuple(line for path in given for line in _lines(path))
    counts = Counter(PurePosixPath(name).name for name in names)
    short = {PurePosixPath(name).name: name for name in names}
    chosen = set()
    for name in given:
        if name in names:
            chosen.add(name)
        elif counts.get(name) == 1:
            chosen.add(short[name])
        else:
            raise DataError(unknown(f"hold-out {config.holdout}", name, names))
    return chosen


def _lines(path: str) -> list[str]:
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise OSError("is no file")
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise DataError(f"hold-out list {path!r} cannot be read ({type(error).__name__})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
