"""Self- and cross-tests between capacities: every pair from features that were computed once."""

from __future__ import annotations

from collections.abc import Mapping

from prunnet.retrieval.hits import Indices, from_features
from prunnet.retrieval.metrics import map_at_k_of, mean_average_precision_of, recall_of
from prunnet.retrieval.search import Features


def score(
    queries: Features, gallery: Features, relevant: Indices, junk: Indices | None = None
) -> dict[str, float | int]:
    """The metrics of one test: query features [Q, d] against gallery features [G, d]."""
    hits = from_features(queries, gallery, relevant, junk)
    return {
        "map": mean_average_precision_of(hits),
        "map_at_100": map_at_k_of(hits, 100),
        "recall_at_1": recall_of(hits, 1),
        "recall_at_5": recall_of(hits, 5),
        "recall_at_10": recall_of(hits, 10),
        "queries": len(queries),
        "queries_without_positive": int((hits.positives == 0).sum()),
        "gallery_size": len(gallery),
    }


def compatibility_matrix(
    features: Mapping[float, tuple[Features, Features]], relevant: Indices, junk: Indices | None = None
) -> dict[tuple[float, float], dict[str, float | int]]:
    """All tests M(q, g): capacity -> (query features, gallery features) becomes (query capacity, gallery
    capacity) -> metrics. The diagonal holds the self-tests."""
    return {(q, g): score(features[q][0], features[g][1], relevant, junk) for q in features for g in features}
