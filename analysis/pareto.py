"""Pareto fronts and hypervolume as data; drawing them is `plots`' job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One choice: its cost (lower is better), its value (higher is better), and its label."""

    cost: float
    value: float
    label: str = ""


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats: at most the cost and at least the value, one of them strictly.

    By rising cost; of equal points the first stays.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def hypervolume(points: Sequence[Point], *, reference: Point) -> float:
    """Area that the front dominates above and left of `reference` (a cost no point should exceed, a value none
    should fall short of); points outside it count nothing."""
    inside = [p for p in points if p.cost < reference.cost and p.value > reference.value]
    area, chosen = 0.0, front(inside)
    # The last point reaches up to the reference; without points there is nothing to add.
    for point, nxt in zip(chosen, [*chosen[1:], reference], strict=False):
        area += (nxt.cost - point.cost) * (point.value - reference.value)
    return area
