"""The search for layer-wise capacities: Optuna proposes vectors, actors look at them, nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from cmaes import CMA
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from cluster.evaluation import Subject
from cluster.pool import Pool
from prunnet.errors import ConfigError, unknown
from prunnet.evaluation.evaluator import FeaturesUnit
from prunnet.subnetworks.layer_budgets import Budget, Keep

SAMPLERS = ("cmaes", "tpe", "random")
REACH = 1.0
"""Logarithms of the ratios lie in ±REACH around the start. CMA-ES begins with a step of a third, so that a candidate
differs from the best guess by a third a layer. Larger steps make every candidate useless: accuracy is near chance."""


@dataclass(frozen=True)
class Proposal:
    """A vector to look at."""

    trial: optuna.Trial
    keep: Keep


def group(place: int) -> str:
    """The parameter of a group of layers."""
    return f"group {place}"


def sampler(name: str, seed: int, groups: int) -> optuna.samplers.BaseSampler:
    """Optuna's, or CMA-ES, by name."""
    if name not in SAMPLERS:
        raise ConfigError(unknown("sampler", name, SAMPLERS))
    if name == "cmaes":
        return CmaEs(seed, groups)
    if name == "tpe":
        return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed, n_startup_trials=2 * groups)
    return optuna.samplers.RandomSampler(seed=seed)


class CmaEs(optuna.samplers.BaseSampler):
    """CMA-ES that starts from the middle, the best guess, with a sixth of the range as its step.

    Its state is made anew from the finished trials of each generation. Optuna's own CMA-ES sampler keeps a pickle of
    its state in the study and unpickles it when a search is resumed: whoever can write the journal could run code.
    """

    GENERATION = "cma:generation"
    """Attribute of a trial, as Optuna's sampler names it."""

    def __init__(self, seed: int, groups: int) -> None:
        self._seed, self._names = seed, [group(place) for place in range(groups)]
        self._independent = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: FloatDistribution(-REACH, REACH) for name in self._names}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if "fixed_params" in trial.system_attrs:  # enqueued: not drawn from any generation
            return {}
        optimiser = self._replayed(study)
        optimiser.reseed_rng(int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0]))
        study._storage.set_trial_system_attr(trial._trial_id, self.GENERATION, optimiser.generation)
        return dict(zip(self._names, optimiser.ask().tolist(), strict=True))

    def _replayed(self, study: optuna.Study) -> CMA:
        """The optimiser after all generations that are complete; `study` is maximised."""
        size = len(self._names)
        bounds = np.tile([-REACH, REACH], (size, 1))
        optimiser = CMA(np.zeros(size), 2 * REACH / 6, bounds, n_max_resampling=10 * size, seed=self._seed)
        ended: dict[int, list[FrozenTrial]] = {}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if self.GENERATION in trial.system_attrs and set(trial.params) == set(self._names):
                ended.setdefault(trial.system_attrs[self.GENERATION], []).append(trial)
        while len(told := ended.get(optimiser.generation, [])) >= optimiser.population_size:
            asked = told[: optimiser.population_size]
            optimiser.tell([(np.array([t.params[n] for n in self._names]), -float(t.values[0])) for t in asked])
        return optimiser

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def look(
    pool: Pool[Any], subject: Subject, gallery: FeaturesUnit, metric: str, keeps: Sequence[Keep]
) -> list[float | None]:
    """The metric of each vector in the dense gallery; None where it failed for good."""
    units = [_unit(place, keep) for place, keep in enumerate(keeps)]
    outcome = pool.run(units, lambda actor, unit: actor.worth.remote(subject, unit, gallery, metric))
    found: dict[str, float] = {unit.key: value for unit, value in outcome.done}
    return [found.get(unit.key) for unit in units]


def improve(
    pool: Pool[Any],
    subject: Subject,
    gallery: FeaturesUnit,
    metric: str,
    *,
    budget: Budget,
    start: np.ndarray,
    study: optuna.Study,
    evaluations: int,
    report: Callable[[int, float], None],
) -> tuple[Keep, float]:
    """The best vector of so many within a budget, and its metric.

    Args:
        start: ratios that logarithms are measured from; looked at first.
        study: may hold evaluations of an earlier, interrupted call: they count.
        report: called with (evaluations done, best metric so far).
    """
    for orphan in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(orphan.number, state=TrialState.FAIL)
    study.enqueue_trial({group(place): 0.0 for place in range(len(budget.groups))}, skip_if_exists=True)

    def vector(values: dict[str, float]) -> Keep:
        logs = np.array([values[group(place)] for place in range(len(budget.groups))])
        return budget.keep(start * np.exp(logs))

    def complete() -> int:
        return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def proposals() -> Iterator[Proposal]:
        for _ in range(max(0, evaluations - complete())):
            trial = study.ask()
            logs = {group(p): trial.suggest_float(group(p), -REACH, REACH) for p in range(len(budget.groups))}
            yield Proposal(trial, vector(logs))

    def done(proposal: Proposal, value: float) -> None:
        study.tell(proposal.trial, value)
        report(complete(), study.best_value)

    outcome = pool.run(
        proposals(),
        lambda actor, p: actor.worth.remote(subject, _unit(p.trial.number, p.keep), gallery, metric),
        on_done=done,
    )
    for proposal, reason in outcome.failed:
        proposal.trial.set_user_attr("reason", reason)
        study.tell(proposal.trial, state=TrialState.FAIL)
    return vector(study.best_params), study.best_value


def _unit(place: int, keep: Keep) -> FeaturesUnit:
    """Looked at once and forgotten, so its key need not say what it is."""
    return FeaturesUnit(f"look {place}", 1.0, keep=tuple(keep.items()))
