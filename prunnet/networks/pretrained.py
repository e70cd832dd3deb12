"""Weights to start from, all of them or none: timm reads, fetches and converts, and what it would load is compared
with the backbone first.

timm itself loads the tensors that fit and leaves the others at their random start (it is not strict without a
classifier), so that a file of another network, or with other prefixes, would have no effect.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from prunnet.errors import ConfigError, one_line
from prunnet.networks.timm_library import builder, timm

WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "state_dict.")
"""Prefixes of modules that wrap a backbone, in any order and number."""
HEADS = ("fc", "head", "heads", "head_dist", "classifier")
"""Modules that are a classifier where the backbone has none of that name."""
_COMMON = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "mobilenetv2_100", "mobilenetv3_large_100"),
    *("tf_efficientnet_lite0", "efficientnet_b0", "convnext_tiny", "convnext_small", "vit_small_patch16_224"),
    "swin_tiny_patch4_window7_224",
)
"""Backbones by whose names of tensors a file that does not fit is recognised."""
_ALIKE = 0.9
"""Share of names in common from which on a file is said to be of a backbone's architecture."""
_PATCHED = threading.RLock()


@contextmanager
def whole_weights(source: str, adapted: list[str] | None = None) -> Iterator[None]:
    """Inside, timm.create_model loads every tensor of the backbone, or raises ConfigError with the first that do not
    fit.

    Args:
        source: what the message calls the weights.
        adapted: gets a phrase for each thing that was changed or left out so that they fit.
    """
    said: list[str] = [] if adapted is None else adapted
    original = builder.load_pretrained

    def load(model: nn.Module, filter_fn: Any = None, **named: Any) -> None:
        shapes: dict[str, torch.Size] = {}

        def convert(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
            said.extend(_unlike(state, model))
            state = unwrapped(state, model)
            shapes.update({name: tensor.shape for name, tensor in state.items()})
            return state if filter_fn is None else _filtered(filter_fn, state, model, source)

        def checked(state: Mapping[str, Tensor], strict: bool = True) -> Any:
            del model.load_state_dict  # the class' own again
            fitting = _fitting(state, model, source)
            for name, tensor in fitting.items():
                if shapes.get(name, tensor.shape) != tensor.shape:
                    said.append(f"{name} {list(shapes[name])} is made {list(tensor.shape)}")
            return model.load_state_dict(fitting, strict=False)

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
    prefix = _prefix(state, model)
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if "backbone." in prefix:
        return inside
    return {**{name: tensor for name, tensor in state.items() if not name.startswith(prefix)}, **inside}


def _prefix(state: Mapping[str, Tensor], model: nn.Module) -> str:
    """The wrapping prefix under which most of the backbone's names are found, the shortest of several."""
    own = set(model.state_dict())
    prefixes = {prefix for name in state for prefix in _wrappings(name)}

    def found(prefix: str) -> tuple[int, int]:
        return sum(f"{prefix}{name}" in state for name in own), -len(prefix)

    return max(sorted(prefixes), key=found, default="")


def _unlike(state: Mapping[str, Tensor], model: nn.Module) -> Iterator[str]:
    """How a file differs from a backbone's own weights in what is no obstacle: its wrapping, its precision, a
    classifier."""
    prefix, own = _prefix(state, model), model.state_dict()
    if prefix:
        yield f"{prefix!r} before its names is left out"
    inside = unwrapped(state, model)
    found = {str(t.dtype).removeprefix("torch.") for name, t in inside.items() if name in own and _other_float(t)}
    if found:
        yield f"{', '.join(sorted(found))} is made float32"
    heads = _heads(model)
    left = [name for name in inside if name not in own and _is_head(name, heads)]
    if left:
        yield f"its classifier ({_some(left)}) is left out"


def _other_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


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
    heads = _heads(model)
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
    endless = [
        name
        for name, tensor in given.items()
        if name in own and tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    faults = {
        "missing": missing,
        "of another shape": shaped,
        "not floating-point": typed,
        "foreign": foreign,
        "with numbers that are not finite": endless,
    }
    said = [f"{len(names)} {what} ({_some(names)})" for what, names in faults.items() if names]
    if said:
        like = _resembled(given, own) if foreign or missing or shaped else None
        as_those = "" if like is None else f"; its tensors are named as those of {like!r}"
        raise ConfigError(f"{source}: of {len(own)} tensors that the backbone has: {'; '.join(said)}{as_those}")
    return {name: tensor.to(own[name].dtype) for name, tensor in given.items()}


def _heads(model: nn.Module) -> set[str]:
    classifiers = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return {*HEADS, *([classifiers] if isinstance(classifiers, str) else classifiers)}


def _resembled(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """The common backbone whose tensors are named (and of several, shaped) most alike; None where none is near, or the
    backbone itself, whose tensors are `own`, is as near."""
    names = {key for key in given if not _counts(key)}

    def likeness(shapes: Mapping[str, torch.Size]) -> tuple[float, int]:
        same = [key for key in names if key in shapes]
        return len(same) / len(names | shapes.keys()), sum(given[key].shape == shapes[key] for key in same)

    nearest = max(_COMMON, key=lambda name: likeness(_shapes(name)))
    found = likeness(_shapes(nearest))
    itself = likeness({key: tensor.shape for key, tensor in own.items() if not _counts(key)})
    return nearest if found[0] >= _ALIKE and found > itself else None


def _counts(name: str) -> bool:
    """Whether a tensor counts batches, which files may have or not."""
    return name.endswith("num_batches_tracked")


@cache
def _shapes(name: str) -> dict[str, torch.Size]:
    """Of a timm backbone's tensors, which get no memory."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    return {key: tensor.shape for key, tensor in model.state_dict().items() if not _counts(key)}


def _is_head(name: str, heads: set[str]) -> bool:
    return any(name.startswith(f"{head}.") for head in heads)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
