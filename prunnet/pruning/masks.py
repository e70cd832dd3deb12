"""Score + capacity -> mask: exactly k weights a layer, the lower index first among equals (docs/METHODS.md, section 2).

All capacities of a layer come from one selection. On a CPU, for float32 and float64 scores, a mask is the pair
(threshold, indices of the tied weights to drop), and `LayerMasks.apply` is a single compare-and-copy over the weights.
On other devices, and where a threshold is close to 0, one stable sort ranks the weights, and a mask is `rank < k`;
nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from torch import Tensor

from prunnet.config.choices import check_capacity
from prunnet.errors import ConfigError, unknown
from prunnet.pruning import compiled_loops

ALLOCATIONS = ("layer", "global")
FLOOR = 0.01
"""Share of every layer that allocation `global` keeps in any case."""
_MIN_THRESHOLD = 1e-30
"""No smaller threshold is used: the number below it may be denormal, and some CPUs take denormals for 0."""


def keep_count(total: int, capacity: float) -> int:
    """How many of `total` weights capacity keeps: k = max(1, floor(c n + 0.5))."""
    return max(1, math.floor(check_capacity(capacity) * total + 0.5))


def top_k_mask(scores: Tensor, capacity: float) -> Tensor:
    """Boolean mask `[*scores.shape]` of the k scores of largest magnitude.

    Ties go to the lower flat index. The plain form: one stable sort, any device.
    """
    ranks = _ranks(scores.detach().abs().reshape(-1))
    return (ranks < keep_count(scores.numel(), capacity)).view(scores.shape)


def _ranks(magnitude: Tensor) -> Tensor:
    order = torch.argsort(magnitude, descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))


def in_memory_order(tensor: Tensor) -> Tensor:
    """`tensor` [O, ...] as a view [O, n] without a copy where its memory is dense (contiguous, channels-last)."""
    if tensor.dim() == 4 and not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(tensor.shape[0], -1)


def compilable(tensor: Tensor) -> bool:
    """Whether `prunnet.pruning.compiled_loops` can work on it."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` in the memory format of `like` (same shape); copied only where they differ."""
    if tensor.stride() == like.stride() or (tensor.is_contiguous() and like.is_contiguous()):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


