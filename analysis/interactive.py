"""What the report's page shows, as Plotly figures and plain columns; `report.py` puts them on one page.

The front's points travel as columns of numbers, since its axes can be switched, in base64, since a hundred thousand
points are read several times as fast so; all other figures are Plotly's own JSON.
Colours are Okabe and Ito's, which colour-blind readers tell apart, and the page gives text and grid the colours of its
light or dark theme.
"""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis.frame import Frame

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
COSTS = {
    "macs": ("MMACs an image, kept weights", 1e6),
    "macs_dense_equivalent": ("MMACs an image, after compacting", 1e6),
    "params_kept": ("parameters kept, thousands", 1e3),
    "bytes_on_disk": ("kB on disk", 1e3),
    "latency_ms_b1": ("ms an image, batch 1, measured", 1.0),
    "latency_ms_b32": ("ms a batch of 32, measured", 1.0),
}
WORTHS = {"map": "mAP (%)", "map_at_100": "mAP@100 (%)", "recall_at_1": "Recall@1 (%)"}
TESTS = {"cross": "cross-test against the dense gallery", "self": "self-test"}
_TOLD = ("method", "backbone", "granularity", "allocation", "score_init", "capacity_sampling", "projection",
         "projection_block", "weighting", "train_capacities", "bn_calibration", "mask_source", "seed")  # fmt: skip


def front_columns(frame: Frame) -> dict[str, Any]:
    """The points of the front as columns: every cost and worth that some row has, and what each point is.

    Rows of self-tests and of cross-tests against the dense gallery. Columns are base64 of little-endian numbers:
    float32 with NaN for what is not known (`columns`, `capacity`), uint8 and uint32 that number the names of `tests`
    and the entries of `recipes` (`test`, `recipe`).
    """
    rows = [(row, test) for row in frame.rows for test in _tests_of(row)]
    recipes = [_recipe(row) for row, _ in rows]
    told = {recipe: place for place, recipe in enumerate(dict.fromkeys(recipes))}
    tests = {name: label for name, label in TESTS.items() if any(test == name for _, test in rows)}
    units = {**{name: unit for name, (_, unit) in COSTS.items()}, **dict.fromkeys(WORTHS, 0.01)}
    columns = {name: _floats([row.get(name) for row, _ in rows], unit) for name, unit in units.items()}
    known = {name: _packed(values) for name, values in columns.items() if np.isfinite(values).any()}
    return {
        "columns": known,
        "costs": {name: label for name, (label, _) in COSTS.items() if name in known},
        "worths": {name: label for name, label in WORTHS.items() if name in known},
        "tests": tests,
        "test": _packed(np.array([list(tests).index(test) for _, test in rows], dtype="<u1")),
        "capacity": _packed(_floats([row["query_capacity"] for row, _ in rows], 1.0)),
        "recipe": _packed(np.array([told[recipe] for recipe in recipes], dtype="<u4")),
        "recipes": list(told),
        "colours": COLOURS,
    }


def _floats(values: Sequence[float | None], unit: float) -> np.ndarray:
    column = np.array([np.nan if value is None else value for value in values], dtype=np.float64) / unit
    return np.where(np.isfinite(column), column, np.nan).astype("<f4")


def _packed(column: np.ndarray) -> str:
    return base64.b64encode(column.tobytes()).decode()


def _tests_of(row: Mapping[str, Any]) -> list[str]:
    if (row.get("gallery_source") or "own") != "own":
        return []
    same, dense = row["query_capacity"] == row["gallery_capacity"], row["gallery_capacity"] == 1.0
    return ["self"] * same + ["cross"] * dense


def _recipe(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {row[name]}" for name in _TOLD if row.get(name) is not None)


def _round(value: float | None, unit: float) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value / unit:.5g}")


