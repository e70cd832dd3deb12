"""Loads and selects rows of the results table, by columns: a table may have hundreds of thousands of rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from analysis.pareto import Point
from prunnet.results.table import SCHEMA, check_tests, plain, ranked_by, read, select

Reals = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Row = dict[str, Any]


class Frame:
    """Rows of one sweep. All that it says is of the rows that were not re-ranked; those that were are in frames of
    their own.

    Args:
        rows: a table with columns of the results table, or rows as dicts of them; what is left out is null.
    """

    def __init__(self, rows: pa.Table | Sequence[Mapping[str, Any]]) -> None:
        if not isinstance(rows, pa.Table):
            named = set().union(*rows)
            rows = pa.Table.from_pylist(list(rows), schema=pa.schema([f for f in SCHEMA if f.name in named]))
        self.whole = _encoded(rows)
        """With the re-ranked rows."""
        self.table = plain(self.whole)
        self._numbers: dict[str, Reals] = {}

    @classmethod
    def load(cls, folder: str | Path, keys: Iterable[str] | None = None) -> Frame:
        """All rows of a results folder, or those of some unit keys in their order."""
        # Encoded part by part: a text that all rows share, such as the configuration, is not held for each of them.
        table = read(folder, _encoded).unify_dictionaries().combine_chunks()
        check_tests(table, folder)
        return cls(table if keys is None else select(table, keys))

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def reranked(self) -> dict[str, Frame]:
        """Re-ranking -> its rows. It is called as column `rerank` has it, without parameters where they are always the
        same."""
        if len(self.whole) == len(self.table):
            return {}
        column = self.whole["rerank"].cast(pa.string())
        texts = sorted(text for text in pc.unique(column).to_pylist() if text is not None)
        short = [text.partition("(")[0] for text in texts]
        return {
            name if short.count(name) == 1 else text: Frame(
                self.whole.filter(pc.equal(column, text)).drop_columns(["rerank"])
            )
            for name, text in zip(short, texts, strict=True)
        }

    @cached_property
    def rows(self) -> list[Row]:
        """All rows as dicts: for small tables."""
        return self.table.to_pylist()

    def row(self, place: int) -> Row:
        """One row as a dict."""
        return self.table.slice(place, 1).to_pylist()[0]

    def taken(self, places: Places) -> list[Row]:
        """Some rows as dicts."""
        return self.table.take(pa.array(places)).to_pylist()

    def numbers(self, name: str) -> Reals:
        """A column [n] of numbers; NaN where it is null, or no row has it."""
        if name not in self._numbers:
            if name in self.table.schema.names:
                column = pc.fill_null(self.table[name].cast(pa.float64(), safe=False), np.nan)
                self._numbers[name] = column.to_numpy().astype(np.float64, copy=False)
            else:
                self._numbers[name] = np.full(len(self), np.nan)
        return self._numbers[name]

    def codes(self, name: str) -> tuple[Places, list[Any]]:
        """A column of few different values as ([n] numbers of them, the values); a null is a value like any other."""
        if name not in self.table.schema.names:
            return np.zeros(len(self), np.int64), [None]
        column = self.table[name].combine_chunks()
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        values = [*column.dictionary.to_pylist(), None]
        return pc.fill_null(column.indices.cast(pa.int64()), len(values) - 1).to_numpy(), values

    @cached_property
    def metric(self) -> str:
        """The column that the benchmark ranks by: GLDv2's mAP@100, otherwise mAP."""
        protocols = self._protocols
        return ranked_by(protocols[0] if len(protocols) == 1 else None)

    @cached_property
    def metric_name(self) -> str:
        """As it is written on axes and over columns."""
        medium = self._protocols == ["revisited"]
        return {"map": "mAP (Medium)" if medium else "mAP", "map_at_100": "mAP@100"}[self.metric]

    @cached_property
    def _protocols(self) -> list[Any]:
        used, values = self.codes("protocol")
        return [values[code] for code in np.unique(used)]

    @cached_property
    def capacities(self) -> list[float]:
        """Query capacities, largest first."""
        return np.unique(self.numbers("query_capacity"))[::-1].tolist()

    @cached_property
    def old(self) -> npt.NDArray[np.bool_]:
        """[n] whether a row searches the gallery of the network that was to be matched."""
        used, values = self.codes("gallery_source")
        return np.array([value == "old" for value in values], dtype=bool)[used]

    def tests(self, gallery: float | None = 1.0, source: str = "own") -> Places:
        """Places of the first row of each test M(c, gallery), by falling c; M(c, c) where the gallery is None."""
        queries, galleries = self.numbers("query_capacity"), self.numbers("gallery_capacity")
        wanted = (galleries == (queries if gallery is None else gallery)) & (self.old == (source == "old"))
        places = np.flatnonzero(wanted)
        _, first = np.unique(-queries[places], return_index=True)
        return places[first]

    def get(self, query: float, gallery: float, source: str = "own") -> Row | None:
        """The row of one test; `source` "old" is the gallery of the network that was to be matched."""
        same = (self.numbers("query_capacity") == query) & (self.numbers("gallery_capacity") == gallery)
        places = np.flatnonzero(same & (self.old == (source == "old")))
        return self.row(int(places[0])) if len(places) else None

    @property
    def has_old_gallery(self) -> bool:
        """Whether some test searches the gallery of an old network."""
        return bool(self.old.any())

    def self_tests(self) -> list[Row]:
        """M(c, c) by falling capacity."""
        return self.taken(self.tests(None))

    def cross_tests(self, gallery: float = 1.0) -> list[Row]:
        """M(c, gallery) by falling capacity; the dense gallery unless said otherwise."""
        return self.taken(self.tests(gallery))

    def matrix(self, limit: int) -> tuple[list[float], list[float], Reals]:
        """(query capacities, gallery capacities, the metric [queries, galleries], NaN where it is not known), largest
        first; the `limit` largest query capacities, and the galleries among them that some of them searched."""
        capacities = np.array(self.capacities[:limit])
        places = np.flatnonzero(~self.old & np.isin(self.numbers("query_capacity"), capacities))
        places = places[np.isin(self.numbers("gallery_capacity")[places], capacities)][::-1]  # the first row stays
        found = np.full((len(capacities), len(capacities)), np.nan)
        tested = np.zeros(len(capacities), dtype=bool)
        query, gallery = (
            np.searchsorted(-capacities, -self.numbers(name)[places]) for name in ("query_capacity", "gallery_capacity")
        )
        found[query, gallery] = self.numbers(self.metric)[places]
        tested[gallery] = True
        return capacities.tolist(), capacities[tested].tolist(), found[:, tested]

    def points(self, rows: Sequence[Row], *, cost: str = "macs", value: str | None = None) -> list[Point]:
        """Rows as points for a front, by the benchmark's metric unless said otherwise; absent numbers are left out."""
        value = value or self.metric
        known = [row for row in rows if row[cost] is not None and row[value] is not None]
        return [Point(row[cost], row[value], f"{row['query_capacity']:g}") for row in known]

    def known(self, places: Places, cost: str, value: str) -> tuple[Places, Reals, Reals]:
        """(places, costs, values) of those rows that have both."""
        places = places[np.isfinite(self.numbers(cost)[places]) & np.isfinite(self.numbers(value)[places])]
        return places, self.numbers(cost)[places], self.numbers(value)[places]


def _encoded(table: pa.Table) -> pa.Table:
    """Texts as numbers into their different values, where there are fewer of those than rows."""
    for at, field in enumerate(table.schema):
        if field.type == pa.string() and field.name != "unit_key":
            table = table.set_column(at, field.name, table[field.name].dictionary_encode().combine_chunks())
    return table


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for fewer than two values, nan where one is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0