class LayerMasks:
    """The masks of one layer at several capacities; `update` selects them again from new scores.

    Args:
        scores: the layer's score tensor, any shape and dense memory format.
        capacities: one mask each, in this order.
    """

    def __init__(self, scores: Tensor, capacities: Sequence[float]) -> None:
        self._set([keep_count(scores.numel(), c) for c in capacities])
        self._magnitude = torch.empty_like(scores, requires_grad=False)
        self._ranks: Tensor | None = None
        self.update(scores)

    def _set(self, counts: list[int]) -> None:
        """Sets how many weights each mask keeps; the next selection uses it."""
        self.counts = counts
        self._below: list[float] = [0.0] * len(counts)
        self._dropped: list[Tensor | None] = [None] * len(counts)

    def update(self, scores: Tensor) -> None:
        """Selects again after the scores have changed."""
        update_all([self], [scores])

    def _select(self) -> None:
        if compilable(self._magnitude) and self._select_thresholds():
            self._ranks = None
        else:
            logical = self._magnitude.reshape(-1)
            self._ranks = torch.empty_like(self._magnitude, dtype=torch.int64)
            self._ranks.copy_(_ranks(logical).view(self._magnitude.shape))

    def _select_thresholds(self) -> bool:
        """Finds the thresholds of all capacities; False if one is not above `_MIN_THRESHOLD`: ranks are then used."""
        flat = self._flat().numpy()
        integers = flat.view(np.int32 if flat.itemsize == 4 else np.int64)  # ordered as the numbers are
        values, slices, ranks = compiled_loops.candidates(integers, np.array(self.counts))
        for i, ((start, stop), rank) in enumerate(zip(slices, ranks, strict=True)):
            alike = values[start:stop].view(flat.dtype)
            threshold = np.partition(alike, len(alike) - rank)[len(alike) - rank]
            if not threshold > _MIN_THRESHOLD:
                return False
            inside = rank - np.count_nonzero(alike > threshold)
            self._below[i] = float(np.nextafter(threshold, threshold.dtype.type(0)))
            tied = np.count_nonzero(alike == threshold) > inside
            self._dropped[i] = self._tied_out(threshold, inside) if tied else None
        return True

    def _tied_out(self, threshold: np.floating, inside: int) -> Tensor:
        """Memory indices of the tied weights to drop: all but the `inside` ones of the lowest logical index,
        which is the index in contiguous layout, whatever the memory format."""
        tied = np.flatnonzero(self._flat().numpy() == threshold)
        by_index = tied[np.argsort(self._logical_index(tied), kind="stable")]
        return torch.from_numpy(by_index[inside:])

    def _logical_index(self, memory_index: np.ndarray) -> np.ndarray:
        if self._magnitude.is_contiguous():
            return memory_index
        out, inner, height, width = self._magnitude.shape
        o, h, w, i = np.unravel_index(memory_index, (out, height, width, inner))
        return np.ravel_multi_index((o, i, h, w), (out, inner, height, width))

    def _flat(self) -> Tensor:
        return in_memory_order(self._magnitude).view(-1)

    def apply(self, values: Tensor, index: int) -> Tensor:
        """A new tensor: `values` [*scores.shape] where mask `index` keeps, else 0; memory format kept."""
        result = torch.empty_like(self._magnitude, dtype=values.dtype)
        values = laid_out_like(values.detach(), self._magnitude)
        self.apply_rows(in_memory_order(values), index, out=in_memory_order(result))
        return result

    def apply_rows(self, values: Tensor, index: int, *, out: Tensor, kernels: slice = slice(None)) -> None:
        """As `apply`, on the rows [b, n] of some output kernels in memory order, into `out` [b, n]."""
        if self._ranks is not None:
            torch.mul(values, in_memory_order(self._ranks)[kernels] < self.counts[index], out=out)
            return
        # threshold_backward(v, a, t) is "v where a > t, else 0": one pass, and no mask tensor.
        magnitude = in_memory_order(self._magnitude)[kernels]
        torch.ops.aten.threshold_backward(values, magnitude, self._below[index], grad_input=out)
        dropped = self._dropped[index]
        if dropped is not None:
            size = out.shape[1]
            local = dropped - (kernels.start or 0) * size
            local = local[(local >= 0) & (local < out.shape[0] * size)]
            out[local // size, local % size] = 0

    def threshold(self, index: int) -> float | None:
        """Kept scores have a magnitude above it, tied ones that `zero_ties` drops, too; None where masks are ranks."""
        return None if self._ranks is not None else self._below[index]

    def zero_ties(self, values: Tensor, index: int) -> None:
        """Puts 0 into `values` [O, n], in memory order, where scores lie above the threshold and are not kept."""
        dropped = self._dropped[index]
        if self._ranks is None and dropped is not None:
            values.view(-1)[dropped] = 0

    @property
    def magnitude(self) -> Tensor:
        """Magnitude of the scores at the last selection; [O, n] in memory order."""
        return in_memory_order(self._magnitude)

    def mask(self, index: int) -> Tensor:
        """Boolean mask `index` [*scores.shape]."""
        return self.apply(torch.ones_like(self._magnitude), index) != 0


class StoredMasks:
    """Masks of one layer as boolean tensors, for granularities whose masks are no threshold on weights.

    `apply`, `apply_rows` and `mask` are as those of `LayerMasks`; the caller sets the masks by `set`. `weight` gives
    shape and memory format.
    """

    def __init__(self, weight: Tensor) -> None:
        self._like, self._masks = weight.detach(), list[Tensor | Callable[[], Tensor]]()

    def set(self, masks: Sequence[Tensor | Callable[[], Tensor]]) -> None:
        """The masks of the layer, boolean and of the weight's shape; a callable is called when its mask is wanted."""
        self._masks = [mask if callable(mask) else self._kept(mask) for mask in masks]

    def _kept(self, mask: Tensor) -> Tensor:
        return torch.empty_like(self._like, dtype=torch.bool).copy_(mask)

    def apply(self, values: Tensor, index: int) -> Tensor:
        """As `LayerMasks.apply`."""
        return laid_out_like(values.detach(), self._like) * self.mask(index)

    def apply_rows(self, values: Tensor, index: int, *, out: Tensor, kernels: slice = slice(None)) -> None:
        """As `LayerMasks.apply_rows`."""
        torch.mul(values, in_memory_order(self.mask(index))[kernels], out=out)

    def mask(self, index: int) -> Tensor:
        """Boolean mask `index` [*weight.shape]."""
        mask = self._masks[index]
        if callable(mask):
            mask = self._masks[index] = self._kept(mask())
        return mask


@torch.no_grad()
def update_all(
    masks: Sequence[LayerMasks],
    scores: Sequence[Tensor],
    threads: Executor | None = None,
    *,
    capacities: Sequence[float] | None = None,
    allocation: str = "layer",
) -> None:
    """Selects the masks of some layers anew, several layers at a time where there are `threads`.

    Args:
        capacities: what the masks are to keep from now on; None: as before (allocation `layer` only).
        allocation: `layer`, or `global`: see `global_counts`.

    Only compiled loops and numpy run in the threads (they release the GIL): a torch operation there would start a
    second team of OpenMP threads, which competes with the first.
    """
    for mask, score in zip(masks, scores, strict=True):
        torch.abs(score.detach(), out=mask._magnitude)
    if capacities is not None:
        for mask, counts in zip(masks, counts_by_layer(scores, capacities, allocation), strict=True):
            mask._set(counts)
    largest_first = sorted(masks, key=lambda mask: -mask._magnitude.numel())
    list((threads.map if threads else map)(LayerMasks._select, largest_first))


def counts_by_layer(scores: Sequence[Tensor], capacities: Sequence[float], allocation: str) -> list[list[int]]:
    """How many weights each layer keeps at each capacity: [layer][capacity]."""
    if allocation == "layer":
        return [[keep_count(score.numel(), c) for c in capacities] for score in scores]
    if allocation != "global":
        raise ConfigError(unknown("allocation", allocation, ALLOCATIONS))
    return global_counts(scores, capacities)


@torch.no_grad()
def global_counts(scores: Sequence[Tensor], capacities: Sequence[float], floor: float = FLOOR) -> list[list[int]]:
    """Counts [layer][capacity] under one threshold over all layers ("greedy", docs/METHODS.md, section 2).

    The best `floor` of each layer is always kept, so that no layer vanishes; the rest of the budget
    goes to the best scores of all layers, the earlier layer and the lower index first among equals. A budget
    below the floors is raised to them. Masks of ever larger capacities nest.
    """
    magnitudes = [score.detach().abs().reshape(-1) for score in scores]
    floors = [max(1, math.floor(floor * m.numel() + 0.5)) for m in magnitudes]
    # Without a layer's floor, what is left of it by falling magnitude.
    left = [m.sort(descending=True).values[kept:] for m, kept in zip(magnitudes, floors, strict=True)]
    pool = torch.cat(left)
    total = sum(m.numel() for m in magnitudes)
    by_capacity = []
    for capacity in capacities:
        more = max(0, keep_count(total, capacity) - sum(floors))
        by_capacity.append([kept + n for kept, n in zip(floors, _shares(left, pool, more), strict=True)])
    return [list(counts) for counts in zip(*by_capacity, strict=True)]


def _shares(left: Sequence[Tensor], pool: Tensor, count: int) -> list[int]:
    """How many of the `count` largest of the pool each layer owns."""
    if count == 0:
        return [0] * len(left)
    threshold = pool.kthvalue(pool.numel() - count + 1).values
    above = [int((m > threshold).sum()) for m in left]
    ties = count - sum(above)
    shares = []
    for m, n in zip(left, above, strict=True):
        taken = min(ties, int((m == threshold).sum()))
        shares.append(n + taken)
        ties -= taken
    return shares
