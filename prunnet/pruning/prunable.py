"""Which layers can be pruned, and the score that each of their weights has.

Layers are not converted: a prunable layer stays the plain layer that timm made, with a parameter `score`
beside its `weight` (granularity `channel`: the network holds the scores, `pruning.channel_scores`). A subnetwork runs
the same module with other tensors in place of the weights (`torch.func.functional_call`), so nothing is copied, every
kind of convolution works, and the dense network *is* timm's. What carries a score and what does not is decided, with
the reasons, in `prunnet.experiments.backbone_report`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.errors import ConfigError, unknown

SCORE_INITS = ("kaiming_uniform", "normal", "magnitude", "constant")
"""Those that need no data; `snip_scores` is the fifth."""
_SILENT = 1e-3
"""A scale below it throughout hides its branch."""


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """Name -> prunable layer: those whose weights have scores, in the order of the network."""
    channels = channels_of(net)
    if channels is not None:
        return {name: net.get_submodule(name) for name in channels.layers}
    return {name: module for name, module in net.named_modules() if "score" in module._parameters}


def channels_of(net: nn.Module) -> Any:
    """The scores and groups of granularity `channel`; None where there are none. (DLA has others.)"""
    channels = getattr(net, "channels", None)
    return channels if hasattr(channels, "graph") else None


def scores(net: nn.Module) -> dict[str, nn.Parameter]:
    """Every score tensor: by the name of its layer, or of the first layer that makes a group of channels; where a layer
    makes several (CSPNet splits what a convolution puts out), `NAME/1` is the second."""
    channels = channels_of(net)
    if channels is not None:
        found: dict[str, nn.Parameter] = {}
        made: dict[str, int] = {}
        for group, score in zip(channels.graph.groups, channels.scores, strict=True):
            number = made[group.name] = made.get(group.name, -1) + 1
            found[f"{group.name}/{number}" if number else group.name] = score
        return found
    return {name: layer.get_parameter("score") for name, layer in layers(net).items()}


def is_score(name: str) -> bool:
    """Whether a tensor of this name in a network's state is a score."""
    return name.endswith(".score") or name.startswith("channels.scores.")


def is_prunable(module: nn.Module) -> bool:
    """Convolutions of any kind (grouped and depthwise too) and linear layers."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))


def attach_scores(
    backbone: nn.Module,
    init: str = "kaiming_uniform",
    seed: int = 0,
    *,
    shape: Callable[[Tensor], Sequence[int] | None] = Tensor.size,
    prunes: str = "",
) -> None:
    """Gives the prunable layers of `backbone` a score tensor each.

    Args:
        shape: of a weight's scores; None where the layer carries none (`Selection.score_shape`).
        prunes: which layers that leaves, for a message.

    Raises ConfigError for an unknown `init` or a backbone without prunable layers.
    """
    found = [module for module in backbone.modules() if is_prunable(module)]
    scored = False
    for module in found:
        weight = module.get_parameter("weight")
        wanted = shape(weight.detach())
        if wanted is not None:
            alike = tuple(wanted) == tuple(weight.shape)
            score = torch.empty_like(weight) if alike else torch.empty(tuple(wanted))
            module.register_parameter("score", nn.Parameter(score))
            scored = True
    if not scored:
        what = f"no layer {prunes}" if found else "no convolution and no linear layer"
        raise ConfigError(f"{type(backbone).__name__} has {what}: nothing to prune")
    init_scores(backbone, init, seed)


@torch.no_grad()
def init_scores(net: nn.Module, init: str, seed: int) -> None:
    """Fills all scores: `kaiming_uniform` (a = sqrt(5)), `normal`, `magnitude` (the weight itself), or
    `constant` (1 with noise of 1e-3, the control that knows nothing). Alike on every rank: it draws from `seed`.
    None is left at 0 (`_off_zero`)."""
    if init not in SCORE_INITS:
        raise ConfigError(unknown("score init", init, SCORE_INITS))
    generator = torch.Generator().manual_seed(seed)
    channels = channels_of(net)
    if channels is not None:
        for group, score in zip(channels.graph.groups, channels.scores, strict=True):
            weight: Tensor = net.get_submodule(group.name).get_parameter("weight")
            units = group.sites[group.name, "out"]
            if (units < 0).any():  # a layer that makes channels of several groups
                weight = weight[torch.from_numpy(units >= 0)]
            score.copy_(_off_zero(_initial_of_channels(weight, len(score), init, generator)))
        return
    for name, score in scores(net).items():
        weight = net.get_submodule(name).get_parameter("weight")
        score.copy_(_off_zero(_initial(_as_scored(weight, score), init, generator, weight[0].numel())))


@torch.no_grad()
def snip_scores(net: nn.Module, gradients: dict[str, Tensor]) -> None:
    """Fills all scores with SNIP's saliency, abs(w * dL/dw) (Lee et al. 2019), given the loss gradients by layer name,
    which are to be taken under `unit_scales`.

    The ranking within a layer is SNIP's; the scale is that of `kaiming_uniform`, since the learning rate acts on it.
    None is left at 0 (`_off_zero`).
    """
    for score, saliency in _saliencies(net, gradients):
        mean = saliency.mean()
        score.copy_(_off_zero(saliency * (_usual_size(saliency) / mean) if mean > 0 else saliency))


def _usual_size(score: Tensor) -> float:
    """Mean magnitude of scores that start by `kaiming_uniform`."""
    return 0.5 / math.sqrt(score[0].numel() if score.dim() > 1 else len(score))


def _off_zero(score: Tensor) -> Tensor:
    """`score` with every 0 replaced by a number of its own below all others, or, where all are 0, of the usual size.

    A score's gradient carries its sign, so at 0 it would stay there for ever, and equal scores are kept by their index,
    which would make a mask of the first channels. The numbers are drawn alike on every rank.
    """
    magnitude = score.abs()
    nothing = magnitude < 4 * torch.finfo(score.dtype).tiny  # half of a denormal may be 0 again
    if not bool(nothing.any()):
        return score
    others = magnitude[~nothing]
    below = float(others.min()) / 2 if len(others) else _usual_size(score)
    drawn = torch.rand(score.shape, generator=torch.Generator().manual_seed(score.numel())).to(score)
    return torch.where(nothing, below * (0.5 + drawn / 2), score)


def _saliencies(net: nn.Module, gradients: dict[str, Tensor]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each score tensor with abs(sum of w * dL/dw) over the weights that one score stands for."""
    channels = channels_of(net)
    products = {name: layer.get_parameter("weight") * gradients[name] for name, layer in layers(net).items()}
    if channels is None:
        for name, score in scores(net).items():
            product, places = products[name], shared_over(score, products[name])
            yield score, (product.sum(places, keepdim=True) if places else product).abs()
        return
    rows = [torch.zeros_like(score) for score in channels.scores]
    for name, product in products.items():
        channels.gather(name, product.flatten(2).sum(2) if product.dim() > 2 else product, rows)
    yield from ((score, row.abs()) for score, row in zip(channels.scores, rows, strict=True))


