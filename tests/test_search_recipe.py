"""A search's space holds recipes only; what it measures and how trials end are plain numbers and records."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prunnet.config.recipe import Recipe
from prunnet.errors import ConfigError
from sweeps.search_recipe import CapacitySet, Search, SearchFile, load_search
from tests.conftest import REPOSITORY

SPACE: dict[str, Any] = {
    "train.lr": {"low": 0.01, "high": 1.0, "log": True},
    "train.weighting": ["mean", "cosine", "mgda"],
    "train.exponent": {"low": 0.1, "high": 2.0},
    "train.capacities": {"count": [2, 3], "low": 0.1, "high": 0.9, "step": 0.1, "gap": 0.2},
}


def search(space: dict[str, Any] | None = None, base: dict[str, Any] | None = None, **more: Any) -> Search:
    file = {"name": "s", "base": base or {"train": {"epochs": 2}}, "space": space or SPACE, **more}
    return Search(SearchFile.model_validate(file))


def points(asked: Search, count: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return [asked.suggest(study.ask()) for _ in range(count)]


def test_every_point_is_a_recipe_with_its_changes() -> None:
    asked = search()
    seen = set()
    for changes in points(asked):
        recipe = asked.recipe(changes)
        assert isinstance(recipe, Recipe)
        assert recipe.train.lr == changes["train.lr"]
        assert list(recipe.train.capacities) == changes["train.capacities"]
        assert recipe.sweep.split == "validation"
        seen.add(len(changes["train.capacities"]))
    assert seen == {2, 3}


def test_an_exponent_comes_only_with_the_weighting_that_has_one() -> None:
    for changes in points(search()):
        assert ("train.exponent" in changes) == (changes["train.weighting"] == "cosine")


def test_a_key_may_depend_on_any_other_key() -> None:
    space = {
        "train.momentum": {"low": 0.5, "high": 0.95, "when": {"train.optimizer": "sgd"}},
        "train.optimizer": ["sgd", "adamw"],
    }
    for changes in points(search(space)):
        assert ("train.momentum" in changes) == (changes["train.optimizer"] == "sgd")
    fixed = search({**space, "train.optimizer": ["adamw"]})
    assert all("train.momentum" not in changes for changes in points(fixed))


@given(
    st.sets(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from([0.05, 0.1]),
    st.sampled_from([0.05, 0.1, 0.15]),
    st.integers(0, 1000),
)
def test_capacity_sets_are_ordered_apart_and_on_the_grid(count: set[int], step: float, gap: float, seed: int) -> None:
    dimension = CapacitySet(count=tuple(sorted(count)), low=0.1, high=0.9, step=step, gap=gap)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    chosen = dimension.suggest(trial, "train.capacities")
    assert len(chosen) in count
    assert all(0.1 - 1e-9 <= c <= 0.9 + 1e-9 for c in chosen)
    assert all(a - b >= gap - 1e-9 for a, b in pairwise(chosen))
    assert all(abs((c - 0.1) / step - round((c - 0.1) / step)) < 1e-6 for c in chosen)
    # And back: the parameters of a set are those that give it.
    again = optuna.trial.FixedTrial(dimension.parameters("train.capacities", chosen))
    assert dimension.suggest(again, "train.capacities") == chosen


def test_every_set_on_the_grid_can_be_drawn() -> None:
    dimension = CapacitySet(count=(2,), low=0.2, high=0.5, step=0.1, gap=0.2)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {tuple(dimension.suggest(study.ask(), "c")) for _ in range(100)}
    assert drawn == {(0.4, 0.2), (0.5, 0.2), (0.5, 0.3)}


def test_start_points_are_tried_first_as_they_are_given() -> None:
    point = {"train.lr": 0.3, "train.weighting": "cosine", "train.exponent": 0.5, "train.capacities": [0.8, 0.4]}
    asked = search(start=[point])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.enqueue_trial(asked.parameters(point))
    assert asked.suggest(study.ask()) == point


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"space": {"train.lrr": [1]}}, "did you mean 'train.lr'"),
        ({"space": {"lr": [1]}}, "dotted keys of data, model and train"),
        ({"space": {"train.lr": {"low": 1, "high": 0.1}}}, "low < high"),
        ({"space": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "low > 0 under log"),
        ({"space": {"train.lr": [0.1, -1.0]}}, "is no recipe: .*train.lr"),
        ({"space": {"train.projection": ["last"], "train.method": ["joint"]}}, "makes no sense with"),
        ({"space": {"train.capacities": {"count": [9], "low": 0.1, "high": 0.5, "gap": 0.1}}}, "do not fit into"),
        ({"space": {"train.capacities": {"low": 0.1, "high": 0.5}}}, "is a set"),
        ({"space": {"train.lr": {"low": 0.1, "high": 1, "when": {"train.nothing": 1}}}}, "which no recipe has"),
        ({"objectives": ["accuracy"]}, "unknown quantity 'accuracy'"),
        ({"objectives": ["map"]}, "at which `capacity`"),
        ({"objectives": [{"name": "hypervolume", "capacity": 0.2}]}, "leave `capacity` out"),
        ({"baseline": False}, "measured against the baseline"),
        ({"constraints": [{"of": {"name": "macs", "capacity": 0.2}}]}, "one of at_most and at_least"),
        ({"start": [{"train.momentum": 0.5}]}, "not in the space"),
        ({"start": [{"train.lr": 7.0}]}, "is not in 0.01"),
        ({"start": [{"train.capacities": [0.85, 0.2]}]}, "is no set of"),
        ({"base": {"sweep": {"split": "test"}}}, "chosen on validation classes"),
        ({"trials": 0}, "trials"),
        ({"patience": 0}, "patience.*greater than or equal to 1"),
        ({"sampler": {"name": "magic"}}, "'tpe', 'nsga2' or 'random'"),
        ({"spcae": {}}, "unknown key 'spcae'"),
    ],
)
def test_a_mistake_ends_in_one_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = {"name": "s", "base": {"train": {"epochs": 2}}, "space": SPACE, **change}
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(file))
    with pytest.raises(ConfigError, match=says) as caught:
        load_search(path)
    assert "\n" not in str(caught.value)


def test_another_space_or_base_is_another_study_and_more_trials_are_not() -> None:
    names = {
        search().study_name,
        search({"train.lr": [0.1, 0.3]}).study_name,
        search(base={"train": {"epochs": 3}}).study_name,
    }
    assert len(names) == 3
    assert search(patience=5).study_name == search().study_name
    assert search(trials=99).study_name == search().study_name
    moved = [search(base={"data": {"name": "imagefolder", "root": f"/{d}/images"}}).study_name for d in "ab"]
    assert moved[0] == moved[1]


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "sweeps" / "recipes").glob("search_*.yaml")), ids=lambda p: p.stem
)
def test_the_searches_that_come_along_are_valid(path: Path) -> None:
    asked = load_search(path)
    assert asked.file.trials >= 12


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_samplers_go_by_name_and_nsga2_has_generations(name: str) -> None:
    sampler = search(sampler={"name": name}).file.sampler.make(40)
    assert isinstance(sampler, optuna.samplers.BaseSampler)
    if isinstance(sampler, optuna.samplers.NSGAIISampler):
        assert sampler.population_size == 8
