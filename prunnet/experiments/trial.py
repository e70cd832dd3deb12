"""One trial of an ablation from a recipe to rows of the results table, in this process: no Ray is needed.

    run_trial(Trial("methods/joint/s0", recipe), folder)

Networks are kept by the hash of their training, so trials that share one (a teacher, an old network) train it once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from prunnet import data
from prunnet.config.recipe import Recipe, SweepConfig
from prunnet.config.trial import Trial
from prunnet.data.base import Dataset
from prunnet.data.pixel_values import data_seen
from prunnet.experiments.run import by_hash, evaluate_missing, in_this_process, trained_networks
from prunnet.experiments.stages import stages, train_here


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
        folder: `models/`, `features/` and `results/` are in it, for all trials of the run.
    """
    recipe, dataset, place, old = trial.recipe, _dataset(trial.recipe), by_hash(folder / "models"), None

    def train(stage: Recipe, images: Dataset, path: Path) -> None:
        capacity = stage.train.alone or 1.0
        train_here(
            stage,
            images,
            path,
            device=device,
            report=lambda trainer: report(f"capacity {capacity:g} epoch {len(trainer.progress.history)}"),
        )

    if trial.old is not None:
        (stage,) = stages(trial.old.with_files_seen())
        old = str(place(stage, stage.recipe))
        train(stage.recipe, _dataset(trial.old), Path(old))
        if recipe.train.old:
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"old": old})})
    networks = trained_networks(recipe, dataset, train, place, old=old)
    # A folder of its own: another trial at work may share a network with this one, and so a feature file.
    kept = folder / "features" / trial.id.rpartition("/")[2]
    outcome = evaluate_missing(
        recipe,
        dataset,
        networks,
        in_this_process,
        features=kept,
        results=folder / "results",
        trial=trial.id,
        git_commit=git_commit,
        device=device,
    )
    shutil.rmtree(kept, ignore_errors=True)  # there are many trials
    return len(outcome.units.tests)


@lru_cache(maxsize=2)
def _loaded(key: str) -> Dataset:
    return data.load_for(Recipe.model_validate_json(key))


def _dataset(recipe: Recipe) -> Dataset:
    """A process works through many trials on the same data."""
    tested = recipe.sweep.model_dump(include={"dataset", "root", "protocol", "long_side", "scales", "flip"})
    return _loaded(Recipe(data=data_seen(recipe), sweep=SweepConfig(**tested)).model_dump_json())
