"""Layer-wise capacities: a keep fraction for every layer, under a budget of multiply-adds, in a trained network.

The papers keep the same share of every layer. But a layer's weights cost very different numbers of MACs (an early one
is applied at many more places), so equal accuracy can be had for fewer of them, with no training at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunnet.errors import ConfigError
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.macs import layer_macs
from prunnet.pruning.masks import FLOOR

Grouping = Literal["layer", "block"]
Keep = dict[str, float]
"""Layer name -> share of its weights that is kept, in (0, 1]."""


@dataclass(frozen=True)
class Budget:
    """The layers of a network with what they cost, and how many MACs may be spent.

    Every candidate spends the whole budget: a candidate says how the layers' shares relate, and one common factor,
    found by bisection, makes the sum fit.
    """

    groups: tuple[tuple[str, ...], ...]
    """Layers that share a keep fraction."""
    macs: tuple[int, ...]
    """Dense MACs of each group."""
    fixed: int
    """MACs of what cannot be pruned."""
    limit: float
    """MACs in all."""
    floor: float = FLOOR
    """Least share of every group."""

    @classmethod
    def of(
        cls, net: RetrievalNet, image_size: int, capacity: float, grouping: Grouping = "layer", floor: float = FLOOR
    ) -> Budget:
        """As many MACs as the uniform subnetwork of `capacity` has."""
        counted = layer_macs(net, image_size)
        scored = prunable.layers(net)
        if not scored:
            raise ConfigError("this network carries no scores, so nothing can be cut from it")
        groups: dict[str, list[str]] = {}
        for name in scored:
            groups.setdefault(name if grouping == "layer" else name.rpartition(".")[0] or name, []).append(name)
        macs = tuple(sum(counted.get(name, 0) for name in names) for names in groups.values())
        fixed = sum(counted.values()) - sum(macs)
        return cls(tuple(map(tuple, groups.values())), macs, fixed, fixed + capacity * sum(macs), floor)

    def keep(self, ratios: Sequence[float] | np.ndarray) -> Keep:
        """Shares in proportion to `ratios` [groups] > 0, at least the floor and at most 1, that spend the budget.

        Raises ConfigError where even the floors cost more.
        """
        return {
            name: float(share) for names, share in zip(self.groups, self.shares(ratios), strict=True) for name in names
        }

    def shares(self, ratios: Sequence[float] | np.ndarray) -> np.ndarray:
        """As `keep`, one share a group."""
        wanted, macs = np.asarray(ratios, dtype=float), np.asarray(self.macs, dtype=float)
        if len(wanted) != len(macs) or not (np.isfinite(wanted).all() and (wanted > 0).all()):
            raise ConfigError(f"ratios {list(ratios)}: {len(macs)} numbers above 0 are needed")
        spare = self.limit - self.fixed
        if spare < self.floor * macs.sum() * (1 - 1e-9):
            raise ConfigError(
                f"a budget of {self.limit:,.0f} MACs is below what the floor of {self.floor:g} a layer costs: "
                f"{self.fixed + self.floor * macs.sum():,.0f}"
            )
        low, high = 0.0, 1.0 / wanted.min()
        for _ in range(200):
            middle = (low + high) / 2
            over = float((macs * np.clip(middle * wanted, self.floor, 1.0)).sum()) > spare
            low, high = (low, middle) if over else (middle, high)
        return np.clip(low * wanted, self.floor, 1.0)

    @property
    def uniform(self) -> np.ndarray:
        """The ratios of one capacity for all."""
        return np.ones(len(self.macs))

    def guesses(
        self, net: RetrievalNet, powers: Sequence[float] = (0.0, -0.5, -0.25, 0.25, 0.5, 1.0)
    ) -> list[np.ndarray]:
        """Ratios to start from: each layer's share falls with a power of what one of its weights costs. Power 0 is the
        uniform subnetwork."""
        sizes = {name: layer.get_parameter("weight").numel() for name, layer in prunable.layers(net).items()}
        cost = np.array(self.macs) / np.array([sum(sizes[name] for name in names) for names in self.groups])
        return [(cost / cost.min()) ** -power for power in powers]
