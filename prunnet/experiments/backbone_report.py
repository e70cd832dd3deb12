"""The backbones by name, what of each is prunable, and why: the facts behind `prunnet doctor backbone NAME`.

Any timm model with convolutions or linear layers works; those in `NAMED` are tested, each through the whole
conformance suite. What carries a score, decided on purpose:

- **Every convolution of the backbone**, the stem and patch embeddings too: a patch embedding is a convolution whose
  kernels are the patch's filters, and PrunNet prunes all convolutions.
- **Grouped and depthwise convolutions**: a score for every weight of their [out, in / groups, k, k] tensor, k kept in
  the layer as in any other. A depthwise kernel can lose all of its weights; its channel is then constant.
- **Fused qkv projections** are one linear layer [3d, d] with one score tensor: the budget is shared by query, key and
  value, which the scores divide. A conflict block is a row, so the three never mix in the integration.
- **Linear layers of attention and MLP**, squeeze-and-excitation and gates among them.

What stays dense: biases, normalisation, layer scales, class and register tokens, position embeddings and
relative-position tables (each is a few numbers a channel or a place, and none is a matrix product), and packed
projections that are bare parameters instead of layers (`nn.MultiheadAttention`). The neck and the classifier too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from prunnet.config.granularities import GRANULARITIES
from prunnet.config.recipe import ModelConfig, TrainConfig
from prunnet.errors import ConfigError, PrunnetError, one_line
from prunnet.networks.retrieval_net import RetrievalNet, sized_options
from prunnet.networks.switchable import SwitchableNet
from prunnet.pruning import prunable
from prunnet.pruning.channel_graph import ChannelGraph
from prunnet.pruning.macs import layer_macs
from prunnet.subnetworks.subnet import subnetwork
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.objectives.base import Context
from prunnet.training.objectives.by_name import make_objective

NAMED = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "mobilenetv2_100",
    "tf_efficientnet_lite0",
    "convnext_tiny",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
)


@dataclass(frozen=True)
class LayerFacts:
    """One prunable layer."""

    name: str
    kind: str
    """Such as `conv 3x3`, `depthwise 7x7`, `grouped 3x3 (32)`, `linear`."""
    weights: int
    macs: int


@dataclass(frozen=True)
class BackboneFacts:
    """What can be pruned, and what stays dense."""

    layers: list[LayerFacts]
    dense: dict[str, int]
    """Kind of parameter that stays dense -> how many numbers."""
    macs_total: int
    """Of the whole embedding network, neck included, for one image."""
    widths: str | None
    """Why switchable widths do not work with it; None: they do."""


def inspect_backbone(model: ModelConfig, image_size: int = 224, in_chans: int = 3) -> BackboneFacts:
    """Facts of any timm backbone; ConfigError for one that cannot be made."""
    net = RetrievalNet.from_config(
        model, classes=2, in_chans=in_chans, score_init="constant", seed=0, image_size=image_size
    )
    macs = layer_macs(net, image_size)
    scored = prunable.layers(net)
    layers = [
        LayerFacts(name.removeprefix("backbone."), kind_of(m), m.get_parameter("weight").numel(), macs.get(name, 0))
        for name, m in scored.items()
    ]
    pruned = {f"{name}.{part}" for name in scored for part in ("weight", "score")}
    dense: dict[str, int] = {}
    for name, parameter in net.named_parameters():
        if name not in pruned and not name.startswith("classifier."):
            owner = net.get_submodule(name.rpartition(".")[0])
            inside = name.startswith(("backbone.", "pooling."))
            what = f"{type(owner).__name__}.{name.rpartition('.')[2]}" if inside else "neck"
            dense[what] = dense.get(what, 0) + parameter.numel()
    return BackboneFacts(layers, dense, sum(macs.values()), _widths(model, image_size, in_chans))


def inspect_channels(model: ModelConfig, image_size: int = 224, in_chans: int = 3) -> ChannelGraph:
    """Which channels of a timm backbone are tied to each other, and which can never be cut, with the reason."""
    net = RetrievalNet.from_config(
        model, classes=2, in_chans=in_chans, score_init="constant", seed=0, image_size=image_size
    )
    return net.channel_graph(image_size)


def inspect_granularities(
    model: ModelConfig, image_size: int = 224, in_chans: int = 3
) -> Iterator[tuple[str, str | None]]:
    """Each granularity, and why scores of that kind cannot be trained and cut with this backbone; None: they can.

    A network is made, trained for one step on two images of noise, and cut at half of its capacity; `channel`: the cut
    is made a smaller plain network too, whose features must be the same.
    """
    for granularity in GRANULARITIES:
        try:
            _try_out(model, granularity, image_size, in_chans)
        except PrunnetError as error:
            yield granularity, str(error)
        else:
            yield granularity, None


def _try_out(model: ModelConfig, granularity: str, image_size: int, in_chans: int) -> None:
    config = TrainConfig(capacities=(0.5,), granularity=granularity, precision="fp32", batch_size=2)
    images = torch.randn(2, in_chans, image_size, image_size, generator=torch.Generator().manual_seed(0))
    try:
        net = RetrievalNet.from_config(
            model,
            classes=2,
            in_chans=in_chans,
            score_init="magnitude",
            seed=0,
            image_size=image_size,
            granularity=granularity,
        )
        make_objective(net.train(), config, Context(Reducer(), torch.float32)).backward(images, torch.tensor([0, 1]), 0)
        cut = subnetwork(net.eval(), 0.5)
        cut.embed(images)
        if GRANULARITIES[granularity].channels:
            cut.compact(image_size)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PrunnetError):
            raise
        raise ConfigError(f"backbone {model.backbone!r} cannot be trained: {one_line(error)[:200]}") from None


def kind_of(layer: nn.Module) -> str:
    """A layer in a word."""
    if isinstance(layer, nn.Linear):
        return "linear"
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    size = "x".join(map(str, layer.kernel_size))
    if layer.groups == 1:
        return f"conv {size}"
    return f"depthwise {size}" if layer.groups == layer.in_channels else f"grouped {size} ({layer.groups})"


def _widths(model: ModelConfig, image_size: int, in_chans: int) -> str | None:
    try:
        SwitchableNet(
            model.backbone,
            2,
            in_chans=in_chans,
            stem=model.stem,
            options=sized_options(model, image_size),
            switch=[0.5],
        )
    except ConfigError as error:
        return str(error)
    return None
