"""The selection that a network's granularity asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from prunnet.config.granularities import GRANULARITIES, check_allocation, check_density
from prunnet.pruning import prunable
from prunnet.pruning.granularities.base import Selection
from prunnet.pruning.network import PrunableNet
from prunnet.registry import resolve


def selection_of(granularity: str) -> type[Selection]:
    """The class that makes a granularity's masks; ConfigError for an unknown granularity."""
    kind: type[Selection] = resolve(GRANULARITIES[granularity].selection)
    return kind


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
    check_density(net.granularity, capacities)
    check_allocation(net.granularity, allocation)
    scores = {name: p if random_scores is None else random_scores(p) for name, p in prunable.scores(net).items()}
    return selection_of(net.granularity)(net, scores, capacities, allocation)