def matrix(frame: Frame, limit: int = 60) -> go.Figure | None:
    """Heat map of the metric, query capacity by gallery capacity; None where there is but one gallery."""
    capacities = frame.capacities[:limit]
    galleries = [g for g in capacities if any(frame.get(q, g) for q in capacities)]
    if len(galleries) < 2:
        return None
    found = [[frame.get(q, g) for g in galleries] for q in capacities]
    values = [[None if row is None else _round(row[frame.metric], 0.01) for row in line] for line in found]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[f"{g:g}" for g in galleries],
            y=[f"{q:g}" for q in capacities],
            colorscale="Cividis",
            colorbar={"title": f"{frame.metric_name} (%)"},
            texttemplate="%{z:.1f}" if len(capacities) <= 12 else None,
            hovertemplate="query %{y}, gallery %{x}: %{z:.2f} %<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title="gallery capacity", yaxis_title="query capacity")
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def methods(frame: Frame) -> go.Figure | None:
    """Cross-test of each method by capacity, mean and spread over seeds; None where there is but one line to draw."""
    groups: dict[str, dict[float, list[float]]] = {}
    for row in frame.rows:
        if "cross" in _tests_of(row) and row[frame.metric] is not None:
            name = f"{row['method']} ({row.get('granularity') or 'weight'})"
            groups.setdefault(name, {}).setdefault(row["query_capacity"], []).append(100 * row[frame.metric])
    if len(groups) < 2 and all(len(values) < 2 for by in groups.values() for values in by.values()):
        return None
    figure = go.Figure()
    for place, (name, by_capacity) in enumerate(sorted(groups.items())):
        values = [by_capacity[c] for c in sorted(by_capacity)]
        figure.add_scatter(
            x=sorted(by_capacity),
            y=[statistics.mean(v) for v in values],
            error_y={"array": [statistics.stdev(v) if len(v) > 1 else 0 for v in values]},
            name=f"{name}, {max(map(len, by_capacity.values()))} seeds",
            line={"color": COLOURS[place % len(COLOURS)]},
        )
    figure.update_layout(xaxis_title="capacity", yaxis_title=f"cross-test {frame.metric_name} (%), mean ± sd")
    return figure


def kept_by_layer(kept: Mapping[str, Mapping[str, float]]) -> go.Figure | None:
    """Share of each layer's weights that each capacity keeps. `kept`: capacity -> layer -> share."""
    if not kept:
        return None
    capacities = sorted(kept, key=float, reverse=True)
    layers = list(kept[capacities[0]])
    short = [name.removeprefix("backbone.") for name in layers]
    figure = go.Figure(
        go.Heatmap(
            z=[[_round(kept[c].get(name), 1.0) for name in layers] for c in capacities],
            x=short,
            y=[f"{float(c):g}" for c in capacities],
            colorscale="Cividis",
            zmin=0,
            zmax=1,
            colorbar={"title": "kept"},
            hovertemplate="capacity %{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_layout(yaxis_title="capacity")
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def training(history: Sequence[Mapping[str, float]]) -> go.Figure | None:
    """Loss of each capacity by epoch."""
    names = [name for name in (history[0] if history else {}) if name.startswith("loss")]
    if not names:
        return None
    figure = go.Figure()
    for place, name in enumerate(names):
        figure.add_scatter(
            x=[entry["epoch"] for entry in history],
            y=[_round(entry.get(name), 1.0) for entry in history],
            name=name.removeprefix("loss_"),
            line={"color": COLOURS[place % len(COLOURS)]},
        )
    figure.update_layout(xaxis_title="epoch", yaxis_title="loss", legend_title="capacity")
    return figure


def conflicts(seen: Sequence[Mapping[str, float]]) -> go.Figure | None:
    """How often the passes' gradients conflict, by layer and epoch."""
    if not any(seen):
        return None
    layers = list(next(entry for entry in seen if entry))
    figure = go.Figure(
        go.Heatmap(
            z=[[_round(entry.get(name), 1.0) for entry in seen] for name in layers],
            x=list(range(1, len(seen) + 1)),
            y=[name.removeprefix("backbone.") for name in layers],
            colorscale="Cividis",
            colorbar={"title": "share of pairs"},
            hovertemplate="%{y}, epoch %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title="epoch")
    figure.update_yaxes(autorange="reversed")
    return figure
