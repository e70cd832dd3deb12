"""The recipe of a search: a base recipe, the space around it, and what counts as better."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from analysis.quantities import Quantity
from prunnet.config.recipe import Capacity, Recipe, absolute_paths, apply_override, changed, explain, parse_recipe
from prunnet.errors import ConfigError, echo, told
from prunnet.redact import shown
from prunnet.storage import hashing
from prunnet.storage.yaml_reader import read_yaml

if TYPE_CHECKING:
    import optuna

Changes = dict[str, Any]
CAPACITIES = "train.capacities"
CONDITIONS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "train.exponent": ("train.weighting", ("cosine",)),
    "train.block": ("train.projection", ("last", "sequential")),
}
"""Keys that have an effect only with certain values of another key; other trials leave them out."""
_DRAWN = 200
"""Random points of the space whose recipes are checked before anything runs."""


class Suggests(Protocol):
    """The part of an Optuna trial that a space uses."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Range(_Part):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None
    whole: bool = False
    when: dict[str, Any] = {}
    """Only where another key of the space has this value, or one of these."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ConfigError(f"range {self.low:g} … {self.high:g}: valid are low < high, and low > 0 under log")
        if self.log and self.step is not None:
            raise ConfigError(f"range {self.low:g} … {self.high:g}: log and step exclude each other")
        return self

    def suggest(self, trial: Suggests, name: str) -> float:
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def parameters(self, name: str, value: Any) -> dict[str, Any]:
        """The Optuna parameters of a given value; ConfigError where it is not in the range."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            raise ConfigError(f"start: {name}={echo(value)} is not in {self.low:g} … {self.high:g}")
        return {name: value}


class Choice(_Part):
    """One of some values, which may be lists or mappings."""

    values: Annotated[tuple[Any, ...], Field(min_length=1)]
    when: dict[str, Any] = {}

    @property
    def _names(self) -> list[Any]:
        """Optuna stores plain values, without the credentials of URLs; lists and mappings are named by their text."""
        values = [shown(value) for value in self.values]
        if all(isinstance(v, (str, int, float, bool, type(None))) for v in values):
            return values
        return [yaml.safe_dump(v, default_flow_style=True).strip() for v in values]

    def suggest(self, trial: Suggests, name: str) -> Any:
        return self.values[self._names.index(trial.suggest_categorical(name, self._names))]

    def parameters(self, name: str, value: Any) -> dict[str, Any]:
        """The Optuna parameters of a given value; ConfigError where it is none of the values."""
        if value not in self.values:
            raise ConfigError(f"start: {name}={echo(value)}; valid: {', '.join(map(echo, self.values[:20]))}")
        return {name: self._names[self.values.index(value)]}


