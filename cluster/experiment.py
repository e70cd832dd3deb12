"""The stages of a job on a Ray cluster: training by Ray Train, evaluation by actors (`prunnet.experiments.run`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.evaluation import Subject, evaluate
from cluster.progress import bar
from cluster.session import session
from cluster.training import train
from prunnet.config.recipe import Recipe
from prunnet.data.base import Dataset
from prunnet.experiments.run import Failure, Missing
from prunnet.experiments.stages import make_net
from prunnet.training.trainer import steps_per_epoch

NOT_FETCHED = {"pretrained": False}
"""Of `model`, in the driver: workers download."""


@dataclass(frozen=True)
class Driver:
    """What a driver of jobs hands to the pipeline. Its Ray session is opened when something is trained, and kept for
    whoever needs one next."""

    folder: Path
    """Of Ray Train's own files, on storage that all nodes share."""
    console: Console
    cluster: ExitStack

    def train(self, recipe: Recipe, dataset: Dataset, path: Path) -> None:
        """One network on the cluster."""
        # What workers would refuse is said here, at once, before any is started.
        net = make_net(recipe.model_copy(update={"model": recipe.model.model_copy(update=NOT_FETCHED)}), dataset)
        steps_per_epoch(len(dataset.train), recipe.train, recipe.cluster.workers)
        capacity = f" at capacity {recipe.train.alone:g}" if recipe.train.alone else ""
        classes = len(dataset.class_names)
        if net.adapted is not None:
            self.console.print(f"note: {net.adapted}", style="yellow")
        self.console.print(
            f"training {recipe.train.method}{capacity} on {len(dataset.train)} images of {classes} classes"
        )
        self.cluster.enter_context(session(recipe.cluster))
        train(recipe, self.folder, path, self.console, dataset)

    def evaluate(self, missing: Missing) -> list[Failure]:
        """All units on actors of this job's own, with progress on the console."""
        console = self.console
        with session(missing.recipe.cluster), bar(console) as progress:
            tasks = {
                "features": progress.add_task("capacities", total=len(missing.features), note=""),
                "tests": progress.add_task("tests", total=len(missing.tests()), note=""),
            }

            def report_progress(stage: str, done: int, message: str | None) -> None:
                progress.advance(tasks[stage], done)
                if not console.is_terminal and done:  # where no bar can move, lines tell
                    task = progress.tasks[tasks[stage]]
                    message = f"{task.description} {task.completed:g}/{task.total:g}"
                if message:
                    console.print(message)

            subject, cluster = subject_of(missing), missing.recipe.cluster
            return evaluate(subject, missing.features, missing.tests, cluster, report_progress)


def evaluate_on(hosts: Sequence[Any], missing: Missing) -> list[Failure]:
    """All units on actors that many trials share."""
    return evaluate(
        subject_of(missing),
        missing.features,
        missing.tests,
        missing.recipe.cluster,
        lambda stage, done, message: None,
        hosts,
    )


def subject_of(missing: Missing) -> Subject:
    """Puts weights, calibration images and the test into the object store."""
    return Subject.put(missing.plan, missing.networks.arrays(), missing.units.calibration, missing.test)
