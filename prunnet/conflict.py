"""Conflict-aware integration of N + 1 gradients (PrunNet, arXiv 2504.11879; METHODS section 2).

Every projected gradient p_i is a linear combination of the given rows, so all of the method happens on small
Gram matrices [B, M, M] (M = N + 1 rows, B blocks); the rows themselves are read twice: for the Gram matrices
and for the one weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunnet.errors import ConfigError, unknown

PROJECTIONS = ("none", "last", "sequential")
BLOCKS = ("kernel", "tensor")
WEIGHTINGS = ("mean", "cosine")
_CACHED = 400_000
"""Numbers of a piece of rows that is worked on at once, so that it is read from memory only twice."""
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
) -> Tensor:
    """One gradient from the M gradients of one tensor: M * sum_i w_i p_i.

    Args:
        rows: `[M, *shape]`, finite.
        projection: `last` (p_i = g_i less its part along the last conflicting g_j of `order`), `sequential`
            (PCGrad: the projection accumulates), `none`.
        block: `kernel` (projection within each slice of shape[0]) or `tensor`.
        weighting: `cosine` (w_i ~ ((cos(p_i, g_i) + 1) / 2)^exponent, sum 1, over the whole tensor) or `mean`.
        order: a permutation of range(M), used for every i and block; None: 0 … M-1.
        eps: added to <g_j, g_j>; 1e-8 reproduces the released code.

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
    coefficients = combine(
        gram, projection=projection, weighting=weighting, exponent=exponent, order=order, eps=eps, scale=safe
    )
    return torch.einsum("bi,ibn->bn", coefficients.to(rows.dtype), unit).reshape(rows.shape[1:])


def combine(
    gram: Tensor,
    *,
    projection: str,
    weighting: str,
    exponent: float,
    order: Sequence[int] | Tensor | None = None,
    eps: float = 0.0,
    scale: Tensor | None = None,
) -> Tensor:
    """Coefficients [B, M] with which each block's rows are summed into the integrated gradient.

    `gram` [B, M, M] holds the inner products of the rows of one tensor, block by block, of rows divided by
    `scale` [M] (None: ones); then the coefficients are for the divided rows too.
    """
    count = gram.shape[-1]
    sequence = _checked_order(order, count)
    gram = gram.double()
    scale = torch.ones(count, dtype=gram.dtype, device=gram.device) if scale is None else scale.to(gram)
    # eps is meant for the rows as given; dividing rows by `scale` divides their squared norms by its square.
    projected = _project(gram, projection, sequence, eps / scale.square() if eps else None)
    weights = _weigh(gram, projected, weighting, exponent)
    return count * torch.einsum("i,bij->bj", weights * scale, projected)


def _checked_order(order: Sequence[int] | Tensor | None, count: int) -> list[int]:
    sequence = list(range(count)) if order is None else [int(j) for j in order]
    if sorted(sequence) != list(range(count)):
        raise ConfigError(f"order {sequence} is not a permutation of 0 … {count - 1}")
    return sequence


def _project(gram: Tensor, projection: str, order: list[int], eps: Tensor | None) -> Tensor:
    """Coefficients C [B, M, M]: p_i = sum_j C_ij g_j."""
    blocks, count, _ = gram.shape
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    result = eye.expand(blocks, count, count).clone()
    if projection == "none":
        return result
    if projection not in PROJECTIONS:
        raise ConfigError(unknown("projection", projection, PROJECTIONS))
    for j in order:
        norm = gram[:, j, j]  # [B]
        dots = gram[:, :, j] if projection == "last" else torch.einsum("bik,bk->bi", result, gram[:, :, j])
        conflicts = (dots < 0) & (norm > 0)[:, None]  # [B, M]
        conflicts[:, j] = False
        divisor = norm if eps is None else norm + eps[j]
        share = torch.where(conflicts, dots / torch.where(norm > 0, divisor, 1.0)[:, None], 0.0)
        if projection == "last":  # a later conflict replaces an earlier one
            result = torch.where(conflicts[:, :, None], eye, result)
        result[:, :, j] -= share
    return result


def _weigh(gram: Tensor, projected: Tensor, weighting: str, exponent: float) -> Tensor:
    """Weights [M] of the rows of one tensor, sum 1."""
    count = gram.shape[-1]
    if weighting == "mean":
        return torch.full((count,), 1 / count, dtype=gram.dtype, device=gram.device)
    if weighting != "cosine":
        raise ConfigError(unknown("weighting", weighting, WEIGHTINGS))
    along = projected @ gram  # <p_i, g_j>
    dot = torch.einsum("bii->i", along)
    before = torch.einsum("bii->i", gram)
    after = (along * projected).sum(dim=(0, 2))
    alive = after > _CANCELLED * before
    length = torch.where(alive, after * before, 1.0).sqrt()
    cosine = torch.where(alive, dot / length, 0.0).clamp(-1, 1)
    raw = ((cosine + 1) / 2) ** exponent
    total = raw.sum()
    return torch.where(total > 0, raw / torch.where(total > 0, total, 1.0), 1 / count)


def integrate_with_scores(
    rows: Tensor,
    factor: Tensor,
    *,
    out: tuple[Tensor, Tensor],
    projection: str,
    block: str,
    weighting: str,
    exponent: float,
    order: Sequence[int] | Tensor | None = None,
) -> None:
    """Integrates a layer's weight gradients and its score gradients in one go.

    The score gradient of every pass is its weight gradient times one `factor` = w * sign(s) (METHODS section
    2, straight-through), so the rows of the scores are never stored.

    Args:
        rows: `[B, M, n]`, weight gradients of B output kernels; masked already.
        factor: `[B, n]`.
        out: (gradient of the weights, gradient of the scores), each `[B, n]`, written here.
    """
    pieces = range(0, rows.shape[0], max(1, _CACHED // max(1, rows[0].numel())))
    slices = [slice(start, start + pieces.step) for start in pieces]
    grams = [_both_grams(rows[part], factor[part]) for part in slices]
    coefficients = []
    for per_piece in zip(*grams, strict=True):
        gram = torch.cat(per_piece).double()
        if block == "tensor":
            gram = gram.sum(dim=0, keepdim=True)
        sums = combine(gram, projection=projection, weighting=weighting, exponent=exponent, order=order)
        coefficients.append(sums.to(rows.dtype).expand(rows.shape[0], -1))
    both = torch.stack(coefficients, dim=1)  # [B, 2, M]
    for part in slices:
        sums = torch.bmm(both[part], rows[part])
        out[0][part].copy_(sums[:, 0])
        torch.mul(sums[:, 1], factor[part], out=out[1][part])


def _both_grams(rows: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products [b, M, M] of rows [b, M, n], and of rows * factor; small enough a piece to stay in cache."""
    scaled = rows * factor.unsqueeze(1)
    return torch.bmm(rows, rows.transpose(1, 2)), torch.bmm(scaled, scaled.transpose(1, 2))