class CapacitySet(_Part):
    """Training capacities: how many, and where on a grid from `low` to `high`, at least `gap` apart."""

    count: Annotated[tuple[int, ...], Field(min_length=1)]
    low: Capacity = 0.05
    high: Capacity = 0.9
    step: Annotated[float, Field(gt=0)] = 0.05
    gap: Annotated[float, Field(gt=0)] = 0.1
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _room(self) -> CapacitySet:
        most = max(self.count)
        if min(self.count) < 1 or self._spare(most) < 0:
            raise ConfigError(
                f"{CAPACITIES}: {most} capacities at least {self.gap:g} apart do not fit into "
                f"{self.low:g} … {self.high:g}; lower count or gap"
            )
        if self.high >= 1:
            raise ConfigError(f"{CAPACITIES}: high={self.high:g}; valid: below 1, the dense network is always trained")
        return self

    @property
    def _between(self) -> int:
        """Grid steps of the gap, rounded up."""
        return max(1, int(-(-(self.gap - 1e-9) // self.step)))

    def _spare(self, count: int) -> int:
        """Grid steps that are free to move in once the gaps are taken."""
        return int((self.high - self.low + 1e-9) // self.step) - (count - 1) * self._between

    def suggest(self, trial: Suggests, name: str) -> list[float]:
        """Every set on the grid, and no other: sorted places among the spare steps, pushed apart by the gaps."""
        count = self.count[0]
        if len(self.count) > 1:
            count = trial.suggest_categorical(f"{name}.count", self.count)
        spare = self._spare(count)
        # Separate parameters for each count: the third of three capacities is not the third of four.
        drawn = [trial.suggest_int(f"{name}.{count}.{i}", 0, spare, step=1, log=False) for i in range(count)]
        places = [place + i * self._between for i, place in enumerate(sorted(drawn))]
        return [round(self.low + self.step * place, 6) for place in reversed(places)]

    def parameters(self, name: str, value: Any) -> dict[str, Any]:
        """The Optuna parameters of a given set; ConfigError where it is not on the grid, or its gaps are too small."""
        if not isinstance(value, (list, tuple)) or not all(isinstance(c, (int, float)) for c in value):
            raise ConfigError(f"start: {name}={echo(value)}; valid: a list of capacities")
        count = len(value)
        drawn = [round((c - self.low) / self.step, 6) - i * self._between for i, c in enumerate(sorted(value))]
        fits = count in self.count and all(d == int(d) and 0 <= d <= self._spare(count) for d in drawn)
        if not fits or drawn != sorted(drawn):
            raise ConfigError(
                f"start: {name}={echo(list(value))} is no set of {', '.join(map(str, self.count))} on the grid "
                f"{self.low:g}, {self.low + self.step:g} … {self.high:g}, {self.gap:g} apart"
            )
        own = {f"{name}.count": count} if len(self.count) > 1 else {}
        return {**own, **{f"{name}.{count}.{i}": int(d) for i, d in enumerate(drawn)}}


Dimension = Range | Choice | CapacitySet


def _dimension(given: Any) -> Any:
    if isinstance(given, list):
        return Choice(values=tuple(given))
    if not isinstance(given, dict):
        return given
    kind: type[_Part] = Choice if "values" in given else CapacitySet if "count" in given else Range
    return kind.model_validate(given)


class Sampler(_Part):
    """Optuna's, by name."""

    name: Literal["tpe", "nsga2", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    startup: Annotated[int, Field(ge=1)] | None = None
    """tpe: random trials before it models; None: a quarter of the trials."""
    population: Annotated[int, Field(ge=2)] | None = None
    """nsga2: trials of a generation; None: a fifth of the trials, so that there are five generations."""

    def make(self, trials: int, begun: int = 0) -> optuna.samplers.BaseSampler:
        """The sampler for a search of `trials` trials, of which `begun` have begun: after a resume it must not repeat
        its draws."""
        import optuna

        seed = (self.seed + 7919 * begun) % 2**32  # what numpy takes
        if self.name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if self.name == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=self.population or max(2, trials // 5), seed=seed)
        # Running trials count as bad ones; otherwise all trials proposed in the meantime would be alike.
        return optuna.samplers.TPESampler(
            n_startup_trials=self.startup or max(1, trials // 4),
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=seed,
        )


class Stop(_Part):
    """Which trials are stopped early."""

    name: Literal["asha", "median", "none"] = "asha"
    grace_epochs: Annotated[int, Field(ge=1)] = 1
    """No trial is stopped before this many epochs."""
    reduction: Annotated[float, Field(gt=1)] = 2.0
    """asha: one in `reduction` of the trials that reach a rung continues; the next rung comes after `reduction` times
    as many epochs."""
    capacities: tuple[Capacity, ...] | None = None
    """Tested after every epoch; None: the largest below 1, a middle and the smallest of sweep.capacities."""
    images: Annotated[int, Field(ge=2)] | None = 1000
    """Gallery images of the split that are searched, whole classes; null: all."""


class Constraint(_Part):
    """A limit on some quantity. Trials beyond it are finished, but not chosen."""

    of: Quantity
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Constraint:
        if (self.at_most is None) == (self.at_least is None):
            raise ConfigError(f"constraint on {self.of.label}: one of at_most and at_least is needed")
        return self

    @property
    def label(self) -> str:
        limit = f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        return f"{self.of.label} {limit}"

    def violation(self, value: float) -> float:
        """Above 0 where the limit is broken."""
        return value - self.at_most if self.at_most is not None else (self.at_least or 0.0) - value


class SearchFile(_Part):
    """What the YAML file holds."""

    name: str
    base: dict[str, Any]
    """A recipe. Its `sweep.capacities` are the evaluation capacities of every trial."""
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    objectives: Annotated[tuple[Quantity, ...], Field(min_length=1)] = (
        Quantity(name="mean_cross_map"),
        Quantity(name="macs_within"),
    )
    constraints: tuple[Constraint, ...] = ()
    baseline: bool = True
    """Train and test the base recipe first: what `macs_within` measures against, and a row to beat."""
    start: tuple[dict[str, Any], ...] = ()
    """Points of the space that are tried first."""
    trials: Annotated[int, Field(ge=1)] = 40
    patience: Annotated[int, Field(ge=1)] | None = None
    """No trial starts once so many have ended without an improvement; None: all trials are run."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at once, at most; None: as many as the cluster has room for."""
    sampler: Sampler = Sampler()
    stop: Stop = Stop()
    attempts: Annotated[int, Field(ge=1)] = 3
    """Times that a trial is tried when its processes die."""
    storage: str | None = None
    """Optuna's: an RDB URL (postgresql+psycopg://…) for a cluster, or the environment variable that holds it, such as
    $PRUNNET_STUDY, so that no password is in a file; None: a journal file in the run's folder."""

    @field_validator("space", mode="before")
    @classmethod
    def _dimensions(cls, given: Any) -> Any:
        """A list is a choice; `count` makes a set of capacities; anything else is a range."""
        if not isinstance(given, dict):
            return given
        return {key: _dimension(value) for key, value in given.items()}

    @model_validator(mode="after")
    def _needs_baseline(self) -> SearchFile:
        wanted = [q for q in (*self.objectives, *(c.of for c in self.constraints)) if q.name == "macs_within"]
        if not self.baseline and any(q.reference is None for q in wanted):
            raise ConfigError("macs_within is measured against the baseline; set baseline: true, or its `reference`")
        return self


class Search:
    """A checked search.

    Raises ConfigError, in one line, for a space whose points are no recipes, a test split, and unknown keys.
    """

    def __init__(self, file: SearchFile, overrides: Iterable[str] = ()) -> None:
        self.file = file
        self._tree = copy.deepcopy(file.base)
        self._tree["name"] = file.name
        sweep = self._tree.setdefault("sweep", {})
        if not isinstance(sweep, dict):
            raise ConfigError(f"base: section 'sweep' is {echo(sweep)}; valid: a mapping")
        sweep.setdefault("split", "validation")
        for override in overrides:
            apply_override(self._tree, override)
        self.base = self.recipe({})  # refuses `--set sweep=…`
        sweep.setdefault("gallery", "dense")
        self.base = self.recipe({})
        if self.base.sweep.split != "validation":
            raise ConfigError(
                "sweep.split='test': recipes are chosen on validation classes, and the test is kept for the choice"
            )
        self._check_space()

    @property
    def study_name(self) -> str:
        """Holds the hash of all that makes trials comparable: another space or base is another study."""
        asked = self.file.model_dump(mode="json", include={"space", "objectives", "constraints", "baseline", "stop"})
        base = self.base.model_dump(mode="json", include={"model", "train", "sweep", "data"}, exclude_defaults=True)
        for section in ("data", "sweep"):  # paths do not matter
            if root := base.get(section, {}).get("root"):
                base[section]["root"] = Path(shown(root)).name
        return f"{self.file.name}-{hashing.of_json(shown([asked, base]))[:10]}"

    def tree(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The base with some dotted keys changed, as the YAML file of a recipe holds it."""
        return changed(self._tree, changes)

    def recipe(self, changes: Mapping[str, Any]) -> Recipe:
        """The base with some dotted keys changed."""
        return absolute_paths(parse_recipe(self.tree(changes)))

    def parameters(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point of the space, given as changes, as Optuna's parameters."""
        found: dict[str, Any] = {}
        for key, value in point.items():
            found |= self.file.space[key].parameters(key, value)
        return found

    def suggest(self, trial: Suggests) -> Changes:
        """A point of the space, as changes to the base. Conditional keys follow those they depend on."""
        chosen: Changes = {}
        for key in self._order():
            dimension = self.file.space[key]
            if self._holds(key, dimension, chosen):
                chosen[key] = dimension.suggest(trial, key)
        return chosen

    def _conditions(self, key: str, dimension: Dimension) -> dict[str, tuple[Any, ...]]:
        wanted = {k: tuple(v) if isinstance(v, (list, tuple)) else (v,) for k, v in dimension.when.items()}
        if key in CONDITIONS:
            other, values = CONDITIONS[key]
            wanted.setdefault(other, values)
        return wanted

    def _holds(self, key: str, dimension: Dimension, chosen: Changes) -> bool:
        return all(
            (chosen[other] if other in chosen else self._value(other)) in values
            for other, values in self._conditions(key, dimension).items()
        )

    def _value(self, key: str) -> Any:
        """The base's value of a key that the space does not set."""
        value: Any = self.base
        for part in key.split("."):
            value = getattr(value, part)
        return value

    def _order(self) -> list[str]:
        """The keys of the space, each after those it depends on."""
        order: list[str] = []
        waiting = list(self.file.space)
        while waiting:
            ready = [
                k
                for k in waiting
                if all(o in order or o not in self.file.space for o in self._conditions(k, self.file.space[k]))
            ]
            if not ready:
                raise ConfigError(f"space: {', '.join(waiting)} depend on each other; conditions must end somewhere")
            order += ready
            waiting = [k for k in waiting if k not in ready]
        return order

    def _check_space(self) -> None:
        for key in self.file.space:
            section, _, rest = key.partition(".")
            if section not in ("data", "model", "train") or not rest:
                raise ConfigError(f"space: {key!r}; valid: dotted keys of data, model and train, such as train.lr")
            for other in self._conditions(key, self.file.space[key]):
                try:
                    self._value(other)
                except AttributeError:
                    raise ConfigError(f"space: {key!r} depends on {other!r}, which no recipe has") from None
        if isinstance(self.file.space.get(CAPACITIES), (Range, Choice)):
            self._check_sets()
        import optuna  # not for a base that is refused

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(_DRAWN):
            try:
                changes = self.suggest(study.ask())
            except ValueError as error:  # Optuna's, of a range that it cannot draw from
                raise ConfigError(f"space: no point of it can be drawn: {told(error)}") from None
            try:
                self.recipe(changes)
            except ConfigError as error:
                raise ConfigError(f"space: the point {echo(changes)} is no recipe: {error}") from None
        for point in self.file.start:
            if foreign := set(point) - set(self.file.space):
                raise ConfigError(f"start: {echo(sorted(foreign))} are not in the space")
            self.parameters(point)
            self.recipe(point)

    def _check_sets(self) -> None:
        dimension = self.file.space[CAPACITIES]
        if isinstance(dimension, Range):
            raise ConfigError(f"space: {CAPACITIES} is a set; valid: {{count: [3, 4], low, high, gap, step}} or values")


def load_search(path: str | Path, overrides: Iterable[str] = ()) -> Search:
    """The search of a YAML file; `overrides` change its base. ConfigError, in one line, for mistakes."""
    tree = read_yaml(path)
    try:
        return Search(SearchFile.model_validate(tree), overrides)
    except ValidationError as error:
        raise ConfigError(f"recipe {echo(str(path))}: {explain(error)}") from None
