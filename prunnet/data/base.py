"""What every data set hands out: images to train on, and a retrieval test on classes that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from prunnet import hashing
from prunnet.data.transforms import Preprocessing
from prunnet.errors import DataError

IntArray = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class ImageSet(Protocol):
    """Images of one size with class labels; `read` may decode."""

    @property
    def labels(self) -> IntArray:
        """[n], 0 … classes-1."""
        ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    def __len__(self) -> int: ...

    def read(self, indices: npt.NDArray[np.integer]) -> Pixels:
        """Pixels [len(indices), C, S, S] in 0 … 255; training sets before the crop, tests after it."""
        ...


@dataclass(frozen=True)
class MemoryImages:
    """An image set held as one array."""

    pixels: Pixels
    labels: IntArray
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: npt.NDArray[np.integer]) -> Pixels:
        return self.pixels[indices]


@dataclass(frozen=True)
class SomeImages:
    """Some images of another set, with labels of their own."""

    images: ImageSet
    indices: IntArray
    labels: IntArray

    @property
    def preprocessing(self) -> Preprocessing:
        return self.images.preprocessing

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: npt.NDArray[np.integer]) -> Pixels:
        return self.images.read(self.indices[indices])


@dataclass(frozen=True)
class RetrievalTest:
    """Queries and a gallery with their classes.

    `leave_one_out`: queries and gallery are the same images, and a query's own image is junk for it.
    """

    queries: MemoryImages
    gallery: MemoryImages
    leave_one_out: bool

    def relevant(self) -> list[IntArray]:
        """Gallery indices of each query's class (without the query itself), one array a query."""
        order = np.argsort(self.gallery.labels, kind="stable")
        sorted_labels = self.gallery.labels[order]
        first = np.searchsorted(sorted_labels, self.queries.labels, side="left")
        last = np.searchsorted(sorted_labels, self.queries.labels, side="right")
        found = [order[a:b] for a, b in zip(first, last, strict=True)]
        return [f[f != q] for q, f in enumerate(found)] if self.leave_one_out else found

    def junk(self) -> list[IntArray] | None:
        """Gallery indices to be removed from each query's ranking."""
        return [np.array([q]) for q in range(len(self.queries))] if self.leave_one_out else None

    def fingerprint(self) -> str:
        """Hash of all that the test's outcome depends on."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "queries": self.queries.pixels,
            "query_labels": self.queries.labels,
            "gallery": self.gallery.pixels,
            "gallery_labels": self.gallery.labels,
            "leave_one_out": np.array(self.leave_one_out),
        }
        return hashing.of_arrays(arrays)


@dataclass(frozen=True)
class Dataset:
    """A data set cut into training, validation and test *classes*; no class is in two of them."""

    name: str
    train: ImageSet
    class_names: tuple[str, ...]
    """Of the training classes, by label."""
    validation: RetrievalTest | None
    test: RetrievalTest
    preprocessing: Preprocessing

    def split(self, name: str) -> RetrievalTest:
        """`test` or `validation`; DataError where the recipe left no class for it."""
        chosen = self.test if name == "test" else self.validation
        if chosen is None:
            raise DataError(f"data set {self.name!r} has no {name} classes; set data.{name} or data.{name}_fraction")
        return chosen


def check_classes(labels: IntArray, what: str) -> None:
    """At least two classes, or nothing can be told apart."""
    found = len(np.unique(labels))
    if found < 2:
        raise DataError(f"{what}: {found} class(es) with images found; at least 2 are needed")


def some_classes(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The data set with a share of its training classes (at least two), drawn from the seed; tests stay."""
    total = len(dataset.class_names)
    count = max(2, round(fraction * total))
    chosen = np.sort(np.random.default_rng([seed, 4]).permutation(total)[:count])
    indices = np.flatnonzero(np.isin(dataset.train.labels, chosen))
    labels = np.searchsorted(chosen, dataset.train.labels[indices]).astype(np.int64)
    names = tuple(dataset.class_names[label] for label in chosen)
    return replace(dataset, train=SomeImages(dataset.train, indices, labels), class_names=names)


def split_queries(labels: IntArray, per_class: int, seed: int) -> tuple[IntArray, IntArray]:
    """Indices of `per_class` queries of every class, drawn from the seed, and of the gallery (the others)."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    is_query = np.arange(len(labels)) - starts < per_class
    return np.sort(by_class[is_query]), np.sort(by_class[~is_query])


def label_ids(names: Sequence[str]) -> tuple[IntArray, tuple[str, ...]]:
    """Class names, one an image -> labels [n] and the sorted class names."""
    unique, labels = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    return labels.astype(np.int64), tuple(unique.tolist())
