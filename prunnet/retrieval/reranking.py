"""Rankings changed after the search: alpha query expansion and k-reciprocal re-ranking (docs/METHODS.md, section 6).

Each takes query features [Q, d] and gallery features [G, d], L2-normalised, and gives similarities of some queries to
the whole gallery when they are asked for: no [Q, G] matrix is held. In a leave-one-out test query q is gallery image
q, perhaps embedded by another network, and takes its place: the gallery that it searches does not hold the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from prunnet.retrieval.exact_search import Features, check_features, search

Blocks = Callable[[slice], npt.NDArray[np.floating]]
"""Some queries -> their similarities [q, G], larger ones first in the ranking."""
_CHUNK = 1024
"""Images whose sets are made at once."""
Sparse = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64]]


def alpha_qe(queries: Features, gallery: Features, leave_one_out: bool, *, n: int, alpha: float) -> Blocks:
    """Each query becomes the mean of itself and its n nearest gallery features, weighted by similarity^alpha (negative
    similarities count as 0, the query's own as 1), normalised."""
    check_features(queries, gallery)
    expanded = np.ascontiguousarray(queries, dtype=np.float32)
    n = min(n, len(gallery) - leave_one_out)
    if n:
        ranks, similarity = _others(queries, gallery, n) if leave_one_out else search(queries, gallery, n)
        weights = np.maximum(similarity, 0.0).astype(np.float64) ** alpha
        sums = queries.astype(np.float64)
        for place in range(n):
            sums += weights[:, place, None] * gallery[ranks[:, place]]
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        expanded = (sums / np.where(length > 0, length, 1.0)).astype(np.float32)
    return lambda some: expanded[some] @ gallery.T


def k_reciprocal(
    queries: Features, gallery: Features, leave_one_out: bool, *, k1: int, k2: int, share: float
) -> Blocks:
    """Minus the distance share * d + (1 - share) * Jaccard distance of k-reciprocal sets; d: squared Euclidean distance
    over the largest one of the query's.

    The images among which neighbours are looked for are queries and gallery, as in the authors' code. In a
    leave-one-out test they are the gallery, with the query in the place of its own image.
    """
    check_features(queries, gallery)
    pool = np.ascontiguousarray(gallery if leave_one_out else np.concatenate([queries, gallery]), dtype=np.float32)
    first = 0 if leave_one_out else len(queries)
    width = min(k1 + 1, len(pool))
    half, k2 = min(int(np.around(k1 / 2)) + 1, width), min(k2, width)
    lists, similarities = _lists(pool, min(width + 1, len(pool)))
    scales = _scale(-search(-pool, pool, 1)[1][:, 0])
    jaccard: Callable[[slice, Any], npt.NDArray[np.float64]]
    graph = _Graph(pool, lists[:, :width], scales, half, k2, first)
    if leave_one_out and not np.array_equal(queries, gallery):
        one = _OneAtATime(queries, gallery, graph, lists, similarities)
        scales, jaccard = one.scales, one.overlaps
    else:
        scales, jaccard = scales[: len(queries)], graph.overlaps

    def block(some: slice) -> npt.NDArray[np.float64]:
        similarity = queries[some] @ gallery.T
        common = jaccard(some, similarity)
        distances = share * (2.0 - 2.0 * similarity.astype(np.float64)) / scales[some, None]
        return -((1.0 - share) * (1.0 - common / (2.0 - common)) + distances)

    return block


RERANKINGS: dict[str, Callable[..., Blocks]] = {"alpha_qe": alpha_qe, "k_reciprocal": k_reciprocal}
"""By the names of `prunnet.config.rerankings`."""


class _Graph:
    """k-reciprocal sets of a pool of images, and their means over near images, as sparse matrices."""

    def __init__(
        self, pool: Features, lists: npt.NDArray[np.int32], scales: Any, half: int, k2: int, first: int
    ) -> None:
        from prunnet.retrieval import reciprocal_loops as loops  # numba: whoever searches only is spared it

        self.pool, self.lists, self.scales, self.half, self.k2 = pool, np.ascontiguousarray(lists), scales, half, k2
        size, width = self.lists.shape
        capacity = min(size, width * (half + 1))
        self.sets = _sparse(
            size,
            capacity,
            lambda start, *out: loops.reciprocal_sets(start, self.lists, half, pool, scales, *out),
        )
        self.means = self.sets
        if k2 > 1:
            longest = min(size, k2 * int(np.diff(self.sets[0]).max()))
            self.means = _sparse(size, longest, lambda start, *out: loops.means(start, self.lists, k2, self.sets, *out))
        self.gallery = size - first
        self.columns = loops.by_column(*self.means, first, size)

    def overlaps(self, some: slice, similarity: Features) -> npt.NDArray[np.float64]:
        """Sums of the smaller weights of queries, the first images of the pool, and gallery images: [q, G]."""
        from prunnet.retrieval import reciprocal_loops as loops

        out = np.zeros(similarity.shape)
        loops.overlaps(some.start, self.means, self.columns, out)
        return out


class _OneAtATime:
    """The same for queries of another network than the gallery's, each in the place of its own image."""

    def __init__(
        self,
        queries: Features,
        gallery: Features,
        graph: _Graph,
        lists: npt.NDArray[np.int32],
        similarities: npt.NDArray[np.float32],
    ) -> None:
        from prunnet.retrieval import reciprocal_loops as loops

        self.queries, self.graph, self.lists, self.similarities = queries, graph, lists, similarities
        width = graph.lists.shape[1]
        self.nearest = _others(queries, gallery, max(1, width - 1))[0].astype(np.int32)[:, : width - 1]
        self.scales = _scale(-_others(-np.asarray(queries), gallery, 1)[1][:, 0])
        self.listing = loops.listed_by(lists)

    def overlaps(self, some: slice, similarity: Features) -> npt.NDArray[np.float64]:
        from prunnet.retrieval import reciprocal_loops as loops

        graph, out = self.graph, np.zeros(similarity.shape)
        loops.one_at_a_time(
            some.start,
            np.ascontiguousarray(self.queries[some], dtype=np.float32),
            np.ascontiguousarray(self.nearest[some]),
            self.scales[some],
            np.ascontiguousarray(similarity),
            graph.lists.shape[1],
            graph.half,
            graph.k2,
            self.lists,
            self.similarities,
            self.listing,
            graph.pool,
            graph.scales,
            graph.sets,
            graph.columns,
            out,
        )
        return out


def _sparse(size: int, capacity: int, write: Callable[..., None]) -> Sparse:
    """A sparse matrix [size, …] whose rows `write` makes some at a time, `capacity` entries a row at most."""
    counts = np.zeros(size, np.int64)
    indices, values = [], []
    for start in range(0, size, _CHUNK):
        rows = min(_CHUNK, size - start)
        part = np.empty((rows, capacity), np.int32), np.empty((rows, capacity), np.float64)
        own = counts[start : start + rows]
        write(start, *part, own)
        filled = np.arange(capacity) < own[:, None]
        indices.append(part[0][filled])
        values.append(part[1][filled])
    return np.concatenate([[0], np.cumsum(counts)]), np.concatenate(indices), np.concatenate(values)


def _lists(pool: Features, width: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """(the nearest images of each image, itself first, their similarities): [n, width]."""
    found, similarity = search(pool, pool, width)
    itself = np.arange(len(pool))[:, None]
    left_out = found == itself
    left_out[~left_out.any(axis=1), -1] = True  # behind its own duplicates
    shape = (len(pool), width - 1)
    others, theirs = found[~left_out].reshape(shape), similarity[~left_out].reshape(shape)
    first = np.full((len(pool), 1), np.inf, np.float32)
    return np.hstack([itself, others]).astype(np.int32), np.hstack([first, theirs])


def _others(queries: Features, gallery: Features, depth: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """`search` of a leave-one-out test: the own image is left out."""
    depth = min(depth, len(gallery) - 1)
    found, similarity = search(queries, gallery, depth + 1)
    left_out = found == np.arange(len(queries))[:, None]
    left_out[~left_out.any(axis=1), -1] = True
    shape = (len(queries), depth)
    return found[~left_out].reshape(shape), similarity[~left_out].reshape(shape)


def _scale(similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Smallest similarities -> largest distances, which others are divided by."""
    largest = 2.0 - 2.0 * similarity.astype(np.float64)
    return np.where(largest > 0, largest, 1.0)
