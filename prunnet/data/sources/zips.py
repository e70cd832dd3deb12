"""A data set's files in a .zip, read without unpacking."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prunnet.data.sources.names import MAX_BYTES, MOST, Walk, climbs, is_litter
from prunnet.errors import DataError, one_line

_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members may be packed. Of the others zipfile unpacks whole blocks, whatever their size becomes."""


@dataclass(frozen=True)
class _Archive:
    process: int
    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    """Files by posix path; of two that share one, the later, as unpacking would leave it."""
    passed: Counter[str]


@dataclass
class Zip:
    path: str
    prefix: str = ""
    """The folder in the archive that counts as its top, with a slash at its end."""
    _archive: _Archive | None = field(default=None, repr=False, compare=False)

    def _open(self) -> _Archive:
        if self._archive is None or self._archive.process != os.getpid():  # a file position is not shared by a fork
            try:
                archive = zipfile.ZipFile(self.path)
            except Exception as error:  # BadZipFile, and what zipfile's parser trips over in torn headers
                why = one_line(error)[:100]
                raise DataError(f"data.root={self.path!r} is not a zip file that can be read ({why})") from None
            self._archive = _Archive(os.getpid(), archive, *_members(archive, self.path))
        return self._archive

    def walk(self) -> Walk:
        archive, found = self._open(), Walk()
        found.passed.update(archive.passed)
        for name in archive.members:
            inside = name.removeprefix(self.prefix)
            if not name.startswith(self.prefix) or any(map(is_litter, inside.split("/"))):
                continue
            if any(part.startswith(".") for part in inside.split("/")):
                found.passed["hidden file(s)"] += 1
            else:
                found.add(inside, self.path)
        found.images.sort()
        return found

    def read(self, name: str) -> bytes:
        archive = self._open()
        member = archive.members[self.prefix + name]
        if member.file_size > MAX_BYTES:
            claimed = f"it claims {member.file_size:,} bytes; valid: up to {MAX_BYTES:,}"
            raise DataError(f"{name!r} in {self.path!r} is refused: {claimed}")
        if member.compress_type not in _PLAIN:
            raise DataError(f"{name!r} in {self.path!r} is packed by a method other than deflate; zip it again")
        try:
            with archive.file.open(member) as file:
                # No more than the header claims, whatever the packed bytes would become.
                content = file.read(member.file_size)
        except Exception as error:  # encrypted, wrong checksum, torn
            why = one_line(error)[:150]
            raise DataError(f"{name!r} in {self.path!r} cannot be read ({why})") from None
        if len(content) != member.file_size:
            raise DataError(f"{name!r} in {self.path!r} is torn: {len(content):,} of {member.file_size:,} bytes")
        return content

    def has_folder(self, name: str) -> bool:
        return any(known.startswith(f"{self.prefix}{name}/") for known in self._open().members)

    def folders(self) -> list[str]:
        inside = (name.removeprefix(self.prefix) for name in self._open().members if name.startswith(self.prefix))
        found = {name.partition("/")[0] for name in inside if "/" in name}
        return sorted(name for name in found if not is_litter(name) and not name.startswith("."))

    def inside(self, folder: str) -> Zip:
        return Zip(self.path, f"{self.prefix}{folder}/", self._archive)

    def sizes(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        return self._of_each(names, "file_size")

    def times(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        return self._of_each(names, "CRC")

    def _of_each(self, names: Iterable[str], what: str) -> npt.NDArray[np.int64]:
        members = self._open().members
        found = [members.get(self.prefix + name) for name in names]
        return np.array([-1 if member is None else getattr(member, what) for member in found], dtype=np.int64)

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "prefix": self.prefix, "_archive": None}


def _members(archive: zipfile.ZipFile, path: str) -> tuple[dict[str, zipfile.ZipInfo], Counter[str]]:
    """Files by name, and what is none, counted. Some programs of Windows write back-slashes."""
    found: dict[str, zipfile.ZipInfo] = {}
    passed: Counter[str] = Counter()
    if len(archive.infolist()) > MOST:
        raise DataError(f"{path!r} holds more than {MOST:,} files")
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if name.endswith("/"):
            continue
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
        if not name or climbs(name):
            passed["member(s) with a path that climbs"] += 1
        elif kind not in (0, stat.S_IFREG):
            passed["link(s) and special file(s)"] += 1
        else:
            passed["member(s) of a name that comes again"] += name in found
            found[name] = info
    return found, +passed
