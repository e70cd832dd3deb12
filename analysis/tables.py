"""The sweep's table, as data, Markdown and LaTeX, and all its rows as CSV."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyarrow import csv
from tabulate import tabulate

from analysis.frame import Frame
from prunnet.results import plain_cell

LINES = 200
"""Of a table that is read, on a page or a terminal; the results folder and rows.csv have them all."""
_CHUNK = 20_000

_HEAD = ("capacity", "trained", "weights kept", "MMACs", "self mAP", "self R@1", "cross mAP", "cross R@1")
"""Cross: this capacity's queries against the dense network's gallery."""
_OLD_HEAD = ("old mAP", "old R@1")
"""This capacity's queries against the gallery of the network that was to be matched."""


_LESS = ("trained", "weights kept", "self R@1", "old R@1", "cross R@1", "MMACs", "old mAP", "self mAP")
"""Titles in the order in which a narrow terminal leaves them out."""


def less_important(frame: Frame) -> tuple[str, ...]:
    """Titles of `head` that a narrow terminal may leave out, the least important first."""
    return tuple(
        title.replace("mAP", frame.metric_name)
        for title in (*_LESS[:5], *reversed(_reranked_titles(frame)), *_LESS[5:])
    )


def head(frame: Frame) -> tuple[str, ...]:
    """Titles of the capacity table's columns."""
    titles = _HEAD + _OLD_HEAD if frame.has_old_gallery else _HEAD
    return tuple(title.replace("mAP", frame.metric_name) for title in (*titles, *_reranked_titles(frame)))


def _reranked_titles(frame: Frame) -> list[str]:
    return [f"{kind} mAP, {name}" for name in frame.reranked for kind in _reranked_tests(frame)]


def _reranked_tests(frame: Frame) -> tuple[str, ...]:
    return ("self", "cross", "old") if frame.has_old_gallery else ("self", "cross")


def capacity_table(frame: Frame, limit: int | None = None) -> list[tuple[str, ...]]:
    """One line a capacity under `head`, the `limit` largest (None: all); metrics in percent, absent ones as a dash."""
    capacities = frame.capacities[:limit]
    by_test = _tests(frame)
    own, cross, old = (by_test[name] for name in ("self", "cross", "old"))
    reranked = [(other, _tests(other)) for other in frame.reranked.values()]
    _, first = np.unique(frame.numbers("query_capacity"), return_index=True)
    every = _by_capacity(frame, first)
    at = [own.get(c, cross.get(c, every[c])) for c in capacities]
    kept = frame.numbers("params_kept")[at] / frame.numbers("params_total")[at]
    macs = frame.numbers("macs")[at] / 1e6
    used, sets = frame.codes("train_capacities")
    trained = [{1.0, *(float(c) for c in (text or "").split(",") if c)} for text in sets]
    lines = []
    for place, capacity, share, cost in zip(at, capacities, kept, macs, strict=True):
        tests = [own.get(capacity), cross.get(capacity), *([old.get(capacity)] if frame.has_old_gallery else [])]
        lines.append(
            (
                f"{capacity:g}",
                "yes" if capacity in trained[used[place]] else "no",
                f"{share:.1%}",
                f"{cost:.2f}",
                *(_percent(frame, test, name) for test in tests for name in (frame.metric, "recall_at_1")),
                *(
                    _percent(other, theirs[name].get(capacity), frame.metric)
                    for other, theirs in reranked
                    for name in _reranked_tests(frame)
                ),
            )
        )
    return lines


def _tests(frame: Frame) -> dict[str, dict[float, int]]:
    """Name of a test -> query capacity -> place of its row."""
    chosen = {"self": frame.tests(None), "cross": frame.tests(), "old": frame.tests(source="old")}
    return {name: _by_capacity(frame, places) for name, places in chosen.items()}


def _by_capacity(frame: Frame, places: np.ndarray) -> dict[float, int]:
    return dict(zip(frame.numbers("query_capacity")[places].tolist(), places.tolist(), strict=True))


def _percent(frame: Frame, place: int | None, column: str) -> str:
    value = math.nan if place is None else frame.numbers(column)[place]
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def markdown(frame: Frame) -> str:
    """The capacity table as GitHub Markdown."""
    return _drawn(frame, "pipe")


def latex(frame: Frame) -> str:
    """The capacity table as a LaTeX tabular; needs the package booktabs."""
    return _drawn(frame, "latex_booktabs")


def _drawn(frame: Frame, style: str) -> str:
    titles = head(frame)
    lines = capacity_table(frame, LINES)
    drawn = tabulate(lines, titles, style, disable_numparse=True, colalign=["right"] * len(titles))
    return drawn + (f"\n\n{shortened(frame)}" if style == "pipe" and shortened(frame) else "")


def shortened(frame: Frame, lines: int = LINES) -> str:
    """The line below a table that shows only the first lines."""
    count = len(frame.capacities)
    return f"The first {lines} of {count} lines." if count > lines else ""


def rows_csv(frame: Frame, *, raw: bool = False) -> str:
    """What `csv_parts` gives, in one."""
    return b"".join(csv_parts(frame, raw=raw)).decode()


def csv_parts(frame: Frame, *, raw: bool = False) -> Iterator[bytes]:
    """All tests of the sweep, re-ranked ones too, as UTF-8, one a line, with each column of the results table that any
    of them has.

    Texts that a spreadsheet would run are preceded by an apostrophe (`prunnet.results.plain_cell`) unless `raw`.
    """
    whole = frame.whole
    table = whole.select([name for name in whole.schema.names if whole[name].null_count < len(whole)])
    if not raw:
        for at, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):
                column = table[field.name].combine_chunks()
                plain = pa.array([plain_cell(text) for text in column.dictionary.to_pylist()], pa.string())
                table = table.set_column(at, field.name, pa.DictionaryArray.from_arrays(column.indices, plain))
    types = [pa.string() if pa.types.is_dictionary(kind) else kind for kind in table.schema.types]
    texts = pa.schema(list(zip(table.schema.names, types, strict=True)))
    for start in range(0, max(1, len(table)), _CHUNK):
        part = table.slice(start, _CHUNK).cast(texts)
        buffer = io.BytesIO()
        if start == 0:
            buffer.write((",".join(table.schema.names) + "\n").encode())
        csv.write_csv(part, buffer, csv.WriteOptions(include_header=False, quoting_style="needed"))
        yield buffer.getvalue()
