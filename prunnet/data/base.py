"""What every data set provides: images to train on, and a retrieval test on classes that training never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError, DataError
from prunnet.retrieval.protocol import Truth
from prunnet.storage import hashing

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
        """Pixels [len(indices), C, S, S] in 0 … 255; training sets before the crop, tests after it. Under a
        preprocessing without crop, [1, C, H, W] of a single index."""
        ...

    def fingerprint(self) -> str:
        """Hash of images and labels, preprocessing aside where the images are files."""
        ...

    def held(self) -> ImageSet:
        """The same set, decoded and in memory where it is small enough."""
        ...


class Listed(Protocol):
    """Images that are files, which may be written to after a training."""

    def origin(self, how: str) -> dict[str, Any]: ...


def changed(before: Mapping[str, Any], now: Mapping[str, Any], how: str) -> str | None:
    """The differences between the origins of two lists of images, in words; None if there is none that counts.

    Args:
        how: `data.fingerprint`. With content, or where both have it, sizes and times do not count.
    """
    if before["images"] != now["images"]:
        return f"{before['images']:,} images then, {now['images']:,} now"
    parts = {"names": "names", "labels": "classes"}
    if "content" in before and "content" in now:
        parts["content"] = "contents"
    else:
        parts |= {"sizes": "sizes"} if how == "sizes" else {"sizes": "sizes", "times": "modification times"}
    said = [words for part, words in parts.items() if before.get(part) != now.get(part)]
    return f"other {' and '.join(said)} of images" if said else None


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

    def fingerprint(self) -> str:
        return hashing.of_arrays({"pixels": self.pixels, "labels": self.labels})

    def held(self) -> ImageSet:
        return self


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

    def fingerprint(self) -> str:
        own = hashing.of_arrays({"indices": self.indices, "labels": self.labels})
        return hashing.of_json([self.images.fingerprint(), own])

    def held(self) -> ImageSet:
        return replace(self, images=self.images.held())


@dataclass(frozen=True)
class SeenAs:
    """Another set under another preprocessing that makes the same pixels."""

    images: ImageSet
    preprocessing: Preprocessing

    @property
    def labels(self) -> IntArray:
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: npt.NDArray[np.integer]) -> Pixels:
        return self.images.read(indices)

    def fingerprint(self) -> str:
        return self.images.fingerprint()

    def held(self) -> ImageSet:
        return replace(self, images=self.images.held())


@dataclass(frozen=True)
class RetrievalTest:
    """Queries, a gallery, and the ground truth of each query.

    `leave_one_out`: queries and gallery are the same object, and a query's own image is junk for it.
    Without `lists`, gallery images of a query's label are relevant, and with `cameras` those of its label *and* camera
    are junk.
    """

    queries: ImageSet
    gallery: ImageSet
    leave_one_out: bool
    cameras: tuple[IntArray, IntArray] | None = None
    """Of queries [Q] and gallery [G]."""
    lists: Mapping[str, Sequence[IntArray]] | None = None
    """`relevant` or `easy` and `hard`, and `junk`: gallery indices, one array a query."""
    recalls: tuple[int, ...] = (1, 5, 10)
    """Cut-offs of Recall@k that the benchmark reports."""
    protocol: str = ""
    classes: Sequence[str] = ()
    """Names by label, of queries and gallery alike; empty where they are not known."""

    @property
    def protocol_name(self) -> str:
        return self.protocol or ("leave_one_out" if self.leave_one_out else "query_gallery")

    def class_name(self, label: int) -> str:
        """ "" where it is not known."""
        return self.classes[label] if 0 <= label < len(self.classes) else ""

    def relevant(self) -> list[IntArray]:
        """Gallery indices of what each query should find, one array a query; the easy ones of Revisited tests."""
        if self.lists is not None:
            return list(self.lists["easy" if "hard" in self.lists else "relevant"])
        found = self._same_label()
        return [f[f != q] for q, f in enumerate(found)] if self.leave_one_out else found

    def junk(self) -> list[IntArray] | None:
        """Gallery indices to be removed from each query's ranking."""
        if self.lists is not None:
            return list(self.lists["junk"]) if "junk" in self.lists else None
        if self.cameras is not None:
            of_query, of_gallery = self.cameras
            same = self._same_label()
            return [f[of_gallery[f] == camera] for f, camera in zip(same, of_query, strict=True)]
        return [np.array([q]) for q in range(len(self.queries))] if self.leave_one_out else None

    def truth(self) -> Truth:
        """What the metrics need."""
        hard = list(self.lists["hard"]) if self.lists is not None and "hard" in self.lists else None
        return Truth(self.relevant(), self.junk(), hard, self.recalls, self.leave_one_out)

    def seen_as(self, preprocessing: Preprocessing) -> RetrievalTest:
        """The same test of other views of the same pixels."""
        queries = SeenAs(self.queries, preprocessing)
        gallery = queries if self.leave_one_out else SeenAs(self.gallery, preprocessing)
        return replace(self, queries=queries, gallery=gallery)

    def held(self) -> RetrievalTest:
        """The same test with its images in memory, where they are few enough; DataError for one that is unreadable."""
        queries = self.queries.held()
        return replace(self, queries=queries, gallery=queries if self.leave_one_out else self.gallery.held())

    def _same_label(self) -> list[IntArray]:
        order = np.argsort(self.gallery.labels, kind="stable")
        sorted_labels = self.gallery.labels[order]
        first = np.searchsorted(sorted_labels, self.queries.labels, side="left")
        last = np.searchsorted(sorted_labels, self.queries.labels, side="right")
        return [order[a:b] for a, b in zip(first, last, strict=True)]

    def fingerprint(self) -> str:
        """Hash of all that the test's outcome depends on, beside the preprocessing."""
        parts: dict[str, Any] = {"queries": self.queries.fingerprint(), "protocol": self.protocol_name}
        if not self.leave_one_out:
            parts["gallery"] = self.gallery.fingerprint()
        if self.cameras is not None:
            parts["cameras"] = hashing.of_arrays(dict(zip(("queries", "gallery"), self.cameras, strict=True)))
        if self.lists is not None:
            parts["lists"] = {name: _of_groups(groups) for name, groups in self.lists.items()}
        return hashing.of_json(parts)


