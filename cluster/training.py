"""Ray Train around `prunnet.training`: data-parallel workers, a checkpoint an epoch (or more often), exact resume.

The run's name holds the hash of its configuration, so the same job goes on where it stopped, and another
configuration starts afresh. A killed worker costs the steps since the last *registered* checkpoint.
"""

from __future__ import annotations

import json
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from cluster.progress import Board, watched
from prunnet import data
from prunnet.checkpoint import copy_into, load_training, save_network, save_training
from prunnet.config import Recipe
from prunnet.data.transforms import Augmentation
from prunnet.errors import CheckpointError, ConfigError, PrunnetError, one_line
from prunnet.nets import RetrievalNet
from prunnet.training import Trainer, batchnorm_state

POST_EVERY_SECONDS = 0.5
FINAL = (PrunnetError, ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)
"""What a second try would only repeat: the user's mistakes and ours. A lost process or peer is neither."""


def train(recipe: Recipe, folder: Path, model_path: Path, console: Console) -> None:
    """Trains the recipe's network on the cluster and saves it to `model_path`.

    Args:
        folder: of Ray Train's own files, on storage that all nodes share.

    Raises:
        ConfigError: what a worker says of the recipe. CheckpointError: damaged files of an earlier run.
        RuntimeError: workers failed more often than `cluster.max_failures`.
    """
    name = f"train-{recipe.training_hash()[:12]}"
    check_snapshot(folder / name)
    board = Board.remote()  # type: ignore[attr-defined]
    cluster = recipe.cluster
    gpus = cluster.gpus_per_worker
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"recipe": recipe.model_dump(mode="json"), "board": board},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with watched(board, console):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise_refusal(board)
            raise RuntimeError(f"training failed: {one_line(error)[:2000]}") from error
    raise_refusal(board)
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as checkpoint:
        export(checkpoint, recipe, model_path)


def raise_refusal(board: Any) -> None:
    """Raises what a worker posted for somebody to mend, if anything."""
    said = ray.get(board.state.remote())
    if "refusal" in said:
        raise ConfigError(said["refusal"]) if said["user"] else RuntimeError(said["refusal"])


def check_snapshot(run: Path) -> None:
    """CheckpointError where Ray Train's list of checkpoints is torn, as a full disk leaves it."""
    snapshot = run / "checkpoint_manager_snapshot.json"
    if not snapshot.exists():
        return
    try:
        json.loads(snapshot.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, OSError):
        raise CheckpointError(
            f"{str(snapshot)!r} is torn; remove that file to train from the start (--fresh does so for the whole run)"
        ) from None


def export(checkpoint: str | Path, recipe: Recipe, model_path: Path) -> None:
    """The final training state -> the trained network's own file."""
    tensors, header = load_training(checkpoint)
    net = RetrievalNet(**header["net"])
    net.load_state_dict({n.removeprefix("net."): t for n, t in tensors.items() if n.startswith("net.")})
    history = header["history"]
    save_network(
        model_path,
        net,
        data.Preprocessing.from_config(recipe.data),
        training_hash=header["training_hash"],
        recipe=recipe.trained_part(),
        workers=recipe.cluster.workers,
        class_names=header["class_names"],
        history=history,
        epoch=int(history[-1]["epoch"]),
        images_seen=int(history[-1]["images_seen"]),
        train_seconds=sum(entry["seconds"] for entry in history),
    )


def train_worker(config: dict[str, Any]) -> None:
    """One worker. What somebody must mend is posted to the driver, and not tried again.

    The worker still raises, since others may wait for it in a collective; Ray Train then starts the group once
    more, and that group sees the post and ends.
    """
    board = config["board"]
    if "refusal" in ray.get(board.state.remote()):
        return
    try:
        _train(Recipe.model_validate(config["recipe"]), board)
    except FINAL as error:
        told = str(error) if isinstance(error, PrunnetError) else traceback.format_exc()
        ray.get(board.post.remote(refusal=told, user=isinstance(error, PrunnetError)))
        raise


