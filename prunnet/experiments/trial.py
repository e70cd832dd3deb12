"""One trial of an ablation from a recipe to rows of the results table, in this process: no Ray is needed.

    run_trial(Trial("methods/joint/s0", recipe), folder)

Networks are kept by the hash of their training, so trials that share one (a teacher, an old network) train it once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from prunnet import data, results
from prunnet.config.recipe import Recipe, SweepConfig
from prunnet.config.trial import Trial
from prunnet.data.base import Dataset
from prunnet.evaluation.evaluator import evaluate_here
from prunnet.experiments.stages import Family, Stage, stages, train_here
from prunnet.experiments.work_units import evaluation_plan, network_arrays, plan_units


def run_trial(
    trial: Trial,
    folder: Path,
    *,
    device: str = "cpu",
    git_commit: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Trains what is not trained and tests what is not tested; returns the number of rows of the trial.

    Args:
        folder: `models/`, `features/` and `results/` lie in it, for all trials of the run.
    """
    recipe, models = trial.recipe, folder / "models"
    old = recipe.train.old
    dataset = _dataset(recipe)
    if trial.old is not None:
        (stage,) = stages(trial.old)
        old = str(_train(stage, stage.recipe, _dataset(trial.old), models, device, report))
        if recipe.train.old:
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"old": old})})
    files: dict[float, Path] = {}
    for stage in stages(recipe):
        files[stage.capacity] = _train(stage, stage.ready(files.get(1.0, models)), dataset, models, device, report)
    family = Family.load(files, old)
    units = plan_units(recipe, family, dataset, trial.id)
    missing = units.missing_tests(results.finished_keys(folder / "results"))
    if missing:
        split = dataset.split(recipe.sweep.split)
        # A folder of its own: another trial at work may share a network with this one, and so a feature file.
        kept = folder / "features" / trial.id.rpartition("/")[2]
        plan = evaluation_plan(
            recipe,
            family,
            features=kept,
            results=folder / "results",
            git_commit=git_commit,
        )
        plan = replace(plan, device=device)
        features = units.needed_features(missing)
        evaluate_here(plan, network_arrays(family), units.calibration, split, features, missing)
        shutil.rmtree(kept, ignore_errors=True)  # there are many trials
    return len(units.tests)


def _train(
    stage: Stage, recipe: Recipe, dataset: Dataset, models: Path, device: str, report: Callable[[str], None]
) -> Path:
    path = models / f"{recipe.training_hash()[:24]}.safetensors"
    train_here(
        recipe,
        dataset,
        path,
        device=device,
        report=lambda trainer: report(f"capacity {stage.capacity:g} epoch {len(trainer.progress.history)}"),
    )
    return path


@lru_cache(maxsize=2)
def _loaded(key: str) -> Dataset:
    return data.load_for(Recipe.model_validate_json(key))


def _dataset(recipe: Recipe) -> Dataset:
    """A process works through many trials on the same data."""
    tested = recipe.sweep.model_dump(include={"dataset", "root", "long_side", "scales"})
    return _loaded(Recipe(data=recipe.data, sweep=SweepConfig(**tested)).model_dump_json())
