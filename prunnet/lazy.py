"""Packages that hand out their modules' names without loading the modules until a name is asked for, and imports of
libraries without torch's compiler.

torch._dynamo and torch._inductor take 3 s of a processor to import, a third of what a training worker imports. timm and
torchvision need two of their functions while they are imported, and call neither of them. Both get a function that
imports the compiler when it is called; `torch._disable_dynamo` is torch's own such function.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER, _UTILITIES = "torch._dynamo", "torch._dynamo.utils"


def loaded_when_used(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: its `__name__`.
        names: module -> the names that the package hands out from it.
    """
    homes = {name: module for module, taken in names.items() for name in taken}

    def get(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted(homes)


def is_compile_supported(device_type: str) -> bool:
    """As torch's, which is imported now."""
    return importlib.import_module(_UTILITIES).is_compile_supported(device_type)


def disable(fn: Callable[..., Any], recursive: bool = True, **more: Any) -> Callable[..., Any]:
    """As torch's, which is imported when the function is called. `more`: of messages."""
    import torch

    return torch._disable_dynamo(fn, recursive)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Imports in the block find the two functions in place of the compiler, unless it is imported already."""
    if _COMPILER in sys.modules:
        yield
        return
    package, utilities = ModuleType(_COMPILER), ModuleType(_UTILITIES)
    package.__path__ = []
    package.disable, package.utils = disable, utilities  # type: ignore[attr-defined]
    utilities.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {_COMPILER: package, _UTILITIES: utilities}
    try:
        yield
    finally:
        for name in (_COMPILER, _UTILITIES):
            del sys.modules[name]


def imported(name: str) -> Any:
    """A library's module, imported without the compiler; with it where a later version needs more of the compiler."""
    try:
        with without_compiler():
            return importlib.import_module(name)
    except (ImportError, AttributeError):
        return importlib.import_module(name)
