"""Which queries an upgrade gets wrong that were right before (METHODS section 6); its gains are in
`results.upgrade_metrics`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunnet.retrieval.hits import Hits


def right_at_one(hits: Hits) -> npt.NDArray[np.bool_]:
    """Whether each query's nearest gallery image (junk aside) is of its class: [Q]."""
    return hits.sum_by_query((hits.position == 0).astype(np.float64)) > 0


def negative_flips(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> float:
    """Share of the queries [Q] that were right before and are wrong after."""
    return float((before & ~after).mean())
