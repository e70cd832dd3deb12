"""Conflict-aware integration of N + 1 gradients (PrunNet, arXiv 2504.11879; docs/METHODS.md, section 2).

Every projected gradient p_i is a linear combination of the given rows, so all of the method happens on small
Gram matrices [B, M, M] (M = N + 1 rows, B blocks); the rows themselves are read twice: for the Gram matrices
and for the one weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from prunnet.errors import ConfigError, unknown
from prunnet.training.gradients.rows import LayerRows, inner_products, write_sums

PROJECTIONS = ("none", "last", "sequential")
BLOCKS = ("kernel", "tensor", "network")
WEIGHTINGS = ("mean", "cosine", "mgda", "uncertainty")
_MOST_ROWS = 10
_ROOM = 1e14
"""By how much a row's squared norm must exceed the smallest normal number of its type, that no square of it is lost."""
_CANCELLED = 1e-12
"""A row counts as cancelled where projection leaves less than this share of its squared norm."""


def integrate(
    rows: Tensor,
    *,
    projection: str = "last",
    block: str = "kernel",
    weighting: str = "cosine",
    exponent: float = 0.5,
    order: Sequence[int] | Tensor | None = None,
    eps: float = 0.0,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """One gradient from the M gradients of one tensor: M * sum_i w_i p_i.

    Args:
        rows: `[M, *shape]`, finite.
        projection: `last` (p_i = g_i less its part along the last conflicting g_j of `order`), `sequential`
            (PCGrad: the projection accumulates), `none`.
        block: `kernel` (projection within each slice of shape[0]) or `tensor` (for one tensor also `network`).
        weighting: of the whole tensor, sum 1: `cosine` (w_i ~ ((cos(p_i, g_i) + 1) / 2)^exponent), `mean`, `mgda`
            (the convex combination of least norm, Sener and Koltun 2018), or `uncertainty` (`weights` decide).
        order: a permutation of range(M), used for every i and block; None: 0 … M-1.
        eps: added to <g_j, g_j>; 1e-8 reproduces the released code.
        weights: [M], for `uncertainty` only; scaled to sum 1.

    Returns:
        `[*shape]`, same dtype. Equal to the plain loop up to rounding; never NaN for finite rows.

    Raises:
        ConfigError: unknown names, fewer dimensions than needed, an order that is no permutation.
    """
    if rows.dim() < 1 or rows.shape[0] < 1:
        raise ConfigError(f"rows have shape {list(rows.shape)}; valid: [M, *shape] with M >= 1")
    if block not in BLOCKS:
        raise ConfigError(unknown("block", block, BLOCKS))
    count = rows.shape[0]
    blocks = rows.shape[1] if block == "kernel" and rows.dim() > 1 else 1
    # Rows are scaled to a largest entry of 1, so that no square overflows or vanishes.
    flat = rows.reshape(count, blocks, -1)
    if flat.numel() == 0:
        return rows.sum(0)
    scale = flat.abs().amax(dim=(1, 2))
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    unit = flat / safe[:, None, None]
    gram = torch.einsum("ibn,jbn->bij", unit, unit)
    (coefficients,) = combine(
        [gram],
        [list(range(count)) if order is None else [int(j) for j in order]],
        projection=projection,
        weighting=weighting,
        exponent=exponent,
        eps=eps,
        scales=safe[None],
        given=None if weights is None else torch.as_tensor(weights, dtype=torch.float64),
    )
    return torch.einsum("bi,ibn->bn", coefficients.to(rows.dtype), unit).reshape(rows.shape[1:])


def combine(
    grams: Sequence[Tensor],
    orders: Sequence[Sequence[int]],
    *,
    projection: str,
    weighting: str,
    exponent: float,
    eps: float = 0.0,
    scales: Tensor | None = None,
    given: Tensor | None = None,
) -> list[Tensor]:
    """Coefficients with which the rows of T tensors are summed into their integrated gradients, all at once.

    Args:
        grams: one a tensor, [B_t, M, M]: inner products of its rows, block by block.
        orders: one permutation of range(M) a tensor.
        scales: [T, M], what the rows of each tensor were divided by before (None: nothing); the coefficients
            are for the divided rows too.
        given: [M], the weights of `uncertainty`, for all tensors.

    Returns:
        One [B_t, M] a tensor, float64.
    """
    count = grams[0].shape[-1]
    for order in orders:
        if sorted(order) != list(range(count)):
            raise ConfigError(f"order {list(order)} is not a permutation of 0 … {count - 1}")
    gram = torch.cat(list(grams)).double()
    sizes = torch.tensor([len(g) for g in grams], device=gram.device)
    tensor = torch.repeat_interleave(torch.arange(len(grams), device=gram.device), sizes)  # [B]: whose block
    # Rows are put into their tensor's order, so that one pass over j = 0 … M-1 serves all tensors.
    order_of = torch.tensor([list(o) for o in orders], device=gram.device)
    place = order_of[tensor]  # [B, M]
    gram = gram.gather(1, place[:, :, None].expand_as(gram)).gather(2, place[:, None, :].expand_as(gram))
    scale = torch.ones_like(order_of, dtype=gram.dtype) if scales is None else scales.double().gather(1, order_of)
    # eps is meant for the rows as given; dividing rows by their scale divides their squared norms by its square.
    projected = _project(gram, projection, (eps / scale.square())[tensor] if eps else None)
    if weighting == "uncertainty":
        if given is None or len(given) != count or not bool((given > 0).all()):
            raise ConfigError(f"weighting 'uncertainty' needs {count} positive weights, one a row")
        given = given.to(gram)
        weights = (given / given.sum())[order_of]
    elif weighting == "mgda":
        weights = _least_norm(gram, projected, tensor, scale)
    else:
        weights = _weigh(gram, projected, tensor, len(grams), weighting, exponent)
    ordered = count * torch.einsum("bi,bij->bj", (weights * scale)[tensor], projected)
    return list(torch.empty_like(ordered).scatter_(1, place, ordered).split(sizes.tolist()))


def _project(gram: Tensor, projection: str, eps: Tensor | None) -> Tensor:
    """Coefficients C [B, M, M]: p_i = sum_j C_ij g_j, for j in ascending order."""
    blocks, count, _ = gram.shape
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    result = eye.expand(blocks, count, count).clone()
    if projection == "none":
        return result
    if projection not in PROJECTIONS:
        raise ConfigError(unknown("projection", projection, PROJECTIONS))
    for j in range(count):
        norm = gram[:, j, j]  # [B]
        dots = gram[:, :, j] if projection == "last" else torch.einsum("bik,bk->bi", result, gram[:, :, j])
        conflicts = (dots < 0) & (norm > 0)[:, None]  # [B, M]
        conflicts[:, j] = False
        divisor = norm if eps is None else norm + eps[:, j]
        share = torch.where(conflicts, dots / torch.where(norm > 0, divisor, 1.0)[:, None], 0.0)
        if projection == "last":  # a later conflict replaces an earlier one
            result = torch.where(conflicts[:, :, None], eye, result)
        result[:, :, j] -= share
    return result


def _weigh(gram: Tensor, projected: Tensor, tensor: Tensor, tensors: int, weighting: str, exponent: float) -> Tensor:
    """Weights [T, M] of the rows of each tensor, sum 1; `tensor` [B] says whose block is whose."""
    count = gram.shape[-1]
    equal = torch.full((tensors, count), 1 / count, dtype=gram.dtype, device=gram.device)
    if weighting == "mean":
        return equal
    if weighting != "cosine":
        raise ConfigError(unknown("weighting", weighting, WEIGHTINGS))

    def total(values: Tensor) -> Tensor:
        return torch.zeros_like(equal).index_add_(0, tensor, values)

    along = projected @ gram  # <p_i, g_j>
    dot = total(along.diagonal(dim1=1, dim2=2))
    before = total(gram.diagonal(dim1=1, dim2=2))
    after = total((along * projected).sum(dim=2))
    alive = after > _CANCELLED * before
    cosine = torch.where(alive, dot / torch.where(alive, after * before, 1.0).sqrt(), 0.0).clamp(-1, 1)
    raw = ((cosine + 1) / 2) ** exponent
    summed = raw.sum(dim=1, keepdim=True)
    return torch.where(summed > 0, raw / torch.where(summed > 0, summed, 1.0), equal)


def _least_norm(gram: Tensor, projected: Tensor, tensor: Tensor, scale: Tensor) -> Tensor:
    """Weights [T, M] of the shortest convex combination of each tensor's projected rows (MGDA).

    The minimum lies in the interior of some face of the simplex: each face's own minimum is one small linear
    system, and the shortest feasible one wins. 2^M - 1 faces; M is small.
    """
    tensors, count = scale.shape
    if count > _MOST_ROWS:
        raise ConfigError(f"weighting 'mgda' takes at most {_MOST_ROWS} gradients, here are {count}")
    inner = projected @ gram @ projected.transpose(1, 2)  # [B, M, M]
    rows = torch.zeros_like(inner[:1]).expand(tensors, -1, -1).clone().index_add_(0, tensor, inner)
    rows *= scale[:, :, None] * scale[:, None, :]
    size = rows.diagonal(dim1=1, dim2=2).mean(dim=1)
    rows = rows / torch.where(size > 0, size, 1.0)[:, None, None]
    best = torch.full((tensors,), torch.inf, dtype=rows.dtype, device=rows.device)
    weights = torch.full_like(scale, 1 / count)
    for face in (f for n in range(1, count + 1) for f in combinations(range(count), n)):
        corner = torch.zeros_like(weights)
        corner[:, list(face)] = _face_minimum(rows[:, list(face)][:, :, list(face)])
        length = torch.einsum("ti,tij,tj->t", corner, rows, corner)
        feasible = (corner >= -1e-9).all(dim=1) & ((corner.sum(dim=1) - 1).abs() < 1e-6)
        better = feasible & (length < best) & (size > 0)
        best = torch.where(better, length, best)
        weights = torch.where(better[:, None], corner.clamp(min=0), weights)
    return weights / weights.sum(dim=1, keepdim=True)


def _face_minimum(rows: Tensor) -> Tensor:
    """Stationary point [T, n] of w' G w on sum(w) = 1, for inner products [T, n, n]."""
    tensors, count, _ = rows.shape
    system = rows.new_zeros(tensors, count + 1, count + 1)
    system[:, :count, :count] = rows
    system[:, :count, count] = system[:, count, :count] = 1
    return torch.linalg.pinv(system, hermitian=True)[:, :count, count]


def integrate_layers(
    layers: Sequence[LayerRows],
    orders: Sequence[Sequence[int]],
    *,
    projection: str,
    block: str,
    weighting: str,
    exponent: float,
    given: Tensor | None = None,
    threads: Executor | None = None,
) -> Tensor | None:
    """Integrates weight and score gradients of all layers; `integrate` of each tensor, in the same numbers.

    Returns how often the weights' gradients conflict: [layers], the share of pairs of passes and blocks whose inner
    product is negative; None for a plain sum, which needs no inner products.

    `orders` holds one permutation a layer, for its weights and its scores; either all layers have scores of their
    own, or none has. The gradients are read twice (`threads` share them); what lies between, the algebra of all Gram
    matrices, is done once for all layers.
    """
    kinds = layers[0].kinds
    assert all(layer.kinds == kinds for layer in layers)
    options = {"projection": projection, "weighting": weighting, "exponent": exponent, "given": given}
    coefficients, layers, conflicts = _layer_coefficients(layers, orders, block, options, threads)
    whole = [
        torch.stack(coefficients[place * kinds : (place + 1) * kinds], dim=1).expand(len(layer.weight), -1, -1)
        for place, layer in enumerate(layers)
    ]
    write_sums(layers, whole, threads)
    return conflicts


def _layer_coefficients(
    layers: Sequence[LayerRows],
    orders: Sequence[Sequence[int]],
    block: str,
    options: dict[str, Any],
    threads: Executor | None,
) -> tuple[list[Tensor], Sequence[LayerRows], Tensor | None]:
    """(coefficients [B or 1, M] of each layer's weights and (two kinds) scores in turn; the layers that they are for,
    some of them scaled; share of conflicts a layer)."""
    kinds = layers[0].kinds
    if (
        options["projection"] == "none" and options["weighting"] == "mean"
    ):  # the plain sum: no inner products are needed
        ones = [torch.ones(1, len(layer.gradients), device=layer.weight.device) for layer in layers]
        return [one for one in ones for _ in range(kinds)], layers, None
    products = inner_products(layers, threads)
    layers, products, scales = _within_range(layers, products, block, threads)
    grams = [kind for gram in products for kind in gram.unbind(1)]
    if block != "kernel":
        grams = [gram.sum(0, keepdim=True) for gram in grams]
    conflicts = torch.stack([_conflicting(gram) for gram in grams[::kinds]])
    if block == "network":  # all weights are one block, all scores another
        whole = [_summed(grams[kind::kinds], [layer.learned[kind] for layer in layers]) for kind in range(kinds)]
        of_all = None if scales is None else scales[:kinds]
        return combine(whole, [orders[0]] * kinds, scales=of_all, **options) * len(layers), layers, conflicts
    every = [order for order in orders for _ in range(kinds)]
    return combine(grams, every, scales=scales, **options), layers, conflicts


def _summed(grams: Sequence[Tensor], counts: Sequence[bool]) -> Tensor:
    """The inner products of all tensors that count as one; of all where none does, whose sum nobody reads."""
    return torch.stack([gram for gram, yes in zip(grams, counts, strict=True) if yes or not any(counts)]).sum(0)


def _within_range(
    layers: Sequence[LayerRows], products: list[Tensor], block: str, threads: Executor | None
) -> tuple[Sequence[LayerRows], list[Tensor], Tensor | None]:
    """(layers, their inner products, what the rows of each layer's kinds were divided by [layers * kinds, M]), where
    squares of a row would overflow or vanish: scaled to a largest entry near 1, as in `integrate`. Otherwise, as it
    nearly always is, all is as given and None."""
    kinds = layers[0].kinds
    limits = torch.finfo(layers[0].weight.dtype)
    norms = torch.stack([gram.diagonal(dim1=2, dim2=3).sum(0) for gram in products])  # [layers, kinds, M]
    if block == "network":
        norms = norms.sum(0, keepdim=True).expand_as(norms)
    odd = ~(norms.isfinite() & (norms > _ROOM * limits.tiny))
    if not bool(odd.any()):
        return layers, products, None
    sizes = torch.stack([layer.sizes() for layer in layers]).double()  # [layers, M + 1]
    if block == "network":
        sizes = sizes.amax(0, keepdim=True).expand_as(sizes)
    worth = torch.stack([sizes[:, :-1], sizes[:, :-1] * sizes[:, -1:]][:kinds], dim=1)
    wanted = (odd & (worth > 0)).flatten(1).any(1)  # not where rows are 0, as behind a silent branch
    if not bool(wanted.any()):
        return layers, products, None
    most = 120 if limits.bits == 32 else 500  # divisors, and for float64 their products, stay within the type
    exponents = torch.where((sizes > 0) & wanted[:, None], torch.frexp(sizes).exponent, 0).clamp(-most, most)
    divisors = torch.ldexp(torch.ones_like(sizes), exponents)
    changed = wanted.tolist()
    layers = [layer.scaled(1 / d) if yes else layer for layer, d, yes in zip(layers, divisors, changed, strict=True)]
    again = iter(inner_products([layer for layer, yes in zip(layers, changed, strict=True) if yes], threads))
    products = [next(again) if yes else gram for gram, yes in zip(products, changed, strict=True)]
    of_rows, of_weight = divisors[:, :-1], divisors[:, -1:]
    return layers, products, torch.stack([of_rows, of_rows * of_weight][:kinds], dim=1).flatten(0, 1)


def _conflicting(gram: Tensor) -> Tensor:
    """Share of pairs of rows, over all blocks [B, M, M], that point against each other."""
    count = gram.shape[-1]
    return (gram < 0).sum() / max(1, len(gram) * count * (count - 1))
