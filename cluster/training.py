"""Ray Train around `prunnet.training`: data-parallel workers, a checkpoint an epoch (or more often), exact resume.

The run's name holds the hash of its configuration, so the same job resumes where it stopped, and another configuration
starts anew. A killed worker costs the steps since the last *registered* checkpoint; a damaged checkpoint costs those
since the one before.
"""

from __future__ import annotations

import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from cluster import checkpoints, process_group
from cluster.ending import AGAIN
from cluster.process_group import ProcessGroup
from cluster.progress import Board, watched
from prunnet import data, process
from prunnet.config.recipe import Recipe
from prunnet.data.base import Dataset
from prunnet.data.pixel_values import data_seen
from prunnet.errors import CheckpointError, ConfigError, DataWarning, PrunnetError, one_line
from prunnet.experiments import validation_probe as probe
from prunnet.experiments.stages import make_trainer
from prunnet.experiments.validation_probe import Probe, ProbeConfig
from prunnet.results.table import write_part
from prunnet.training import resume
from prunnet.training.trainer import Trainer

POST_EVERY_SECONDS = 0.5
_MENDED = 3
"""How often one call resumes from an older checkpoint before it gives up."""
FINAL = (PrunnetError, ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)
"""Errors that a second try would repeat: mistakes of the user or of this project. A lost process is not among them."""


@dataclass(frozen=True)
class Watch:
    """What is tested after every epoch, and where its rows are written."""

    probe: ProbeConfig
    trial: str
    results: str
    """Folder of the trial's rows."""


def train(
    recipe: Recipe,
    folder: Path,
    model_path: Path,
    console: Console,
    dataset: Dataset,
    *,
    watch: Watch | None = None,
    callbacks: Sequence[Any] = (),
) -> None:
    """Trains the recipe's network on the cluster and saves it to `model_path`.

    Args:
        folder: of Ray Train's own files, on storage that all nodes share.
        dataset: as the driver sees it; workers load their own.
        watch: reports a `score` with every epoch.
        callbacks: Ray Train's, called with every report.

    Raises:
        ConfigError: a worker refused the recipe. DataError: an earlier run saw other images.
        CheckpointError: no checkpoint of an earlier run is intact.
        RuntimeError: workers failed more often than `cluster.max_failures`.
    """
    recipe = recipe.with_files_seen()
    name = f"train-{recipe.training_hash()[:12]}"
    how = recipe.data.fingerprint
    newest, notes = checkpoints.mend(folder / name, recipe.training_hash())
    if newest is not None:
        resume.check_images(newest.origin, dataset, how, f"the unfinished training in {str(folder / name)!r}")
    loop = {"recipe": recipe.model_dump(mode="json"), "watch": watch, "origin": dataset.origin(how)}
    for again in range(_MENDED, -1, -1):
        for note in notes:
            console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        try:
            checkpoint = _fit(recipe, folder, name, console, loop, callbacks)
            with checkpoint.as_directory() as final:
                return resume.export(final, recipe, model_path)
        except CheckpointError:
            _, notes = checkpoints.mend(folder / name, recipe.training_hash())  # perhaps damaged after the check
            if not notes or not again:
                raise


def _fit(
    recipe: Recipe, folder: Path, name: str, console: Console, loop: dict[str, Any], callbacks: Sequence[Any]
) -> Checkpoint:
    """One run of Ray Train, from the last registered checkpoint to the end; returns the final checkpoint."""
    # On the driver's node: on another node it could die with that node, and later trainings would call a dead progress
    # actor.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    cluster = recipe.cluster
    gpus = cluster.gpus_per_worker
    trainer = process_group.Trainer(
        train_worker,
        train_loop_config={**loop, "board": board},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        backend_config=ProcessGroup("nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=checkpoints.KEPT),
            callbacks=list(callbacks),
        ),
    )
    with watched(board, console):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise_refusal(board)
            raise RuntimeError(f"training failed: {one_line(error)[:2000]}") from error
        except ray.exceptions.RayActorError:
            raise RuntimeError(f"the process of Ray Train's controller died; {AGAIN}") from None
    raise_refusal(board)
    assert result.checkpoint is not None
    return result.checkpoint


def raise_refusal(board: Any) -> None:
    """Raises the error that a worker posted for the driver, if there is one."""
    said = ray.get(board.state.remote())
    if "refusal" in said:
        kind: type[Exception] = RuntimeError
        if said["user"]:
            kind = CheckpointError if said["checkpoint"] else ConfigError
        raise kind(said["refusal"])


