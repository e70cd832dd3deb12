"""The selection that a network's granularity asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from prunnet.config.choices import check_density
from prunnet.errors import ConfigError
from prunnet.pruning import prunable
from prunnet.pruning.granularities.base import Selection
from prunnet.pruning.granularities.channel import ChannelSelection
from prunnet.pruning.granularities.kernel import KernelSelection
from prunnet.pruning.granularities.nm import NmSelection
from prunnet.pruning.granularities.weight import WeightSelection
from prunnet.pruning.network import PrunableNet


def select(
    net: PrunableNet,
    capacities: Sequence[float],
    *,
    allocation: str = "layer",
    random_scores: Callable[[Tensor], Tensor] | None = None,
) -> Selection:
    """The selection that the network's granularity asks for.

    `random_scores`: takes the place of each score tensor (the control). Raises ConfigError for capacities or an
    allocation that the granularity does not have.
    """
    granularity = net.granularity
    check_density(granularity, capacities)
    if allocation != "layer" and granularity in ("nm", "kernel"):
        raise ConfigError(f"allocation {allocation!r} makes no sense with granularity {granularity!r}; valid: layer")
    scores = {name: p if random_scores is None else random_scores(p) for name, p in prunable.scores(net).items()}
    if granularity == "channel":
        return ChannelSelection(net, list(scores.values()), capacities, allocation)
    if granularity == "weight":
        return WeightSelection(scores, capacities, allocation)
    return {"nm": NmSelection, "kernel": KernelSelection}[granularity](net, scores, capacities)
