"""A data set's files in a folder.

Symbolic links are followed, out of the tree too, since collections are often put together of them; but a folder is
walked once and an image listed once. So a link is passed over, and counted, that leads to a folder above or to what is
listed already; what is no link comes first, then links in the order of their names. Pipes, sockets and devices are
never opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunnet.data.sources.names import MAX_BYTES, Walk, is_litter
from prunnet.errors import DataError
from prunnet.storage.paths import at_once

_AGAIN = "link(s) to what is listed already"
_ABOVE = "link(s) to a folder above"
_BROKEN = "link(s) that lead nowhere"
_SPECIAL = "pipe(s), socket(s) and device(s)"
_HIDDEN = "hidden file(s) and folder(s)"


@dataclass(frozen=True)
class Folder:
    path: str

    def walk(self) -> Walk:
        walker = _Walker(self.path)
        walker.folder("", walker.root)
        while walker.links:
            walker.follow()
        walker.found.images.sort()
        return walker.found

    def read(self, name: str) -> bytes:
        with open(os.path.join(self.path, name), "rb", opener=at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise OSError(f"{name!r} is no file")
            if about.st_size > MAX_BYTES:
                raise DataError(f"{name!r} is refused: it is of {about.st_size:,} bytes; valid: up to {MAX_BYTES:,}")
            return file.read()

    def has_folder(self, name: str) -> bool:
        return os.path.isdir(os.path.join(self.path, name))

    def folders(self) -> list[str]:
        try:
            with os.scandir(self.path) as entries:
                found = [entry.name for entry in entries if entry.is_dir()]
        except OSError as error:
            raise DataError(f"{self.path!r} cannot be listed ({error.strerror})") from None
        return sorted(name for name in found if not is_litter(name) and not name.startswith("."))

    def inside(self, folder: str) -> Folder:
        return Folder(os.path.join(self.path, folder))

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
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise DataError(f"folder {folder!r} in {self.path!r} cannot be listed ({error.strerror})") from None


class _Walker:
    """One walk through a folder."""

    def __init__(self, path: str) -> None:
        self.path, self.root = path, os.path.realpath(path)
        self.found = Walk()
        self.links: list[str] = []
        self._walked: set[str] = set()
        """Real paths of folders."""
        self._listed: set[str] | None = None
        """Real paths of images; made when a link is met."""

    def folder(self, name: str, real: str) -> None:
        """Lists a folder, all folders below it, and remembers the links."""
        waiting = [(name, real)]
        while waiting:
            name, real = waiting.pop()
            self._walked.add(real)
            try:
                with os.scandir(os.path.join(self.path, name)) as entries:
                    for entry in entries:
                        self._entry(entry, name, real, waiting)
            except OSError as error:
                if not name:
                    raise DataError(f"{self.path!r} cannot be listed ({error.strerror})") from None
                self.found.unlisted.append(name)

    def _entry(self, entry: os.DirEntry[str], name: str, real: str, waiting: list[tuple[str, str]]) -> None:
        if is_litter(entry.name):
            return
        inside, passed = f"{name}/{entry.name}" if name else entry.name, self.found.passed
        if entry.name.startswith("."):
            passed[_HIDDEN] += 1
        elif entry.is_symlink():
            self.links.append(inside)
        elif entry.is_dir(follow_symlinks=False):
            folder = os.path.join(real, entry.name)
            if folder in self._walked:  # below a linked folder, and linked by itself before
                passed[_AGAIN] += 1
            else:
                waiting.append((inside, folder))
        elif not entry.is_file(follow_symlinks=False):
            passed[_SPECIAL] += 1
        elif self._listed is None:
            self.found.add(inside, self.path)
        else:
            self._add_once(inside, os.path.join(real, entry.name))

    def follow(self) -> None:
        """Follows the links that were met so far; those met meanwhile come next."""
        links, self.links = sorted(self.links), []
        if self._listed is None:
            self._listed = {os.path.join(self.root, name) for name in self.found.images}
        for link in links:
            path = os.path.join(self.path, link)
            real = os.path.realpath(path)
            try:
                mode = os.stat(path).st_mode
            except OSError:
                self.found.passed[_BROKEN] += 1
                continue
            if stat.S_ISREG(mode):
                self._add_once(link, real)
            elif not stat.S_ISDIR(mode):
                self.found.passed[_SPECIAL] += 1
            elif f"{self.root}/".startswith(f"{real.rstrip('/')}/"):
                self.found.passed[_ABOVE] += 1
            elif real in self._walked:
                self.found.passed[_AGAIN] += 1
            else:
                self.folder(link, real)

    def _add_once(self, name: str, real: str) -> None:
        assert self._listed is not None
        if real in self._listed:
            self.found.passed[_AGAIN] += 1
        elif self.found.add(name, self.path):
            self._listed.add(real)
