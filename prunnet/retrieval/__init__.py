"""Features, exact search, metrics, the compatibility matrix."""

from prunnet.retrieval.hits import Hits, from_features, from_ranks
from prunnet.retrieval.matrix import compatibility_matrix, score
from prunnet.retrieval.metrics import average_precision, map_at_k, recall_at_k, revisited, revisited_details
from prunnet.retrieval.search import search

__all__ = [
    "Hits",
    "average_precision",
    "compatibility_matrix",
    "from_features",
    "from_ranks",
    "map_at_k",
    "recall_at_k",
    "revisited",
    "revisited_details",
    "score",
    "search",
]
