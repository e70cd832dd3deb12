"""The recipe of an ablation: a base recipe, and named changes to it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunnet import results
from prunnet.config.methods import METHODS
from prunnet.config.recipe import Recipe, Seed, absolute_paths, apply_override, changed, explain, parse_recipe
from prunnet.config.trial import Trial
from prunnet.errors import ConfigError, echo, unknown
from prunnet.storage.yaml_reader import read_yaml

if TYPE_CHECKING:
    import pyarrow as pa

Changes = dict[str, Any]
OLD = "the old network of the trial"


class Tuning(BaseModel):
    """Which key is tuned for each method, on validation classes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    key: str = "train.lr"
    values: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    values_of: dict[str, tuple[float, ...]] = {}
    """Other values, as many, for methods whose best of `values` lay at the edge of the range."""
    seed: Seed = 0
    set: Changes = {}
    """Further changes while tuning, such as fewer epochs."""


class Upgrade(BaseModel):
    """An old network, and new ones that must search its gallery."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    old: Changes
    new: dict[str, Changes]


class AblationFile(BaseModel):
    """What the YAML file holds. A change is a dotted key of a recipe and its value."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str
    table: str
    """Parquet file that keeps the rows, relative to the working directory."""
    base: dict[str, Any]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    tuning: Tuning | None = None
    methods: dict[str, Changes] = {}
    variants: dict[str, Changes] = {}
    """Changes to the first of `methods`, one factor each; they take its rates."""
    upgrade: Upgrade | None = None