def shared_over(score: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Dimensions of a weight along which its scores are shared; none where every weight has its own."""
    return tuple(d for d, (one, every) in enumerate(zip(score.shape, weight.shape, strict=True)) if one < every)


def _as_scored(weight: Tensor, score: Tensor) -> Tensor:
    """The weight, or where a score stands for several weights their norms."""
    places = shared_over(score, weight)
    if not places:
        return weight.detach()
    kept = [d for d in range(weight.dim()) if d not in places]
    return weight.detach().permute(*kept, *places).flatten(len(kept)).norm(dim=len(kept)).view(score.shape)


def _initial_of_channels(weight: Tensor, units: int, init: str, generator: torch.Generator) -> Tensor:
    """Scores [units] of the channels that a layer makes; `magnitude`: the norms of its filters."""
    if init == "magnitude":
        norms = weight.detach().flatten(1).square().sum(1)
        if len(norms) % units == 0:  # a unit of several filters: of a group, or of the same place of all heads
            norms = norms.view(-1, units).sum(0) if weight.dim() == 2 else norms.view(units, -1).sum(1)
        return norms.sqrt()[:units]
    return _initial(torch.empty(units), init, generator, units)


def _initial(weight: Tensor, init: str, generator: torch.Generator, fan_in: int) -> Tensor:
    if init == "magnitude":
        return weight
    if init == "kaiming_uniform":  # gain of leaky ReLU with slope sqrt(5) is sqrt(1/3), hence 1/sqrt(fan_in)
        return (torch.rand(weight.shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
    noise = torch.randn(weight.shape, generator=generator)
    return noise * math.sqrt(2 / fan_in) if init == "normal" else 1 + 1e-3 * noise


@contextmanager
def unit_scales(net: nn.Module) -> Iterator[None]:
    """Inside the block the scale of every BatchNorm is 1, and so is any other scale that is (nearly) 0 throughout.

    timm starts the last scale of a residual branch at 0 (a LayerScale at 1e-6), whose weights then have no part in the
    output and no gradient.
    When the block ends all scales are restored, to the bit.
    """
    changed = [
        (scale, scale.detach().clone())
        for module in net.modules()
        for name, scale in module.named_parameters(recurse=False)
        if (name == "weight" and isinstance(module, _BatchNorm))
        or (_is_scale(module, name) and float(scale.detach().abs().max()) < _SILENT)
    ]
    with torch.no_grad():
        for scale, _ in changed:
            scale.fill_(1.0)
    try:
        yield
    finally:
        with torch.no_grad():
            for scale, before in changed:
                scale.copy_(before)


def _is_scale(module: nn.Module, name: str) -> bool:
    """Whether a parameter multiplies what a normalisation or a residual branch gives (`gamma` of a LayerScale, NFNet's
    `skipinit_gain`)."""
    normalises = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
    return (normalises and name == "weight") or "gamma" in name or "gain" in name


@contextmanager
def frozen_statistics(net: nn.Module) -> Iterator[None]:
    """In training mode, BatchNorm layers use the batch's statistics and leave the running ones alone."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def batch_statistics(net: nn.Module, *, tracked: bool = False) -> Iterator[None]:
    """In training mode, the BatchNorm layers that `train.freeze` holds in evaluation mode use the batch's statistics
    too, and leave the running ones alone unless `tracked`.

    For passes of subnetworks: what a mask lets through has other statistics than the dense network's, which were
    frozen.
    """
    held = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and not m.training]
    held = held if net.training else []
    for norm in held:
        norm.training, norm.track_running_stats = True, tracked
    try:
        yield
    finally:
        for norm in held:
            norm.training, norm.track_running_stats = False, True


def total_weights(net: nn.Module) -> int:
    """Number of prunable weights."""
    return sum(module.get_parameter("weight").numel() for module in layers(net).values())
