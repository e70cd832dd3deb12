"""Loops over weights that numpy and torch have no single call for, compiled by numba for the CPU.

They work on pieces that stay in cache, and release the GIL: `pruning.masks` and `training.gradients.rows` share the
work out to threads, and have the torch forms that other devices take.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from prunnet.machine_code import compiled

_PIECE = 256
"""Weights that are worked on at once: ten rows of them fit the first-level cache."""
_SHARED = 16
"""Leading bits of a magnitude that `candidates` sorts into bins."""


_compiled = compiled(reordered=True)


def _point(typing: Any, address: Any, like: Any) -> Any:
    """A pointer to numbers of the kind that the array `like` holds."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


_pointer: Any = intrinsic(_point)


@_compiled
def candidates(magnitudes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which values the counts[i]-th largest one is among.

    Args:
        magnitudes: [n], integers >= 0 of 32 or 64 bits (magnitudes of floats, whose bits are ordered as they are).
        counts: [C], each 1 … n.

    Returns:
        (values, slices [C, 2], ranks [C]): it is the ranks[i]-th largest (from 1) of values[slices[i, 0]:slices[i, 1]],
        which are all that share its leading bits.
    """
    shift = magnitudes.itemsize * 8 - 1 - _SHARED
    sizes = np.zeros(1 << _SHARED, np.int64)
    for magnitude in magnitudes:
        sizes[magnitude >> shift] += 1
    bins, ranks = np.empty(len(counts), np.int64), np.empty(len(counts), np.int64)
    for i in range(len(counts)):
        left, place = counts[i], len(sizes) - 1
        while sizes[place] < left:
            left -= sizes[place]
            place -= 1
        bins[i], ranks[i] = place, left
    starts, ends = np.zeros_like(sizes), np.zeros_like(sizes)
    wanted = np.zeros(len(sizes), np.bool_)
    total = 0
    for chosen in bins:
        if not wanted[chosen]:
            wanted[chosen] = True
            starts[chosen] = ends[chosen] = total
            total += sizes[chosen]
    values = np.empty(total, magnitudes.dtype)
    for magnitude in magnitudes:
        lead = magnitude >> shift
        if wanted[lead]:
            values[ends[lead]] = magnitude
            ends[lead] += 1
    slices = np.empty((len(counts), 2), np.int64)
    for i, chosen in enumerate(bins):
        slices[i, 0], slices[i, 1] = starts[chosen], ends[chosen]
    return values, slices, ranks


@_compiled
def grams(
    rows: np.ndarray,
    below: np.ndarray,
    magnitude: np.ndarray,
    weight: np.ndarray,
    kernels: tuple[int, int],
    out: np.ndarray,
) -> None:
    """Inner products of the M gradients of some kernels, each 0 where the score's magnitude is not above a threshold.

    Args:
        rows: [M], addresses of gradients [B, n], laid out like `weight`.
        below: [M], their thresholds.
        magnitude, weight: [B, n].
        kernels: from, to.
        out: [B, K, M, M], float64, zeros, is written: of the weights' gradients and (K = 2) of the scores', which are
            the weights' times `weight`, and nothing where the score is 0.
    """
    count, size, kinds = len(rows), weight.shape[1], out.shape[1]
    masked, square = np.empty((count, _PIECE), weight.dtype), np.empty(_PIECE, weight.dtype)
    nothing = weight.dtype.type(0)
    for b in range(kernels[0], kernels[1]):
        for start in range(0, size, _PIECE):
            part = slice(start, start + _PIECE)
            worth, factor = magnitude[b, part], weight[b, part]
            width = len(worth)
            for x in range(width):
                square[x] = factor[x] * factor[x] if worth[x] > nothing else nothing
            for i in range(count):
                gradient, own = numba.carray(_pointer(rows[i], weight), weight.shape)[b, part], masked[i]
                for x in range(width):
                    own[x] = gradient[x] if worth[x] > below[i] else nothing
            for i in range(count):
                for j in range(0, i + 1, 2):  # two at a time: what is read serves four sums
                    k = min(j + 1, i)
                    one, other, third = masked[i], masked[j], masked[k]
                    of_weights = of_scores = of_weights_too = of_scores_too = nothing
                    for x in range(width):
                        product, product_too = one[x] * other[x], one[x] * third[x]
                        of_weights += product
                        of_scores += product * square[x]
                        of_weights_too += product_too
                        of_scores_too += product_too * square[x]
                    out[b, 0, i, j] += of_weights
                    out[b, kinds - 1, i, j] += of_scores if kinds == 2 else nothing
                    if k > j:
                        out[b, 0, i, k] += of_weights_too
                        out[b, kinds - 1, i, k] += of_scores_too if kinds == 2 else nothing
        for kind in range(kinds):
            for i in range(count):
                for j in range(i):
                    out[b, kind, j, i] = out[b, kind, i, j]


@_compiled
def sums(
    rows: np.ndarray,
    below: np.ndarray,
    magnitude: np.ndarray,
    weight: np.ndarray,
    score: np.ndarray,
    kernels: tuple[int, int],
    coefficients: np.ndarray,
    of_weights: np.ndarray,
    of_scores: np.ndarray,
) -> None:
    """Weighted sums of the gradients that `grams` reads.

    Args:
        score: [B, n]; its signs and the weights are what a score's gradient has beyond its weight's.
        coefficients: [B, K, M], of the weights' gradients and (K = 2) of the scores'.
        of_weights, of_scores: [B, n], are written; the latter where K = 2.
    """
    count, size, kinds = len(rows), weight.shape[1], coefficients.shape[1]
    totals, nothing = np.empty((2, _PIECE), weight.dtype), weight.dtype.type(0)
    first, second = totals[0], totals[1]
    for b in range(kernels[0], kernels[1]):
        for start in range(0, size, _PIECE):
            part = slice(start, start + _PIECE)
            worth, factor, learned = magnitude[b, part], weight[b, part], score[b, part]
            totals[:] = nothing
            for i in range(count):
                gradient = numba.carray(_pointer(rows[i], weight), weight.shape)[b, part]
                for x in range(len(worth)):
                    value = gradient[x] if worth[x] > below[i] else nothing
                    first[x] += coefficients[b, 0, i] * value
                    second[x] += coefficients[b, kinds - 1, i] * value
            weights_out, scores_out = of_weights[b, part], of_scores[b, part]
            for x in range(len(worth)):
                weights_out[x] = first[x]
            if kinds == 2:
                for x in range(len(worth)):
                    scores_out[x] = second[x] * factor[x] * np.sign(learned[x])
