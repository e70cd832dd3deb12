"""What an upgrade is worth, in numbers that are already measured (METHODS section 6). No torch.

M(q, g) is a metric in [0, 1], query features from q, gallery features from g; new* is the new network trained
without regard to the old one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def update_gain(new_old: float, old_old: float, best: float) -> float | None:
    """(M(new, old) - M(old, old)) / (M(new*, new*) - M(old, old)); None where new* is no better than the old one."""
    return (new_old - old_old) / (best - old_old) if best > old_old else None


def p_up(new_new: Sequence[float], best: Sequence[float]) -> float:
    """Mean over data sets of sigma((M(new, new) - M(new*, new*)) / M(new*, new*)): 0.5 where nothing is lost."""
    return _mean([_sigma((n - b) / b) for n, b in zip(new_new, best, strict=True)])


def p_comp(new_old: Sequence[float], old_old: Sequence[float], best: Sequence[float]) -> float | None:
    """Mean over data sets of sigma of the update gain; None where a gain is not defined."""
    gains = [update_gain(*three) for three in zip(new_old, old_old, best, strict=True)]
    known = [_sigma(gain) for gain in gains if gain is not None]
    return _mean(known) if len(known) == len(gains) else None


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
    return _mean(means)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _sigma(value: float) -> float:
    return 1 / (1 + math.exp(-value))
