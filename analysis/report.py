"""One self-contained HTML file: what was run, the front, the tables, how to run it again. It opens without a
network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from analysis import interactive, plots, tables
from analysis.frame import Frame
from analysis.pareto import Point, hypervolume

_LINES = 200
"""Of the table of capacities; a page is read, the results folder is searched."""


def render(
    frame: Frame,
    *,
    title: str,
    command: str,
    recipe: str,
    failures: Sequence[str] = (),
    kept: Mapping[str, Mapping[str, float]] | None = None,
    history: Sequence[Mapping[str, float]] = (),
    conflicts: Sequence[Mapping[str, float]] = (),
) -> str:
    """The report as one HTML page that needs no network and no other file.

    Args:
        kept: capacity -> layer -> share of its weights that are kept.
        history: one entry an epoch, with the loss of each capacity.
        conflicts: one entry an epoch, layer -> share of conflicting pairs of gradients.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
    )
    front = interactive.front_columns(frame)
    figures = _figures(frame, kept or {}, history, conflicts)
    lines = tables.capacity_table(frame)
    return environment.get_template("report.html").render(
        title=title,
        lead=_lead(frame),
        choices=[
            ("cost", "cost", front["costs"]),
            ("worth", "accuracy", front["worths"]),
            ("test", "", front["tests"]),
        ],
        kept_head=[*front["costs"].values(), *front["worths"].values()],
        hypervolume=_hypervolume(frame),
        masks_only={row.get("granularity") or "weight" for row in frame.rows} == {"weight"},
        head=tables.head(frame),
        table=lines[:_LINES],
        shortened=f"The first {_LINES} of {len(lines)} lines." if len(lines) > _LINES else "",
        figures=[(name, heading, note, tall) for name, heading, note, tall, _ in figures],
        drawn=[(name, Markup(interactive.as_json(figure))) for name, _, _, _, figure in figures],
        layers=max((len(by_layer) for by_layer in conflicts), default=0),
        front_data=Markup(interactive.as_json(front)),
        plotly=Markup(get_plotlyjs()),
        script=Markup((folder / "report.js").read_text(encoding="utf-8")),
        command=command,
        recipe=recipe,
        failures=list(failures),
    )


def _lead(frame: Frame) -> str:
    first = frame.rows[0]
    return (
        f"{first['method']} on {first['backbone']}: {len(frame.capacities)} capacities, {len(frame.rows)} tests of "
        f"{first['queries']} queries against {first['gallery_size']} images "
        f"({first['dataset']}, {first['split']} split, seed {first['seed']})."
    )


def _hypervolume(frame: Frame) -> str:
    """Of the cross-tests, as `analysis.quantities` has it: from (all dense MACs, 0)."""
    rows = [row for row in frame.cross_tests() if row["macs"] is not None and row[frame.metric] is not None]
    dense = max((row.get("macs_dense") or row["macs"] for row in rows), default=0)
    if not dense:
        return "unknown"
    points = [Point(row["macs"] / dense, row[frame.metric]) for row in rows]
    area = hypervolume(points, reference=Point(1.0, 0.0))
    return f"{100 * area:.1f} (cross-tests over MACs / dense MACs; reference: 1, 0; a perfect one: 100)"


def _figures(
    frame: Frame,
    kept: Mapping[str, Mapping[str, float]],
    history: Sequence[Mapping[str, float]],
    conflicts: Sequence[Mapping[str, float]],
) -> list[tuple[str, str, str, bool, Any]]:
    """(id, heading, note, whether it is tall, figure) of all that there is something to draw of."""
    note = "Share of pairs of passes and blocks whose gradients point against each other."
    every = [
        ("matrix", "Every capacity against every capacity", "", False, interactive.matrix(frame)),
        ("methods", "Methods", "Mean over seeds, bars one standard deviation.", False, interactive.methods(frame)),
        ("layers", "What is kept of each layer", "", False, interactive.kept_by_layer(kept)),
        ("training", "Training", "", False, interactive.training(history)),
        ("conflicts", "Conflicts of gradients", note, True, interactive.conflicts(conflicts)),
    ]
    return [entry for entry in every if entry[-1] is not None]


def embedded(figure: Figure) -> str:
    """A figure as base64 PNG, for a page that needs no other file; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    plots.plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
