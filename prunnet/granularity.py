"""What one score stands for: a weight (PrunNet), one of four weights of which two stay (`nm`), a kernel, or a channel
(METHODS section 7). A `Selection` holds the masks of all layers at some capacities, and knows what reaches the scores.

Only `channel` makes ordinary hardware faster; `nm` (2 of 4) does on GPUs with kernels for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunnet import prunable
from prunnet.config import check_density
from prunnet.errors import ConfigError, unknown
from prunnet.masks import LayerMasks, StoredMasks, top_k_mask, update_all
from prunnet.narrow import Narrow, can_be_narrow

if TYPE_CHECKING:
    from prunnet.nets import RetrievalNet

GRANULARITIES = ("weight", "nm", "kernel", "channel")
UNITS = {"weight": "weights", "nm": "weights", "kernel": "weights", "channel": "macs"}
"""What a capacity is a fraction of."""


def check_granularity(granularity: str) -> str:
    """`granularity` if there is one of that name, else ConfigError."""
    if granularity not in GRANULARITIES:
        raise ConfigError(unknown("granularity", granularity, GRANULARITIES))
    return granularity


class Selection:
    """The masks of a network's layers at several capacities, made anew from its scores by `update`.

    `layers` holds one set of masks a layer, in the order of the network: all that carry scores, then (granularity
    `channel`) further layers that read what may be cut, such as the neck.
    """

    layers: dict[str, LayerMasks] | dict[str, StoredMasks]
    fused = True
    """Whether a score's gradient is its own weight's times w * sign(s), so that it need not be stored."""

    def update(self, capacities: Sequence[float], threads: Executor | None = None) -> None:
        """Selects anew, from the scores as they are now."""
        raise NotImplementedError

    def narrow(self, mask: int) -> Narrow | None:
        """A cut as the same modules with smaller tensors; None where there is no such thing."""
        return None

    def score_rows(self, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> list[ScoreRows]:
        """Gradients of scores that several weights share, from M passes (where not `fused`).

        gradients: one mapping a pass, layer name -> gradient of its (masked, or smaller) weight.
        """
        raise NotImplementedError


Cut = int | Narrow | None
"""What a pass had of the weights: a mask, smaller tensors, or (None) all of them."""
ScoreRows = tuple[nn.Parameter, Tensor]
"""A score tensor and its gradients [M, *shape]."""


class WeightSelection(Selection):
    """A score for every weight: the k best of a layer, or of the network."""

    layers: dict[str, LayerMasks]

    def __init__(self, scores: Mapping[str, Tensor], capacities: Sequence[float], allocation: str) -> None:
        self.scores, self.allocation = scores, allocation
        self.layers = {name: LayerMasks(score, capacities) for name, score in scores.items()}
        if allocation != "layer":
            self.update(capacities)

    def update(self, capacities: Sequence[float], threads: Executor | None = None) -> None:
        masks, scores = list(self.layers.values()), list(self.scores.values())
        update_all(masks, scores, threads, capacities=capacities, allocation=self.allocation)


class _Stored(Selection):
    """Masks that are made by a rule of their own and kept."""

    layers: dict[str, StoredMasks]

    def __init__(self, net: RetrievalNet, scores: Mapping[str, Tensor], capacities: Sequence[float]) -> None:
        self.net, self.scores = net, scores
        self.weights = {name: layer.get_parameter("weight") for name, layer in prunable.layers(net).items()}
        self.layers = {name: StoredMasks(weight) for name, weight in self.weights.items()}
        self.update(capacities)

    @torch.no_grad()
    def update(self, capacities: Sequence[float], threads: Executor | None = None) -> None:
        for name, masks in self.layers.items():
            masks.set([self._mask(name, capacity) for capacity in capacities])

    def _mask(self, name: str, capacity: float) -> Tensor:
        raise NotImplementedError


class NmSelection(_Stored):
    """Of each four weights that follow each other along the input, the two best (2:4)."""

    def _mask(self, name: str, capacity: float) -> Tensor:
        check_density("nm", [capacity])
        score = self.scores[name].detach().abs()
        if capacity == 1.0:
            return torch.ones_like(score, dtype=torch.bool)
        fours = score.unflatten(1, (-1, 4))
        order = fours.argsort(dim=2, descending=True, stable=True)
        return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, order[:, :, :2], True).flatten(1, 2)


class KernelSelection(_Stored):
    """One score for the kernel from one input channel to one output channel; of a linear layer that is a weight."""

    fused = False

    def _mask(self, name: str, capacity: float) -> Tensor:
        return top_k_mask(self.scores[name], capacity).expand_as(self.weights[name])

    @torch.no_grad()
    def score_rows(self, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> list[ScoreRows]:
        return [(s, self._rows(name, s, gradients, cuts)) for name, s in self.scores.items()]  # type: ignore[misc]

    def _rows(self, name: str, score: Tensor, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> Tensor:
        weight = self.weights[name].detach()
        given = (
            self.layers[name].apply(g[name], cut) if isinstance(cut, int) else g[name]
            for g, cut in zip(gradients, cuts, strict=True)
        )
        places = tuple(range(2, weight.dim()))
        sums = [(g * weight).sum(places, keepdim=True) if places else g * weight for g in given]
        return torch.stack(sums) * score.detach().sign()


class ChannelSelection(Selection):
    """One score for all channels that are tied to each other; capacity is the fraction of prunable MACs."""

    layers: dict[str, StoredMasks]
    fused = False

    def __init__(
        self,
        net: RetrievalNet,
        scores: Sequence[Tensor],
        capacities: Sequence[float],
        allocation: str,
    ) -> None:
        assert net.channels is not None
        self.net, self.channels, self.scores, self.allocation = net, net.channels, scores, allocation
        weights = {name: net.get_submodule(name).get_parameter("weight") for name in net.channels.touched}
        self.weights: Mapping[str, Tensor] = weights
        self._narrows = can_be_narrow(net)
        self.layers = {name: StoredMasks(weight) for name, weight in weights.items()}
        self.update(capacities)

    @torch.no_grad()
    def update(self, capacities: Sequence[float], threads: Executor | None = None) -> None:
        kept = self._kept = [self.channels.keep(self.scores, capacity, self.allocation) for capacity in capacities]
        self._ends = [{name: self.channels.ends(name, units) for name in self.layers} for units in kept]
        for name, masks in self.layers.items():
            masks.set([partial(_both_ends, self.weights[name], *ends[name]) for ends in self._ends])

    def narrow(self, mask: int) -> Narrow | None:
        return Narrow(self.net, self._ends[mask], self._kept[mask]) if self._narrows else None

    @torch.no_grad()
    def score_rows(self, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> list[ScoreRows]:
        """Straight through the mask wherever it stands: the sum of g * w over all weights that a unit's mask touches,
        those that make its channels and those that read them. Behind a BatchNorm the former sum is 0, since the loss
        does not feel a filter's length: what reads a channel is what tells its worth."""
        rows = [[torch.zeros_like(score) for score in self.scores] for _ in gradients]
        for number, (of_pass, cut) in enumerate(zip(gradients, cuts, strict=True)):
            for name, weight in self.weights.items():
                product = of_pass[name] * (cut.small[name] if isinstance(cut, Narrow) else weight).detach()
                product = product.flatten(2).sum(2) if product.dim() > 2 else product
                if isinstance(cut, int):
                    made, read = self._ends[cut][name]
                    product = product * made[:, None] * (read[None] if len(read) == product.shape[1] else 1)
                self.channels.gather(name, product, rows[number], cut.ends[name] if isinstance(cut, Narrow) else None)
        return [
            (score, torch.stack([row[i] for row in rows]) * score.detach().sign())  # type: ignore[misc]
            for i, score in enumerate(self.scores)
        ]


def _both_ends(weight: Tensor, made: Tensor, read: Tensor) -> Tensor:
    """The mask of a weight [O, I, …] whose output and input channels are kept as said; a grouped convolution's inputs
    go with its outputs."""
    mask = made.view(-1, *[1] * (weight.dim() - 1))
    if len(read) == weight.shape[1]:
        mask = mask & read.view(1, -1, *[1] * (weight.dim() - 2))
    return mask.expand_as(weight)


def select(
    net: RetrievalNet,
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
