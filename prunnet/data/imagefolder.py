"""`imagefolder`: any folder (or .zip) of images, one folder a class at any depth.

Whole classes are held out: by class folder, by top folder (Omniglot's alphabets), or by a list in a file.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from prunnet.config import DataConfig
from prunnet.data.base import (
    Dataset,
    IntArray,
    MemoryImages,
    Pixels,
    RetrievalTest,
    check_classes,
    label_ids,
    split_queries,
)
from prunnet.data.transforms import Preprocessing
from prunnet.errors import DataError, unknown

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
MEMORY_BYTES = 2 * 2**30
"""Training sets that need no more are decoded once and kept; larger ones are decoded as they are read."""


@dataclass
class ImageFiles:
    """An image set whose images are decoded when they are read."""

    root: str
    names: list[str]
    """Posix paths below the root."""
    labels: IntArray
    preprocessing: Preprocessing
    crop: bool
    _archive: tuple[int, zipfile.ZipFile] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: npt.NDArray[np.integer]) -> Pixels:
        return np.stack([self.pixels(int(i)) for i in indices])

    def pixels(self, index: int) -> Pixels:
        """One image [C, S, S]; DataError with its name where it cannot be decoded."""
        name = self.names[index]
        try:
            with Image.open(io.BytesIO(self._bytes(name))) as image:
                return self.preprocessing.pixels(image, crop=self.crop)
        except (
            OSError,
            UnidentifiedImageError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as error:
            raise DataError(
                f"image {name!r} in {self.root!r} cannot be read ({type(error).__name__}); "
                "mend or remove it, or set data.skip_unreadable=true"
            ) from None

    def _bytes(self, name: str) -> bytes:
        if not self.root.endswith(".zip"):
            return (Path(self.root) / name).read_bytes()
        if self._archive is None or self._archive[0] != os.getpid():  # a file position is not shared by a fork
            self._archive = (os.getpid(), zipfile.ZipFile(self.root))
        return self._archive[1].read(name)

    def in_memory(self, *, skip_unreadable: bool = False) -> MemoryImages:
        """All images decoded; unreadable ones are left out, counted and named, where asked."""
        decoded: list[Pixels] = []
        readable = np.ones(len(self), dtype=bool)
        for index in range(len(self)):
            try:
                decoded.append(self.pixels(index))
            except DataError:
                if not skip_unreadable:
                    raise
                readable[index] = False
        if not readable.all():
            lost = [self.names[i] for i in np.flatnonzero(~readable)]
            shown = ", ".join(lost[:5]) + (" …" if len(lost) > 5 else "")
            warnings.warn(f"{len(lost)} unreadable image(s) left out: {shown}", stacklevel=2)
        if not decoded:
            raise DataError(f"no readable image in {self.root!r}")
        return MemoryImages(np.stack(decoded), self.labels[readable], self.preprocessing)


def load(config: DataConfig) -> Dataset:
    """The data set of a recipe's `data` section.

    Raises:
        DataError: no folder, no images, fewer than two classes in a part, a hold-out name that is not there,
            or (unless `skip_unreadable`) an image that cannot be decoded.
    """
    if not config.root:
        raise DataError("data.root is not set; imagefolder needs a folder (or .zip) with one folder of images a class")
    root = str(Path(config.root).expanduser())
    names = _image_names(root)
    folders = [str(PurePosixPath(name).parent) for name in names]
    part_of = _hold_out(sorted(set(folders)), config)
    preprocessing = Preprocessing.from_config(config)

    def files(part: str) -> tuple[ImageFiles, tuple[str, ...]] | None:
        keep = [i for i, folder in enumerate(folders) if part_of[folder] == part]
        if not keep:
            return None
        labels, classes = label_ids([folders[i] for i in keep])
        check_classes(labels, f"{part} part of {root!r}")
        crop = part != "train"
        return ImageFiles(root, [names[i] for i in keep], labels, preprocessing, crop), classes

    train, test, validation = files("train"), files("test"), files("validation")
    if train is None or test is None:
        raise DataError(f"{root!r}: the hold-out leaves no {'training' if train is None else 'test'} classes")
    bytes_needed = len(train[0]) * preprocessing.channels * preprocessing.resize**2
    keep_files = bytes_needed > MEMORY_BYTES and not config.skip_unreadable
    train_set = train[0] if keep_files else train[0].in_memory(skip_unreadable=config.skip_unreadable)
    return Dataset(
        "imagefolder",
        train_set,
        train[1],
        None if validation is None else _retrieval(validation[0], config),
        _retrieval(test[0], config),
        preprocessing,
    )


def _retrieval(files: ImageFiles, config: DataConfig) -> RetrievalTest:
    images = files.in_memory(skip_unreadable=config.skip_unreadable)
    if config.protocol == "leave_one_out":
        return RetrievalTest(images, images, leave_one_out=True)
    parts = split_queries(images.labels, config.queries_per_class, config.seed)
    if not all(map(len, parts)):
        raise DataError(
            f"data.queries_per_class={config.queries_per_class} leaves no gallery: classes have at most "
            f"{np.bincount(images.labels).max()} images"
        )
    query, gallery = (MemoryImages(images.pixels[p], images.labels[p], images.preprocessing) for p in parts)
    return RetrievalTest(query, gallery, leave_one_out=False)


def _image_names(root: str) -> list[str]:
    """Sorted posix paths of all images below a folder or in a zip; a single common top folder is kept."""
    path = Path(root)
    if path.suffix == ".zip" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                found = [name for name in archive.namelist() if not name.endswith("/")]
        except zipfile.BadZipFile:
            raise DataError(f"data.root={root!r} is not a zip file that can be read") from None
    elif path.is_dir():
        found = [
            (Path(folder) / name).relative_to(path).as_posix()
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
        ]
    else:
        raise DataError(f"data.root={root!r} is neither a folder nor a .zip file")
    images = sorted(name for name in found if PurePosixPath(name).suffix.lower() in SUFFIXES)
    classed = [name for name in images if len(PurePosixPath(name).parts) > 1]
    if not classed:
        raise DataError(
            f"data.root={root!r} holds {len(images)} images and none in a class folder; "
            f"wanted: ROOT/CLASS/image with one of {' '.join(sorted(SUFFIXES))}"
        )
    return classed


def _hold_out(classes: list[str], config: DataConfig) -> dict[str, str]:
    """Class folder -> train, validation or test."""
    common = os.path.commonpath(classes) if len(classes) > 1 else ""
    groups = {c: _group(c, common, config.holdout) for c in classes}
    names = sorted(set(groups.values()))
    test = _chosen(config.test, names, config)
    validation = _chosen(config.validation, names, config)
    if both := sorted(test & validation):
        raise DataError(f"held out for test and validation at once: {', '.join(both[:5])}")
    shuffled = [names[i] for i in np.random.default_rng(config.seed).permutation(len(names))]
    rest = [name for name in shuffled if name not in test | validation]
    if not test and config.test_fraction:
        count = max(_least(config), round(config.test_fraction * len(names)))
        test, rest = set(rest[:count]), rest[count:]
    if not validation and config.validation_fraction:
        count = round(config.validation_fraction * len(names))
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
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"hold-out list {path!r} cannot be read ({type(error).__name__})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
