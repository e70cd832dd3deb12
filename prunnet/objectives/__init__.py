"""Training methods by name, one file each. An objective turns a batch into gradients; it does not step.

`prunnet.methods` holds the names and what each leaves open. Two kinds of networks (masked.py, switchable.py), and
terms that compare with an old network (`Term`), which a single network is trained with (`bct`, `asymmetric`,
`regression`, `prototypes`, `ndpp`, `odpp`) or which another method adds to every pass (`train.compatible`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunnet import prunable
from prunnet.communication import Reducer
from prunnet.config import TrainConfig
from prunnet.data.base import ImageSet
from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError
from prunnet.methods import METHODS
from prunnet.nets import RetrievalNet
from prunnet.upgrade import OldNetwork
from prunnet.widths import SwitchableNet


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


class Term:
    """A loss against an old (or larger) network, whose embeddings the trained one must match."""

    own_loss = True
    """Whether the cross-entropy through the network's own classifier is part of the method."""

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch; a resume inside an epoch restores `state` instead."""

    def targets(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """What the old network says of a batch, once a step; gathered over the workers where the loss couples
        the batch."""
        return ()

    def loss(self, features: Tensor, labels: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        """features [B, d]: the neck's output, not normalised. A mean over this worker's images."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None: ...


Part = tuple[Tensor, Tensor, tuple[Tensor, ...]]
"""Images, labels, and what the term's old network says of them."""


class Objective:
    """What the training loop asks of a method.

    Args:
        term: a loss against an old network, added to every pass (or in place of the own loss).
    """

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context, term: Term | None = None) -> None:
        self.net, self.config, self.reducer, self.dtype, self.term = net, config, context.reducer, context.dtype, term

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
        where a method does not look."""
        return {}

    @property
    def untrained(self) -> frozenset[str]:
        """Modules of the network that no loss reaches; they stay as they are, without decay."""
        return frozenset() if self.term is None or self.term.own_loss else frozenset(["classifier"])

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is learned beside the network, by name; the optimiser steps it without weight decay."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold beside network, optimiser and `parameters`."""
        return {} if self.term is None else self.term.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Sets what `state` gave."""
        if self.term is not None:
            self.term.load_state(state)


def mean(parts: Sequence[Part], of: Callable[[Part], list[Tensor]]) -> list[Tensor]:
    """What `of` says of each part of a batch, averaged place by place; a part's tensors are let go before the next."""
    first, *others = parts
    total = of(first)
    for part in others:
        total = [one + other for one, other in zip(total, of(part), strict=True)]
    return [tensor / len(parts) for tensor in total] if others else total


def make_objective(net: RetrievalNet, config: TrainConfig, context: Context) -> Objective:
    """The objective named by `config.method`, with the term of `config.compatible` where there is one."""
    from prunnet.objectives.independent import Independent
    from prunnet.objectives.joint import Joint
    from prunnet.objectives.prunnet import PrunNet
    from prunnet.objectives.sfsc import Sfsc, SfscReleased
    from prunnet.objectives.switchable import Switchable

    method = METHODS[config.method]
    _check_network(net, config)
    named: str | None = config.compatible
    if method.single and method.teacher != "none":
        named = config.method
    term = make_term(named, net, config, context) if named else None
    if method.single:
        return Independent(net, config, context, term)
    kinds: dict[str, Callable[..., Objective]] = {
        "prunnet": PrunNet,
        "joint": Joint,
        "switchable": Switchable,
        "sfsc": Sfsc,
        "sfsc_released": SfscReleased,
    }
    return kinds[config.method](net, config, context, term)


def _check_network(net: RetrievalNet, config: TrainConfig) -> None:
    """ConfigError where a method is given a network of the other kind."""
    switchable = isinstance(net, SwitchableNet)
    if METHODS[config.method].network == "widths":
        if not switchable or net.switch != list(config.capacities):
            raise ConfigError(
                f"train.method={config.method!r} trains a SwitchableNet with switch={list(config.capacities)}, "
                f"not a {type(net).__name__}{f' with switch={net.switch}' if switchable else ''}"
            )
    elif not prunable.layers(net):
        raise ConfigError(
            f"train.method={config.method!r} needs a network with scores; this {type(net).__name__} has none"
        )


def make_term(name: str, net: RetrievalNet, config: TrainConfig, context: Context) -> Term:
    """The term of that name; ConfigError where no old network was given."""
    from prunnet.objectives.asymmetric import Asymmetric
    from prunnet.objectives.bct import Bct
    from prunnet.objectives.ndpp import Ndpp
    from prunnet.objectives.odpp import Odpp
    from prunnet.objectives.prototypes import Prototypes
    from prunnet.objectives.regression import Regression

    if context.old is None:
        raise ConfigError(f"{name!r} compares with another network; set train.old to its checkpoint")
    kinds: dict[str, Callable[..., Term]] = {
        "bct": Bct,
        "asymmetric": Asymmetric,
        "regression": Regression,
        "prototypes": Prototypes,
        "ndpp": Ndpp,
        "odpp": Odpp,
    }
    return kinds[name](net, config, context)
