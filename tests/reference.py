"""Slow, obvious versions of what the library computes fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

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


# --- losses ------------------------------------------------------------------------------------------------
# features [B, d], labels [B], the loss' class weights (proxies) as rows [classes, d] or None, all options -> a scalar.


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


def _cosines(features: Tensor, others: Tensor) -> list[list[Tensor]]:
    return [[_unit(one) @ _unit(other) for other in others] for one in features]


def _log_sum(exponents: Sequence[Tensor], one: bool = False) -> Tensor:
    """log of the sum of exp, of 1 more where asked; no overflow in the values of the tests."""
    total = sum((exponent.exp() for exponent in exponents), torch.tensor(float(one), dtype=torch.float64))
    return torch.as_tensor(total).log()


def _softmax(logits: Sequence[Sequence[Tensor]], labels: Tensor) -> Tensor:
    losses = [_log_sum(row) - row[label] for row, label in zip(logits, labels.tolist(), strict=True)]
    return torch.stack(losses).mean()


def _mean_above_zero(losses: Sequence[Tensor], nothing: Tensor) -> Tensor:
    above = [loss for loss in losses if float(loss.detach()) > 0]
    return torch.stack(above).mean() if above else nothing.sum() * 0


def normface(features: Tensor, labels: Tensor, weights: Tensor, options: Mapping[str, float]) -> Tensor:
    return _softmax([[c / options["temperature"] for c in row] for row in _cosines(features, weights)], labels)


def cosface(features: Tensor, labels: Tensor, weights: Tensor, options: Mapping[str, float]) -> Tensor:
    logits = [
        [options["scale"] * (c - (options["margin"] if k == label else 0)) for k, c in enumerate(row)]
        for row, label in zip(_cosines(features, weights), labels.tolist(), strict=True)
    ]
    return _softmax(logits, labels)


def arcface(features: Tensor, labels: Tensor, weights: Tensor, options: Mapping[str, float]) -> Tensor:
    return _arc(_cosines(features, weights), labels, options)


def _arc(cosines: Sequence[Sequence[Tensor]], labels: Tensor, options: Mapping[str, float]) -> Tensor:
    margin = math.radians(options["margin"])
    logits = []
    for row, label in zip(cosines, labels.tolist(), strict=True):
        angle = torch.acos(row[label])
        beyond = float(angle.detach()) > math.pi - margin
        own = row[label] - margin * math.sin(margin) if beyond else torch.cos(angle + margin)
        logits.append([options["scale"] * (own if k == label else c) for k, c in enumerate(row)])
    return _softmax(logits, labels)


def subcenter_arcface(features: Tensor, labels: Tensor, weights: Tensor, options: Mapping[str, float]) -> Tensor:
    centres = int(options["sub_centers"])
    nearest = [
        [torch.stack(list(row[k : k + centres])).max() for k in range(0, len(weights), centres)]
        for row in _cosines(features, weights)
    ]
    return _arc(nearest, labels, options)


def proxy_anchor(features: Tensor, labels: Tensor, weights: Tensor, options: Mapping[str, float]) -> Tensor:
    cosines, classes = _cosines(features, weights), range(len(weights))
    alpha, margin = options["alpha"], options["margin"]
    own = {k: [-alpha * (row[k] - margin) for row, y in zip(cosines, labels, strict=True) if y == k] for k in classes}
    rest = {k: [alpha * (row[k] + margin) for row, y in zip(cosines, labels, strict=True) if y != k] for k in classes}
    pulled = [_log_sum(exponents, one=True) for exponents in own.values() if exponents]
    pushed = [_log_sum(exponents, one=True) if exponents else torch.zeros(()).double() for exponents in rest.values()]
    return torch.stack(pulled).mean() + torch.stack(pushed).mean()


def _pairs(labels: Tensor, image: int) -> tuple[list[int], list[int]]:
    """Positives and negatives of an image."""
    others = [k for k in range(len(labels)) if k != image]
    return [k for k in others if labels[k] == labels[image]], [k for k in others if labels[k] != labels[image]]


def supcon(features: Tensor, labels: Tensor, weights: None, options: Mapping[str, float]) -> Tensor:
    losses = []
    for i, row in enumerate(_cosines(features, features)):
        positives, negatives = _pairs(labels, i)
        if positives:
            everyone = _log_sum([row[k] / options["temperature"] for k in positives + negatives])
            losses.append(sum(everyone - row[k] / options["temperature"] for k in positives) / len(positives))
    return _mean_above_zero(losses, features)  # type: ignore[arg-type]


def multi_similarity(features: Tensor, labels: Tensor, weights: None, options: Mapping[str, float]) -> Tensor:
    losses, base, epsilon = [], options["base"], options["epsilon"]
    for i, row in enumerate(_cosines(features, features)):
        positives, negatives = _pairs(labels, i)
        if options["miner"] == "multi_similarity":
            hardest = max(float(row[k].detach()) for k in negatives)
            easiest = min((float(row[k].detach()) for k in positives), default=math.inf)
            positives = [k for k in positives if float(row[k].detach()) - epsilon < hardest]
            negatives = [k for k in negatives if float(row[k].detach()) + epsilon > easiest]
        near = _log_sum([-options["alpha"] * (row[k] - base) for k in positives], one=True) / options["alpha"]
        far = _log_sum([options["beta"] * (row[k] - base) for k in negatives], one=True) / options["beta"]
        losses.append(near + far)
    return torch.stack(losses).mean()


def triplet(features: Tensor, labels: Tensor, weights: None, options: Mapping[str, float]) -> Tensor:
    unit = [_unit(feature) for feature in features]
    d = [[(one - other).square().sum().clamp_min(1e-300).sqrt() for other in unit] for one in unit]
    triplets = [(a, p, n) for a in range(len(labels)) for p in _pairs(labels, a)[0] for n in _pairs(labels, a)[1]]
    if options["miner"] == "hard":
        triplets = [
            (a, p, n)
            for a, p, n in triplets
            if all(d[a][p] >= d[a][k] for k in _pairs(labels, a)[0])
            and all(d[a][n] <= d[a][k] for k in _pairs(labels, a)[1])
        ]
    elif options["miner"] == "semihard":
        triplets = [(a, p, n) for a, p, n in triplets if 0 < float((d[a][n] - d[a][p]).detach()) <= options["margin"]]
    losses = []
    for a, p, n in triplets:
        far = torch.minimum(d[a][n], d[p][n]) if options["swap"] else d[a][n]
        violation = d[a][p] - far + options["margin"]
        losses.append(torch.log1p(violation.exp()) if options["smooth_loss"] else violation.clamp_min(0))
    return _mean_above_zero(losses, features)


def circle(features: Tensor, labels: Tensor, weights: None, options: Mapping[str, float]) -> Tensor:
    losses, m, gamma = [], options["m"], options["gamma"]
    for i, row in enumerate(_cosines(features, features)):
        positives, negatives = _pairs(labels, i)
        if positives and negatives:
            near = [-gamma * max(0.0, 1 + m - float(row[k].detach())) * (row[k] - 1 + m) for k in positives]
            far = [gamma * max(0.0, float(row[k].detach()) + m) * (row[k] - m) for k in negatives]
            losses.append(torch.log1p((_log_sum(near) + _log_sum(far)).exp()))
    return _mean_above_zero(losses, features)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "normface": normface,
    "cosface": cosface,
    "arcface": arcface,
    "subcenter_arcface": subcenter_arcface,
    "proxy_anchor": proxy_anchor,
    "supcon": supcon,
    "multi_similarity": multi_similarity,
    "triplet": triplet,
    "circle": circle,
}
"""By the names of `train.loss`; every registered loss beside cross-entropy needs one."""


def alpha_qe(queries: np.ndarray, gallery: np.ndarray, own: bool, n: int, alpha: float) -> np.ndarray:
    """Similarities of expanded queries, one after the other."""
    found = []
    for q, query in enumerate(queries.astype(np.float64)):
        similarity = gallery.astype(np.float64) @ query
        others = [g for g in range(len(gallery)) if not (own and g == q)]
        nearest = sorted(others, key=lambda g: (-similarity[g], g))[:n]
        expanded = query + sum(max(similarity[g], 0.0) ** alpha * gallery[g].astype(np.float64) for g in nearest)
        found.append(gallery.astype(np.float64) @ expanded / np.linalg.norm(expanded))
    return np.array(found)


def k_reciprocal(queries: np.ndarray, gallery: np.ndarray, own: bool, k1: int, k2: int, share: float) -> np.ndarray:
    """Distances, as the authors' code computes them, from whole matrices. In a leave-one-out test each query takes the
    place of its own image, and the gallery is encoded anew for it."""
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    if not own:
        pool = np.concatenate([queries, gallery])
        return _encoded(pool, range(len(queries)), k1, k2, share, None)[:, len(queries) :]
    largest = (2 - 2 * gallery @ gallery.T).max(axis=1)
    found = []
    for q, query in enumerate(queries):
        pool = gallery.copy()
        pool[q] = query
        scales = largest.copy()
        scales[q] = (2 - 2 * np.delete(gallery, q, axis=0) @ query).max()
        found.append(_encoded(pool, [q], k1, k2, share, scales)[0])
    return np.array(found)


def _encoded(
    pool: np.ndarray, asked: Sequence[int], k1: int, k2: int, share: float, scales: np.ndarray | None
) -> np.ndarray:
    distances = 2 - 2 * pool @ pool.T
    np.fill_diagonal(distances, 0.0)
    distances /= (distances.max(axis=1) if scales is None else scales)[:, None]
    n, half = len(pool), round(k1 / 2)
    ranks = [sorted(range(n), key=lambda j, i=i: (j != i, distances[i, j], j)) for i in range(n)]

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in ranks[i][: k + 1] if i in ranks[j][: k + 1]}

    weights = np.zeros((n, n))
    for i in range(n):
        expanded = set(mutual(i, k1))
        for j in mutual(i, k1):
            theirs = mutual(j, half)
            if 3 * len(theirs & mutual(i, k1)) > 2 * len(theirs):
                expanded |= theirs
        for j in expanded:
            weights[i, j] = math.exp(-distances[i, j])
        weights[i] /= weights[i].sum()
    means = np.array([weights[ranks[i][:k2]].mean(axis=0) for i in range(n)])
    jaccard = np.array(
        [[1 - np.minimum(means[i], m).sum() / np.maximum(means[i], m).sum() for m in means] for i in asked]
    )
    return share * distances[list(asked)] + (1 - share) * jaccard
