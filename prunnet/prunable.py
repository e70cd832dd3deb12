"""Which layers can be pruned, and the score that each of their weights has.

Layers are not converted: a prunable layer stays the plain layer that timm made, with a parameter `score`
beside its `weight`. A subnetwork runs the same module with other tensors in place of the weights
(`torch.func.functional_call`), so nothing is copied, every kind of convolution works, and the dense network
*is* timm's. What carries a score and what does not is decided, with the reasons, in `prunnet.backbones`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.errors import ConfigError, unknown

SCORE_INITS = ("kaiming_uniform", "normal", "magnitude", "constant")
"""Those that need no data; `snip_scores` is the fifth."""


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """Name -> prunable layer: those that carry a score, in the order of the network."""
    return {name: module for name, module in net.named_modules() if "score" in module._parameters}


def is_prunable(module: nn.Module) -> bool:
    """Convolutions of any kind (grouped and depthwise too) and linear layers."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))


def attach_scores(backbone: nn.Module, init: str = "kaiming_uniform", seed: int = 0) -> None:
    """Gives every prunable layer of `backbone` a score tensor of its weight's shape.

    Raises ConfigError for an unknown `init` or a backbone without prunable layers.
    """
    found = [module for module in backbone.modules() if is_prunable(module)]
    if not found:
        raise ConfigError(f"{type(backbone).__name__} has no convolution and no linear layer: nothing to prune")
    for module in found:
        module.register_parameter("score", nn.Parameter(torch.empty_like(module.get_parameter("weight"))))
    init_scores(backbone, init, seed)


@torch.no_grad()
def init_scores(net: nn.Module, init: str, seed: int) -> None:
    """Fills all scores: `kaiming_uniform` (a = sqrt(5)), `normal`, `magnitude` (the weight itself), or
    `constant` (1 with noise of 1e-3, the control that knows nothing). Alike on every rank: it draws from `seed`."""
    if init not in SCORE_INITS:
        raise ConfigError(unknown("score init", init, SCORE_INITS))
    generator = torch.Generator().manual_seed(seed)
    for module in layers(net).values():
        score, weight = module.get_parameter("score"), module.get_parameter("weight")
        score.copy_(_initial(weight, init, generator))


@torch.no_grad()
def snip_scores(net: nn.Module, gradients: dict[str, Tensor]) -> None:
    """Fills all scores with SNIP's saliency, abs(w * dL/dw) (Lee et al. 2019), given the loss gradients by layer name.

    The ranking within a layer is SNIP's; the scale is that of `kaiming_uniform`, since the learning rate acts on it.
    """
    for name, layer in layers(net).items():
        weight = layer.get_parameter("weight")
        saliency = (weight * gradients[name]).abs()
        mean = saliency.mean()
        wanted = 0.5 / math.sqrt(weight[0].numel())
        layer.get_parameter("score").copy_(saliency * (wanted / mean) if mean > 0 else saliency)


def _initial(weight: Tensor, init: str, generator: torch.Generator) -> Tensor:
    if init == "magnitude":
        return weight.detach()
    fan_in = weight[0].numel()
    if init == "kaiming_uniform":  # gain of leaky ReLU with slope sqrt(5) is sqrt(1/3), hence 1/sqrt(fan_in)
        return (torch.rand(weight.shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
    noise = torch.randn(weight.shape, generator=generator)
    return noise * math.sqrt(2 / fan_in) if init == "normal" else 1 + 1e-3 * noise


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


def total_weights(net: nn.Module) -> int:
    """Number of prunable weights."""
    return sum(module.get_parameter("weight").numel() for module in layers(net).values())
