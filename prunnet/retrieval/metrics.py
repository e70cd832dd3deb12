"""Retrieval metrics (docs/METHODS.md, section 6).

Ranks are [queries, depth] int arrays of gallery indices, best first; `relevant` and `junk` are one index array
a query. Junk is removed before positions are counted. Positives outside truncated ranks count as missed. A
query with no positive is left out of every mean. All values lie in [0, 1], or are NaN where no query counts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from prunnet.errors import ConfigError, unknown
from prunnet.retrieval.hits import Hits, Indices, Ints, from_ranks, index_arrays

INTERPOLATIONS = ("trapezoid", "step")


def recall_at_k(ranks: Ints, relevant: Indices, k: int, junk: Indices | None = None) -> float:
    """Share of queries with a positive among their first k (CMC@k)."""
    return recall_of(from_ranks(ranks, relevant, junk), k)


def map_at_k(ranks: Ints, relevant: Indices, k: int, junk: Indices | None = None) -> float:
    """Mean of AP_q = (1 / min(m_q, k)) * sum over positions i <= k of P(i) rel(i); m_q positives (GLDv2)."""
    return map_at_k_of(from_ranks(ranks, relevant, junk), k)


def average_precision(
    ranks: Ints, relevant: Indices, junk: Indices | None = None, interpolation: str = "trapezoid"
) -> npt.NDArray[np.float64]:
    """Average precision [queries], NaN where there is no positive.

    `trapezoid`: area under the precision-recall curve by trapezoids (Revisited Oxford and Paris); `step`: mean
    of the precision at each positive.
    """
    return average_precision_of(from_ranks(ranks, relevant, junk), interpolation)


def recall_of(hits: Hits, k: int) -> float:
    """`recall_at_k` from hits."""
    _check_k(k)
    found = hits.sum_by_query((hits.position < k).astype(np.float64)) > 0
    return mean_of(np.where(hits.positives > 0, found, np.nan))


def map_at_k_of(hits: Hits, k: int) -> float:
    """`map_at_k` from hits."""
    _check_k(k)
    precision = np.where(hits.position < k, (hits.nth + 1) / (hits.position + 1), 0.0)
    return mean_of(_divided(hits.sum_by_query(precision), np.minimum(hits.positives, k)))


def average_precision_of(hits: Hits, interpolation: str = "trapezoid") -> npt.NDArray[np.float64]:
    """`average_precision` from hits."""
    if interpolation not in INTERPOLATIONS:
        raise ConfigError(unknown("interpolation", interpolation, INTERPOLATIONS))
    nth, position = hits.nth, hits.position
    after = (nth + 1) / (position + 1)
    if interpolation == "step":
        return _divided(hits.sum_by_query(after), hits.positives)
    before = np.where(position > 0, nth / np.maximum(position, 1), 1.0)
    return _divided(hits.sum_by_query((before + after) / 2), hits.positives)


def mean_average_precision_of(hits: Hits, interpolation: str = "step") -> float:
    """Mean of `average_precision_of` over the queries that have a positive."""
    return mean_of(average_precision_of(hits, interpolation))


def revisited(ranks: Ints, gnd: Sequence[dict[str, Ints]]) -> dict[str, float]:
    """mAP of the Easy, Medium and Hard protocols of Revisited Oxford and Paris.

    Args:
        ranks: [gallery, queries], the public layout: each *column* is a query's ranking.
        gnd: one dict a query with index arrays `easy`, `hard`, `junk`.
    """
    return {name: mean_of(average_precision_of(hits)) for name, hits in _revisited_hits(ranks, gnd).items()}


def revisited_details(
    ranks: Ints, gnd: Sequence[dict[str, Ints]], kappas: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, object]]:
    """As `revisited`, with `ap` [queries] (NaN without a positive), `map` and `mp` [kappas] (mean precision at k).

    Precision at k divides by min(last positive's position, k), as the public evaluation does.
    """
    by_protocol = _revisited_hits(ranks, gnd)
    details: dict[str, dict[str, object]] = {}
    for protocol, hits in by_protocol.items():
        ap = average_precision_of(hits)
        details[protocol] = {"ap": ap, "map": mean_of(ap), "mp": mean_precision_of(hits, kappas)}
    return details


_EASY, _HARD, _JUNK = 1, 2, 3
_PROTOCOLS = {  # protocol: (positives, removed)
    "easy": ((_EASY,), (_JUNK, _HARD)),
    "medium": ((_EASY, _HARD), (_JUNK,)),
    "hard": ((_HARD,), (_JUNK, _EASY)),
}


def _revisited_hits(ranks: Ints, gnd: Sequence[dict[str, Ints]]) -> dict[str, Hits]:
    """Hits of the three protocols from one pass over each ranking: a query's labelled images are few."""
    ranks = np.asarray(ranks)
    if ranks.ndim != 2 or ranks.shape[1] != len(gnd):
        raise ConfigError(f"ranks have shape {ranks.shape} for {len(gnd)} queries; valid: [gallery, queries]")
    for q, truth in enumerate(gnd):
        if missing := {"easy", "hard", "junk"} - set(truth):
            raise ConfigError(f"gnd[{q}] has no {', '.join(sorted(missing))}; valid: easy, hard, junk")
    labelled = [
        dict(zip((_EASY, _HARD, _JUNK), index_arrays([t["easy"], t["hard"], t["junk"]]), strict=True)) for t in gnd
    ]
    named = [group for groups in labelled for group in groups.values()]
    size = max([len(ranks), *(int(group.max()) + 1 for group in named if group.size)])
    starts = range(0, len(gnd), _BLOCK)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # numpy releases the GIL while it copies and gathers
        blocks = threads.map(lambda s: _block_hits(ranks[:, s : s + _BLOCK], labelled[s : s + _BLOCK], size), starts)
        found = [query for block in blocks for query in block]
    return {protocol: _assembled([query[protocol] for query in found]) for protocol in _PROTOCOLS}


_BLOCK, _TILE = 64, 1024


def _block_hits(ranks: Ints, labelled: Sequence[dict[int, Ints]], size: int) -> list[dict[str, tuple[Ints, int]]]:
    """Hits of some queries, a column of `ranks` each; `size` is above every labelled gallery index."""
    # A column is read with a stride as long as a row, a new page each; turning small tiles is 4 times faster.
    rows = np.empty(ranks.shape[::-1], dtype=ranks.dtype)
    for start in range(0, len(ranks), _TILE):
        rows[:, start : start + _TILE] = ranks[start : start + _TILE].T
    codes = np.zeros(size + 1, dtype=np.int8)  # the last entry is -1's
    try:
        return [_query_hits(row, labels, codes) for row, labels in zip(rows, labelled, strict=True)]
    except IndexError:  # truncated rankings of a gallery larger than what is labelled
        codes = np.zeros(int(rows.max()) + 2, dtype=np.int8)
        return [_query_hits(row, labels, codes) for row, labels in zip(rows, labelled, strict=True)]


def _query_hits(row: Ints, labels: dict[int, Ints], codes: npt.NDArray[np.int8]) -> dict[str, tuple[Ints, int]]:
    """Protocol -> (positions of the positives found, number of positives) of one query."""
    for code, group in labels.items():
        codes[group] = code
    found = codes.take(row)
    totals = {code: int(np.count_nonzero(codes[np.unique(group)] == code)) for code, group in labels.items()}
    for group in labels.values():
        codes[group] = 0
    where = np.flatnonzero(found.view(np.bool_))
    kind = found[where]
    result: dict[str, tuple[Ints, int]] = {}
    for protocol, (good, bad) in _PROTOCOLS.items():
        position = where[_among(kind, good)]
        removed = where[_among(kind, bad)]
        result[protocol] = (position - np.searchsorted(removed, position), sum(totals[g] for g in good))
    return result


def _among(kind: npt.NDArray[np.int8], codes: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    table = np.zeros(_JUNK + 1, dtype=np.bool_)
    table[list(codes)] = True
    return table[kind]


def _assembled(found: list[tuple[Ints, int]]) -> Hits:
    query = np.repeat(np.arange(len(found)), [len(position) for position, _ in found])
    position = np.concatenate([p for p, _ in found]) if found else np.zeros(0, np.int64)
    return Hits(query, position.astype(np.int64), np.array([count for _, count in found], dtype=np.int64))


def mean_precision_of(hits: Hits, kappas: Sequence[int]) -> list[float]:
    """Mean precision at each k of `kappas`; see `revisited_details`."""
    last = np.zeros(len(hits.positives))
    np.maximum.at(last, hits.query, hits.position + 1)
    means = []
    for k in kappas:
        _check_k(k)
        inside = hits.sum_by_query((hits.position < k).astype(np.float64))
        reach = np.where(last > 0, np.minimum(last, k), k)
        means.append(mean_of(np.where(hits.positives > 0, inside / reach, np.nan)))
    return means


def _divided(sums: npt.NDArray[np.float64], counts: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def mean_of(values: npt.NDArray[np.floating]) -> float:
    """Mean over the queries that count (not NaN); NaN where none does."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else float("nan")


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k={k}; valid: 1 or more")
