"""What the report's page shows, as Plotly figures and plain columns; `report.py` puts them on one page.

The front's points travel as columns of numbers, since its axes can be switched, in base64, since a hundred thousand
points are read several times as fast so; all other figures are Plotly's own JSON.
Colours are Okabe and Ito's, which colour-blind readers can distinguish, and the page gives text and grid the colours of
its
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

from analysis.frame import Frame, deviation

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
    """The points of the front as columns: every cost and metric that some row has, and what each point is.

    Rows of self-tests and of cross-tests against the dense gallery. Columns are base64 of little-endian numbers:
    float32 with NaN for what is not known (`columns`, `capacity`), uint8 and uint32 that number the names of `tests`
    and the entries of `recipes` (`test`, `recipe`).
    """
    queries, galleries = frame.numbers("query_capacity"), frame.numbers("gallery_capacity")
    kinds = {"self": ~frame.old & (queries == galleries), "cross": ~frame.old & (galleries == 1.0)}
    tests = {name: label for name, label in TESTS.items() if kinds[name].any()}
    # Row after row, the self-test of a row before its cross-test.
    places, test = np.nonzero(np.stack([kinds["self"], kinds["cross"]], axis=1))
    number = np.array([list(tests).index(name) if name in tests else 0 for name in kinds], dtype="<u1")
    used, recipes = _recipes(frame, places)
    units = {**{name: unit for name, (_, unit) in COSTS.items()}, **dict.fromkeys(WORTHS, 0.01)}
    columns = {name: _floats(frame.numbers(name)[places], unit) for name, unit in units.items()}
    known = {name: _packed(values) for name, values in columns.items() if np.isfinite(values).any()}
    return {
        "columns": known,
        "costs": {name: label for name, (label, _) in COSTS.items() if name in known},
        "worths": {name: label for name, label in WORTHS.items() if name in known},
        "tests": tests,
        "test": _packed(number[test]),
        "capacity": _packed(_floats(queries[places], 1.0)),
        "recipe": _packed(used.astype("<u4")),
        "recipes": recipes,
        "colours": COLOURS,
    }


def _floats(values: np.ndarray, unit: float) -> np.ndarray:
    return np.where(np.isfinite(values), values / unit, np.nan).astype("<f4")


def _packed(column: np.ndarray) -> str:
    return base64.b64encode(column.tobytes()).decode()


def _recipes(frame: Frame, places: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(which recipe each of some rows is of, the recipes as text in the order of their first rows)."""
    told = {name: frame.codes(name) for name in _TOLD}
    combined = np.zeros(len(places), np.int64)
    for used, values in told.values():
        _, combined = np.unique(combined * len(values) + used[places], return_inverse=True)
    _, first, combined = np.unique(combined, return_index=True, return_inverse=True)
    texts = []
    for place in places[first]:
        said = {name: values[used[place]] for name, (used, values) in told.items()}
        texts.append(", ".join(f"{name} {value}" for name, value in said.items() if value is not None))
    order = np.argsort(first)
    return np.argsort(order)[combined], [texts[at] for at in order]


def _round(value: float | None, unit: float) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value / unit:.5g}")


def matrix(frame: Frame, limit: int = 60) -> go.Figure | None:
    """Heat map of the metric, query capacity by gallery capacity; None where there is but one gallery."""
    capacities, galleries, found = frame.matrix(limit)
    if len(galleries) < 2:
        return None
    values = [[_round(value, 0.01) for value in line] for line in found.tolist()]
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
    cross = ~frame.old & (frame.numbers("gallery_capacity") == 1.0)
    places = np.flatnonzero(cross & ~np.isnan(frame.numbers(frame.metric)))
    of_method, of_kind = frame.codes("method"), frame.codes("granularity")
    groups: dict[str, dict[float, list[float]]] = {}
    for method, kind, capacity, value in zip(
        of_method[0][places].tolist(),
        of_kind[0][places].tolist(),
        frame.numbers("query_capacity")[places].tolist(),
        (100 * frame.numbers(frame.metric)[places]).tolist(),
        strict=True,
    ):
        name = f"{of_method[1][method]} ({of_kind[1][kind] or 'weight'})"
        groups.setdefault(name, {}).setdefault(capacity, []).append(value)
    if len(groups) < 2 and all(len(values) < 2 for by in groups.values() for values in by.values()):
        return None
    figure = go.Figure()
    for place, (name, by_capacity) in enumerate(sorted(groups.items())):
        values = [by_capacity[c] for c in sorted(by_capacity)]
        figure.add_scatter(
            x=sorted(by_capacity),
            y=[statistics.mean(v) for v in values],
            error_y={"array": [deviation(v) for v in values]},
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


def mean_conflicts(seen: Sequence[Mapping[str, float | None]]) -> go.Figure | None:
    """How often the passes' gradients conflict, mean over layers, by epoch; an epoch without a number is a gap."""
    known = [[value for value in entry.values() if value is not None and math.isfinite(value)] for entry in seen]
    if not any(known):
        return None
    means = [_round(statistics.mean(values), 1.0) if values else None for values in known]
    figure = go.Figure(go.Scatter(x=list(range(1, len(seen) + 1)), y=means, line={"color": COLOURS[0]}))
    figure.update_layout(xaxis_title="epoch", yaxis_title="share of pairs, mean over layers")
    figure.update_yaxes(rangemode="tozero")
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
