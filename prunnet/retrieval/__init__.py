"""Features, exact search, metrics, the compatibility matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.retrieval.exact_search import search as search
    from prunnet.retrieval.hits import Hits as Hits
    from prunnet.retrieval.hits import from_features as from_features
    from prunnet.retrieval.hits import from_ranks as from_ranks
    from prunnet.retrieval.matrix import compatibility_matrix as compatibility_matrix
    from prunnet.retrieval.matrix import score as score
    from prunnet.retrieval.metrics import average_precision as average_precision
    from prunnet.retrieval.metrics import map_at_k as map_at_k
    from prunnet.retrieval.metrics import recall_at_k as recall_at_k
    from prunnet.retrieval.metrics import revisited as revisited
    from prunnet.retrieval.metrics import revisited_details as revisited_details

__getattr__, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.retrieval.exact_search": ["search"],
        "prunnet.retrieval.hits": ["Hits", "from_features", "from_ranks"],
        "prunnet.retrieval.matrix": ["compatibility_matrix", "score"],
        "prunnet.retrieval.metrics": ["average_precision", "map_at_k", "recall_at_k", "revisited", "revisited_details"],
    },
)
