"""What a search found: its trials as records, their front, how it grew, and which parameters mattered."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from analysis.pareto import Point, hypervolume
from analysis.quantities import Quantity

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


@dataclass(frozen=True)
class Findings:
    """All that is drawn of a search; kept in its folder, so that it can be drawn again without the study."""

    name: str
    objectives: Sequence[Quantity]
    records: Sequence[Record]
    shares: Mapping[str, Mapping[str, float]]
    """Objective -> parameter -> importance."""
    worst_cost: float
    """Of what is to be low: where a hypervolume's box ends."""
    baseline: Mapping[str, float] | None
    """The base recipe's own objectives."""
    best: str
    """The recipe that is best in the first objective, as YAML; empty without a complete trial."""
    ended: str = ""
    """Why the search ended before its last trial; empty where it did not."""

    def to_json(self) -> str:
        """Text that `from_json` reads back."""
        told = asdict(self) | {"objectives": [q.model_dump() for q in self.objectives]}
        return json.dumps(told, indent=1)

    @staticmethod
    def from_json(text: str | bytes) -> Findings:
        """What `to_json` wrote. Raises ValueError of other text."""
        found = TypeAdapter(Findings).validate_json(text)
        labels = {q.label for q in found.objectives}
        told: list[Mapping[str, float]] = [r.values for r in found.records if r.state == "complete"]
        told += [] if found.baseline is None else [found.baseline]
        if not labels or not found.worst_cost > 0 or any(labels - values.keys() for values in told):
            raise ValueError("objectives without values")
        return found


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


def stalled(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], patience: int) -> int | None:
    """The number of the trial with which a search has gone `patience` trials without an improvement; None: not yet.

    Trials count in the order in which they ended, whether complete or stopped early; failed ones do not. A trial
    improves the search where it is complete, within all limits, and no such trial before it is at least as good in
    every objective: a better value of a single one, a new point of the front (more hypervolume) of several. Counting
    begins with the first such trial. Later trials never undo the decision, so it is the same after a resume.

    Optuna's Terminator (5.0) is deprecated, takes one objective, knows no limits and counts by trial number; Ray's
    ExperimentPlateauStopper (2.60) counts reports of epochs and forgets them with its driver.
    """
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.datetime_complete]
    signs = [1 if direction == StudyDirection.MAXIMIZE else -1 for direction in directions]
    kept: list[list[float]] = []
    since = 0
    for trial in sorted(ended, key=lambda t: (t.datetime_complete, t.number)):
        since += 1
        if trial.state == TrialState.COMPLETE and all(v <= 0 for v in _limits(trial)):
            worth = [sign * value for sign, value in zip(signs, trial.values, strict=True)]
            if not any(all(a >= b for a, b in zip(other, worth, strict=True)) for other in kept):
                kept.append(worth)
                since = 0
        if kept and since >= patience:
            return trial.number
        if not kept:
            since = 0
    return None


def growth(records: Sequence[Record], objectives: Sequence[Quantity], worst_cost: float) -> list[tuple[int, float]]:
    """(trials ended, quality so far), trial after trial in the order they ended: the hypervolume of a cost and a
    metric, as a share of the box between 0 and `worst_cost`; with other objectives the best of the first."""
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
            except (ValueError, RuntimeError):  # all trials equal, or no parameter that all of them have
                continue
    return shares


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
