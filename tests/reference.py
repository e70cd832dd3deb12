"""Slow, obvious versions of what the library computes fast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def mask(scores: Tensor, capacity: float) -> Tensor:
    """Keep the k largest magnitudes, one after the other; among equals the lower index first."""
    flat = scores.abs().flatten().tolist()
    k = max(1, math.floor(capacity * len(flat) + 0.5))
    best = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:k]
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[best] = True
    return kept.view(scores.shape)


def projected(rows: Tensor, projection: str, block: str, order: Sequence[int], eps: float = 0.0) -> Tensor:
    """The paper's loop, block by block, row by row: [M, blocks, n]."""
    count = len(rows)
    split = block == "kernel" and rows.dim() > 1
    blocks = rows.reshape(count, rows.shape[1], -1) if split else rows.reshape(count, 1, -1)
    result = blocks.clone()
    for b in range(blocks.shape[1]):
        for i in range(count):
            original = blocks[i, b]
            p = original.clone()
            for j in order:
                other = blocks[j, b]
                dot = float((p if projection == "sequential" else original) @ other)
                norm = float(other @ other)
                if j == i or projection == "none" or dot >= 0 or norm == 0:
                    continue
                p = (p if projection == "sequential" else original) - dot / (norm + eps) * other
            result[i, b] = p
    return result


def integrate(
    rows: Tensor,
    projection: str,
    block: str,
    weighting: str,
    exponent: float,
    order: Sequence[int] | None = None,
    eps: float = 0.0,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """(N + 1) times the weighted sum of the projected rows."""
    count = len(rows)
    order = list(range(count)) if order is None else list(order)
    blocks = projected(rows, "none", block, order)
    p_rows = projected(rows, projection, block, order, eps)
    share = torch.full((count,), 1 / count, dtype=rows.dtype)
    if weighting == "cosine":
        raw = []
        for i in range(count):
            p, g = p_rows[i].flatten(), blocks[i].flatten()
            alive = float(p @ p) > 1e-12 * float(g @ g)
            cosine = float(p @ g / (p.norm() * g.norm())) if alive else 0.0
            raw.append(((min(1.0, max(-1.0, cosine)) + 1) / 2) ** exponent)
        share = torch.tensor(raw, dtype=rows.dtype) / sum(raw)
    elif weighting == "uncertainty":
        assert weights is not None
        share = torch.tensor(list(weights), dtype=rows.dtype) / sum(weights)
    return (count * torch.einsum("i,ibn->bn", share, p_rows)).reshape(rows.shape[1:])


def ranking(ranks: Sequence[int], junk: Sequence[int]) -> list[int]:
    """A ranking without its junk."""
    return [r for r in ranks if r not in set(junk) and r != -1]


def average_precision(ranks: Sequence[int], relevant: Sequence[int], junk: Sequence[int], how: str) -> float:
    good = set(relevant) - set(junk)
    if not good:
        return math.nan
    total, found = 0.0, 0
    for position, item in enumerate(ranking(ranks, junk)):
        if item in good:
            before = found / position if position else 1.0
            found += 1
            after = found / (position + 1)
            total += after if how == "step" else (before + after) / 2
    return total / len(good)


def recall_at_k(ranks: Sequence[int], relevant: Sequence[int], k: int, junk: Sequence[int]) -> float:
    good = set(relevant) - set(junk)
    return float(bool(good & set(ranking(ranks, junk)[:k]))) if good else math.nan


def map_at_k(ranks: Sequence[int], relevant: Sequence[int], k: int, junk: Sequence[int]) -> float:
    good = set(relevant) - set(junk)
    if not good:
        return math.nan
    total, found = 0.0, 0
    for position, item in enumerate(ranking(ranks, junk)[:k]):
        if item in good:
            found += 1
            total += found / (position + 1)
    return total / min(len(good), k)


def mean(values: Sequence[float]) -> float:
    """Over the queries that count."""
    counted = [v for v in values if not math.isnan(v)]
    return float(np.mean(counted)) if counted else math.nan
