"""From a recipe to trained networks: one for all capacities, or a family of single ones; in this process, or wherever
`cluster.training` puts `make_trainer`.

    for stage in stages(recipe):            # prunnet: one; independent, bct, …: the dense network, then the others
        train_here(stage, …)                # resumes where it stopped; does nothing when it is finished
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunnet.config.methods import METHODS
from prunnet.config.recipe import Recipe
from prunnet.data.augment import augmentation_of
from prunnet.data.base import Dataset
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError, DataWarning
from prunnet.networks.frozen import Frozen
from prunnet.networks.headers import SweptHeader, check
from prunnet.networks.retrieval_net import RetrievalNet, sized_options
from prunnet.networks.switchable import SwitchableNet
from prunnet.storage.tensor_files import read_header
from prunnet.training import resume
from prunnet.training.trainer import Trainer


@dataclass(frozen=True)
class Stage:
    """One training of a family."""

    capacity: float
    """Whose network it is; 1.0 also where one network serves all capacities."""
    recipe: Recipe
    """Its `train.old` is not set yet where `taught` is."""
    taught: bool
    """Whether its teacher is the family's own dense network."""

    @property
    def file(self) -> str:
        return "model.safetensors" if self.capacity == 1.0 else f"model-{self.capacity:g}.safetensors"

    def ready(self, dense: Path) -> Recipe:
        """The recipe to train, given the dense network's file."""
        return _with(self.recipe, old=str(dense)) if self.taught else self.recipe


def stages(recipe: Recipe) -> list[Stage]:
    """The trainings that a recipe asks for, in an order in which each finds what it needs."""
    train = recipe.train
    method = METHODS[train.method]
    if not method.single:
        return [Stage(1.0, recipe, taught=False)]
    if train.alone is not None:
        return [Stage(train.alone, recipe, taught=False)]
    taught = method.teacher == "dense" and not train.old
    first = {"method": "independent", "lr": train.teacher_lr or train.lr} if taught else {}
    dense = Stage(1.0, _with(recipe, alone=1.0, capacities=(), teacher_lr=None, **first), taught=False)
    return [
        dense,
        *(Stage(c, _with(recipe, alone=c, capacities=(), teacher_lr=None), taught) for c in train.capacities),
    ]


def _with(recipe: Recipe, **changes: Any) -> Recipe:
    # Not validated: a student's `old` is settled when its teacher is trained.
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def make_trainer(recipe: Recipe, dataset: Dataset, device: torch.device | str = "cpu") -> Trainer:
    """A fresh trainer of the network that a stage's recipe describes."""
    return Trainer(
        make_net(recipe, dataset),
        dataset.train,
        recipe.train,
        preprocessing=dataset.preprocessing,
        augmentation=augmentation_of(recipe.data),
        class_names=dataset.class_names,
        device=device,
        loaders=recipe.cluster.loaders,
    )


def make_net(recipe: Recipe, dataset: Dataset) -> RetrievalNet:
    """A fresh network, masked or switchable as the method asks; ConfigError where the backbone cannot be so, or has no
    module that `train.freeze` names."""
    kind: type[RetrievalNet] = RetrievalNet
    more: dict[str, Any] = {}
    if METHODS[recipe.train.method].network == "widths":
        kind, more = SwitchableNet, {"switch": recipe.train.capacities}
    else:
        more = {"granularity": recipe.train.granularity, "channel_multiple": recipe.train.channel_multiple}
    sizes = {"long_side": recipe.sweep.long_side, "scales": [*recipe.sweep.scales]}
    other = [f"sweep.{key}={size}" for key, size in sizes.items() if size not in (None, [1.0])]
    if other and "img_size" in sized_options(recipe.model, recipe.data.image_size):
        raise ConfigError(
            f"{other[0]}: {recipe.model.backbone} is made for images of one size; valid: backbones of convolutions"
        )
    net = kind.from_config(
        recipe.model,
        classes=len(dataset.class_names),
        in_chans=recipe.data.channels,
        score_init=recipe.train.score_init,
        seed=recipe.train.seed,
        image_size=recipe.data.image_size,
        **more,
    )
    Frozen.of(net, recipe.train.freeze, scores=recipe.train.freeze_scores)  # refused before a cluster is asked
    return net


def finished(path: Path, recipe: Recipe, dataset: Dataset) -> bool:
    """Whether the file holds this very training's network; DataError where it was trained on other images."""
    if not path.exists():
        return False
    header = read_header(path)
    if header.get("training_hash") != recipe.training_hash():
        return False
    resume.check_images(header.get("origin"), dataset, recipe.data.fingerprint, repr(str(path)))
    return True


def train_here(
    recipe: Recipe,
    dataset: Dataset,
    model_path: Path,
    *,
    device: torch.device | str = "cpu",
    report: Callable[[Trainer], None] | None = None,
) -> None:
    """Trains one stage in this process and saves the network. Two checkpoints are kept beside it: an epoch at most is
    lost, two where the newer one is damaged (a DataWarning says so). A finished training is not done again.

    `report` is called after every epoch.

    Raises CheckpointError where both are damaged.
    """
    recipe = recipe.with_files_seen()
    if finished(model_path, recipe, dataset):
        return
    state = model_path.parent / f".{model_path.stem}-{recipe.training_hash()[:12]}"
    trainer = make_trainer(recipe, dataset, device)
    for note in (*trainer.notes, *([trainer.net.adapted] if trainer.net.adapted else [])):
        warnings.warn(note, DataWarning, stacklevel=2)
    # `state` itself held the only checkpoint once.
    folders = [folder for folder in (state, state / "0", state / "1") if (folder / "state.safetensors").exists()]
    whole, damaged = resume.intact(folders, recipe.training_hash())
    if whole:
        resume.check_images(whole[-1].origin, dataset, recipe.data.fingerprint, repr(str(whole[-1].folder)))
        resume.restore(whole[-1].folder, trainer, recipe)
        for reason in damaged.values():
            warnings.warn(f"{reason}; training goes on from step {whole[-1].step}", DataWarning, stacklevel=2)
    elif damaged:
        raise CheckpointError(f"{'; '.join(damaged.values())}; remove {str(state)!r} to train from the start")

    latest, origin = [found.folder for found in whole], dataset.origin(recipe.data.fingerprint)

    def after_epoch(trainer: Trainer) -> None:
        folder = state / str(len(trainer.progress.history) % 2)
        resume.save(folder, trainer, recipe, dataset.class_names, origin)
        latest.append(folder)
        if report is not None:
            report(trainer)

    trainer.run(after_epoch=after_epoch)
    resume.export(latest[-1], recipe, model_path)
    shutil.rmtree(state, ignore_errors=True)


def fitting(header: Mapping[str, Any], path: str, wanted: Preprocessing) -> None:
    """CheckpointError where a network was trained for images that are made in another way, or by no recipe."""
    trained, now = header["preprocessing"], wanted.to_json()
    if trained != now:
        differs = sorted(key for key in {*trained, *now} if trained.get(key) != now.get(key))
        raise CheckpointError(
            f"checkpoint {path!r} was trained with other preprocessing: "
            + ", ".join(f"{key} {trained.get(key)} (recipe: {now.get(key)})" for key in differs)
        )
    check(SweptHeader, header, path)
