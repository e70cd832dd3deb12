"""Every method and variant on networks small enough for exact comparisons, shared by several tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunnet.config.losses import DEFAULT, LOSSES
from prunnet.config.methods import METHODS
from prunnet.config.recipe import TrainConfig
from prunnet.data.base import MemoryImages
from prunnet.data.transforms import Preprocessing
from prunnet.networks.files import save_network
from prunnet.networks.frozen import Frozen
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import SwitchableNet
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.objectives.base import Context, Objective
from prunnet.training.objectives.by_name import make_objective
from prunnet.training.objectives.old_network import OldNetwork
from tests.conftest import net_without_batchnorm, striped_images, tiny_net

PREPROCESSING = Preprocessing(32, 32, 1, False, (0.5,), (0.5,))
CLASSES = ("a", "b", "c", "d")

CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    "independent at 0.3": {"method": "independent", "alone": 0.3},
    "bct at 0.3": {"method": "bct", "alone": 0.3},
    "sequential, tensor, mean": {"projection": "sequential", "block": "tensor", "weighting": "mean"},
    "network, mgda": {"block": "network", "weighting": "mgda"},
    "none, uncertainty": {"projection": "none", "weighting": "uncertainty"},
    "global": {"allocation": "global"},
    "random": {"capacity_sampling": "random"},
    "sandwich": {"capacity_sampling": "sandwich"},
    "snip": {"score_init": "snip"},
    "nm": {"granularity": "nm", "capacities": (0.5,)},
    "kernel": {"granularity": "kernel"},
    "channel": {"granularity": "channel", "channel_multiple": 2},
    "channel, network, sandwich": {"granularity": "channel", "block": "network", "capacity_sampling": "sandwich"},
    "channel alone at 0.3": {"method": "independent", "alone": 0.3, "granularity": "channel", "channel_multiple": 2},
    "sfsc, none": {"method": "sfsc", "evidential": "none"},
    "sfsc, softplus, equal, mean": {
        "method": "sfsc",
        "evidential": "softplus",
        "priorities": "equal",
        "reduction": "mean",
    },
    "bct, synthesise": {"method": "bct", "bct_unknown": "synthesise"},
    "ndpp, released": {"method": "ndpp", "ndpp_scale": "released"},
    "all prototypes perturbed": {"method": "ndpp", "perturb": "all"},
    **{f"prunnet + {term}": {"compatible": term} for term in ("bct", "asymmetric", "regression", "ndpp", "odpp")},
    "averaged": {"ema": 0.9},
    "frozen": {"freeze": ("backbone.stages.0", "neck"), "block": "network"},
    "frozen with its scores": {"granularity": "kernel", "freeze": ("backbone.stages.1",), "freeze_scores": True},
    "switchable, frozen": {"method": "switchable", "freeze": ("backbone.layer1", "backbone.*.bn2")},
    "switchable + ndpp": {"method": "switchable", "compatible": "ndpp"},
    **{f"loss {loss}": {"loss": loss, "sampling": "balanced", "per_class": 2} for loss in LOSSES if loss != DEFAULT},
    "switchable, cosface": {"method": "switchable", "loss": "cosface", "loss_options": {"scale": 8}},
    "sfsc, none, proxy_anchor": {"method": "sfsc", "evidential": "none", "loss": "proxy_anchor"},
    "channel, triplet + ndpp": {
        "granularity": "channel",
        "channel_multiple": 2,
        "compatible": "ndpp",
        "loss": "triplet",
        "loss_options": {"miner": "hard"},
        "sampling": "balanced",
    },
    "snip, supcon": {"score_init": "snip", "loss": "supcon", "sampling": "balanced"},
}
"""Settings of `train` by name; between them every method and every variant."""


def config_of(case: str, old: Path, **more: Any) -> TrainConfig:
    """The case's settings, with an old network where it needs one."""
    settings = {"capacities": (0.7, 0.3), "precision": "fp32", "batch_size": 8, **CASES[case], **more}
    method = METHODS[settings.get("method", "prunnet")]
    if method.teacher != "none" or "compatible" in settings:
        settings["old"] = str(old)
    return TrainConfig(**settings)


def net_for(config: TrainConfig, channels: Sequence[int] = (8, 8, 12, 16)) -> RetrievalNet:
    """A float64 network that the method takes (`channels`: of one with widths). With BatchNorm (widths need it) it is
    in evaluation mode, where an image's features do not depend on the others."""
    if METHODS[config.method].network == "widths":
        # Residual branches that end in zero, as timm makes them, would hide their gradients in the first step.
        options = {"layers": [1, 1, 1, 1], "channels": list(channels), "zero_init_last": False}
        net: RetrievalNet = SwitchableNet(
            "resnet18", 4, in_chans=1, embedding_dim=8, options=options, switch=config.capacities
        )
        return net.double().eval()
    return net_without_batchnorm(
        granularity=config.granularity, channel_multiple=config.channel_multiple, image_size=32
    )


def save_old(path: Path) -> Path:
    """An old network's file: other backbone, half of the classes."""
    save_network(path, tiny_net(3, embedding_dim=8, seed=7), PREPROCESSING, class_names=["b", "d", "z"])
    return path


def images(per_class: int = 4) -> MemoryImages:
    return striped_images(PREPROCESSING, per_class=per_class)


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    """Normalised images [count, 1, 32, 32], float64, and their labels."""
    chosen = np.random.default_rng(5).permutation(16)[:count]
    every = images()
    return PREPROCESSING.normalise(torch.from_numpy(every.pixels[chosen])).double(), torch.from_numpy(
        every.labels[chosen]
    )


def objective_of(
    config: TrainConfig, net: RetrievalNet, reducer: Reducer | None = None, total_steps: int = 10
) -> Objective:
    """The method on `images()`, its old network loaded where it has one."""
    old = None
    if config.old:
        old = OldNetwork(config.old, preprocessing=PREPROCESSING, class_names=CLASSES, embedding_dim=8)
    frozen = Frozen.of(net, config.freeze, scores=config.freeze_scores)
    context = Context(reducer or Reducer(), torch.float32, images(), PREPROCESSING, old, total_steps, frozen)
    return make_objective(net, config, context)


def gradients(
    objective: Objective, net: RetrievalNet, batch: tuple[Tensor, Tensor], step: int = 3
) -> dict[str, Tensor]:
    """All gradients of one step, the objective's own parameters' too."""
    net.zero_grad()
    objective.start_epoch(0)
    objective.backward(*batch, step)
    found = {**dict(net.named_parameters()), **objective.learned()}
    return {name: p.grad.clone() for name, p in found.items() if p.grad is not None}
