"""From a recipe to rows of the results table: train or load the networks, plan the units of work, find what is missing,
evaluate it. Every job does it by the two functions here; where training and evaluation happen is handed in.

    networks = trained_networks(recipe, dataset, train, place)
    outcome = evaluate_missing(recipe, dataset, networks, evaluate, features=…, results=…)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prunnet import results as table
from prunnet.config.recipe import Recipe
from prunnet.data.base import Dataset, RetrievalTest
from prunnet.evaluation.evaluator import FeaturesUnit, Plan, TestUnit, evaluate_here
from prunnet.experiments.stages import Stage, finished, fitting, stages
from prunnet.experiments.trained_networks import Family
from prunnet.experiments.work_units import Units, evaluation_plan, plan_units
from prunnet.storage.tensor_files import read_header
from prunnet.subnetworks.trained import TrainedNetwork

Say = Callable[[str], object]
"""Told of what a user may want to know, in one line."""


class Failure(NamedTuple):
    """A unit of work that failed for good."""

    capacity: float
    error: str


Train = Callable[[Recipe, Dataset, Path], None]
"""Trains the network of a stage's recipe and saves it to the path; resumes where it stopped. `stages.train_here` is
one."""


@dataclass(frozen=True)
class Missing:
    """The units of a sweep that its results table does not hold, with all that is needed to make them."""

    recipe: Recipe
    networks: Family
    plan: Plan
    units: Units
    finished: Set[str]
    """Keys of the rows that are there."""
    test: RetrievalTest

    def tests(self, lost: Set[str] = frozenset()) -> list[TestUnit]:
        """Test units, without those that read `lost` features."""
        return self.units.missing_tests(self.finished, lost)

    @property
    def features(self) -> list[FeaturesUnit]:
        """The feature units that the test units read."""
        return self.units.needed_features(self.tests())


@dataclass(frozen=True)
class Outcome:
    """What a sweep consists of, and what of it failed."""

    units: Units
    failures: list[Failure] = field(default_factory=list)


Evaluate = Callable[[Missing], list[Failure]]
"""Makes the missing features and rows; returns what failed for good. `in_this_process` is one."""


def trained_networks(
    recipe: Recipe,
    dataset: Dataset,
    train: Train,
    place: Callable[[Stage, Recipe], Path],
    *,
    old: str | None = None,
    say: Say = lambda line: None,
) -> Family:
    """What is swept: a given checkpoint, or the networks of a recipe's stages, those that are not finished trained now.

    Args:
        place: where the network of a stage, with the recipe that trains it, is saved.
        old: file of a network whose gallery is searched, too; None: `train.old`.

    Raises CheckpointError where the checkpoint does not fit the recipe, and what `train` raises.
    """
    if recipe.model.checkpoint:
        say(f"network from {recipe.model.checkpoint}")
        network = TrainedNetwork.load(recipe.model.checkpoint)
        fitting(read_header(recipe.model.checkpoint), recipe.model.checkpoint, dataset.preprocessing)
        return Family({1.0: network})
    files: dict[float, Path] = {}
    for stage in stages(recipe):
        ready = stage.ready(files.get(1.0, Path())).with_files_seen()
        path = files[stage.capacity] = place(stage, ready)
        if finished(path, ready, dataset):
            say(f"training: {path.name} finished before ({ready.train.epochs} epochs), nothing to do")
        else:
            train(ready, dataset, path)
    return Family.load(files, old or recipe.train.old)


def by_hash(folder: Path) -> Callable[[Stage, Recipe], Path]:
    """Places by the hash of the training: trials that share a network train it once."""
    return lambda stage, ready: folder / f"{ready.training_hash()[:24]}.safetensors"


def evaluate_missing(
    recipe: Recipe,
    dataset: Dataset,
    networks: Family,
    evaluate: Evaluate,
    *,
    features: Path,
    results: Path,
    trial: str | None = None,
    layerwise: Sequence[Mapping[str, float]] = (),
    git_commit: str | None = None,
    device: str | None = None,
    say: Say = lambda line: None,
) -> Outcome:
    """Evaluates what the results table does not hold yet.

    Args:
        features, results: folders of stored features, and of the table.
        trial, layerwise: see `plan_units`. git_commit, device: see `evaluation_plan`.
    """
    units = plan_units(recipe, networks, dataset, trial, layerwise)
    plan = evaluation_plan(recipe, networks, features=features, results=results, git_commit=git_commit, device=device)
    known, test = table.finished_keys(results), dataset.split(recipe.sweep.split)
    missing = Missing(recipe, networks, plan, units, known, test)
    rows = sum(len(unit.rows) for unit in missing.tests())
    say(f"tests: {len(units.tests) - rows} of {len(units.tests)} finished before")
    return Outcome(units, evaluate(missing) if rows else [])


def in_this_process(missing: Missing) -> list[Failure]:
    """One unit after the other, here. Nothing is tried again: the first error ends it."""
    evaluate_here(
        missing.plan,
        missing.networks.arrays(),
        missing.units.calibration,
        missing.test,
        missing.features,
        missing.tests(),
    )
    return []
