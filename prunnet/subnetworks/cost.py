"""What a subnetwork costs (METHODS section 7)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.macs import layer_macs


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of embedding one image (FLOPs = 2 x MACs); the classifier is not counted."""

    params_kept: int
    """Weights kept, with every parameter that cannot be pruned."""
    params_total: int
    macs: int
    """Sum over layers of dense MACs x the layer's kept fraction: what ideal sparse kernels would do."""
    macs_dense_equivalent: int
    """MACs of dense kernels after each layer's dead output channels and dead inputs are cut away."""
    macs_dense: int


def cost_of(net: RetrievalNet, masks: dict[str, Tensor], image_size: int) -> Cost:
    """Cost of `net` under boolean masks (by layer name) for one square image."""
    macs = layer_macs(net, image_size)
    embedding = [p for n, p in net.named_parameters() if not prunable.is_score(n) and not n.startswith("classifier.")]
    total = sum(p.numel() for p in embedding)
    dropped = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    kept = {name: float(masks[name].float().mean()) if name in masks else 1.0 for name in macs}
    alive = {name: _alive(masks[name]) if name in masks else 1.0 for name in macs}
    return Cost(
        params_kept=total - dropped,
        params_total=total,
        macs=round(sum(macs[name] * kept[name] for name in macs)),
        macs_dense_equivalent=round(sum(macs[name] * alive[name] for name in macs)),
        macs_dense=sum(macs.values()),
    )


def _alive(mask: Tensor) -> float:
    """Share of a layer's dense MACs left once its dead output channels and dead inputs are cut."""
    by_pair = mask.flatten(2).any(-1) if mask.dim() > 2 else mask
    return float(by_pair.any(1).float().mean() * by_pair.any(0).float().mean())
