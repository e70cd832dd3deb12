"""What a search found: its trials as records, their front, how it grew, and which parameters mattered."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from analysis import plots
from analysis.pareto import Point, front, hypervolume
from analysis.quantities import Quantity
from analysis.report import embedded

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_FEW = 4
"""Finished trials below which importances mean nothing."""


@dataclass(frozen=True)
class Record:
    """One trial of a search."""

    number: int
    state: str
    """complete, stopped (early), failed, running or waiting."""
    changes: dict[str, Any]
    """Dotted keys and values that made its recipe out of the base."""
    values: dict[str, float] = field(default_factory=dict)
    """Objectives by label, of complete trials."""
    feasible: bool = True
    """Whether it keeps all limits."""
    trial_id: str | None = None
    """Of its rows in the results table."""
    reason: str | None = None
    """Why it failed."""
    epoch: int | None = None
    """At which it was stopped."""
    ended: str | None = None
    seconds: float | None = None
    """From its start to its end; over a restart, with the time between."""

    @property
    def counts(self) -> bool:
        """Whether it may be on the front: complete and within all limits."""
        return self.state == "complete" and self.feasible


def record_of(trial: FrozenTrial, objectives: Sequence[Quantity]) -> Record:
    """An Optuna trial as a record."""
    values = trial.values or []
    told = trial.state == TrialState.COMPLETE
    attributes = trial.user_attrs
    return Record(
        number=trial.number,
        state=STATES[trial.state],
        changes=attributes.get("changes", {}),
        values={q.label: v for q, v in zip(objectives, values, strict=True)} if told else {},
        feasible=all(v <= 0 for v in _limits(trial)),
        trial_id=attributes.get("trial_id"),
        reason=attributes.get("reason"),
        epoch=attributes.get("epoch"),
        ended=trial.datetime_complete.isoformat(timespec="seconds") if trial.datetime_complete else None,
        seconds=trial.duration.total_seconds() if trial.duration else None,
    )


def _limits(trial: FrozenTrial) -> list[float]:
    return [float(value) for value in trial.constraints.values()]


def dominates(one: Record, other: Record, objectives: Sequence[Quantity]) -> bool:
    """Nowhere worse, somewhere better."""
    signs = [1 if q.higher else -1 for q in objectives]
    gaps = [s * (one.values[q.label] - other.values[q.label]) for s, q in zip(signs, objectives, strict=True)]
    return all(gap >= 0 for gap in gaps) and any(gap > 0 for gap in gaps)


def best_front(records: Sequence[Record], objectives: Sequence[Quantity]) -> list[Record]:
    """Complete trials within all limits that no other such trial dominates; of equal ones the first, best of the first
    objective first."""
    able = [r for r in records if r.counts]
    kept: list[Record] = []
    for record in able:
        beaten = any(dominates(other, record, objectives) for other in able)
        if not beaten and not any(other.values == record.values for other in kept):
            kept.append(record)
    first = objectives[0]
    return sorted(kept, key=lambda r: (-1 if first.higher else 1) * r.values[first.label])


def growth(records: Sequence[Record], objectives: Sequence[Quantity], worst_cost: float) -> list[tuple[int, float]]:
    """(trials ended, quality so far), trial after trial in the order they ended: the hypervolume of a cost and a worth,
    as a share of the box between 0 and `worst_cost`; with other objectives the best of the first."""
    ended = sorted((r for r in records if r.ended), key=lambda r: (r.ended or "", r.number))
    quality, line, seen = 0.0, [], []
    worth = [q for q in objectives if q.higher]
    cost = [q for q in objectives if not q.higher]
    for count, record in enumerate(ended, start=1):
        if record.counts:
            seen.append(record)
            if len(worth) == len(cost) == 1:
                points = [Point(r.values[cost[0].label] / worst_cost, r.values[worth[0].label]) for r in seen]
                quality = hypervolume(points, reference=Point(1.0, 0.0))
            else:
                quality = best_front(seen, objectives[:1])[0].values[objectives[0].label]
        line.append((count, quality))
    return line


def importances(study: optuna.Study, objectives: Sequence[Quantity]) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> share of what makes good trials good (Optuna's PED-ANOVA); nothing for few trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _FEW:
        return {}
    shares = {}
    for place, quantity in enumerate(objectives):
        sign = -1.0 if quantity.higher else 1.0  # it explains low values
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shares[quantity.label] = optuna.importance.get_param_importances(
                    study,
                    target=lambda t, place=place, sign=sign: sign * t.values[place],  # type: ignore[misc]
                )
            except (ValueError, RuntimeError):  # all trials alike, or no parameter that all of them have
                continue
    return shares


def figure(
    records: Sequence[Record],
    objectives: Sequence[Quantity],
    shares: Mapping[str, Mapping[str, float]],
    worst_cost: float,
    baseline: Mapping[str, float] | None = None,
) -> Figure:
    """Trials and their front, the front's growth, and importances."""
    drawn, axes = plots.plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    _draw_trials(axes[0], records, objectives, baseline)
    grown = growth(records, objectives, worst_cost)
    axes[1].step([n for n, _ in grown], [v for _, v in grown], where="post", color=plots.BLUE)
    both = len(objectives) == 2 and objectives[0].higher != objectives[1].higher
    axes[1].set(xlabel="trials ended", ylabel="hypervolume of the front" if both else f"best {objectives[0].label}")
    axes[1].grid(color=plots.GREY, alpha=0.25)
    _draw_shares(axes[2], shares)
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


def head(objectives: Sequence[Quantity]) -> tuple[str, ...]:
    """Titles of the trials' table."""
    return ("trial", "state", *(q.label for q in objectives), "changes")


def table(records: Sequence[Record], objectives: Sequence[Quantity]) -> list[tuple[str, ...]]:
    """One line a trial under `head`: the front, then other complete trials by the first objective, then the rest."""
    chosen = best_front(records, objectives)
    names = {r.number for r in chosen}
    sign = -1 if objectives[0].higher else 1
    rest = sorted(
        (r for r in records if r.number not in names),
        key=lambda r: (r.state != "complete", sign * r.values.get(objectives[0].label, 0.0), r.number),
    )
    lines = []
    for record in (*chosen, *rest):
        state = "front" if record.number in names else record.state
        if record.state == "complete" and not record.feasible:
            state = "beyond a limit"
        if record.state == "stopped" and record.epoch:
            state = f"stopped after epoch {record.epoch}"
        if record.reason:
            state = f"{state}: {record.reason[:100]}"
        made = ", ".join(f"{key}={_text(value)}" for key, value in record.changes.items())
        lines.append((f"{record.number}", state, *numbers(record.values, objectives), made))
    return lines


def numbers(values: Mapping[str, float], objectives: Sequence[Quantity]) -> list[str]:
    """Objectives as text, a dash where one is absent."""
    return [_number(values.get(quantity.label)) for quantity in objectives]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def report(
    drawn: Figure,
    lines: Sequence[Sequence[str]],
    columns: Sequence[str],
    **words: Any,
) -> str:
    """One self-contained HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("search.html").render(figure=embedded(drawn), head=columns, table=lines, **words)
