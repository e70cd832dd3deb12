"""One score for every set of tied channels, and which of them a capacity keeps (METHODS section 7).

Capacity is the fraction of the prunable layers' multiply-adds. One width for all groups (allocation `layer`), or
one threshold over all scores (`global`), is found by bisection; each group keeps a whole multiple of channels,
its best, so that the subnetworks nest, and the capacity achieved is the nearest that multiples allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunnet.config.choices import check_capacity
from prunnet.errors import ConfigError, unknown
from prunnet.pruning.channel_graph import ChannelGraph, Group

ALLOCATIONS = ("layer", "global")
MULTIPLE = 8
_GOLDEN = 0.6180339887498949
"""Its multiples, less whole numbers, are spread evenly over 0 to 1."""


@dataclass(frozen=True)
class Ends:
    """Channels of a layer that stay: indices, ascending."""

    made: Tensor
    read: Tensor | None
    """None where the inputs go with the outputs (grouped convolutions)."""

    def cut(self, weight: Tensor) -> Tensor:
        """[O, I, …] -> what is left of it, in the weight's memory format."""
        small = weight.index_select(0, self.made)
        small = small if self.read is None else small.index_select(1, self.read)
        last = weight.dim() == 4 and not weight.is_contiguous()
        return small.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def widen(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """A gradient of what is left -> of the whole weight, 0 elsewhere, in the weight's memory format."""
        wide = torch.zeros_like(weight, dtype=gradient.dtype)
        if self.read is None:
            return wide.index_copy_(0, self.made, gradient)
        rows = torch.zeros_like(wide[: len(self.made)]).index_copy_(1, self.read, gradient)
        return wide.index_copy_(0, self.made, rows)


class Channels(nn.Module):
    """The scores [units] of a network's channel groups, and the layers that their masks touch."""

    def __init__(self, graph: ChannelGraph, weights: dict[str, Tensor], macs: dict[str, int], multiple: int) -> None:
        super().__init__()
        self.graph, self.multiple = graph, multiple
        self.scores = nn.ParameterList([nn.Parameter(torch.ones(group.units)) for group in graph.groups])
        named = dict.fromkeys(layer for group in graph.groups for layer, side in group.sites if side != "norm")
        self.touched = [name for name in weights if name in named]
        """Layers with masks."""
        self.layers = [name for name in self.touched if name.startswith("backbone.")]
        """Those of the backbone: the prunable ones."""
        self._sites = {
            (layer, side): torch.stack([_site(group, layer, side, size) for group in graph.groups])
            for layer in self.touched
            for side, size in (("out", weights[layer].shape[0]), ("in", _inputs(graph, layer, weights[layer])))
        }
        self._members = {key: list(_members(sites)) for key, sites in self._sites.items()}
        """(layer, side) -> of each group that has channels there: its number, the channels, their units."""
        self._grouped = {
            layer for layer in self.touched if self._sites[layer, "in"].shape[1] != weights[layer].shape[1]
        }
        self._shapes = {name: tuple(weights[name].shape[:2]) for name in self.touched}
        self._macs = {name: macs[name] for name in self.layers}
        self._steps = [self._step(group) for group in graph.groups]
        self._counts: dict[float, list[int]] = {}
        """Capacity -> units that each group keeps under allocation `layer`."""
        self._shares = {key: self._share(key) for key in self._sites}

    def _step(self, group: Group) -> int:
        """Units that are kept or cut together, so that a layer has a multiple of channels; one where the group is
        small."""
        step = max(1, self.multiple // group.width)
        return step if group.units >= 2 * step else 1

    def _share(self, key: tuple[str, str]) -> tuple[np.ndarray, float]:
        """Share of a layer's channels that one unit of each group is, and what no group may cut."""
        sites = self._sites[key]
        counts = (sites >= 0).sum(1).double().numpy() / sites.shape[1]
        units = np.array([group.units for group in self.graph.groups])
        return counts / units, 1.0 - float(counts.sum())

    def fraction(self, counts: Sequence[int]) -> float:
        """Share of the prunable layers' MACs where each group keeps so many units."""
        kept = np.asarray(counts, dtype=float)

        def share(layer: str, side: str) -> float:
            per_unit, fixed = self._shares[layer, side]
            return float(per_unit @ kept + fixed)

        spent = sum(
            macs * share(layer, "out") * (1.0 if layer in self._grouped else share(layer, "in"))
            for layer, macs in self._macs.items()
        )
        return spent / sum(self._macs.values())

    def keep(self, scores: Sequence[Tensor], capacity: float, allocation: str = "layer") -> list[Tensor]:
        """One boolean [units] a group: the best, so many that the MACs are as near to the capacity as multiples allow.

        Raises ConfigError for a capacity outside (0, 1] or an unknown allocation.
        """
        capacity = check_capacity(capacity)
        if allocation not in ALLOCATIONS:
            raise ConfigError(unknown("allocation", allocation, ALLOCATIONS))
        units = [group.units for group in self.graph.groups]
        magnitudes = [score.detach().abs() for score in scores]
        if allocation == "layer":
            if len(self._counts) > 100:  # of capacities that are drawn anew each step
                self._counts.clear()
            if capacity not in self._counts:  # they do not depend on the scores
                self._counts[capacity] = self._nearest(capacity, lambda dial: [dial * n for n in units])
            counts = self._counts[capacity]
        else:
            # Groups differ in the size of their scores by how they began, so each is measured by its own mean.
            pooled = [m / m.mean().clamp(min=1e-12) for m in magnitudes]
            ranked = torch.cat(pooled).sort(descending=True).values

            def above(dial: float) -> list[float]:
                threshold = ranked[min(len(ranked) - 1, int(dial * len(ranked)))]
                return [float((m >= threshold).sum()) if dial < 1 else float(len(m)) for m in pooled]

            counts = self._nearest(capacity, above)
        return [_best(m, count) for m, count in zip(magnitudes, counts, strict=True)]

    def _nearest(self, capacity: float, counts_at: Callable[[float], list[float]]) -> list[int]:
        """Counts whose MACs are nearest to the capacity, along a dial from 0 to 1 that never lowers a count."""
        if capacity == 1.0:
            return [group.units for group in self.graph.groups]
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.fraction(self._rounded(counts_at(middle))) < capacity else (low, middle)
        below, above = self._rounded(counts_at(low)), self._rounded(counts_at(high))
        return min((below, above), key=lambda counts: abs(self.fraction(counts) - capacity))

    def _rounded(self, counts: Sequence[float]) -> list[int]:
        """Whole multiples of each group's step, at least one and at most all. Each group rounds at a place of its
        own, or groups of one size would all step at once."""
        return [
            group.units if n >= group.units else min(group.units, max(step, int(n / step + place * _GOLDEN % 1) * step))
            for place, (n, step, group) in enumerate(zip(counts, self._steps, self.graph.groups, strict=True), start=1)
        ]

    def ends(self, layer: str, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(outputs [O], inputs [I]) of a layer that stay, boolean, where each group keeps some units."""
        return self._end(layer, "out", kept), self._end(layer, "in", kept)

    def _end(self, layer: str, side: str, kept: Sequence[Tensor]) -> Tensor:
        sites = self._sites[layer, side].to(kept[0].device if kept else "cpu")
        stays = torch.ones(sites.shape[1], dtype=torch.bool, device=sites.device)
        for site, units in zip(sites, kept, strict=True):
            stays &= (site < 0) | units[site.clamp(min=0)]
        return stays

    def gather(self, layer: str, product: Tensor, rows: list[Tensor], ends: Ends | None = None) -> None:
        """Adds a layer's [O, I] (inputs a group, where it is grouped) to the rows of the units that its mask belongs
        to. `ends`: which outputs and inputs the product is of; None: of all."""
        made, read = self._shapes[layer]
        self._add((layer, "out"), _spread(product.sum(1), made, None if ends is None else ends.made), rows)
        if layer not in self._grouped:
            self._add((layer, "in"), _spread(product.sum(0), read, None if ends is None else ends.read), rows)

    def _add(self, site: tuple[str, str], values: Tensor, rows: list[Tensor]) -> None:
        for group, channels, units in self._members[site]:
            mine = values[channels.to(values.device)].to(rows[group].dtype)
            rows[group].index_add_(0, units.to(values.device), mine)

    @classmethod
    def of(cls, net: nn.Module, graph: ChannelGraph, macs: dict[str, int], multiple: int = MULTIPLE) -> Channels:
        """The groups of a network with `backbone` and `neck`, as `channel_graph.trace` found them; `macs`: its layers'
        multiply-adds. ConfigError where no channel of it can be cut."""
        if not graph.groups:
            reasons = "; ".join(sorted(set(graph.kept.values()))[:3])
            raise ConfigError(f"no channel of {net.spec['backbone']} can be cut out: {reasons}")  # type: ignore[index]
        weights = {
            name: module.get_parameter("weight")
            for name, module in net.named_modules()
            if name.startswith(("backbone.", "neck.")) and module._parameters.get("weight") is not None
        }
        return cls(graph, weights, macs, multiple)


def _spread(values: Tensor, size: int, places: Tensor | None) -> Tensor:
    """[size], 0 outside of the places."""
    return values if places is None else values.new_zeros(size).index_copy_(0, places, values)


def _members(sites: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    for group, site in enumerate(sites):
        channels = (site >= 0).nonzero().squeeze(1)
        if len(channels):
            yield group, channels, site[channels]


def _site(group: Group, layer: str, side: str, size: int) -> Tensor:
    units = group.sites.get((layer, side))
    return torch.full((size,), -1) if units is None else torch.from_numpy(units)


def _inputs(graph: ChannelGraph, layer: str, weight: Tensor) -> int:
    """Input channels of a layer: as its site says (a grouped convolution's weight holds a group's only)."""
    known = [len(group.sites[layer, "in"]) for group in graph.groups if (layer, "in") in group.sites]
    return known[0] if known else weight.shape[1]


def _best(magnitude: Tensor, count: int) -> Tensor:
    """Boolean: the `count` largest, the lower index first among equals."""
    order = torch.argsort(magnitude, descending=True, stable=True)
    return torch.zeros_like(magnitude, dtype=torch.bool).scatter_(0, order[:count], True)
