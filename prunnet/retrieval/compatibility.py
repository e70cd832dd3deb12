"""What an upgrade is worth (METHODS section 6): update gain, P_up, P_comp, P_1 and negative flips.

M(q, g) is a metric in [0, 1], query features from q, gallery features from g; new* is the new network trained
without regard to the old one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prunnet.retrieval.hits import Hits


def update_gain(new_old: float, old_old: float, best: float) -> float | None:
    """(M(new, old) - M(old, old)) / (M(new*, new*) - M(old, old)); None where new* is no better than the old one."""
    return (new_old - old_old) / (best - old_old) if best > old_old else None


def p_up(new_new: Sequence[float], best: Sequence[float]) -> float:
    """Mean over data sets of sigma((M(new, new) - M(new*, new*)) / M(new*, new*)): 0.5 where nothing is lost."""
    return float(np.mean([_sigma((n - b) / b) for n, b in zip(new_new, best, strict=True)]))


def p_comp(new_old: Sequence[float], old_old: Sequence[float], best: Sequence[float]) -> float | None:
    """Mean over data sets of sigma of the update gain; None where a gain is not defined."""
    gains = [update_gain(*three) for three in zip(new_old, old_old, best, strict=True)]
    return None if None in gains else float(np.mean([_sigma(g) for g in gains if g is not None]))


def p_1(
    new_new: Sequence[float], new_old: Sequence[float], old_old: Sequence[float], best: Sequence[float]
) -> float | None:
    """Mean over data sets of the harmonic means of their P_up and P_comp; None where a gain is not defined."""
    means = []
    for n, c, o, b in zip(new_new, new_old, old_old, best, strict=True):
        up, comp = p_up([n], [b]), p_comp([c], [o], [b])
        if comp is None:
            return None
        means.append(2 * up * comp / (up + comp))
    return float(np.mean(means))


def right_at_one(hits: Hits) -> npt.NDArray[np.bool_]:
    """Whether each query's nearest gallery image (junk aside) is of its class: [Q]."""
    return hits.sum_by_query((hits.position == 0).astype(np.float64)) > 0


def negative_flips(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> float:
    """Share of the queries [Q] that were right before and are wrong after."""
    return float((before & ~after).mean())


def _sigma(value: float) -> float:
    return 1 / (1 + math.exp(-value))
