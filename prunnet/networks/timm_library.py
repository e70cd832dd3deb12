"""timm, imported without torch's compiler.

torch._dynamo and torch._inductor take 3 s of a processor to import, a third of what a training worker imports. timm and
torchvision, which timm imports, need two of its functions while they are imported, and call neither of them:
`torchvision.ops.roi_align` imports one by name, and a class of timm is decorated with the other. Both get a function
that imports the compiler when it is called; `torch._disable_dynamo` is torch's own such function.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

_COMPILER, _UTILITIES = "torch._dynamo", "torch._dynamo.utils"


def is_compile_supported(device_type: str) -> bool:
    """As torch's, which is imported now."""
    return importlib.import_module(_UTILITIES).is_compile_supported(device_type)


def disable(fn: Callable[..., Any], recursive: bool = True, **more: Any) -> Callable[..., Any]:
    """As torch's, which is imported when the function is called. `more`: of messages."""
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


try:
    with without_compiler():
        timm: Any = importlib.import_module("timm")
except (ImportError, AttributeError):  # a version of timm or torchvision that needs more of the compiler
    timm = importlib.import_module("timm")
builder: Any = importlib.import_module("timm.models._builder")
layers: Any = importlib.import_module("timm.layers")
