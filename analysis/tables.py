"""The sweep's table, as data, Markdown and LaTeX, and all its rows as CSV."""

from __future__ import annotations

import csv
import io

from tabulate import tabulate

from analysis.frame import Frame

_HEAD = ("capacity", "trained", "weights kept", "MMACs", "self mAP", "self R@1", "cross mAP", "cross R@1")
"""Cross: this capacity's queries against the dense network's gallery."""
_OLD_HEAD = ("old mAP", "old R@1")
"""This capacity's queries against the gallery of the network that was to be matched."""


def head(frame: Frame) -> tuple[str, ...]:
    """Titles of the capacity table's columns."""
    titles = _HEAD + _OLD_HEAD if frame.has_old_gallery else _HEAD
    return tuple(title.replace("mAP", frame.metric_name) for title in titles)


def capacity_table(frame: Frame) -> list[tuple[str, ...]]:
    """One line a capacity under `head`; metrics in percent, absent ones as a dash."""
    lines: list[tuple[str, ...]] = []
    for capacity in frame.capacities:
        own, cross = frame.get(capacity, capacity), frame.get(capacity, 1.0)
        old = frame.get(capacity, 1.0, "old")
        row = own or cross or next(r for r in frame.rows if r["query_capacity"] == capacity)
        trained = {
            1.0,
            *map(float, (row["train_capacities"] or "").split(",")[: None if row["train_capacities"] else 0]),
        }
        lines.append(
            (
                f"{capacity:g}",
                "yes" if capacity in trained else "no",
                f"{row['params_kept'] / row['params_total']:.1%}",
                f"{row['macs'] / 1e6:.2f}",
                _percent(own, frame.metric),
                _percent(own, "recall_at_1"),
                _percent(cross, frame.metric),
                _percent(cross, "recall_at_1"),
                *((_percent(old, frame.metric), _percent(old, "recall_at_1")) if frame.has_old_gallery else ()),
            )
        )
    return lines


def markdown(frame: Frame) -> str:
    """The capacity table as GitHub Markdown."""
    return _drawn(frame, "pipe")


def latex(frame: Frame) -> str:
    """The capacity table as a LaTeX tabular; needs the package booktabs."""
    return _drawn(frame, "latex_booktabs")


def _drawn(frame: Frame, style: str) -> str:
    titles = head(frame)
    return tabulate(capacity_table(frame), titles, style, disable_numparse=True, colalign=["right"] * len(titles))


def rows_csv(frame: Frame) -> str:
    """All tests of the sweep, one a line, with each column of the results table that any of them has."""
    names = [name for name in frame.rows[0] if any(row.get(name) is not None for row in frame.rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(frame.rows)
    return text.getvalue()


def _percent(row: dict[str, object] | None, column: str) -> str:
    value = None if row is None else row[column]
    return f"{100 * value:.1f}" if isinstance(value, float) else "-"
