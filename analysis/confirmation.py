"""The first few trials of a search, trained again with other seeds: what they kept of their figures, and which is best.

The leader of a search is the best of many trials, each trained once, so that its figure is partly its seed's luck. The
figures that led to a finalist's choice are therefore compared with those of the new seeds, and not averaged with them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from analysis.quantities import Quantity

OF, SEED = "confirms", "seed"
"""Attributes of a confirmation in Optuna's storage: the number of the search's trial, and the seed it is trained with."""


@dataclass(frozen=True)
class Confirmation:
    """A finalist's recipe, trained with another seed."""

    seed: int
    values: dict[str, float] = field(default_factory=dict)
    """Objectives by label; empty where it failed."""
    limits: dict[str, float] = field(default_factory=dict)
    """How far it is beyond each limit; at most 0: within."""
    reason: str | None = None
    """Why it failed."""


@dataclass(frozen=True)
class Finalist:
    """A trial that was trained again."""

    number: int
    values: dict[str, float]
    """Its objectives in the search."""
    confirmations: tuple[Confirmation, ...] = ()

    def mean(self, label: str) -> float:
        """Of an objective over the new seeds that finished; there is at least one."""
        return statistics.fmean(c.values[label] for c in self._finished)

    def deviation(self, label: str) -> float | None:
        """Sample standard deviation over the new seeds; None for one seed."""
        values = [c.values[label] for c in self._finished]
        return statistics.stdev(values) if len(values) > 1 else None

    def fell(self, quantity: Quantity) -> float:
        """By how much the mean over the new seeds is worse than the figure in the search; below 0 where it is
        better."""
        gap = self.values[quantity.label] - self.mean(quantity.label)
        return gap if quantity.higher else -gap

    @property
    def _finished(self) -> list[Confirmation]:
        return [c for c in self.confirmations if c.values]

    @property
    def confirmed(self) -> bool:
        """Whether some confirmation finished."""
        return bool(self._finished)

    @property
    def feasible(self) -> bool:
        """Whether it keeps all limits in the mean over the new seeds."""
        names = {name for c in self._finished for name in c.limits}
        return all(statistics.fmean(c.limits.get(name, 0.0) for c in self._finished) <= 0 for name in names)


def confirmation_of(trial: FrozenTrial, objectives: Sequence[Quantity]) -> Confirmation:
    """An Optuna trial that ended, as a confirmation."""
    seed = trial.user_attrs[SEED]
    if trial.state != TrialState.COMPLETE:
        return Confirmation(seed, reason=trial.user_attrs.get("reason", "it did not finish"))
    values = {q.label: v for q, v in zip(objectives, trial.values, strict=True)}
    return Confirmation(seed, values, {name: float(value) for name, value in trial.constraints.items()})


def confirmed_best(tried: Sequence[Finalist], objectives: Sequence[Quantity]) -> Finalist | None:
    """The finalist within all limits that is best in the first objective, by the mean over the new seeds alone; of
    equal ones the first. None where no confirmation finished within the limits."""
    first = objectives[0]
    able = [finalist for finalist in tried if finalist.confirmed and finalist.feasible]
    return min(able, key=lambda f: (-1 if first.higher else 1) * f.mean(first.label), default=None)


def head(objectives: Sequence[Quantity]) -> tuple[str, ...]:
    """Titles of the finalists' table."""
    titles = [title for q in objectives for title in (q.label, f"{q.label}, new seeds", "fell by")]
    return ("trial", "state", *titles)


def table(tried: Sequence[Finalist], objectives: Sequence[Quantity]) -> list[tuple[str, ...]]:
    """One line a finalist under `head`, in the order of the search."""
    best = confirmed_best(tried, objectives)
    lines = []
    for finalist in tried:
        state = "chosen" if finalist is best else "" if finalist.feasible else "beyond a limit"
        failed = [c for c in finalist.confirmations if not c.values]
        if failed:
            said = f"{len(failed)} of {len(finalist.confirmations)} failed: {(failed[0].reason or '')[:100]}"
            state = f"{state}; {said}" if state else said
        cells: list[str] = []
        for q in objectives:
            fell = number(finalist.fell(q)) if finalist.confirmed else "-"
            cells += [number(finalist.values[q.label]), spread(finalist, q), fell]
        lines.append((f"{finalist.number}", state, *cells))
    return lines


def spread(finalist: Finalist, quantity: Quantity) -> str:
    """Mean ± standard deviation over the new seeds."""
    if not finalist.confirmed:
        return "-"
    deviation = finalist.deviation(quantity.label)
    return number(finalist.mean(quantity.label)) + ("" if deviation is None else f" ± {number(deviation)}")


def summary(tried: Sequence[Finalist], objectives: Sequence[Quantity]) -> str:
    """What became of the leader, and which finalist is chosen, in one or two sentences; empty without finalists."""
    if not tried:
        return ""
    leader, first, best = tried[0], objectives[0], confirmed_best(tried, objectives)
    told = f"Trial {leader.number} led the search with {first.label} {number(leader.values[first.label])}"
    if leader.confirmed:
        fell = leader.fell(first)
        moved = f"fell by {number(fell)}" if fell >= 0 else f"improved by {number(-fell)}"
        count = sum(bool(c.values) for c in leader.confirmations)
        told += f"; over {count} new seed(s) it {moved}, to {spread(leader, first)}."
    else:
        told += "; none of its confirmations finished."
    if best is None:
        return f"{told} No finalist is confirmed within the limits: the leader of the search is kept."
    return f"{told} Chosen by the mean over the new seeds: trial {best.number}, {spread(best, first)}."


def complete_values(tried: Sequence[Finalist], labels: set[str]) -> bool:
    """Whether every finalist and every confirmation that finished has all objectives."""
    told: list[Mapping[str, float]] = [f.values for f in tried]
    told += [c.values for f in tried for c in f.confirmations if c.values]
    return not any(labels - values.keys() for values in told)


def number(value: float | None) -> str:
    """A figure as text, a dash where it is absent."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
