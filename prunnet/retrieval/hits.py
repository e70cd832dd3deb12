"""The positions of each query's positives in its ranking after junk is removed: all that the metrics need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunnet.errors import ConfigError
from prunnet.retrieval.exact_search import Features, check_features

Ints = npt.NDArray[np.integer]
Indices = Sequence[Ints]
BUDGET_MIB = 64
"""Memory for one chunk of the query x gallery similarities."""


@dataclass(frozen=True)
class Hits:
    """Positives found, flat over all queries, by query and position.

    `query` and `position` [hits]: whose positive, and its 0-based place after junk was removed.
    `positives` [Q]: how many each query has, found or missed.
    """

    query: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]

    @property
    def nth(self) -> npt.NDArray[np.int64]:
        """0-based number of each hit among its query's hits."""
        return np.arange(len(self.query)) - np.searchsorted(self.query, self.query, side="left")

    def sum_by_query(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """values [hits] -> [Q], summed."""
        return np.bincount(self.query, weights=values, minlength=len(self.positives)).astype(np.float64)


def from_ranks(ranks: Ints, relevant: Indices, junk: Indices | None = None) -> Hits:
    """Hits of given rankings.

    Args:
        ranks: [Q, depth] gallery indices, best first; -1 fills rows that are short. Positives that are not in
            a row are missed.
        relevant: one index array a query. junk: likewise; what is in both is junk.
    """
    ranks = np.asarray(ranks)
    _check_lists(ranks.shape, relevant, junk)
    relevant, junk = index_arrays(relevant), None if junk is None else index_arrays(junk)
    queries, positions, positives = [], [], np.zeros(len(ranks), dtype=np.int64)
    codes = np.zeros(_gallery_size(ranks, relevant, junk) + 1, dtype=np.int8)  # the last entry is -1's
    for q, row in enumerate(ranks):
        groups = [relevant[q]] if junk is None else [relevant[q], junk[q]]
        ((good, bad), counts) = _coded_positions(row, groups, codes)
        positives[q] = counts[0]
        queries.append(np.full(len(good), q))
        positions.append(good - np.searchsorted(bad, good))
    return Hits(_joined(queries), _joined(positions), positives)


def _coded_positions(row: Ints, groups: Indices, codes: npt.NDArray[np.int8]):  # type: ignore[no-untyped-def]
    """Positions in `row` of the first and second group (the second wins), and the groups' sizes."""
    for code, group in enumerate(groups, start=1):
        codes[group] = code
    first = np.unique(groups[0])
    sizes = [int(np.count_nonzero(codes[first] == 1))]
    found = codes[row]
    for group in groups:
        codes[group] = 0
    where = np.flatnonzero(found)
    kind = found[where]
    return (where[kind == 1], where[kind == 2]), sizes


def from_features(
    queries: Features,
    gallery: Features,
    relevant: Indices,
    junk: Indices | None = None,
    *,
    budget_mib: float = BUDGET_MIB,
) -> Hits:
    """Hits of the exact ranking by inner product, ties by gallery index, without making the ranking.

    A positive's place is the number of gallery rows above it, so a sort of each row's similarities and a binary
    search for its positives are enough. No query x gallery block larger than `budget_mib` exists.

    Args:
        queries, gallery: [Q, d] and [G, d] float32, finite.
    """
    check_features(queries, gallery)
    return from_blocks(
        lambda some: queries[some] @ gallery.T, queries.shape, len(gallery), relevant, junk, budget_mib=budget_mib
    )


def from_blocks(
    block: Callable[[slice], npt.NDArray[np.floating]],
    queries: tuple[int, ...],
    gallery: int,
    relevant: Indices,
    junk: Indices | None = None,
    *,
    budget_mib: float = BUDGET_MIB,
) -> Hits:
    """As `from_features`, of similarities that `block` gives for some queries at a time: [q, gallery], which may be
    written to.

    Args:
        queries: shape of their features.
    """
    _check_lists(queries, relevant, junk)
    parts = []
    for chunk in _chunks(queries[0], gallery, budget_mib):
        parts.append(_chunk_hits(block(chunk), relevant[chunk], None if junk is None else junk[chunk]))
    starts = [c.start for c in _chunks(queries[0], gallery, budget_mib)]
    return Hits(
        _joined([part.query + start for part, start in zip(parts, starts, strict=True)]),
        _joined([part.position for part in parts]),
        _joined([part.positives for part in parts]),
    )


def _chunk_hits(similarity: npt.NDArray[np.floating], relevant: Indices, junk: Indices | None) -> Hits:
    """Hits of one block of similarities [q, G]; junk is moved below everything else."""
    if junk is not None:
        row = np.repeat(np.arange(len(junk)), [len(j) for j in junk])
        similarity[row, _joined(junk)] = -np.inf
    gallery = similarity.shape[1]
    row = np.repeat(np.arange(len(relevant)), [len(r) for r in relevant])
    row, column = np.divmod(np.unique(row * gallery + _joined(relevant)), gallery)
    wanted = similarity[row, column]
    counted = wanted > -np.inf  # a positive that is junk too is junk
    row, column, wanted = row[counted], column[counted], wanted[counted]
    counts = np.bincount(row, minlength=len(relevant))
    padded = np.full((len(relevant), max(1, counts.max(initial=0))), np.inf, dtype=similarity.dtype)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded[row, slot] = wanted
    import torch  # whoever only plans or draws is spared it

    ascending = torch.from_numpy(np.sort(similarity, axis=1))
    needles = torch.from_numpy(padded)
    right = torch.searchsorted(ascending, needles, right=True).numpy()[row, slot]
    left = torch.searchsorted(ascending, needles).numpy()[row, slot]
    position = gallery - right
    for tied in np.flatnonzero(right - left > 1):
        same = similarity[row[tied], : column[tied]] == wanted[tied]
        position[tied] += int(np.count_nonzero(same))
    order = np.lexsort((position, row))
    return Hits(row[order], position[order], counts)


def index_arrays(lists: Indices) -> list[Ints]:
    """Lists or arrays as index arrays: an empty one is an array of floats otherwise."""
    return [np.asarray(group, dtype=np.int64).reshape(-1) for group in lists]


def _chunks(queries: int, gallery: int, budget_mib: float) -> Iterator[slice]:
    """Slices of queries whose block of similarities, its sorted copy included, keeps to the budget."""
    rows = max(1, int(budget_mib * 2**20 / (8 * gallery)))
    return (slice(start, min(start + rows, queries)) for start in range(0, queries, rows))


def _joined(parts: Sequence[Ints]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.asarray(p, dtype=np.int64) for p in parts]) if len(parts) else np.zeros(0, np.int64)


def _gallery_size(ranks: Ints, relevant: Indices, junk: Indices | None) -> int:
    largest = [int(np.max(a)) for a in (ranks, *relevant, *(junk or ())) if np.size(a)]
    return max(largest, default=-1) + 1


def _check_lists(shape: tuple[int, ...], relevant: Indices, junk: Indices | None) -> None:
    if len(shape) != 2:
        raise ConfigError(f"ranks or queries have shape {shape}; valid: two dimensions, one row a query")
    for name, lists in (("relevant", relevant), ("junk", junk)):
        if lists is not None and len(lists) != shape[0]:
            raise ConfigError(f"{name} holds {len(lists)} index arrays for {shape[0]} queries; valid: one a query")
