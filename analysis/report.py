"""One self-contained HTML file: what was run, the front, the tables, how to run it again. It opens without a
network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis import interactive, page, tables
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
    front = interactive.front_columns(frame)
    lines = tables.capacity_table(frame)
    return page.render(
        "report.html",
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
        figures=_figures(frame, kept or {}, history, conflicts),
        front_data=page.as_json(front),
        front_script=page.script("report.js"),
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
) -> list[page.Figure]:
    """All that there is something to draw of."""
    note = "Share of pairs of passes and blocks whose gradients point against each other."
    layers = max((len(by_layer) for by_layer in conflicts), default=0)
    every = [
        ("matrix", "Every capacity against every capacity", "", interactive.matrix(frame)),
        ("methods", "Methods", "Mean over seeds, bars one standard deviation.", interactive.methods(frame)),
        ("layers", "What is kept of each layer", "", interactive.kept_by_layer(kept)),
        ("training", "Training", "", interactive.training(history)),
        ("conflicts", "Conflicts of gradients", note, interactive.conflicts(conflicts)),
    ]
    return [
        page.Figure(name, heading, note, drawn, lines=layers if name == "conflicts" else 0)
        for name, heading, note, drawn in every
        if drawn is not None
    ]
