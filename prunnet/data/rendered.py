"""Rendered images, kept on this machine's disk: eight thousand letters take a processor ten seconds, which the driver
and each worker of a training would spend, and every further run."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from prunnet.errors import ConfigError
from prunnet.storage import hashing
from prunnet.storage.atomic import put_in_place
from prunnet.storage.paths import cache

Arrays = dict[str, np.ndarray]
_HASH = "sha256"
_SMALL = 2**20
"""Bytes, of which no more are not worth a file."""
_FILES = 8
"""Kept, the newest."""
_LIBRARIES = ("Pillow", "numpy", "fonttools", "matplotlib")


def kept(determinants: Any, code: Sequence[Callable[..., Any]], render: Callable[[], Arrays]) -> Arrays:
    """What `render` gives, or what it gave before.

    Args:
        determinants: JSON values, all that the arrays depend on beside code and libraries.
        code: functions whose modules make the arrays: other code makes other arrays.
    """
    files = sorted({inspect.getfile(function) for function in code})
    parts = [determinants, [hashing.of_file(file) for file in files], [metadata.version(name) for name in _LIBRARIES]]
    try:
        path = cache() / f"rendered-{hashing.of_json(parts)[:32]}.npz"
    except (ConfigError, OSError):  # somebody else's, or no place to write to
        return render()
    if (found := _read(path)) is not None:
        return found
    arrays = render()
    if sum(array.nbytes for array in arrays.values()) > _SMALL:
        with contextlib.suppress(ConfigError, OSError):
            _write(path, arrays)
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    with put_in_place(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, **{_HASH: np.array(hashing.of_arrays(arrays))})
    for old in sorted(path.parent.glob("rendered-*.npz"), key=lambda each: each.stat().st_mtime)[:-_FILES]:
        old.unlink(missing_ok=True)


def _read(path: Path) -> Arrays | None:
    """The arrays of a file; None where it is not there, torn, or not what was written."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        said = str(arrays.pop(_HASH))
    except Exception:  # a damaged archive fails in many ways, and is rendered again in any case
        return None
    return arrays if hashing.of_arrays(arrays) == said else None
