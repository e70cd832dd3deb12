"""One step, one epoch, fit. Knows torch.distributed, not Ray.

A run is a pure function of (network, data, settings, number of workers): every random choice comes from
(seed, epoch) or (seed, step), so a run that is stopped and resumed ends with the same bits.
"""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet import process
from prunnet.config.losses import check_parts
from prunnet.config.recipe import TrainConfig, parse_recipe
from prunnet.data.augment import Transforms
from prunnet.data.base import ImageSet, IntArray
from prunnet.data.loading import Then, balanced, loaded, share_of, shuffled
from prunnet.data.transforms import Augmentation, Preprocessing
from prunnet.errors import ConfigError, DataError
from prunnet.networks.frozen import Frozen
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.masks import laid_out_like
from prunnet.training.average import Average
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.losses.by_name import OwnLoss
from prunnet.training.objectives.base import Context
from prunnet.training.objectives.by_name import make_objective
from prunnet.training.objectives.masked import step_seed
from prunnet.training.objectives.old_network import OldNetwork
from prunnet.training.precision import settle


@dataclass
class Progress:
    """The state of a run: `step` optimiser steps done in all, the next one belongs to epoch step // steps."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch: epoch, seconds, images_seen, loss of each capacity."""
    conflicts: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch: layer -> share of pairs of passes whose gradients conflicted (empty where the method does not
    compute it)."""


class Trainer:
    """Trains `net` on `train_set` as `config` says, on this process' share of every batch.

    Args:
        class_names: of the training classes, by label; `bct` finds the old network's labels by them.
        device: of the network; images follow.
        group: torch.distributed group of the workers; None: the default one if there is any.
        loaders: processes that decode images for this one; 0: threads of its own, where the images are files.
        layout: memory format of weights and images; None: the fastest that is right (`prunnet.training.precision`).

    Raises:
        ConfigError, DataError: see `steps_per_epoch`, `prunnet.training.precision.settle` and `Frozen.of`.
    """

    def __init__(
        self,
        net: RetrievalNet,
        train_set: ImageSet,
        config: TrainConfig,
        *,
        preprocessing: Preprocessing,
        augmentation: Augmentation | Transforms | None = None,
        class_names: Sequence[str] = (),
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
        loaders: int = 0,
        layout: torch.memory_format | None = None,
    ) -> None:
        self.config, self.train_set = config, train_set
        self.preprocessing, self.augmentation, self.loaders = preprocessing, augmentation, loaders
        self.device = torch.device(device)
        self.reducer = Reducer(group)
        self.steps_per_epoch = steps_per_epoch(len(train_set), config, self.reducer.world)
        numerics = settle(
            config.precision,
            net,
            self.device,
            preprocessing.image_size,
            batch=config.batch_size // (self.reducer.world * config.accumulate),
            layout=layout,
            reducer=self.reducer,
        )
        self.dtype, self.layout, self.notes = numerics.dtype, numerics.layout, numerics.notes
        self.net: RetrievalNet = net.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]
        self.frozen = Frozen.of(self.net, config.freeze, scores=config.freeze_scores)
        self.net.held = self.frozen.norms
        self.objective = make_objective(self.net, config, self._context(class_names))
        self.optimizer = make_optimizer(self.net, config, self.objective.learned())
        self.average = None if config.ema is None else Average(self.net, config.ema)
        self.progress = Progress()

    @property
    def trained(self) -> RetrievalNet:
        """What is validated and saved: the average of the network over the steps where `train.ema` is set, else the
        network."""
        return self.net if self.average is None else self.average.net

    def _context(self, class_names: Sequence[str]) -> Context:
        """What the method may need, such as the old network. SNIP's scores are computed here as well."""
        config, old = self.config, None
        if config.old:
            old = OldNetwork(
                config.old,
                preprocessing=self.preprocessing,
                class_names=class_names,
                embedding_dim=self.net.spec["embedding_dim"],
                device=self.device,
            )
        if config.score_init == "snip":
            self._snip()
        return Context(self.reducer, self.dtype, self.train_set, self.preprocessing, old, self.total_steps, self.frozen)

    def _snip(self) -> None:
        """Scores from the dense loss of the run's first batch with all BatchNorm scales at 1, averaged over the
        workers. The loss is `train.loss` as the training starts it, without label smoothing."""
        loss = OwnLoss(self.net, self.config.model_copy(update={"label_smoothing": 0.0}), self.reducer)
        images, labels = next(self._batches(0, 0))
        layers = prunable.layers(self.net)
        weights = [layer.get_parameter("weight") for layer in layers.values()]
        self.net.train()
        with prunable.frozen_statistics(self.net), prunable.unit_scales(self.net):
            features = self.net.features(images)
            own = torch.autograd.grad(loss(self.net.classifier(features), features, labels), weights)
        gradients = self.reducer.average(own)
        prunable.snip_scores(self.net, dict(zip(layers, gradients, strict=True)))

    def learned(self) -> dict[str, nn.Parameter]:
        """Everything that the optimiser steps, by name: the network's parameters, the loss' and the objective's."""
        return {**dict(self.net.named_parameters()), **self.objective.learned()}

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def run(
        self,
        *,
        after_step: Callable[[Trainer], None] | None = None,
        after_epoch: Callable[[Trainer], None] | None = None,
    ) -> list[dict[str, float]]:
        """Trains from the step of `progress` to the end; returns the history."""
        while self.progress.step < self.total_steps:
            epoch = self.progress.step // self.steps_per_epoch
            started, losses = time.perf_counter(), []
            if self.progress.step % self.steps_per_epoch == 0:
                self.objective.start_epoch(epoch)
            for images, labels in self._batches(epoch, self.progress.step % self.steps_per_epoch):
                losses.append(self.step(images, labels))
                if after_step is not None:
                    after_step(self)
            self.progress.history.append(self._summary(epoch, losses, time.perf_counter() - started))
            self.progress.conflicts.append(self.objective.conflicts())
            if after_epoch is not None:
                after_epoch(self)
        return self.progress.history

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One optimiser step on this worker's images [b, C, H, W] and labels [b]."""
        config, step = self.config, self.progress.step
        # Layers that draw (dropout, stochastic depth) must redraw the same after a resume.
        torch.manual_seed(step_seed(config.seed, step) * self.reducer.world + self.reducer.rank)
        set_learning_rates(self.optimizer, config, step, self.steps_per_epoch)
        self.net.train()
        losses = self.objective.backward(images, labels, step)
        for name in self.objective.untrained:
            self.net.get_submodule(name).zero_grad(set_to_none=True)  # a gradient of 0 would be decay
        self.frozen.drop_gradients()
        learned = [*self.net.parameters(), *self.objective.loss.parameters().values()]
        align_gradients(learned)
        clip_gradients(learned, config.clip_norm)
        self.optimizer.step()
        self.progress.step += 1
        if self.average is not None:
            self.average.update(self.net, self.progress.step)
        return losses

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's share of every batch of an epoch, from batch `start` on."""
        batches = share_of(self._order(epoch)[start:], self.reducer.rank, self.reducer.world)
        then = self._transforms(epoch)
        for indices, loaded_pixels in zip(batches, loaded(self.train_set, batches, self.loaders, then), strict=True):
            images = self._view(loaded_pixels.to(self.device), indices, epoch)
            labels = torch.from_numpy(self.train_set.labels[indices]).to(self.device)
            yield images.contiguous(memory_format=self.layout), labels

    def _order(self, epoch: int) -> IntArray:
        """[steps, batch_size] image indices of an epoch, the same on all workers."""
        config, seed = self.config, self.config.seed
        if config.sampling == "balanced":
            return balanced(self.train_set.labels, config.batch_size, config.per_class, seed=seed, epoch=epoch)
        return shuffled(len(self.train_set), config.batch_size, seed=seed, epoch=epoch)

    def _transforms(self, epoch: int) -> Then | None:
        """What `data.augment` does to a batch where it is read."""
        augmentation = self.augmentation
        if not isinstance(augmentation, Transforms):
            return None
        seeds = augmentation.seeds(len(self.train_set), seed=self.config.seed, epoch=epoch)
        return lambda pixels, indices: augmentation(pixels, seeds[indices])

    def _view(self, pixels: Tensor, indices: np.ndarray, epoch: int) -> Tensor:
        if not isinstance(self.augmentation, Augmentation):
            return self.preprocessing.normalise(pixels)
        draws = self.augmentation.draws(len(self.train_set), seed=self.config.seed, epoch=epoch)[indices]
        return self.augmentation(self.preprocessing, pixels, torch.from_numpy(draws).to(self.device))

    def _summary(self, epoch: int, losses: list[dict[str, Tensor]], seconds: float) -> dict[str, float]:
        """The epoch's mean losses over all workers; a loss that is not finite ends the run."""
        means = torch.stack([torch.stack([step[name] for step in losses]).mean() for name in losses[0]])
        (means,) = self.reducer.average([means])
        named = dict(zip(losses[0], means.tolist(), strict=True))
        if not all(map(math.isfinite, named.values())):
            raise ConfigError(
                f"training diverged in epoch {epoch + 1}: {named}; try a lower train.lr than {self.config.lr}"
            )
        return {
            "epoch": epoch + 1,
            "seconds": seconds,
            "images_seen": self.progress.step * self.config.batch_size,
            **named,
        }


