"""Images that are decoded when they are read: from a folder, a .zip or a packed store, all in the same way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunnet.data.base import ImageSet, IntArray, MemoryImages, Pixels
from prunnet.data.sources.decode import decoded
from prunnet.data.sources.names import packed_names, unpacked_name, unpacked_names
from prunnet.data.sources.roots import Root
from prunnet.data.transforms import Preprocessing
from prunnet.errors import DataError
from prunnet.storage import hashing
from prunnet.storage.paths import cache

MEMORY_BYTES = 2**30
"""Sets that need no more as pixels are decoded once and kept; larger ones are decoded as they are read."""
Boxes = npt.NDArray[np.float32]
T = TypeVar("T")
_WAITING = 4096


class Encoded(Protocol):
    """A data set's images as they are stored, by row."""

    @property
    def where(self) -> str:
        """For messages."""
        ...

    def __len__(self) -> int: ...

    def name(self, row: int) -> str: ...

    def read(self, row: int) -> bytes | memoryview:
        """The file's bytes; OSError or KeyError where there are none."""
        ...

    def stamp(self, rows: IntArray) -> str:
        """Hash that changes when one of these images does."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files of a folder or .zip. The names are one Arrow buffer (`packed_names`): a forked process shares it, and
    no list of two million strings is kept."""

    root: Root
    names: pa.LargeStringArray

    @classmethod
    def of(cls, root: Root, names: Sequence[str]) -> Files:
        return cls(root, packed_names(names))

    @property
    def where(self) -> str:
        return self.root.path

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return unpacked_name(self.names[row])

    def names_of(self, rows: IntArray) -> list[str]:
        return unpacked_names(self.names.take(pa.array(rows)))

    def read(self, row: int) -> bytes:
        return self.root.read(self.name(row))

    def stamp(self, rows: IntArray) -> str:
        """Of names and sizes: nothing is read."""
        names = self.names_of(rows)
        return hashing.of_json([hashing.of_json(names), hashing.of_arrays({"sizes": self.root.sizes(names)})])


@dataclass(frozen=True)
class ImageFiles:
    """An image set over some rows of a data set's files."""

    files: Encoded
    rows: IntArray
    labels: IntArray
    preprocessing: Preprocessing
    crop: bool
    boxes: Boxes | None = None
    """[n, 4] left, top, right, bottom of what counts of each image; a row of NaN: all of it."""

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: npt.NDArray[np.integer]) -> Pixels:
        return np.stack([self.pixels(int(i)) for i in indices])

    def pixels(self, index: int) -> Pixels:
        """One image [C, S, S]; DataError with its name where it cannot be decoded."""
        row = int(self.rows[index])
        name = self.files.name(row)
        box = None if self.boxes is None or np.isnan(self.boxes[index]).any() else self.boxes[index].tolist()
        try:
            image = decoded(self.files.read(row), name, box, self.preprocessing.background)
        except (DataError, OSError, KeyError) as error:
            reason = _why(error, name)
            raise DataError(
                f"{reason}, in {self.files.where!r}; mend or remove it, or set data.skip_unreadable=true"
            ) from None
        return self.preprocessing.pixels(image, crop=self.crop)

    def fingerprint(self) -> str:
        parts: dict[str, npt.NDArray[Any]] = {"labels": self.labels}
        if self.boxes is not None:
            parts["boxes"] = self.boxes
        return hashing.of_json([self.files.stamp(self.rows), hashing.of_arrays(parts)])

    def origin(self, how: str) -> dict[str, Any]:
        """What these images are made of, part by part, as JSON; see `prunnet.data.base.changed`.

        Args:
            how: `data.fingerprint`; content reads every file.
        """
        labels: dict[str, npt.NDArray[Any]] = {"labels": self.labels}
        if self.boxes is not None:
            labels["boxes"] = self.boxes
        found: dict[str, Any] = {"images": len(self), "labels": hashing.of_arrays(labels)}
        if not isinstance(self.files, Files):  # a store or an array, which know what they hold
            return {**found, "content": self.files.stamp(self.rows)}
        root, names = self.files.root, self.files.names_of(self.rows)
        found |= {"names": hashing.of_json(names), "sizes": hashing.of_arrays({"sizes": root.sizes(names)})}
        copied = Path(root.path).is_relative_to(cache())  # then times are those of the copy, whose folder knows better
        times = Path(root.path).relative_to(cache()).parts[:1] if copied else root.times(names).tolist()
        found["times"] = hashing.of_json(times)
        if how == "content":
            digests = in_threads(
                lambda i: hashlib.sha256(self.files.read(int(self.rows[i]))).hexdigest(), range(len(self))
            )
            found["content"] = hashing.of_json(list(digests))
        return found

    @property
    def bytes_as_pixels(self) -> int:
        side = self.preprocessing.image_size if self.crop else self.preprocessing.resize
        return len(self) * self.preprocessing.channels * side**2

    def held(self) -> ImageSet:
        """In memory where it is small, otherwise as it is."""
        if self.bytes_as_pixels > MEMORY_BYTES or self.preprocessing.long_side:
            return self
        return MemoryImages(np.stack(list(in_threads(self.pixels, range(len(self))))), self.labels, self.preprocessing)


def _why(error: Exception, name: str) -> str:
    if isinstance(error, DataError):
        return str(error)
    return f"image {name!r}: {(isinstance(error, OSError) and error.strerror) or type(error).__name__}"


def unreadable(files: Encoded, rows: IntArray, advance: Callable[[int], None] = lambda n: None) -> dict[int, str]:
    """Row -> reason of every image that cannot be decoded; each is opened once, in parallel."""

    def reason(row: int) -> str | None:
        try:
            decoded(files.read(row), files.name(row))
        except (DataError, OSError, KeyError) as error:
            return _why(error, files.name(row))
        return None

    found = {}
    for row, why in zip(rows.tolist(), in_threads(reason, rows.tolist()), strict=True):
        advance(1)
        if why is not None:
            found[row] = why
    return found


def in_threads(function: Callable[[int], T], items: Sequence[int]) -> Iterator[T]:
    """The function of every item, in order; a part at a time, since an item that waits costs a kilobyte."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow lets go of the interpreter while it decodes
        for start in range(0, len(items), _WAITING):
            yield from threads.map(function, items[start : start + _WAITING])
