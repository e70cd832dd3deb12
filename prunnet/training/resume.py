"""A training's whole state, as tensors and a JSON header, and back: an exact resume, with or without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunnet.config.recipe import Recipe
from prunnet.data.base import check_images as check_images
from prunnet.data.pixel_values import data_seen
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError
from prunnet.networks.files import (
    CALIBRATED,
    TRAINING,
    Statistics,
    copy_into,
    load_training,
    save_network,
    save_training,
)
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import build
from prunnet.storage.paths import place
from prunnet.storage.tensor_files import load_tensors
from prunnet.subnetworks.subnet import dense_statistics
from prunnet.training.trainer import Trainer, batchnorm_state


@dataclass(frozen=True)
class Intact:
    """A checkpoint that is whole."""

    folder: Path
    step: int
    metrics: dict[str, Any]
    """Of its last finished epoch, and `step`."""
    origin: dict[str, Any] | None
    """Of the images that were trained on; None in older files."""


def intact(folders: Iterable[str | Path], training_hash: str) -> tuple[list[Intact], dict[str, str]]:
    """Reads checkpoints completely, to find those that a training can resume from.

    Returns:
        (those that are whole, by step; name of the folder -> what is wrong, in one line, of the others).
    """
    whole: list[Intact] = []
    damaged: dict[str, str] = {}
    for folder in map(place, folders):
        try:
            _, header = load_tensors(folder / "state.safetensors", TRAINING)
            _check_hash(folder, header, training_hash)
            history, step = header["history"], int(header["step"])
            metrics = {**(history[-1] if history else {}), "step": step}
            whole.append(Intact(folder, step, metrics, header.get("origin")))
        except CheckpointError as error:
            damaged[folder.name] = f"checkpoint {folder.name} is damaged: {error}"
        except (KeyError, TypeError, ValueError, IndexError):
            damaged[folder.name] = f"checkpoint {folder.name} is damaged: its header is not one of a training"
    return sorted(whole, key=lambda found: found.step), damaged


def _check_hash(folder: str | Path, header: dict[str, Any], training_hash: str) -> None:
    if header["training_hash"] != training_hash:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} belongs to configuration {header['training_hash'][:12]}, "
            f"not to {training_hash[:12]}"
        )


def save(
    folder: str | Path,
    trainer: Trainer,
    recipe: Recipe,
    class_names: Sequence[str],
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Every worker calls it; rank 0 writes a checkpoint into `folder`. `origin`: of the training images.

    Running statistics differ between workers: each one's own are kept for an exact resume, and the network's
    are their mean. The training itself never sees the mean. When the training is over they are also re-estimated.
    The average of `train.ema`, if any, is kept in the same way.
    """
    everyones = {
        which: {name: trainer.reducer.gather(b) for name, b in batchnorm_state(net).items()}
        for which, net in _nets(trainer).items()
    }
    if trainer.reducer.rank == 0:
        tensors = _tensors(trainer, everyones)
        header = {**_header(trainer, recipe, class_names), **({"origin": dict(origin)} if origin else {})}
        if trainer.progress.step >= trainer.total_steps:
            statistics = dense_statistics(trainer.trained, trainer.train_set, trainer.preprocessing)
            if statistics is not None:
                tensors |= {CALIBRATED + name: tensor for name, tensor in statistics.tensors.items()}
                header["calibration"] = statistics.calibration
        save_training(folder, tensors, header)


def restore(folder: str | Path, trainer: Trainer, recipe: Recipe) -> None:
    """Sets network, optimiser, objective and progress to a checkpoint's.

    Raises CheckpointError for another configuration's.
    """
    tensors, header = load_training(folder)
    _check_hash(folder, header, recipe.training_hash())
    for which, net in _nets(trainer).items():
        state = net.state_dict()
        for name, tensor in state.items():
            copy_into(tensor, tensors[f"{which}.{name}"])
        if header["workers"] == trainer.reducer.world:
            for name in batchnorm_state(net):
                copy_into(state[name], tensors[f"{_WORKERS[which]}.{name}"][trainer.reducer.rank])
    learned = trainer.learned()
    for name, parameter in trainer.objective.learned().items():
        copy_into(parameter, tensors[f"learned.{name}"])
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            slot, _, name = rest.partition(".")
            value = torch.empty_like(learned[name]) if tensor.dim() else torch.empty_like(tensor)
            copy_into(value, tensor)
            trainer.optimizer.state[learned[name]][slot] = value
    trainer.objective.load_state(
        {key.removeprefix("objective."): t for key, t in tensors.items() if key.startswith("objective.")}
    )
    trainer.progress.step = header["step"]
    trainer.progress.history = header["history"]
    trainer.progress.conflicts = header.get("conflicts", [{} for _ in header["history"]])


def export(folder: str | Path, recipe: Recipe, model_path: str | Path) -> None:
    """The final training state in `folder` -> the trained network's own file."""
    tensors, header = load_training(folder)
    net = build(header["net"])
    which = "average." if any(name.startswith("average.") for name in tensors) else "net."
    net.load_state_dict({n.removeprefix(which): t for n, t in tensors.items() if n.startswith(which)})
    own = {n.removeprefix(CALIBRATED): t for n, t in tensors.items() if n.startswith(CALIBRATED)}
    history = header["history"]
    origin = {"origin": header["origin"]} if "origin" in header else {}
    save_network(
        model_path,
        net,
        Preprocessing.from_config(data_seen(recipe)),
        statistics=Statistics(own, header["calibration"]) if own else None,
        untrained=header.get("untrained", []),
        training_hash=header["training_hash"],
        recipe=recipe.trained_part(),
        workers=recipe.cluster.workers,
        class_names=header["class_names"],
        history=history,
        conflicts=header.get("conflicts", []),
        epoch=int(history[-1]["epoch"]),
        images_seen=int(history[-1]["images_seen"]),
        train_seconds=sum(entry["seconds"] for entry in history),
        **origin,
    )


_WORKERS = {"net": "workers", "average": "average_workers"}
"""What a checkpoint calls the statistics of each worker, by the network that they are of."""


def _nets(trainer: Trainer) -> dict[str, RetrievalNet]:
    """The networks that a checkpoint holds, by what their tensors' names begin with."""
    return {"net": trainer.net, **({} if trainer.average is None else {"average": trainer.average.net})}


def _tensors(trainer: Trainer, everyones: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for which, net in _nets(trainer).items():
        tensors |= {f"{which}.{name}": tensor for name, tensor in net.state_dict().items()}
        for name, stacked in everyones[which].items():
            mean = stacked.double().mean(0) if stacked.is_floating_point() else stacked[0]
            tensors[f"{which}.{name}"] = mean.to(stacked.dtype)
            tensors[f"{_WORKERS[which]}.{name}"] = stacked
    for name, parameter in trainer.learned().items():
        for slot, value in trainer.optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{slot}.{name}"] = value
    tensors |= {f"learned.{name}": p for name, p in trainer.objective.learned().items()}
    return tensors | {f"objective.{name}": t for name, t in trainer.objective.state().items()}


def _header(trainer: Trainer, recipe: Recipe, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "training_hash": recipe.training_hash(),
        "net": trainer.net.spec,
        "class_names": list(class_names),
        "workers": trainer.reducer.world,
        "step": trainer.progress.step,
        "history": trainer.progress.history,
        "conflicts": trainer.progress.conflicts,
        "untrained": sorted(trainer.objective.untrained),
    }
