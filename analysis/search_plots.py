"""A search as one picture for papers: trials and their front, the front's growth, importances. matplotlib.

`optuna.visualization.matplotlib` (5.0) is not used: each of its functions makes a figure of its own, takes no axes, and
sets the style "ggplot" for the whole process, so three of them do not make one picture. `analysis.search_page` says
what else its figures lack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.pareto import Point, front
from analysis.quantities import Quantity
from analysis.search import Findings, Record, best_front, growth


def figure(findings: Findings) -> Figure:
    """Trials and their front, the front's growth, and importances."""
    records, objectives = findings.records, findings.objectives
    drawn, axes = plots.plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    _draw_trials(axes[0], records, objectives, findings.baseline)
    grown = growth(records, objectives, findings.worst_cost)
    axes[1].step([n for n, _ in grown], [v for _, v in grown], where="post", color=plots.BLUE)
    both = len(objectives) == 2 and objectives[0].higher != objectives[1].higher
    axes[1].set(xlabel="trials ended", ylabel="hypervolume of the front" if both else f"best {objectives[0].label}")
    axes[1].grid(color=plots.GREY, alpha=0.25)
    _draw_shares(axes[2], findings.shares)
    return drawn


def _draw_trials(
    axes: Any, records: Sequence[Record], objectives: Sequence[Quantity], baseline: Mapping[str, float] | None
) -> None:
    complete = [r for r in records if r.state == "complete"]
    if len(objectives) == 1:
        (only,) = objectives
        axes.scatter([r.number for r in complete], [r.values[only.label] for r in complete], c=plots.GREY)
        axes.set(xlabel="trial", ylabel=only.label)
        return
    across, up = (objectives[1], objectives[0]) if objectives[0].higher else objectives[:2]
    for group, colour, name in (
        ([r for r in complete if r.feasible], plots.GREY, "complete"),
        ([r for r in complete if not r.feasible], "#CC79A7", "beyond a limit"),
    ):
        if group:
            points = [r.values[across.label] for r in group], [r.values[up.label] for r in group]
            axes.scatter(*points, c=colour, label=name)
    chosen = best_front(records, objectives)
    axes.scatter(
        [r.values[across.label] for r in chosen], [r.values[up.label] for r in chosen], c=plots.ORANGE, label="front"
    )
    if len(objectives) == 2 and across.higher != up.higher:
        stairs = front([Point(r.values[across.label], r.values[up.label]) for r in chosen])
        axes.step([p.cost for p in stairs], [p.value for p in stairs], where="post", color=plots.ORANGE, lw=1)
    for record in chosen:
        place = (record.values[across.label], record.values[up.label])
        axes.annotate(f"{record.number}", place, xytext=(4, 4), textcoords="offset points", size=8)
    if baseline:
        axes.scatter([baseline[across.label]], [baseline[up.label]], c=plots.BLUE, marker="D", label="baseline")
    axes.set(xlabel=across.label, ylabel=up.label)
    axes.grid(color=plots.GREY, alpha=0.25)
    axes.legend(fontsize=8)


def _draw_shares(axes: Any, shares: Mapping[str, Mapping[str, float]]) -> None:
    if not shares:
        axes.text(0.5, 0.5, "too few complete trials\nfor importances", ha="center", va="center")
        axes.set_axis_off()
        return
    names = [name for name, _ in sorted(next(iter(shares.values())).items(), key=lambda item: item[1])]
    height = 0.8 / len(shares)
    for place, (objective, share) in enumerate(shares.items()):
        at = [i + place * height for i in range(len(names))]
        colour = (plots.ORANGE, plots.BLUE, plots.GREY)[place % 3]
        axes.barh(at, [share.get(name, 0.0) for name in names], height, label=objective, color=colour)
    axes.set_yticks([i + height * (len(shares) - 1) / 2 for i in range(len(names))], names, fontsize=7)
    axes.set_xlabel("importance (PED-ANOVA)")
    axes.legend(fontsize=8)
