"""Loops that numba compiles for the CPU, kept between processes. Whoever imports this imports numba (0.5 s)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
from numba.core.caching import FunctionCache


class _Kept(FunctionCache):
    """Machine code on a disk, as long as there is room for it and it can be read."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a torn file may raise anything; it is compiled and written anew
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


def compiled(*, reordered: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Machine code of a function, without the GIL, kept between processes where there is a folder to write it to.

    Args:
        reordered: sums may be taken in any order and signs of zero be lost, which is faster.
    """

    def of(function: Callable[..., Any]) -> Any:
        fastmath: Any = {"reassoc", "contract", "nsz", "arcp"} if reordered else False
        code: Any = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
        # RuntimeError: neither the package's folder nor the user's can be written.
        with suppress(RuntimeError):
            code._cache = _Kept(function)  # as its enable_caching does
        return code

    return of
