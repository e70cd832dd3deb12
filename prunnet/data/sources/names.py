"""Names of a data set's files: posix paths below its root that cannot climb out of it, and need not be UTF-8 (the bytes
that are not come as lone surrogates, as Python's `surrogateescape` makes them)."""

from __future__ import annotations

import posixpath
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa

from prunnet.data.sources.decode import suffixes
from prunnet.errors import DataError, printable

MOST = 50_000_000
"""Files below one root; a walk that finds more ends in an error."""
MAX_BYTES = 2**30
"""Larger files are refused unread: no encoded image or list is of that size, but what a zip claims to hold may be."""
_LITTER = frozenset(
    {"__macosx", ".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin"}
)


def is_litter(part: str) -> bool:
    """Whether one part of a path is what macOS, Windows or a NAS leave beside files: passed over, not counted."""
    return part.startswith("._") or part.lower() in _LITTER


def climbs(name: str) -> bool:
    """Whether a posix path may lead out of the folder that it is joined to."""
    return name.startswith("/") or ".." in name.split("/") or "\0" in name


def below(name: str, where: str) -> str:
    """A name from a list, made plain; DataError where it climbs out of the root or is none at all."""
    plain = name.strip(string.whitespace).replace("\\", "/")  # other blanks may be a part of the name
    parts = PurePosixPath(plain).parts
    if not parts or climbs(plain) or ":" in parts[0]:
        raise DataError(f"{where}: path {name!r} does not stay below the data set's root")
    try:
        plain.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte, from a pickle
        raise DataError(f"{where}: path {name!r} is no text") from None
    return "/".join(part for part in parts if part != ".")


@dataclass
class Walk:
    """What a walk through a root finds: images by their suffix, and how much else."""

    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Files of each other suffix."""
    passed: Counter[str] = field(default_factory=Counter)
    """What was passed over, by what it is."""
    unlisted: list[str] = field(default_factory=list)
    """Folders that cannot be listed."""
    files: int = 0

    def add(self, name: str, root: str) -> bool:
        """Counts a file; whether it is an image. DataError where there are too many."""
        self.files += 1
        if self.files > MOST:
            raise DataError(f"{root!r} holds more than {MOST:,} files: a link or a mount may lead back into it")
        suffix = posixpath.splitext(name)[1].lower()
        if suffix not in suffixes():
            self.others[suffix[:12] or "no suffix"] += 1
            return False
        self.images.append(name)
        return True

    def notes(self) -> tuple[str, ...]:
        """What a user should know, a line each."""
        found = [f"{count:,} {what} passed over" for what, count in sorted(self.passed.items())]
        if self.others:
            most = ", ".join(f"{printable(suffix)} {count:,}" for suffix, count in self.others.most_common(8))
            found.append(f"{self.others.total():,} file(s) that are no images by their suffix passed over: {most}")
        if self.unlisted:
            shown = ", ".join(map(printable, sorted(self.unlisted)[:5])) + (" …" if len(self.unlisted) > 5 else "")
            found.append(f"{len(self.unlisted):,} folder(s) cannot be listed, so their images are missing: {shown}")
        return tuple(found)


def packed_names(names: Sequence[str]) -> pa.LargeStringArray:
    """Names as one Arrow buffer, which does not mind bytes that are no UTF-8."""
    return pa.array([name.encode("utf-8", "surrogatepass") for name in names], pa.large_binary()).view(
        pa.large_string()
    )


def unpacked_names(names: pa.Array) -> list[str]:
    """What `packed_names` was given; UnicodeDecodeError where the bytes are others."""
    return [name.decode("utf-8", "surrogatepass") for name in names.view(pa.large_binary()).to_pylist()]


def unpacked_name(name: pa.Scalar) -> str:
    """One of `packed_names`."""
    return name.as_buffer().to_pybytes().decode("utf-8", "surrogatepass")
