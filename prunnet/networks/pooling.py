"""Pooling between backbone and neck, where a recipe asks for another than timm's: `model.pooling`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunnet.errors import ConfigError, unknown
from prunnet.networks.timm_library import layers

POOLINGS = ("timm", "avg", "max", "gem")
_LEAST = 1e-6
"""What counts as the smallest activation: a power of a number below 0 has no root."""


class GeM(nn.Module):
    """Generalised mean pooling (Radenović et al. 2019, arXiv 1711.02512): (mean over places of x^p)^(1/p), for each
    channel, with one learned p; 1 is the average, infinity the maximum.

    Computed at least in float32, relative to each channel's largest activation, so that no power of any p overflows
    or vanishes; activations below 1e-6 count as 1e-6.
    """

    channelwise = True
    """For `pruning.channel_graph`: channels pass through it alone, and it works for any number of them."""

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C]."""
        exact = maps if maps.dtype == torch.float64 else maps.float()
        exact, p = exact.clamp(min=_LEAST), self.p.to(exact.dtype)
        largest = exact.detach().amax(dim=(2, 3), keepdim=True)
        mean = (exact / largest).pow(p).mean(dim=(2, 3))
        return (largest.flatten(1) * mean.pow(1 / p)).to(maps.dtype)


def make_pooling(kind: str, p: float = 3.0) -> nn.Module:
    """[B, C, H, W] -> [B, C]; `timm`: nothing, since the backbone has pooled.

    Args:
        kind: one of `POOLINGS`, else ConfigError.
        p: of `gem`, at the start.
    """
    if kind == "timm":
        return nn.Identity()
    if kind == "gem":
        return GeM(p)
    if kind not in POOLINGS:
        raise ConfigError(unknown("pooling", kind, POOLINGS))
    pooling: nn.Module = layers.SelectAdaptivePool2d(pool_type=kind, flatten=True)
    return pooling
