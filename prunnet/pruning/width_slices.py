"""Plain modules made narrower: the first share of every layer's channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.config.choices import check_capacity
from prunnet.errors import ConfigError

_REFUSED = "cannot be made narrower by slicing channels; valid: ResNets and MobileNetV2"


def width_of(capacity: float) -> float:
    """Share of channels whose square, the share of a convolution's weights, is the capacity."""
    return math.sqrt(check_capacity(capacity))


def channels(count: int, width: float) -> int:
    """Channels that a layer of `count` keeps at a width, at least one."""
    return max(1, math.floor(width * count + 0.5))


@torch.no_grad()
def shrink(backbone: nn.Module, width: float) -> None:
    """Leaves the first share of every layer's channels, in place."""
    first = True
    for module in backbone.modules():
        _check_sliceable(module)
        if isinstance(module, nn.Conv2d):
            kept = _kept(module, width, first)
            for part in kept:
                module.register_parameter(part, nn.Parameter(module.get_parameter(part)[kept[part]].clone()))
            if module.groups > 1:
                module.groups = channels(module.groups, width)
            module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
            first = False
        elif isinstance(module, _BatchNorm):
            _shrink_norm(module, width)
    backbone.num_features = channels(int(backbone.num_features), width)  # type: ignore[arg-type, assignment]


def _kept(conv: nn.Conv2d, width: float, first: bool) -> dict[str, Any]:
    """Slices of a convolution's parameters; the first one reads the image, whose channels all stay."""
    out = slice(0, channels(conv.out_channels, width))
    whole_input = first or conv.groups > 1
    inner = slice(None) if whole_input else slice(0, channels(conv.in_channels, width))
    return {"weight": (out, inner), **({} if conv.bias is None else {"bias": out})}


def _shrink_norm(norm: _BatchNorm, width: float) -> None:
    count = channels(norm.num_features, width)
    for part in ("weight", "bias"):
        norm.register_parameter(part, nn.Parameter(norm.get_parameter(part)[:count].clone()))
    for part in ("running_mean", "running_var"):
        norm.register_buffer(part, norm.get_buffer(part)[:count].clone())
    norm.num_features = count


def _check_sliceable(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and module.groups not in (1, module.in_channels):
        raise ConfigError(f"grouped convolutions {_REFUSED}")
    owned = next(module.parameters(recurse=False), None)
    if owned is not None and not isinstance(module, (nn.Conv2d, _BatchNorm)):
        raise ConfigError(f"{type(module).__name__} {_REFUSED}")
