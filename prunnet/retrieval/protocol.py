"""The ground truth of a test, and the metrics that its benchmark reports (docs/METHODS.md, section 6)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunnet.retrieval.exact_search import Features
from prunnet.retrieval.hits import Hits, Ints, from_blocks, from_features
from prunnet.retrieval.metrics import (
    average_precision_of,
    map_at_k_of,
    mean_average_precision_of,
    mean_of,
    mean_precision_of,
    recall_of,
)

Scores = dict[str, float | int]
Reranked = Callable[[Features, Features, bool], Callable[[slice], npt.NDArray[np.floating]]]
"""(queries, gallery, whether the test is leave-one-out) -> similarities of some queries to the whole gallery, such as
functions of `prunnet.retrieval.reranking` with their parameters."""


@dataclass(frozen=True)
class Truth:
    """Gallery indices, one array a query.

    `junk` is removed from a query's ranking. With `hard` the test is Revisited Oxford's or Paris': `relevant` are the
    easy positives, and the Easy, Medium and Hard protocols are scored from one set of features.
    """

    relevant: Sequence[Ints]
    junk: Sequence[Ints] | None = None
    hard: Sequence[Ints] | None = None
    recalls: tuple[int, ...] = (1, 5, 10)
    """Cut-offs k of Recall@k (CMC@k)."""
    leave_one_out: bool = False
    """Query q is gallery image q, which is among its junk."""

    def hits(self, queries: Features, gallery: Features) -> Hits:
        """Of query features [Q, d] in gallery features [G, d]; those of the Medium protocol where there are three."""
        return self._hits(queries, gallery, None)["medium"]

    def _hits(self, queries: Features, gallery: Features, reranked: Reranked | None) -> dict[str, Hits]:
        hits = functools.partial(from_features, queries, gallery)
        if reranked is not None:
            block = reranked(queries, gallery, self.leave_one_out)
            hits = functools.partial(from_blocks, block, queries.shape, len(gallery))
        if self.hard is None:
            return {"medium": hits(self.relevant, self.junk)}
        junk = self.junk or [np.zeros(0, dtype=np.int64)] * len(self.relevant)
        easy, hard = self.relevant, self.hard
        parts = {"easy": (easy, both(junk, hard)), "medium": (both(easy, hard), junk), "hard": (hard, both(junk, easy))}
        return {name: hits(*groups) for name, groups in parts.items()}

    def score(self, queries: Features, gallery: Features, reranked: Reranked | None = None) -> Scores:
        """The metrics of one test, by the names of the results table's columns; other cut-offs beside them.

        Args:
            reranked: changes the rankings; None: by inner product.

        Under Revisited protocols `map` is Medium's, by trapezoids as all of theirs, and so are the recalls.
        """
        by_protocol = self._hits(queries, gallery, reranked)
        scores = measured(by_protocol["medium"], len(gallery), self.recalls)
        if self.hard is not None:
            for name, hits in by_protocol.items():
                scores[f"map_{name}"] = mean_of(average_precision_of(hits))
                scores |= {f"mp_at_{k}_{name}": mean_precision_of(hits, [k])[0] for k in (1, 5, 10)}
            scores["map"] = scores["map_medium"]
        return scores


def both(first: Sequence[Ints], second: Sequence[Ints]) -> list[Ints]:
    """Two groups of indices as one, query by query."""
    return [np.concatenate([a, b]) for a, b in zip(first, second, strict=True)]


def measured(hits: Hits, gallery_size: int, recalls: Sequence[int] = (1, 5, 10)) -> Scores:
    """The metrics of any test, from its hits."""
    return {
        "map": mean_average_precision_of(hits),
        "map_at_100": map_at_k_of(hits, 100),
        **{f"recall_at_{k}": recall_of(hits, k) for k in sorted({1, 5, 10, *recalls})},
        "queries": len(hits.positives),
        "queries_without_positive": int((hits.positives == 0).sum()),
        "gallery_size": gallery_size,
    }
