"""The loss that a recipe's `train.loss` asks for. `config.losses` holds the names and options."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunnet.config.losses import LOSSES, all_options
from prunnet.config.recipe import TrainConfig
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.registry import resolve
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.losses.base import NetworkLoss, Setting, gathered

_SEED = 1 << 40
"""Class weights start from another stream of random numbers than the network's weights."""


class OwnLoss:
    """A network's own loss, as its passes call it on this worker's images.

    Args:
        net: the network; its device and type are those of the class weights, which start alike on all workers.
        config: `loss`, `loss_options`, `label_smoothing` and `seed` of it.
    """

    def __init__(self, net: RetrievalNet, config: TrainConfig, reducer: Reducer) -> None:
        self.described, self.reducer = LOSSES[config.loss], reducer
        setting = Setting(
            int(net.spec["classes"]),
            int(net.spec["embedding_dim"]),
            all_options(config.loss, config.loss_options),
            config.label_smoothing,
        )
        like = next(net.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed ^ _SEED)
            module: NetworkLoss = resolve(self.described.loss)(setting)
        self.module = module.to(device=like.device, dtype=like.dtype)

    def __call__(self, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """logits [b, classes], features [b, d], labels [b] -> a scalar whose gradients, averaged over the workers, are
        those of the loss on the whole batch."""
        if self.described.sees != "image" and self.reducer.world > 1:
            features, labels = gathered(features, self.reducer), self.reducer.gather(labels).flatten()
        found: Tensor = self.module(logits, features, labels)
        return found

    @property
    def trains_classifier(self) -> bool:
        """Whether the network's classifier learns from it."""
        return self.described.classifier

    def parameters(self) -> dict[str, nn.Parameter]:
        """Class weights by name; names begin with `loss.`, as no part of a network does."""
        return {f"loss.{name}": parameter for name, parameter in self.module.named_parameters()}
