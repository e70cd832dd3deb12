"""Granularities by name: what one score stands for, and what follows from that for recipes. No torch is loaded here;
the masks and the gradients of the scores are in `prunnet.pruning.granularities`, one file a granularity.

Another package adds a granularity by one file that holds a `Granularity` and the `Selection` that it names, and an
entry point of the group `prunnet.granularities`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from prunnet.errors import ConfigError
from prunnet.registry import Named, Registry


@dataclass(frozen=True)
class Granularity:
    """What one score stands for."""

    summary: str
    selection: Named
    """The `prunnet.pruning.granularities.base.Selection` that makes its masks."""
    _: KW_ONLY
    unit: Literal["weights", "macs"] = "weights"
    """What a capacity is a fraction of."""
    only: tuple[float, ...] | None = None
    """Capacities below 1 that it has; None: all."""
    why_only: str = ""
    """The reason, after its name: "keeps 2 of 4 weights"."""
    allocations: tuple[str, ...] = ("layer",)
    """Values of `train.allocation` that it has."""
    channels: bool = False
    """The scores are those of channel groups, which the network holds (`pruning.channel_scores`): a subnetwork is a
    smaller plain network. Otherwise each layer holds its own."""
    layerwise: bool = False
    """Whether each layer may have a density of its own."""
    score_init: str | None = None
    """Default of `train.score_init`; None: the method's."""
    slower: float = 1.0
    """By default scores learn at `train.lr` divided by this."""
    revision: str = ""
    """Part of every training's hash where it is set. To be changed with what the masks or gradients are: networks of
    before then do not count as the same."""


GRANULARITIES: Registry[Granularity] = Registry(
    "train.granularity",
    "prunnet.granularities",
    {
        "weight": Granularity(
            "a weight, as in the paper",
            "prunnet.pruning.granularities.weight:WeightSelection",
            allocations=("layer", "global"),
            layerwise=True,
        ),
        "nm": Granularity(
            "a weight, of which 2 of 4 along the input stay",
            "prunnet.pruning.granularities.nm:NmSelection",
            only=(0.5,),
            why_only="keeps 2 of 4 weights",
        ),
        "kernel": Granularity(
            "the kernel from one input channel to one output channel",
            "prunnet.pruning.granularities.kernel:KernelSelection",
        ),
        "channel": Granularity(
            "a channel with all that is tied to it",
            "prunnet.pruning.granularities.channel:ChannelSelection",
            unit="macs",
            allocations=("layer", "global"),
            channels=True,
            # There are few scores, each for many weights: their start matters more, and their gradient is a sum over
            # thousands of weights (docs/RESULTS.md).
            score_init="magnitude",
            slower=100.0,
        ),
    },
    Granularity,
)


def check_density(granularity: str, capacities: Iterable[float]) -> None:
    """ConfigError where a granularity does not have one of the capacities."""
    found = GRANULARITIES[granularity]
    if found.only is not None and (odd := sorted(set(capacities) - {*found.only, 1.0})):
        has = ", ".join(f"{capacity:g}" for capacity in found.only)
        raise ConfigError(
            f"capacities {odd}: granularity {granularity!r} {found.why_only}, so it has {has} (and 1.0) only"
        )


def check_allocation(granularity: str, allocation: str) -> None:
    """ConfigError where a granularity does not have an allocation of capacities to layers."""
    valid = GRANULARITIES[granularity].allocations
    if allocation not in valid:
        raise ConfigError(
            f"allocation {allocation!r} makes no sense with granularity {granularity!r}; valid: {', '.join(valid)}"
        )