def _of_groups(groups: Sequence[IntArray]) -> str:
    flat = np.concatenate([np.zeros(0, np.int64), *groups])
    return hashing.of_arrays({"flat": flat, "lengths": np.array([len(g) for g in groups])})


@dataclass(frozen=True)
class Dataset:
    """A data set cut into training, validation and test parts. Its classes are not in two of them, unless the benchmark
    itself is closed (CIFAR-100)."""

    name: str
    train: ImageSet
    class_names: tuple[str, ...]
    """Of the training classes, by label."""
    validation: RetrievalTest | None
    test: RetrievalTest
    preprocessing: Preprocessing
    listed: Listed | None = None
    """The training images as they are stored, where they are files."""
    notes: tuple[str, ...] = ()
    """What a user should know of this copy: counts that differ, rows without files."""

    def holding(self, split: str) -> Dataset:
        """With the images of one of its tests in memory, where they are few enough."""
        if split == "validation" and self.validation is not None:
            return replace(self, validation=self.validation.held())
        return replace(self, test=self.test.held()) if split == "test" else self

    def origin(self, how: str) -> dict[str, Any] | None:
        """What the training images are made of (`changed` compares two); None where they are rendered."""
        return None if self.listed is None else self.listed.origin(how)

    def split(self, name: str) -> RetrievalTest:
        """`test` or `validation`; DataError where the recipe left no class for it."""
        chosen = self.test if name == "test" else self.validation
        if chosen is None:
            raise DataError(f"data set {self.name!r} has no {name} classes; set data.{name} or data.{name}_fraction")
        return chosen


def check_images(before: Mapping[str, Any] | None, dataset: Dataset, how: str, what: str) -> None:
    """DataError where the training images are not those that `what` was trained on, as far as both say.

    Args:
        how: `data.fingerprint`.
    """
    now = dataset.origin(how) if before else None
    if before and now and (said := changed(before, now, how)):
        accept = "; data.fingerprint=sizes looks at no times" if said == "other modification times of images" else ""
        raise DataError(
            f"{what} was trained on other images ({said}): --fresh trains anew, another name keeps both{accept}"
        )


def check_classes(labels: IntArray, what: str) -> None:
    """DataError for fewer than two classes."""
    found = len(np.unique(labels))
    if found < 2:
        raise DataError(f"{what}: {found} class(es) with images found; at least 2 are needed")


def some_classes(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The data set with a share of its training classes (at least two), drawn from the seed; tests stay."""
    total = len(dataset.class_names)
    count = max(2, int(fraction * total + 1e-9))  # 30% of 81,313 are the paper's 24,393
    chosen = np.sort(np.random.default_rng([seed, 4]).permutation(total)[:count])
    indices = np.flatnonzero(np.isin(dataset.train.labels, chosen))
    labels = np.searchsorted(chosen, dataset.train.labels[indices]).astype(np.int64)
    names = tuple(dataset.class_names[label] for label in chosen)
    return replace(dataset, train=SomeImages(dataset.train, indices, labels), class_names=names)


def some_of(test: RetrievalTest, images: int, seed: int) -> RetrievalTest:
    """The test with some of its classes, whole, drawn from the seed: at least two, and at least so many gallery images
    where it has them. ConfigError where a benchmark's lists, not classes, define the positives."""
    if len(test.gallery) <= images:
        return test
    if test.lists is not None:
        raise ConfigError(
            f"{len(test.gallery)} gallery images with lists of their own cannot be brought down to {images}; valid: "
            "all, or a validation set of whole classes (data.validation_fraction)"
        )
    classes, counts = np.unique(test.gallery.labels, return_counts=True)
    order = np.random.default_rng([seed, 5]).permutation(len(classes))
    enough = max(2, int(np.searchsorted(np.cumsum(counts[order]), images)) + 1)
    chosen = classes[order[:enough]]

    def part(images: ImageSet) -> tuple[SomeImages, IntArray]:
        kept = np.flatnonzero(np.isin(images.labels, chosen))
        return SomeImages(images, kept, images.labels[kept]), kept

    gallery, of_gallery = part(test.gallery)
    queries, of_queries = (gallery, of_gallery) if test.leave_one_out else part(test.queries)
    cameras = None
    if test.cameras is not None:
        cameras = (test.cameras[0][of_queries], test.cameras[1][of_gallery])
    return replace(test, queries=queries, gallery=gallery, cameras=cameras)


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
