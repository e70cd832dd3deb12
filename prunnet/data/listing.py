"""A data set's lists, before any image is opened: its images, their labels, and which of them are training images,
queries and gallery.

Every data set reads its own lists into a `Listing`; everything after that (missing files, holding classes out, packing,
making a `Dataset`) is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prunnet.config.recipe import DataConfig
from prunnet.data.base import Dataset, IntArray, RetrievalTest, check_classes
from prunnet.data.files import Boxes, Encoded, Files, ImageFiles, unreadable
from prunnet.data.transforms import Preprocessing
from prunnet.errors import DataError, printable

Groups = Mapping[str, Sequence[IntArray]]


@dataclass(frozen=True)
class Part:
    """Some of a data set's images, in order."""

    rows: IntArray
    """[n], into the data set's files."""
    labels: IntArray
    """[n], identities; queries, gallery and training images of a data set share their numbering."""
    cameras: IntArray | None = None
    boxes: Boxes | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def some(self, keep: npt.NDArray[Any]) -> Part:
        """By mask or indices."""
        cameras = None if self.cameras is None else self.cameras[keep]
        boxes = None if self.boxes is None else self.boxes[keep]
        return Part(self.rows[keep], self.labels[keep], cameras, boxes)


@dataclass(frozen=True)
class Split:
    """A retrieval test as its benchmark defines it."""

    queries: Part
    gallery: Part | None
    """None: the queries themselves, each searching all others."""
    protocol: str
    lists: Groups | None = None
    """The positives of each query, by gallery position; None: the images of its label, less its own camera's."""
    recalls: tuple[int, ...] = (1, 5, 10)

    def without(self, lost: npt.NDArray[np.bool_]) -> Split:
        """The test without some rows [files]; lists are renumbered."""
        asked = ~lost[self.queries.rows]
        if self.gallery is None:
            return replace(self, queries=self.queries.some(asked))
        kept = ~lost[self.gallery.rows]
        lists = self.lists
        if lists is not None:
            place = np.where(kept, np.cumsum(kept) - 1, -1)
            lists = {
                name: [place[group[kept[group]]] for group, wanted in zip(groups, asked, strict=True) if wanted]
                for name, groups in lists.items()
            }
        return replace(self, queries=self.queries.some(asked), gallery=self.gallery.some(kept), lists=lists)


@dataclass(frozen=True)
class Listing:
    """A data set, not yet opened."""

    name: str
    files: Encoded
    classes: Sequence[str]
    """Names of the identities, by label."""
    train: Part | None
    """None: the benchmark has no training set; another one's is used."""
    splits: Mapping[str, Split]
    """`test`, and `validation` where the benchmark has one."""
    pool: Part | None = None
    """All images of a collection without fixed parts; `imagefolder.held_out` makes them."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Counts of a whole copy, as published."""
    notes: tuple[str, ...] = ()
    more: Mapping[str, int] = field(default_factory=dict)
    """Counts of what lists hold beside the parts."""

    def parts(self) -> dict[str, Part]:
        """All parts by name."""
        found = {"images": self.pool, "train": self.train}
        for name, split in self.splits.items():
            prefix = "" if name == "test" else f"{name} "
            found |= {f"{prefix}query": split.queries, f"{prefix}gallery": split.gallery}
        return {name: part for name, part in found.items() if part is not None}

    def counts(self) -> dict[str, int]:
        """Images and classes of each part, and what else was counted."""
        found = {}
        for name, part in self.parts().items():
            found[name] = len(part)
            if (part.labels >= 0).any():  # queries and galleries that come with lists have no labels
                found[f"{name} classes"] = len(np.unique(part.labels))
        return {**found, **self.more}

    def differences(self) -> list[str]:
        """Where this copy differs from what is expected of a whole one."""
        found = self.counts()
        return [
            f"{self.name}: {found[what]:,} {what} {'images ' if what in self.parts() else ''}found, "
            f"{count:,} expected ({found[what] - count:+,})"
            for what, count in self.expected.items()
            if what in found and found[what] != count
        ]

    def without(self, rows: IntArray, why: str) -> Listing:
        """The data set without some of its files, with a note; DataError where a part is left empty."""
        if not len(rows):
            return self
        lost = np.zeros(len(self.files), dtype=np.bool_)
        lost[rows] = True
        shown = ", ".join(printable(self.files.name(int(row))) for row in rows[:5]) + (" …" if len(rows) > 5 else "")
        left = replace(
            self,
            train=None if self.train is None else self.train.some(~lost[self.train.rows]),
            pool=None if self.pool is None else self.pool.some(~lost[self.pool.rows]),
            splits={name: split.without(lost) for name, split in self.splits.items()},
            notes=(*self.notes, f"{len(rows):,} {why} left out: {shown}"),
        )
        for (name, part), before in zip(left.parts().items(), self.parts().values(), strict=True):
            if len(before) and not len(part):
                where = f"in {self.files.where!r}: {shown}"
                raise DataError(f"{self.name}: none of the {len(before):,} {name} images is there {where}")
        return left

    def used_rows(self) -> IntArray:
        """Files that some part names, sorted."""
        parts = [part.rows for part in self.parts().values()]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *parts])).astype(np.int64)


