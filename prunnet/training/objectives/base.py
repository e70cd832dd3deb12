"""What the training loop asks of a method, and what a method may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunnet.config.recipe import TrainConfig
from prunnet.data.base import ImageSet
from prunnet.data.transforms import Preprocessing
from prunnet.networks.frozen import Frozen
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.losses.by_name import OwnLoss
from prunnet.training.objectives.old_network import OldNetwork


@dataclass(frozen=True)
class Context:
    """What a method may need beside the network and its settings."""

    reducer: Reducer
    dtype: torch.dtype
    """Of the passes: float32, or bfloat16 under autocast."""
    train_set: ImageSet | None = None
    preprocessing: Preprocessing | None = None
    old: OldNetwork | None = None
    total_steps: int = 1
    frozen: Frozen = field(default_factory=Frozen)
    """What `train.freeze` names: a method may leave out its gradients, which the training loop drops."""


class Term:
    """A loss against an old (or larger) network, whose embeddings the trained one must match."""

    own_loss = True
    """Whether the network's own loss (`train.loss`) is part of the method."""

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch; a resume inside an epoch restores `state` instead."""

    def targets(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The old network's output for a batch, computed once a step; gathered over the workers where the loss compares
        images."""
        return ()

    def loss(self, features: Tensor, labels: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        """features [B, d]: the neck's output, not normalised. A mean over this worker's images."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None: ...


Part = tuple[Tensor, Tensor, tuple[Tensor, ...]]
"""Images, labels, and the term's targets."""


class Objective:
    """What the training loop asks of a method.

    Args:
        term: a loss against an old network, added to every pass (or in place of the own loss).
    """

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context, term: Term | None = None) -> None:
        self.net, self.config, self.reducer, self.dtype, self.term = net, config, context.reducer, context.dtype, term
        self.loss = OwnLoss(net, config, context.reducer)
        self.frozen = context.frozen

    def backward(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        """Fills `.grad` of all trained parameters with gradients that are averaged over the workers.

        images [B, C, H, W], labels [B]; `step` seeds every random choice, alike on all ranks.
        Returns this worker's losses, by name, each a scalar.
        """
        raise NotImplementedError

    def parts(self, images: Tensor, labels: Tensor) -> list[Part]:
        """A worker's batch in `train.accumulate` equal parts."""
        count, term = self.config.accumulate, self.term
        chunks = zip(images.chunk(count), labels.chunk(count), strict=True)
        return [(i, k, () if term is None else term.targets(i, k)) for i, k in chunks]

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch; a resume inside an epoch restores `state` instead."""
        if self.term is not None:
            self.term.start_epoch(epoch)

    def conflicts(self) -> dict[str, float]:
        """Layer -> share of pairs of passes whose gradients conflicted, over the steps since it was asked last; empty
        where a method does not compute it."""
        return {}

    @property
    def untrained(self) -> frozenset[str]:
        """Modules of the network that no loss reaches; they stay as they are, without decay."""
        own = self.term is None or self.term.own_loss
        return frozenset() if own and self.loss.trains_classifier else frozenset(["classifier"])

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the method learns beside the network and its loss, by name."""
        return {}

    def learned(self) -> dict[str, nn.Parameter]:
        """All that is learned beside the network, by name: the loss' class weights, and the method's `parameters`; the
        optimiser steps it without weight decay."""
        return {**self.loss.parameters(), **self.parameters()}

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold beside network, optimiser and `learned`."""
        return {} if self.term is None else self.term.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Sets what `state` gave."""
        if self.term is not None:
            self.term.load_state(state)


def mean(parts: Sequence[Part], of: Callable[[Part], list[Tensor]]) -> list[Tensor]:
    """The results of `of` for each part of a batch, averaged element by element; a part's tensors are freed before the
    next."""
    first, *others = parts
    total = of(first)
    for part in others:
        total = [one + other for one, other in zip(total, of(part), strict=True)]
    return [tensor / len(parts) for tensor in total] if others else total