def align_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Puts every gradient into its parameter's memory format. Fused optimisers walk both storages side by side, so a
    contiguous gradient of a channels-last weight would be added to the wrong weights, without an error."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = laid_out_like(parameter.grad, parameter)


def clip_gradients(every: Iterable[nn.Parameter], limit: float) -> None:
    """Scales all gradients so that their total norm is at most `limit`."""
    parameters = [p for p in every if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # On a CPU reading the norm is free, and a pass over all gradients to multiply them by one is not.
    if norm.device.type != "cpu" or not norm <= limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def steps_per_epoch(images: int, config: TrainConfig, workers: int) -> int:
    """Full batches in an epoch.

    Raises ConfigError for a batch that the workers, and the parts of their shares, cannot share evenly, or whose parts
    would cut the classes of a loss of pairs; DataError for fewer images than a batch.
    """
    batch_size, parts = config.batch_size, config.accumulate
    if batch_size % (workers * parts):
        in_parts = f" in train.accumulate={parts} parts each" if parts > 1 else ""
        raise ConfigError(f"train.batch_size={batch_size} cannot be shared evenly by {workers} workers{in_parts}")
    check_parts(config.loss, batch_size // (workers * parts), parts, config.per_class)
    if images < batch_size:
        raise DataError(f"{images} training images are fewer than train.batch_size={batch_size}")
    return images // batch_size


def make_optimizer(
    net: RetrievalNet, config: TrainConfig, more: Mapping[str, nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over groups: weights, those of the backbone where they have a rate of their own,
    scores with theirs; without decay the exponent of a pooling and what the objective learns (`more`)."""
    scores = list(prunable.scores(net).values())
    scored = {id(p) for p in scores}
    weights = {name: p for name, p in net.named_parameters() if id(p) not in scored}
    own = {} if config.backbone_lr is None else {name: p for name, p in weights.items() if in_backbone(name)}
    exponents = {name: p for name, p in weights.items() if name.startswith("pooling.")}
    rest = [p for name, p in weights.items() if name not in own and name not in exponents]
    groups: list[dict[str, Any]] = [{"params": rest, "base_lr": config.lr}]
    if own:
        groups.append({"params": list(own.values()), "base_lr": config.backbone_lr})
    if scores:
        groups.append({"params": scores, "base_lr": config.score_rate})
    for undecayed in (exponents, more):
        if undecayed:
            groups.append({"params": list(undecayed.values()), "base_lr": config.lr, "weight_decay": 0.0})
    if config.optimizer == "adamw":
        return _eager(torch.optim.AdamW)(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    sgd = _eager(torch.optim.SGD)
    return sgd(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def in_backbone(name: str) -> bool:
    """Whether a parameter of a network is one of its backbone, by name; a switchable network keeps the BatchNorms of
    its narrower widths as `norms.0.backbone|bn1`."""
    return name.startswith("backbone.") or (name.startswith("norms.") and name.split(".")[2].startswith("backbone|"))


def _eager(kind: type[torch.optim.Optimizer]) -> Any:
    """The optimiser with its own methods as they were before torch decorated them: the decorators import torch's
    compiler, 3 s, to tell it that it must leave the methods alone."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def set_learning_rates(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, steps_per_epoch: int) -> None:
    """Sets each group's rate for `step`; a function of the step alone, so a schedule has no state."""
    share = schedule(config, step, steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share


def schedule(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Factor on the learning rate at optimiser step `step` (0-based)."""
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
    if config.schedule == "step":
        return 0.1 ** sum(step >= milestone * total for milestone in config.milestones)
    return 1.0


def batchnorm_state(net: nn.Module) -> dict[str, Tensor]:
    """Running statistics by name; each worker has its own until they are averaged."""
    norms = {name for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
    return {key: value for key, value in net.named_buffers() if key.rpartition(".")[0] in norms}


def fit(
    net: RetrievalNet,
    train_set: ImageSet,
    capacities: tuple[float, ...] = (0.8, 0.6, 0.4, 0.2),
    *,
    preprocessing: Preprocessing | None = None,
    augmentation: Augmentation | Transforms | None = None,
    class_names: Sequence[str] = (),
    **settings: Any,
) -> list[dict[str, float]]:
    """Trains `net` in this process so that a subnetwork of any capacity can be cut from it afterwards. With `ema` it
    ends as its average.

    Args:
        train_set: images and labels 0 … classes-1.
        capacities: trained beside the dense network, each in (0, 1).
        class_names: of the training classes, by label; needed by `bct`, which finds the old network's labels by them.
        settings: any key of a recipe's `train` section, such as `epochs=5` or `method="joint"`.

    Returns:
        The history: one dict an epoch, with the loss of each capacity.

    Raises:
        ConfigError: settings that are not valid, or classes that do not fit the network.
    """
    process.prepare()
    settings = {"granularity": net.granularity, **settings}
    config = parse_recipe({"train": {"capacities": capacities, **settings}}).train
    classes = int(train_set.labels.max()) + 1
    if classes > net.spec["classes"]:
        raise ConfigError(f"the data has {classes} classes, the network was made for {net.spec['classes']}")
    preprocessing = preprocessing or train_set.preprocessing
    trainer = Trainer(
        net, train_set, config, preprocessing=preprocessing, augmentation=augmentation, class_names=class_names
    )
    for note in trainer.notes:
        warnings.warn(note, stacklevel=2)
    history = trainer.run()
    if trainer.trained is not trainer.net:
        net.load_state_dict(trainer.trained.state_dict())
    return history
