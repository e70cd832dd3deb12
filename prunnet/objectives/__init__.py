"""Training methods by name, one file each. An objective turns a batch into gradients; it does not step."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from prunnet.communication import Reducer
from prunnet.config import TrainConfig
from prunnet.errors import ConfigError, unknown
from prunnet.nets import RetrievalNet


class Objective(Protocol):
    """What the training loop asks of a method."""

    def backward(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        """Fills `.grad` of all parameters with gradients that are averaged over the workers.

        images [B, C, H, W], labels [B]; `step` seeds every random choice, alike on all ranks.
        Returns this worker's losses, by name, each a scalar.
        """
        ...


def make_objective(net: RetrievalNet, config: TrainConfig, reducer: Reducer, dtype: torch.dtype) -> Objective:
    """The objective named by `config.method`; ConfigError for an unknown name."""
    from prunnet.objectives.prunnet import PrunNet

    methods = {"prunnet": PrunNet}
    if config.method not in methods:
        raise ConfigError(unknown("train.method", config.method, methods))
    return methods[config.method](net, config, reducer, dtype)