def train_worker(config: dict[str, Any]) -> None:
    """One worker. An error that a second try would repeat is posted to the driver.

    The worker raises it as well, since others may wait for this worker in a collective. Ray Train then restarts the
    group, which finds the posted error and ends.
    """
    board = config["board"]
    if "refusal" in ray.get(board.state.remote()):
        return
    try:
        recipe = Recipe.model_validate(config["recipe"]).with_files_seen()
        process.prepare(recipe.cluster.cpus_per_worker)
        _train(recipe, board, config["watch"], config["origin"])
    except FINAL as error:
        told = str(error) if isinstance(error, PrunnetError) else traceback.format_exc()
        user, checkpoint = isinstance(error, PrunnetError), isinstance(error, CheckpointError)
        ray.get(board.post.remote(refusal=told, user=user, checkpoint=checkpoint))
        raise


def _train(recipe: Recipe, board: Any, watch: Watch | None, origin: dict[str, Any] | None) -> None:
    from ray.train.torch import get_device

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the driver has printed it
        dataset = data.load(data_seen(recipe)) if watch is None else data.load_for(recipe)
    trainer = make_trainer(recipe, dataset, get_device())
    if trainer.reducer.rank == 0 and trainer.notes:
        board.post.remote(notes=trainer.notes)
    saver = Saver(trainer, recipe, dataset.class_names, board, origin)
    if watch is not None:
        saver.watch, saver.probe = watch, Probe(recipe, watch.probe, dataset)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            resume.restore(folder, trainer, recipe)
    trainer.run(after_step=saver.after_step, after_epoch=saver.after_epoch)


class Saver:
    """Saves checkpoints of a trainer, and posts its progress."""

    def __init__(
        self,
        trainer: Trainer,
        recipe: Recipe,
        class_names: tuple[str, ...],
        board: Any,
        origin: dict[str, Any] | None,
    ) -> None:
        self.trainer, self.recipe, self.class_names, self.board = trainer, recipe, class_names, board
        self.origin = origin
        self.watch: Watch | None = None
        self.probe: Probe | None = None
        self._score: dict[str, float] = {}
        self._answered: Any = None
        self._posted = 0.0
        self._saved = time.monotonic()

    def after_step(self, trainer: Trainer) -> None:
        step = trainer.progress.step
        if trainer.reducer.rank == 0 and time.monotonic() - self._posted > POST_EVERY_SECONDS:
            self._post()
        if step % trainer.steps_per_epoch == 0:
            return  # the end of an epoch saves anyway
        called_back = self._called_back(step)
        if self._due(step) or called_back:
            self.save()

    def after_epoch(self, trainer: Trainer) -> None:
        if self.probe is not None and self.watch is not None:
            seen = self.probe.look(trainer.trained, trainer.reducer)
            # The last test is stored and not reported: a trial that is trained to the end is not stopped.
            over = trainer.progress.step >= trainer.total_steps
            self._score = {} if over else {"score": probe.score(seen)}
            if trainer.reducer.rank == 0:
                write_part(self.watch.results, self.probe.rows(trainer, seen, self.watch.trial))
        self.save()
        if trainer.reducer.rank == 0:
            self._post()

    def _due(self, step: int) -> bool:
        config = self.recipe.train
        if config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
            return True
        if config.checkpoint_every_minutes is None:
            return False
        # All workers must agree, so rank 0's clock decides for all.
        late = time.monotonic() - self._saved > 60 * config.checkpoint_every_minutes
        return bool(self.trainer.reducer.gather(torch.tensor(float(late)))[0])

    def _called_back(self, step: int) -> bool:
        """Whether a node will be taken away and no checkpoint was saved since that notice; all workers agree."""
        every = self.recipe.cluster.preemption_steps
        if not every or step % every:
            return False
        info = ray.train.get_preemption_info()
        first = info is not None and info != self._answered
        self._answered = info
        return first

    def _post(self) -> None:
        self._posted = time.monotonic()
        progress, steps = self.trainer.progress, self.trainer.steps_per_epoch
        epoch = min(progress.step // steps + 1, self.recipe.train.epochs)
        self.board.post.remote(
            step=progress.step,
            total=self.trainer.total_steps,
            epoch=f"{epoch}/{self.recipe.train.epochs}",
            history=progress.history,
        )

    def save(self) -> None:
        """Reports a checkpoint. Every worker calls it; rank 0 writes."""
        progress = self.trainer.progress
        metrics = dict(progress.history[-1]) if progress.history else {}
        metrics |= {"step": progress.step, **self._score}
        with tempfile.TemporaryDirectory() as folder:
            resume.save(folder, self.trainer, self.recipe, self.class_names, self.origin)
            written = self.trainer.reducer.rank == 0
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder) if written else None)
        self._saved = time.monotonic()
