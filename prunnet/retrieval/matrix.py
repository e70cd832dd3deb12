"""Self- and cross-tests between capacities: every pair from features that were computed once."""

from __future__ import annotations

from collections.abc import Mapping

from prunnet.retrieval.exact_search import Features
from prunnet.retrieval.hits import Indices, from_features
from prunnet.retrieval.protocol import Scores, measured


def score(queries: Features, gallery: Features, relevant: Indices, junk: Indices | None = None) -> Scores:
    """The metrics of one test: query features [Q, d] against gallery features [G, d]."""
    return measured(from_features(queries, gallery, relevant, junk), len(gallery))


def compatibility_matrix(
    features: Mapping[float, tuple[Features, Features]], relevant: Indices, junk: Indices | None = None
) -> dict[tuple[float, float], Scores]:
    """All tests M(q, g): capacity -> (query features, gallery features) becomes (query capacity, gallery
    capacity) -> metrics. The diagonal holds the self-tests."""
    return {(q, g): score(features[q][0], features[g][1], relevant, junk) for q in features for g in features}
