"""Weights to start from, all of them or none: timm reads, fetches and converts, and what it would load is compared
with the backbone first.

timm itself loads the tensors that fit and leaves the others at their random start (it is not strict without a
classifier), so that a file of another network, or with other prefixes, would have no effect.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from prunnet.errors import ConfigError, one_line
from prunnet.networks.timm_library import builder

WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "state_dict.")
"""Prefixes of modules that wrap a backbone, in any order and number."""
HEADS = ("fc", "head", "heads", "head_dist", "classifier")
"""Modules that are a classifier where the backbone has none of that name."""
_PATCHED = threading.RLock()


@contextmanager
def whole_weights(source: str) -> Iterator[None]:
    """Inside, timm.create_model loads every tensor of the backbone, or raises ConfigError with the first that do not
    fit. `source`: what the message calls the weights."""
    original = builder.load_pretrained

    def load(model: nn.Module, filter_fn: Any = None, **named: Any) -> None:
        def convert(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
            state = unwrapped(state, model)
            return state if filter_fn is None else _filtered(filter_fn, state, model, source)

        def checked(state: Mapping[str, Tensor], strict: bool = True) -> Any:
            del model.load_state_dict  # the class' own again
            return model.load_state_dict(_fitting(state, model, source), strict=False)

        model.load_state_dict = checked  # type: ignore[assignment, method-assign]
        try:
            original(model, filter_fn=convert, **named)
        finally:
            model.__dict__.pop("load_state_dict", None)

    with _PATCHED, patch.object(builder, "load_pretrained", load):
        yield


def _filtered(filter_fn: Any, state: dict[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """timm's conversion for this backbone: other releases' names, position embeddings for another image size."""
    try:
        try:
            return dict(filter_fn(state, model))
        except TypeError:  # some take one argument
            return dict(filter_fn(state))
    except (RuntimeError, KeyError, ValueError, IndexError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{source}: timm cannot convert it: {one_line(error)[:200]}") from None


def unwrapped(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors below the wrapping prefix under which most of the backbone's names are found; those of other parts
    of a network around a `backbone.` are left out."""
    own = set(model.state_dict())
    prefixes = {prefix for name in state for prefix in _wrappings(name)}

    def found(prefix: str) -> tuple[int, int]:
        return sum(f"{prefix}{name}" in state for name in own), -len(prefix)

    prefix = max(sorted(prefixes), key=found, default="")
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if "backbone." in prefix:
        return inside
    return {**{name: tensor for name, tensor in state.items() if not name.startswith(prefix)}, **inside}


def _wrappings(name: str) -> Iterator[str]:
    """`module.model.conv1.weight` -> "", "module.", "module.model."."""
    prefix = ""
    yield prefix
    while wrapper := next((w for w in WRAPPERS if name.startswith(w)), None):
        prefix, name = prefix + wrapper, name.removeprefix(wrapper)
        yield prefix


def _fitting(state: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """The state without the classifier; ConfigError for what is missing, of another shape, or foreign."""
    own = model.state_dict()
    classifiers = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = {*HEADS, *([classifiers] if isinstance(classifiers, str) else classifiers)}
    given = {
        name: tensor
        for name, tensor in state.items()
        if name in own or not (name.endswith((".num_batches_tracked", ".score")) or _is_head(name, heads))
    }
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    foreign = [name for name in given if name not in own]
    shaped = [
        f"{name} {list(tensor.shape)} instead of {list(own[name].shape)}"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    typed = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in given.items()
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point()
    ]
    faults = {
        "missing": missing,
        "of another shape": shaped,
        "not floating-point": typed,
        "foreign": foreign,
    }
    said = [f"{len(names)} {what} ({_some(names)})" for what, names in faults.items() if names]
    if said:
        raise ConfigError(f"{source}: of {len(own)} tensors that the backbone has: {'; '.join(said)}")
    return {name: tensor.to(own[name].dtype) for name, tensor in given.items()}


def _is_head(name: str, heads: set[str]) -> bool:
    return any(name.startswith(f"{head}.") for head in heads)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
