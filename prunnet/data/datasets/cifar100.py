"""`cifar100`: 32 px colour images in torchvision's layout. A closed benchmark: training and test share their hundred
classes, and the test images search among themselves.

    ROOT/cifar-100-python/train  test  meta        data.download=true fetches them through torchvision
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunnet.config.recipe import DataConfig
from prunnet.data.base import IntArray, Pixels
from prunnet.data.datasets.download import fetched
from prunnet.data.datasets.lists import Lists
from prunnet.data.datasets.pickles import unpickled
from prunnet.data.description import Reader
from prunnet.data.listing import Listing, Part, Split
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError
from prunnet.storage import hashing

HOME = "cs.toronto.edu/~kriz/cifar.html"
FOLDER = "cifar-100-python"
EXPECTED = {"train": 50_000, "train classes": 100, "query": 10_000, "query classes": 100}
_SIDE = 32


@dataclass(frozen=True)
class Rows:
    """Images that come as rows of an array, handed out as small PPM files so that they are read as all others are."""

    where: str
    pixels: Pixels
    """[n, 3072], channel by channel."""

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, row: int) -> str:
        return f"{row:05d}.ppm"

    def read(self, row: int) -> bytes:
        image = self.pixels[row].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
        return b"P6 %d %d 255\n" % (_SIDE, _SIDE) + image.tobytes()

    def stamp(self, rows: IntArray) -> str:
        return hashing.of_json(hashlib.sha256(self.pixels[rows].tobytes()).hexdigest())


def read(config: DataConfig) -> Listing:
    """The arrays of a copy; DataError where a file is missing, not mere data, or of another form."""
    fetched(config, "CIFAR100", FOLDER)
    root = open_root(config.root, f"cifar100 needs the folder with {FOLDER}, from {HOME}", holds=(FOLDER,))
    lists = Lists(root, HOME)
    given = _field(lists, "meta", "fine_label_names")
    if not isinstance(given, (list, tuple)):
        raise DataError(f"{FOLDER}/meta: fine_label_names is a {type(given).__name__}; valid: a list")
    names = [str(name) for name in given]
    parts = [_images(lists, part, len(names)) for part in ("train", "test")]
    files = Rows(root.path, np.concatenate([pixels for pixels, _ in parts]))
    everything = Part(np.arange(len(files)), np.concatenate([labels for _, labels in parts]))
    count = len(parts[0][0])
    train, test = everything.some(np.arange(count)), everything.some(np.arange(count, len(files)))
    splits = {"test": Split(test, None, "leave_one_out")}
    return Listing("cifar100", files, names, train, splits, expected=EXPECTED)


def _images(lists: Lists, part: str, classes: int) -> tuple[Pixels, IntArray]:
    try:
        pixels = np.asarray(_field(lists, part, "data"))
        labels = np.asarray(_field(lists, part, "fine_labels"))
    except ValueError as error:
        raise DataError(f"{FOLDER}/{part} has another form ({error})") from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{part}: fine_labels are {labels.dtype} {list(labels.shape)}; valid: whole numbers, one an image"
        )
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * _SIDE**2):
        raise DataError(f"{part}: data are {pixels.dtype} {list(pixels.shape)}; valid: uint8 [{len(labels)}, 3072]")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"{part}: a label is {labels.max()}; valid: 0 … {classes - 1}")
    return pixels, labels.astype(np.int64)


def _field(lists: Lists, file: str, key: str) -> Any:
    found = unpickled(lists.bytes(f"{FOLDER}/{file}", file), file)
    if not isinstance(found, dict) or key not in found:
        raise DataError(f"{FOLDER}/{file} has no {key!r}")
    return found[key]


DATASET = Reader("CIFAR-100: 32 px colour images of a hundred classes", read, options=("download",))
