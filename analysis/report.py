"""One self-contained HTML file: what was run, the front, the tables, how to run it again. It opens without a
network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import interactive, page, tables
from analysis.frame import Frame
from analysis.pareto import Point, hypervolume
from prunnet.results.sheet import Sheet


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
    sheet: Sheet | None = None,
) -> str:
    """The report as one HTML page that needs no network and no other file.

    Args:
        kept: capacity -> layer -> share of its weights that are kept.
        history: one entry an epoch, with the loss of each capacity.
        conflicts: one entry an epoch, layer -> share of conflicting pairs of gradients.
        sheet: what each capacity finds for a few queries; None: the page does not speak of it.
    """
    front = interactive.front_columns(frame)
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
        masks_only=_granularities(frame) == {"weight"},
        head=tables.head(frame),
        table=tables.capacity_table(frame, tables.LINES),
        shortened=tables.shortened(frame),
        sheet=sheet,
        figures=_figures(frame, kept or {}, history, conflicts),
        front_data=page.as_json(front),
        front_script=page.script("report.js"),
        command=command,
        recipe=recipe,
        failures=list(failures),
    )


def _lead(frame: Frame) -> str:
    first = frame.row(0)
    return (
        f"{first['method']} on {first['backbone']}: {len(frame.capacities)} capacities, {len(frame.whole)} tests of "
        f"{first['queries']} queries against {first['gallery_size']} images "
        f"({first['dataset']}, {first['split']} split, seed {first['seed']})."
    )


def _hypervolume(frame: Frame) -> str:
    """Of the cross-tests, as `analysis.quantities` has it: from (all dense MACs, 0)."""
    places, macs, values = frame.known(frame.tests(), "macs", frame.metric)
    of_dense = frame.numbers("macs_dense")[places]
    dense = np.where(of_dense > 0, of_dense, macs).max(initial=0)
    if not dense:
        return "unknown"
    points = [Point(cost, value) for cost, value in zip((macs / dense).tolist(), values.tolist(), strict=True)]
    area = hypervolume(points, reference=Point(1.0, 0.0))
    return f"{100 * area:.1f} (cross-tests over MACs / dense MACs; reference: 1, 0; a perfect one: 100)"


def _granularities(frame: Frame) -> set[str]:
    used, values = frame.codes("granularity")
    return {values[code] or "weight" for code in np.unique(used)}


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
        ("conflicts-mean", "Conflicts of gradients by epoch", note, interactive.mean_conflicts(conflicts)),
        ("conflicts", "Conflicts of gradients by layer", "", interactive.conflicts(conflicts)),
    ]
    return [
        page.Figure(name, heading, note, drawn, lines=layers if name == "conflicts" else 0)
        for name, heading, note, drawn in every
        if drawn is not None
    ]