def check(listing: Listing) -> None:
    """DataError where a part that the data set should have is empty."""
    for name, part in listing.parts().items():
        if not len(part):
            raise DataError(f"{listing.name}: the {name} part is empty in {listing.files.where!r}")


def present(listing: Listing) -> Listing:
    """Without the list rows whose files are missing; lists folders, opens no image."""
    if not isinstance(listing.files, Files):  # a packed store holds what it lists
        return listing
    rows = listing.used_rows()
    sizes = listing.files.root.sizes(listing.files.names_of(rows))
    return listing.without(rows[sizes < 0], "row(s) without a file")


def readable(listing: Listing) -> Listing:
    """Without the images that cannot be decoded; opens all."""
    lost = unreadable(listing.files, listing.used_rows())
    return listing.without(np.array(sorted(lost), dtype=np.int64), "unreadable image(s)")


def tests(listing: Listing, preprocessing: Preprocessing) -> dict[str, RetrievalTest]:
    """The retrieval tests of a listing, by split; their images are not opened yet."""
    return {name: _test(listing, split, preprocessing) for name, split in listing.splits.items()}


def _test(listing: Listing, split: Split, preprocessing: Preprocessing) -> RetrievalTest:
    def images(part: Part) -> Any:
        return ImageFiles(listing.files, part.rows, part.labels, preprocessing, crop=True, boxes=part.boxes)

    queries = images(split.queries)
    gallery = queries if split.gallery is None else images(split.gallery)
    cameras = None
    if split.gallery is not None and split.queries.cameras is not None and split.gallery.cameras is not None:
        cameras = (split.queries.cameras, split.gallery.cameras)
    alone = split.gallery is None
    return RetrievalTest(
        queries, gallery, alone, cameras, split.lists, split.recalls, split.protocol, classes=listing.classes
    )


def dataset(listing: Listing, config: DataConfig) -> Dataset:
    """Training set and tests of a listing; DataError where it has no training set or fewer than two classes."""
    if listing.train is None:
        raise DataError(
            f"{listing.name} has no training images: train on another data set (data.name, data.root) and test with "
            f"sweep.dataset={listing.name} sweep.root={config.root or 'ROOT'}"
        )
    check_classes(listing.train.labels, f"train part of {listing.files.where!r}")
    labels, names = _renumbered(listing.train.labels, listing.classes)
    preprocessing = Preprocessing.from_config(config)
    part = listing.train
    train = ImageFiles(listing.files, part.rows, labels, preprocessing, crop=False, boxes=part.boxes)
    found = tests(listing, preprocessing)
    tests_ = found.get("validation"), found["test"]
    return Dataset(listing.name, train.held(), names, *tests_, preprocessing, listed=train, notes=listing.notes)


def _renumbered(labels: IntArray, classes: Sequence[str]) -> tuple[IntArray, tuple[str, ...]]:
    """Labels 0 … n-1 of the classes that occur, and their names."""
    occurring, renumbered = np.unique(labels, return_inverse=True)
    return renumbered.astype(np.int64), tuple(classes[int(label)] for label in occurring)
