"""Where a data set's files lie: a folder, or a .zip. Names are posix paths below it and cannot climb out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prunnet.data.sources.folders import Folder
from prunnet.data.sources.names import Walk
from prunnet.data.sources.zips import Zip
from prunnet.errors import DataError

_DEPTH = 4


class Root(Protocol):
    """The files of a data set."""

    @property
    def path(self) -> str: ...

    def walk(self) -> Walk:
        """All images at any depth, sorted by name, and what else was met; DataError where nothing can be listed."""
        ...

    def read(self, name: str) -> bytes:
        """OSError or KeyError where it is not there; DataError where it is no plain file, too large or damaged."""
        ...

    def has_folder(self, name: str) -> bool: ...

    def folders(self) -> list[str]:
        """Names of the folders at the top, sorted."""
        ...

    def inside(self, folder: str) -> Root:
        """One of its folders as a root."""
        ...

    def sizes(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        """Bytes of each file, -1 where there is none; in seconds for a million."""
        ...

    def times(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        """A number of each file that changes when it is written: its modification time in ns, in a .zip its CRC-32."""
        ...


def open_root(root: str | None, needs: str, holds: Sequence[str] = ()) -> Root:
    """A folder or a .zip; DataError where it is neither.

    Args:
        needs: says what is wanted there.
        holds: files or folders, one of which should be at the top. Where none is, and there is a single folder instead
            (as many archives have), that folder is the root.
    """
    if not root:
        raise DataError(f"data.root is not set; {needs}")
    path = Path(root).expanduser()
    found: Root
    if path.is_dir():
        found = Folder(str(path))
    elif path.suffix.lower() == ".zip" and path.is_file():
        found = Zip(str(path))
    else:
        raise DataError(f"{root!r} is neither a folder nor a .zip file; {needs}")
    at = found
    for _ in range(_DEPTH if holds else 0):
        if (at.sizes(holds) >= 0).any() or any(map(at.has_folder, holds)):
            return at
        if len(folders := at.folders()) != 1:
            break
        at = at.inside(folders[0])
    return found
