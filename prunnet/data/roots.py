"""Where a data set's files lie: a folder, or a .zip. Names are posix paths below it and cannot climb out."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prunnet.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


class Root(Protocol):
    """The files of a data set."""

    @property
    def path(self) -> str: ...

    def names(self) -> list[str]:
        """All files, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """OSError or KeyError where it is not there."""
        ...

    def has_folder(self, name: str) -> bool: ...

    def sizes(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        """Bytes of each file, -1 where there is none; in seconds for a million."""
        ...

    def times(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        """A number of each file that changes when it is written: its modification time in ns, in a .zip its CRC-32."""
        ...


def open_root(root: str | None, needs: str) -> Root:
    """A folder or a .zip; DataError where it is neither. `needs` says what is wanted there."""
    if not root:
        raise DataError(f"data.root is not set; {needs}")
    path = Path(root).expanduser()
    if path.is_dir():
        return Folder(str(path))
    if path.suffix == ".zip" and path.is_file():
        return Zip(str(path))
    raise DataError(f"{root!r} is neither a folder nor a .zip file; {needs}")


@dataclass(frozen=True)
class Folder:
    path: str

    def names(self) -> list[str]:
        return sorted(self._walked())

    def _walked(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.path, followlinks=True):
            below = os.path.relpath(folder, self.path).replace(os.sep, "/")
            yield from files if below == "." else (f"{below}/{name}" for name in files)

    def read(self, name: str) -> bytes:
        return (Path(self.path) / name).read_bytes()

    def has_folder(self, name: str) -> bool:
        return (Path(self.path) / name).is_dir()

    def sizes(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        return self._of_each(names, "st_size")

    def times(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        return self._of_each(names, "st_mtime_ns")

    def _of_each(self, names: Iterable[str], what: str) -> npt.NDArray[np.int64]:
        listed: dict[str, dict[str, int]] = {}
        found = []
        for name in names:
            folder, _, file = name.rpartition("/")
            if folder not in listed:  # one look at a folder is cheaper than one at each of its files
                listed[folder] = self._folder(folder, what)
            found.append(listed[folder].get(file, -1))
        return np.array(found, dtype=np.int64)

    def _folder(self, folder: str, what: str) -> dict[str, int]:
        try:
            with os.scandir(os.path.join(self.path, folder)) as entries:
                return {entry.name: getattr(entry.stat(), what) for entry in entries if entry.is_file()}
        except OSError:
            return {}


@dataclass
class Zip:
    path: str
    _archive: tuple[int, zipfile.ZipFile] | None = field(default=None, repr=False, compare=False)

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._archive[0] != os.getpid():  # a file position is not shared by a fork
            try:
                self._archive = (os.getpid(), zipfile.ZipFile(self.path))
            except zipfile.BadZipFile:
                raise DataError(f"data.root={self.path!r} is not a zip file that can be read") from None
        return self._archive[1]

    def names(self) -> list[str]:
        return sorted(name for name in self._open().namelist() if not name.endswith("/"))

    def read(self, name: str) -> bytes:
        try:
            return self._open().read(name)
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
        ) as error:  # torn, or packed in a way unknown here
            raise OSError(str(error)) from None

    def has_folder(self, name: str) -> bool:
        return any(known.startswith(f"{name}/") for known in self._open().namelist())

    def sizes(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        return self._of_each(names, "file_size")

    def times(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        return self._of_each(names, "CRC")

    def _of_each(self, names: Iterable[str], what: str) -> npt.NDArray[np.int64]:
        known = {info.filename: getattr(info, what) for info in self._open().infolist()}
        return np.array([known.get(name, -1) for name in names], dtype=np.int64)

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_archive": None}


def image_names(root: Root) -> list[str]:
    """All files that look like images, by their suffix."""
    return [name for name in root.names() if PurePosixPath(name).suffix.lower() in SUFFIXES]


def below(name: str, where: str) -> str:
    """A name from a list, made plain; DataError where it climbs out of the root or is none at all."""
    plain = name.strip().replace("\\", "/")
    parts = PurePosixPath(plain).parts
    if not parts or ".." in parts or plain.startswith("/") or ":" in parts[0] or "\0" in plain:
        raise DataError(f"{where}: path {name!r} does not stay below the data set's root")
    return "/".join(part for part in parts if part != ".")