class Ablation:
    """All trials of an ablation file.

    Raises ConfigError for a change that no recipe takes; every trial's recipe is checked at once.
    """

    def __init__(self, file: AblationFile, overrides: Iterable[str] = ()) -> None:
        self.file, self.table = file, Path(file.table).resolve()
        self._tree = copy.deepcopy(file.base)
        self._tree["name"] = file.name
        for override in overrides:
            apply_override(self._tree, override)
        self.base = self._recipe({})
        self._check_tuning()
        for trials in (self.tuning(), self.methods_trials(None), self.variants_trials(None), self.upgrade_trials(None)):
            for trial in trials:
                self.rows_of(trial)

    def _check_tuning(self) -> None:
        """Every method is tuned with the same number of trials, or the comparison is not fair."""
        tuning = self.file.tuning
        for name, values in tuning.values_of.items() if tuning else ():
            assert tuning is not None
            if name not in self.file.methods or len(values) != len(tuning.values):
                raise ConfigError(
                    f"tuning.values_of.{name} {echo(list(values))}: valid are names of `methods` and "
                    f"{len(tuning.values)} values, as many as for every method"
                )

    def _recipe(self, *changes: Mapping[str, Any]) -> Recipe:
        tree = self._tree
        for change in changes:
            tree = changed(tree, change)
        return absolute_paths(parse_recipe(tree))

    def tuning(self, *, taught: bool = False, table: pa.Table | None = None) -> list[Trial]:
        """Every method at every rate. Methods with a dense teacher are tuned when the teacher's rate is known."""
        methods = [name for name, change in self.file.methods.items() if self._taught(change) == taught]
        return [trial for name in methods for trial in self._tuning_of(name, table).values()]

    def _tuning_of(self, name: str, table: pa.Table | None) -> dict[float, Trial]:
        """One method at every rate, by rate."""
        tuning = self.file.tuning
        if tuning is None:
            return {}
        change = self.file.methods[name]
        teacher = self._teacher_rate(table) if self._taught(change) else {}
        fixed = {"train.seed": tuning.seed, "sweep.split": "validation"}
        return {
            value: Trial(
                f"tuning/{name}/{tuning.key}={value:g}/s{tuning.seed}",
                self._recipe(change, teacher, tuning.set, {tuning.key: value, **fixed}),
            )
            for value in tuning.values_of.get(name, tuning.values)
        }

    def methods_trials(self, table: pa.Table | None) -> list[Trial]:
        """Every method, at its own rate, with every seed."""
        return [
            Trial(
                f"methods/{name}/s{seed}", self._recipe(change, self._rates(name, change, table), {"train.seed": seed})
            )
            for name, change in self.file.methods.items()
            for seed in self.file.seeds
        ]

    def variants_trials(self, table: pa.Table | None) -> list[Trial]:
        """The first method, one factor changed, with every seed."""
        if not self.file.variants:
            return []
        name, change = next(iter(self.file.methods.items()))
        rates = self._rates(name, change, table)
        return [
            Trial(f"variants/{variant}/s{seed}", self._recipe(change, rates, changed, {"train.seed": seed}))
            for variant, changed in self.file.variants.items()
            for seed in self.file.seeds
        ]

    def upgrade_trials(self, table: pa.Table | None) -> list[Trial]:
        """The old network, then each way to a new one, with every seed; all of them search the old gallery.

        Rates: the independent network's, or, where many capacities are trained, that method's.
        """
        upgrade = self.file.upgrade
        if upgrade is None:
            return []
        alone = self._tuned("independent", table) if "independent" in self.file.methods else {}
        trials = []
        for seed in self.file.seeds:
            old = self._recipe(alone, upgrade.old, {"train.seed": seed})
            trials.append(Trial(f"upgrade/old/s{seed}", old))
            for name, change in upgrade.new.items():
                method = self._method(change)
                rates = alone if METHODS[method].single else self._tuned(method, table)
                needs_old = METHODS[method].teacher != "none" or "train.compatible" in change
                matched = {"train.old": OLD} if needs_old else {}
                recipe = self._recipe(rates, change, matched, {"train.seed": seed})
                trials.append(Trial(f"upgrade/{name}/s{seed}", recipe, old))
        return trials

    def rows_of(self, trial: Trial) -> int:
        """Rows that a finished trial has."""
        sweep, train = trial.recipe.sweep, trial.recipe.train
        top = train.alone or 1.0
        capacities = {top, *(c for c in sweep.capacities if c <= top)}
        own = len(capacities) ** 2 if sweep.gallery == "matrix" else 2 * len(capacities) - 1
        old = len(capacities) if trial.old else 0
        return own + old + len(sweep.rerank) * (2 * len(capacities) - 1 + old)

    def _taught(self, change: Changes) -> bool:
        return METHODS[self._method(change)].teacher == "dense"

    def _method(self, change: Changes) -> str:
        name = change.get("train.method", self.base.train.method)
        if not isinstance(name, str) or name not in METHODS:
            raise ConfigError(unknown("train.method", str(name), METHODS))
        return name

    def _rates(self, name: str, change: Changes, table: pa.Table | None) -> Changes:
        teacher = self._teacher_rate(table) if self._taught(change) else {}
        return {**teacher, **self._tuned(name, table)}

    def _teacher_rate(self, table: pa.Table | None) -> Changes:
        if self.file.tuning is None or self.file.tuning.key != "train.lr" or "independent" not in self.file.methods:
            return {}
        tuned = self._tuned("independent", table)
        return {"train.teacher_lr": tuned["train.lr"]} if tuned else {}

    def _tuned(self, name: str, table: pa.Table | None) -> Changes:
        """The best value for a method; nothing before it is known.

        By the mean mAP over the trained capacities on validation classes: cross-tests against the dense gallery, for
        independent networks (whose cross-tests are chance) self-tests.
        """
        if self.file.tuning is None or table is None:
            return {}
        key, seen = self.file.tuning.key, {}
        by: Literal["own", "dense"] = "own" if name == "independent" else "dense"
        every = results.plain(table).select(["trial_id", "query_capacity", "gallery_capacity", "map"]).to_pylist()
        for value, trial in self._tuning_of(name, table).items():  # by id: a name may have had an earlier definition
            wanted = trial.id
            if rows := [r for r in every if r["trial_id"] == wanted and self._counts(r, by)]:
                seen[value] = sum(r["map"] for r in rows) / len(rows)
        return {key: max(seen, key=lambda value: seen[value])} if seen else {}

    def _counts(self, row: dict[str, Any], by: Literal["own", "dense"]) -> bool:
        trained = (1.0, *self.base.train.capacities)
        gallery = row["query_capacity"] if by == "own" else 1.0
        return row["query_capacity"] in trained and row["gallery_capacity"] == gallery


def load_ablation(path: str | Path, overrides: Iterable[str] = ()) -> Ablation:
    """The ablation of a YAML file; `overrides` change its base. ConfigError, in one line, for mistakes."""
    tree = read_yaml(path)
    try:
        return Ablation(AblationFile.model_validate(tree), overrides)
    except ValidationError as error:
        raise ConfigError(f"recipe {echo(str(path))}: {explain(error)}") from None