def _train(recipe: Recipe, board: Any) -> None:
    torch.set_num_threads(max(1, int(recipe.cluster.cpus_per_worker)))
    dataset = data.load(recipe.data)
    net = RetrievalNet.from_config(
        recipe.model,
        classes=len(dataset.class_names),
        in_chans=recipe.data.channels,
        score_init=recipe.train.score_init,
        seed=recipe.train.seed,
    )
    trainer = Trainer(
        net,
        dataset.train,
        recipe.train,
        preprocessing=dataset.preprocessing,
        augmentation=Augmentation.from_config(recipe.data),
        device=ray.train.torch.get_device(),
    )
    saver = Saver(trainer, recipe, dataset.class_names, board)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saver.restore(folder)
    trainer.run(after_step=saver.after_step, after_epoch=saver.after_epoch)


class Saver:
    """Checkpoints of a trainer, and its progress on the board."""

    def __init__(self, trainer: Trainer, recipe: Recipe, class_names: tuple[str, ...], board: Any) -> None:
        self.trainer, self.recipe, self.class_names, self.board = trainer, recipe, class_names, board
        self._posted = 0.0
        self._saved = time.monotonic()

    def after_step(self, trainer: Trainer) -> None:
        step = trainer.progress.step
        if trainer.reducer.rank == 0 and time.monotonic() - self._posted > POST_EVERY_SECONDS:
            self._post()
        if step % trainer.steps_per_epoch and self._due(step):  # the end of an epoch saves anyway
            self.save()

    def after_epoch(self, trainer: Trainer) -> None:
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
        """Reports a checkpoint. Every worker calls it; rank 0 writes.

        Running statistics differ between workers: each one's own are kept for an exact resume, and the
        network's are their mean. The training itself never sees the mean.
        """
        trainer = self.trainer
        own = batchnorm_state(trainer.net)
        everyones = {name: trainer.reducer.gather(buffer) for name, buffer in own.items()}
        progress = trainer.progress
        metrics = dict(progress.history[-1]) if progress.history else {}
        metrics["step"] = progress.step
        if trainer.reducer.rank != 0:
            ray.train.report(metrics)
        else:
            with tempfile.TemporaryDirectory() as folder:
                save_training(folder, self._tensors(everyones), self._header())
                ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
        self._saved = time.monotonic()

    def _tensors(self, everyones: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        trainer = self.trainer
        tensors = {f"net.{name}": tensor for name, tensor in trainer.net.state_dict().items()}
        for name, stacked in everyones.items():
            mean = stacked.double().mean(0) if stacked.is_floating_point() else stacked[0]
            tensors[f"net.{name}"] = mean.to(stacked.dtype)
            tensors[f"workers.{name}"] = stacked
        for name, parameter in trainer.net.named_parameters():
            momentum = trainer.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        return tensors

    def _header(self) -> dict[str, Any]:
        return {
            "training_hash": self.recipe.training_hash(),
            "net": self.trainer.net.spec,
            "class_names": list(self.class_names),
            "workers": self.trainer.reducer.world,
            "step": self.trainer.progress.step,
            "history": self.trainer.progress.history,
        }

    def restore(self, folder: str | Path) -> None:
        """Sets network, optimiser and progress to a checkpoint's; CheckpointError for another configuration's."""
        trainer = self.trainer
        tensors, header = load_training(folder)
        if header["training_hash"] != self.recipe.training_hash():
            raise CheckpointError(
                f"checkpoint {str(folder)!r} belongs to configuration {header['training_hash'][:12]}, "
                f"not to {self.recipe.training_hash()[:12]}"
            )
        state = trainer.net.state_dict()
        for name, tensor in state.items():
            copy_into(tensor, tensors[f"net.{name}"])
        if header["workers"] == trainer.reducer.world:
            for name in batchnorm_state(trainer.net):
                copy_into(state[name], tensors[f"workers.{name}"][trainer.reducer.rank])
        for name, parameter in trainer.net.named_parameters():
            if f"momentum.{name}" in tensors:
                momentum = torch.empty_like(parameter)
                copy_into(momentum, tensors[f"momentum.{name}"])
                trainer.optimizer.state[parameter]["momentum_buffer"] = momentum
        trainer.progress.step = header["step"]
        trainer.progress.history = header["history"]
