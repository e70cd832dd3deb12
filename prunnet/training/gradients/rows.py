"""The gradients of one layer from M passes: their inner products, and their weighted sums (for `gradients.conflict`).

Each subnetwork's gradient counts where its mask keeps a weight. The gradients are read twice, and neither masked
gradients nor the scores' gradients are ever stored: on a CPU compiled loops make them in cache
(`pruning.compiled_loops`), elsewhere, and under masks that are no thresholds, torch makes them a piece at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from prunnet.pruning import compiled_loops
from prunnet.pruning.masks import LayerMasks, StoredMasks, compilable

_AT_ONCE = 2_500_000
"""Numbers of a piece of rows that torch works on at once."""
_SHARED = 50_000
"""Weights from which on threads share a layer."""


@dataclass(frozen=True)
class LayerRows:
    """The gradients of one layer, and the tensors that the integrated ones are written to.

    The score gradient of every pass is its weight gradient times one factor w * sign(s) (docs/METHODS.md, section 2,
    straight-through).
    """

    gradients: Sequence[Tensor]
    """M of [B, n]; 0 where a mask leaves ties out (`LayerMasks.zero_ties`)."""
    weight: Tensor
    """[B, n]."""
    weight_grad: Tensor
    """[B, n], written."""
    score: Tensor | None = None
    """[B, n]; None: one score stands for several weights, and its gradient is integrated elsewhere."""
    score_grad: Tensor | None = None
    """[B, n], likewise written."""
    masks: LayerMasks | StoredMasks | None = None
    cuts: Sequence[int | None] | None = None
    """M: which of `masks` a gradient is under; None: under none."""
    learned: tuple[bool, bool] = (True, True)
    """Whether weights, and scores, are trained: what is not has no part in a block of the whole network."""

    @property
    def kinds(self) -> int:
        """1: rows of weights alone; 2: of scores too."""
        return 1 if self.score is None else 2

    @cached_property
    def loops(self) -> _Loops | None:
        """The layer as compiled loops take it; None where they cannot."""
        if not compilable(self.weight):
            return None
        thresholds: list[float] = []
        for cut in self.cuts or [None] * len(self.gradients):
            found: float | None = -math.inf
            if cut is not None:
                found = self.masks.threshold(cut) if isinstance(self.masks, LayerMasks) else None
            if found is None:
                return None
            thresholds.append(found)
        return _Loops(self, thresholds)

    def sizes(self) -> Tensor:
        """[M + 1]: the largest magnitude of each gradient, and of the weights."""
        tensors = (*self.gradients, self.weight)
        return torch.stack([torch.linalg.vector_norm(tensor, math.inf) for tensor in tensors])

    def scaled(self, factors: Tensor) -> LayerRows:
        """The same layer with copies of its gradients and weights, each times one of `factors` [M + 1], powers of 2."""
        *of_rows, of_weight = factors.to(self.weight).unbind()
        gradients = [gradient * factor for gradient, factor in zip(self.gradients, of_rows, strict=True)]
        return replace(self, gradients=gradients, weight=self.weight * of_weight)

    def pieces(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """(kernels, their rows [b, M, n], their factors [b, n] where there are scores); the next piece overwrites the
        last one's rows."""
        (blocks, size), count = self.weight.shape, len(self.gradients)
        step = max(1, min(blocks, _AT_ONCE // max(1, count * size)))
        scratch = self.weight.new_empty(step, count, size)
        for start in range(0, blocks, step):
            part = slice(start, min(start + step, blocks))
            rows = scratch[: part.stop - start]
            for index, gradient in enumerate(self.gradients):
                cut = None if self.cuts is None else self.cuts[index]
                if cut is None or self.masks is None:
                    rows[:, index] = gradient[part]
                else:
                    self.masks.apply_rows(gradient[part], cut, out=rows[:, index], kernels=part)
            yield part, rows, None if self.score is None else self.score[part].sign().mul_(self.weight[part])


def inner_products(layers: Sequence[LayerRows], threads: Executor | None = None) -> list[Tensor]:
    """Of each layer's rows, kernel by kernel: [B, K, M, M], float64; K as `LayerRows.kinds`."""
    found = []
    jobs: list[_Job] = []
    for layer in layers:
        count = len(layer.gradients)
        out = layer.weight.new_zeros(len(layer.weight), layer.kinds, count, count, dtype=torch.float64)
        found.append(out)
        if layer.loops is not None:
            jobs.append((layer, partial(layer.loops.grams, out.numpy())))
            continue
        for part, rows, factor in layer.pieces():
            out[part, 0] = torch.bmm(rows, rows.transpose(1, 2)).to(out.dtype)
            if factor is not None:
                rows *= factor.unsqueeze(1)
                out[part, 1] = torch.bmm(rows, rows.transpose(1, 2)).to(out.dtype)
    _work_off(jobs, threads)
    return found


def write_sums(layers: Sequence[LayerRows], coefficients: Sequence[Tensor], threads: Executor | None = None) -> None:
    """Each layer's rows, weighted with its coefficients [B, K, M] and added up, into its gradients."""
    jobs: list[_Job] = []
    for layer, given in zip(layers, coefficients, strict=True):
        own = given.to(layer.weight.dtype).contiguous()
        if layer.loops is not None:
            jobs.append((layer, partial(layer.loops.sums, own.numpy())))
            continue
        for part, rows, factor in layer.pieces():
            sums = torch.bmm(own[part], rows)  # [b, K, n]
            layer.weight_grad[part] = sums[:, 0]
            if factor is not None and layer.score_grad is not None:
                torch.mul(sums[:, 1], factor, out=layer.score_grad[part])
    _work_off(jobs, threads)


_Job = tuple[LayerRows, Callable[[tuple[int, int]], None]]
"""A layer, and what is to be done with its kernels from one to another."""


def _work_off(jobs: Sequence[_Job], threads: Executor | None) -> None:
    """Does the jobs, those of large layers in as many shares as torch has threads."""
    shares = []
    for layer, call in jobs:
        count = torch.get_num_threads() if layer.weight.numel() >= _SHARED else 1
        bounds = [len(layer.weight) * i // count for i in range(count + 1)]
        shares += [(call, part) for part in pairwise(bounds)]
    list((threads.map if threads else map)(lambda share: share[0](share[1]), shares))


class _Loops:
    """A layer's arrays, as `prunnet.pruning.compiled_loops` takes them."""

    def __init__(self, layer: LayerRows, thresholds: Sequence[float]) -> None:
        self.weight, self.of_weights = layer.weight.numpy(), layer.weight_grad.numpy()
        self.score = self.weight if layer.score is None else layer.score.numpy()
        self.of_scores = self.of_weights if layer.score_grad is None else layer.score_grad.numpy()
        # Nothing but their addresses is handed on.
        assert all(gradient.is_contiguous() and gradient.dtype == layer.weight.dtype for gradient in layer.gradients)
        self.rows = np.array([gradient.data_ptr() for gradient in layer.gradients])
        self.below = np.array(thresholds, self.weight.dtype)
        if isinstance(layer.masks, LayerMasks):
            self.magnitude = layer.masks.magnitude.numpy()
        else:  # there is no threshold; a score's magnitude shows where it is 0
            self.magnitude = self.weight if layer.score is None else np.abs(self.score)

    def grams(self, out: np.ndarray, part: tuple[int, int]) -> None:
        compiled_loops.grams(self.rows, self.below, self.magnitude, self.weight, part, out)

    def sums(self, coefficients: np.ndarray, part: tuple[int, int]) -> None:
        given = self.rows, self.below, self.magnitude, self.weight, self.score, part
        compiled_loops.sums(*given, coefficients, self.of_weights, self.of_scores)
