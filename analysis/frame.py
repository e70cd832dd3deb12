"""Loads and selects rows of the results table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.pareto import Point
from prunnet.results import check_tests, ranked_by, read, select


@dataclass(frozen=True)
class Frame:
    """Rows of one sweep, as dicts of the results table's columns."""

    rows: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: str | Path, keys: Iterable[str] | None = None) -> Frame:
        """All rows of a results folder, or those of some unit keys in their order."""
        table = read(folder)
        check_tests(table, folder)
        return cls((table if keys is None else select(table, keys)).to_pylist())

    @cached_property
    def metric(self) -> str:
        """The column that the benchmark ranks by: GLDv2's mAP@100, everybody else's mAP."""
        protocols = {row.get("protocol") for row in self.rows}
        return ranked_by(protocols.pop() if len(protocols) == 1 else None)

    @cached_property
    def metric_name(self) -> str:
        """As it is written on axes and over columns."""
        medium = {row.get("protocol") for row in self.rows} == {"revisited"}
        return {"map": "mAP (Medium)" if medium else "mAP", "map_at_100": "mAP@100"}[self.metric]

    @cached_property
    def capacities(self) -> list[float]:
        """Query capacities, largest first."""
        return sorted({row["query_capacity"] for row in self.rows}, reverse=True)

    def get(self, query: float, gallery: float, source: str = "own") -> dict[str, Any] | None:
        """The row of one test; `source` "old" is the gallery of the network that was to be matched."""
        return self._by_test.get((query, gallery, source))

    @cached_property
    def _by_test(self) -> dict[tuple[float, float, str], dict[str, Any]]:
        """The first row of each test."""
        found: dict[tuple[float, float, str], dict[str, Any]] = {}
        for row in self.rows:
            key = (row["query_capacity"], row["gallery_capacity"], row["gallery_source"] or "own")
            found.setdefault(key, row)
        return found

    @cached_property
    def has_old_gallery(self) -> bool:
        """Whether some test searches the gallery of an old network."""
        return any(row["gallery_source"] == "old" for row in self.rows)

    def self_tests(self) -> list[dict[str, Any]]:
        """M(c, c) by falling capacity."""
        return [row for c in self.capacities if (row := self.get(c, c))]

    def cross_tests(self, gallery: float = 1.0) -> list[dict[str, Any]]:
        """M(c, gallery) by falling capacity; the dense gallery unless said otherwise."""
        return [row for c in self.capacities if (row := self.get(c, gallery))]

    def points(self, rows: list[dict[str, Any]], *, cost: str = "macs", value: str | None = None) -> list[Point]:
        """Rows as points for a front, by the benchmark's metric unless said otherwise; absent numbers are left out."""
        value = value or self.metric
        known = [row for row in rows if row[cost] is not None and row[value] is not None]
        return [Point(row[cost], row[value], f"{row['query_capacity']:g}") for row in known]
