"""A search as one self-contained HTML page: its trials, their front and its growth, importances, the best recipe.

Why the figures are not those of `optuna.visualization` (5.0):

- `plot_pareto_front` takes no further point such as the base recipe, does not number the front's trials, and shows two
  or three objectives.
- `plot_hypervolume_history` follows the trials' numbers, not the order in which parallel trials ended, leaves out those
  that were stopped, and gives the volume in the objectives' units, not as a share of its box.
- `plot_param_importances` of several objectives asks PED-ANOVA what makes each value low, also where high is good
  (`analysis.search.importances` turns the sign), and takes the parameters' distributions, which `search.json` does
  not keep.
"""

from __future__ import annotations

import plotly.graph_objects as go

from analysis import page
from analysis.interactive import COLOURS
from analysis.search import Findings, Record, best_front, growth, head, table


def render(findings: Findings, *, command: str) -> str:
    """The page; `command` trains and tests the best recipe."""
    counts = {state: sum(r.state == state for r in findings.records) for state in ("complete", "stopped", "failed")}
    reference = "".join(f" The base recipe has {n} {v:.6g}." for n, v in (findings.baseline or {}).items())
    ended = f" {findings.ended[0].upper()}{findings.ended[1:]}." if findings.ended else ""
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    shown = [
        ("trials", "Trials and their front", "Hover for what a trial changed.", trials(findings)),
        ("growth", "How the front grew", "", grown(findings)),
        ("importances", "What mattered", "Share of what makes a trial good (PED-ANOVA).", importances(findings)),
    ]
    return page.render(
        "search.html",
        title=f"Search {findings.name}",
        lead=f"{len(findings.records)} trials, {states}.{ended}{reference}",
        figures=[page.Figure(name, heading, note, drawn) for name, heading, note, drawn in shown if drawn is not None],
        head=head(findings.objectives),
        table=table(findings.records, findings.objectives),
        best=findings.best,
        command=command,
    )


def trials(findings: Findings) -> go.Figure | None:
    """Complete trials in the plane of the first two objectives, or in their order where there is but one."""
    complete = [r for r in findings.records if r.state == "complete"]
    if not complete:
        return None
    first, *others = findings.objectives
    across, up = (others[0], first) if others and first.higher else (first, others[0]) if others else (None, first)
    chosen = {r.number for r in best_front(complete, findings.objectives)}
    groups = {
        "beyond a limit": [r for r in complete if not r.feasible],
        "complete": [r for r in complete if r.feasible and r.number not in chosen],
        "front": [r for r in complete if r.number in chosen],
    }
    figure = go.Figure()
    for place, (name, records) in enumerate(groups.items()):
        if not records:
            continue
        figure.add_scatter(
            mode="markers+text" if name == "front" else "markers",
            name=name,
            x=[r.number if across is None else r.values[across.label] for r in records],
            y=[r.values[up.label] for r in records],
            text=[f"{r.number}" for r in records],
            textposition="bottom right",
            hovertext=[_about(r) for r in records],
            hoverinfo="text+x+y",
            marker={"size": 10, "color": (COLOURS[3], COLOURS[6], COLOURS[1])[place]},
        )
    if findings.baseline and across is not None:
        x, y = findings.baseline[across.label], findings.baseline[up.label]
        marker = {"symbol": "diamond", "size": 11, "color": COLOURS[0]}
        figure.add_scatter(mode="markers", name="the base recipe", x=[x], y=[y], marker=marker)
    figure.update_layout(xaxis_title="trial" if across is None else across.label, yaxis_title=up.label)
    return figure


def _about(record: Record) -> str:
    made = (
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in record.changes.items()
    )
    return "<br>".join([f"trial {record.number}", *made])


def grown(findings: Findings) -> go.Figure | None:
    """The front's hypervolume, or the best value of the first objective, trial after trial."""
    line = growth(findings.records, findings.objectives, findings.worst_cost)
    if not line:
        return None
    both = len(findings.objectives) == 2 and len({q.higher for q in findings.objectives}) == 2
    figure = go.Figure()
    figure.add_scatter(
        x=[n for n, _ in line], y=[v for _, v in line], line={"shape": "hv", "color": COLOURS[0]}, showlegend=False
    )
    title = "hypervolume, as a share of its box" if both else f"best {findings.objectives[0].label}"
    figure.update_layout(xaxis_title="trials ended", yaxis_title=title)
    return figure


def importances(findings: Findings) -> go.Figure | None:
    """Bars, a colour an objective."""
    if not findings.shares:
        return None
    names = [n for n, _ in sorted(next(iter(findings.shares.values())).items(), key=lambda item: item[1])]
    figure = go.Figure()
    for place, (objective, share) in enumerate(findings.shares.items()):
        figure.add_bar(
            y=names,
            x=[share.get(name, 0.0) for name in names],
            orientation="h",
            name=objective,
            marker={"color": COLOURS[place % len(COLOURS)]},
        )
    figure.update_layout(barmode="group", xaxis_title="importance")
    return figure
