"""Pickles that hold data. Nothing in them is called: containers, numbers, strings and numpy arrays are built, and any
other name in the file is refused."""

from __future__ import annotations

import codecs
import collections
import io
import pickle
from typing import Any

import numpy as np
from numpy._core import multiarray, numeric

from prunnet.errors import DataError


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What Python 2's byte strings are rebuilt with."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"_codecs.encode with {encoding!r}")
    return codecs.encode(text, "latin1")


def _no_bytes() -> bytes:
    """How an empty byte string is written for Python 2."""
    return b""


_BUILT: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    for _name in ("_reconstruct", "scalar"):
        _BUILT[_module, _name] = getattr(multiarray, _name)
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _BUILT[_module, "_frombuffer"] = numeric._frombuffer  # type: ignore[attr-defined]
for _kind in (set, frozenset, bytearray, complex):
    for _module in ("builtins", "__builtin__"):
        _BUILT[_module, _kind.__name__] = _kind
        _BUILT[_module, "bytes"] = _no_bytes


class _Data(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _BUILT:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _BUILT[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of the file")


def unpickled(data: bytes, name: str, encoding: str = "latin1") -> Any:
    """The data in a pickle.

    Raises DataError, with `name`, for anything but containers, numbers, strings and numpy arrays (the message says
    what was found), and for a torn file.
    """
    try:
        return _Data(io.BytesIO(data), encoding=encoding).load()
    except pickle.UnpicklingError as error:
        raise DataError(
            f"pickle {name!r} is refused: {error}; valid: containers, numbers, strings and numpy arrays only"
        ) from None
    except Exception as error:  # whatever bytes make the unpickler trip over, they are not data
        raise DataError(f"pickle {name!r} is torn or no pickle ({type(error).__name__})") from None
