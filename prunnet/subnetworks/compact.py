"""A subnetwork as an ordinary, smaller network: no masks, no scores, and without the channels that do nothing.

A channel group (`pruning.channel_graph`) is cut out if no layer reads it, as in every subnetwork of granularity
`channel`, or if it has no input and is zero, as sparse masks of other granularities sometimes leave it. Cutting one
group may leave another unread, so this is repeated until nothing changes; the result is compared with the masked
network before it is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.errors import ConfigError, one_line
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.channel_graph import ChannelGraph, Group

TOLERANCE = 1e-7
"""By which embeddings of the plain network may differ from the masked one's, both in float64; what float32 adds is
rounding."""


class PlainNet(nn.Module):
    """Backbone, pooling and neck: normalised images [B, C, H, W] -> L2-normalised embeddings [B, embedding_dim],
    float32."""

    def __init__(self, backbone: nn.Module, pooling: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone, self.pooling, self.neck = backbone, pooling, neck

    def features(self, images: Tensor) -> Tensor:
        """As `RetrievalNet.features`."""
        return self.neck(self.pooling(self.backbone(images)))

    def forward(self, images: Tensor) -> Tensor:
        """As `RetrievalNet.embed`."""
        return F.normalize(self.features(images).float())


@torch.no_grad()
def compact(source: RetrievalNet, state: Mapping[str, Tensor], image_size: int | None = None) -> PlainNet:
    """The plain network, in evaluation mode, whose features are a subnetwork's.

    Args:
        source: the network that the subnetwork was cut from.
        state: its tensors as the subnetwork has them, masked weights among them (`Subnetwork.state`).
        image_size: pixels a side of the images that it is compared on; None: what the network was made for, or 64.

    Raises:
        ConfigError: a backbone whose channels cannot be cut out so that the features stay, with the reason.
    """
    net = _plain(source, state)
    size = image_size or native_size(source)
    graph = source.channel_graph(size)
    images = torch.randn(2, net.spec["in_chans"], size, size, generator=torch.Generator().manual_seed(0)).double()
    wanted = F.normalize(net.features(images))
    _cut_out(net, graph, _living(net, graph, images))
    _compare(net, images, wanted)
    return PlainNet(net.backbone, net.pooling, net.neck).eval().to(next(source.parameters()))


def native_size(net: RetrievalNet) -> int:
    """Pixels a side of an image that the network takes: its own size where it has one, else 64."""
    known = net.spec.get("image_size") or net.spec["options"].get("img_size")
    if known:
        return int(known)
    embed = getattr(net.backbone, "patch_embed", None)
    fixed = getattr(embed, "img_size", None)
    return int(fixed[0]) if fixed else 64


def _plain(source: RetrievalNet, state: Mapping[str, Tensor]) -> RetrievalNet:
    """The masked network without masks, in float64: its tensors, zeros among them, in a network of the same shape."""
    spec = {
        k: v for k, v in source.spec.items() if k not in ("granularity", "channel_multiple", "image_size", "scored")
    }
    net = RetrievalNet(**spec, scored=False).double()
    net.load_state_dict({name: t.cpu() for name, t in state.items() if not prunable.is_score(name)})
    return net.eval()


def _living(net: RetrievalNet, graph: ChannelGraph, images: Tensor) -> list[Tensor]:
    """One boolean [units] a group: the units that are kept, at least one. The weights of the others are set to zero."""
    alive = [torch.ones(group.units, dtype=torch.bool) for group in graph.groups]
    changed = True
    while changed:
        changed = False
        silent = _silent(net, graph, images)
        for number, group in enumerate(graph.groups):
            dead = alive[number] & (_unread(net, group, graph) | silent[number])
            if bool(dead.any()):
                changed = True
                alive[number] &= ~dead
                _still(net, group, dead)
    for kept in alive:
        kept[0] |= not bool(kept.any())
    return alive


def _unread(net: RetrievalNet, group: Group, graph: ChannelGraph) -> Tensor:
    """Units that no layer reads; in an attention, whose query and key are constants besides (which softmax forgets)."""
    read = torch.zeros(group.units, dtype=torch.bool)
    for (layer, side), units in group.sites.items():
        weight = _weight(net, layer, side)
        if weight is None:
            continue
        fused = layer in graph.heads.values()
        if side == "in" and weight.shape[1] == len(units):
            _mark(read, units, (weight != 0).any(0))
        elif side == "out" and fused:
            query_and_key = (weight != 0).any(1)
            query_and_key[2 * len(units) // 3 :] = False
            _mark(read, units, query_and_key)
    return ~read


def _silent(net: RetrievalNet, graph: ChannelGraph, images: Tensor) -> list[Tensor]:
    """Units of each group that get nothing and are zero where they are read."""
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            axis = 1 if isinstance(module, nn.Conv2d) else inputs[0].dim() - 1
            active = (inputs[0] != 0).movedim(axis, -1).flatten(0, -2).any(0)
            seen[name] = seen[name] | active if name in seen else active

        return hook

    readers = {layer for group in graph.groups for layer, side in group.sites if side == "in"}
    hooks = [net.get_submodule(name).register_forward_pre_hook(look(name)) for name in readers]
    try:
        net.features(images)
    finally:
        for hook in hooks:
            hook.remove()
    result = []
    for group in graph.groups:
        heard = torch.zeros(group.units, dtype=torch.bool)
        for (layer, side), units in group.sites.items():
            weight = _weight(net, layer, side)
            if weight is not None and side == "out":
                _mark(heard, units, (weight != 0).any(1))
            elif weight is not None and layer in seen:
                _mark(heard, units, seen[layer])
        result.append(~heard)
    return result


def _mark(flags: Tensor, units: Any, channels: Tensor) -> None:
    """Sets the flags of the units whose channels are set."""
    unit = torch.as_tensor(units)
    flags[unit[(unit >= 0) & channels]] = True


def _weight(net: RetrievalNet, layer: str, side: str) -> Tensor | None:
    """[O, all the rest of a kernel] or, for the inputs, [O, I]: a layer's weight, taken together over places."""
    if side == "norm":
        return None
    weight = net.get_submodule(layer).get_parameter("weight")
    if side == "out":
        return weight.flatten(1)
    return weight.flatten(2).abs().sum(2) if weight.dim() > 2 else weight


def _still(net: RetrievalNet, group: Group, dead: Tensor) -> None:
    """Sets the weights that make and that read some units to zero, so that channels that only these units used count as
    unused."""
    for (layer, side), units in group.sites.items():
        unit = torch.as_tensor(units)
        channels = (unit >= 0) & dead[unit.clamp(min=0)]
        module = net.get_submodule(layer)
        if side == "out":
            module.get_parameter("weight")[channels] = 0
        elif side == "in" and module.get_parameter("weight").shape[1] == len(units):
            module.get_parameter("weight")[:, channels] = 0


def _cut_out(net: RetrievalNet, graph: ChannelGraph, alive: list[Tensor]) -> None:
    """Leaves only the living units' channels in every layer, in place."""
    kept: dict[tuple[str, str], Tensor] = {}
    for group, living in zip(graph.groups, alive, strict=True):
        for site, units in group.sites.items():
            unit = torch.as_tensor(units)
            stays = (unit < 0) | living[unit.clamp(min=0)]
            kept[site] = kept[site] & stays if site in kept else stays
    fused = {name: cast(nn.Linear, net.get_submodule(projection)) for name, projection in graph.heads.items()}
    before = {name: projection.out_features for name, projection in fused.items()}
    for layer in dict.fromkeys(layer for layer, _ in kept):
        module = net.get_submodule(layer)
        if isinstance(module, _BatchNorm):
            _narrow_norm(module, kept[layer, "norm"])
        else:
            _narrow(module, kept.get((layer, "out")), kept.get((layer, "in")))
    for name, projection in fused.items():
        _narrow_heads(net.get_submodule(name), projection, before[name])
    net.backbone.num_features = net.neck[0].in_features


def _narrow(layer: nn.Module, out: Tensor | None, inner: Tensor | None) -> None:
    weight: Tensor = layer.get_parameter("weight")
    if out is not None:
        weight = weight[out]
        if layer._parameters.get("bias") is not None:
            layer.bias = nn.Parameter(layer.get_parameter("bias")[out].clone())
    if inner is not None and weight.shape[1] == len(inner):
        weight = weight[:, inner]
    layer.weight = nn.Parameter(weight.clone())
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
        return
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if layer.groups > 1:
        layer.groups = layer.groups * len(weight) // layer.out_channels
    layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups


def _narrow_heads(module: Any, fused: nn.Linear, before: int) -> None:
    """Sets the new width of an attention. Fused kernels divide by the root of the head size that they see, so the
    query's weights are scaled to compensate, and the module's own factor is scaled back."""
    width = fused.out_features // 3
    for attribute, value in (("head_dim", width // module.num_heads), ("attn_dim", width)):
        if hasattr(module, attribute):
            setattr(module, attribute, value)
    root = (fused.out_features / before) ** 0.5
    fused.weight[:width] *= root
    if fused.bias is not None:
        fused.bias[:width] *= root
    module.scale = module.scale / root


def _narrow_norm(norm: _BatchNorm, stays: Tensor) -> None:
    for part in ("weight", "bias"):
        if norm._parameters.get(part) is not None:
            setattr(norm, part, nn.Parameter(norm.get_parameter(part)[stays].clone()))
    for part in ("running_mean", "running_var"):
        if norm._buffers.get(part) is not None:
            setattr(norm, part, norm.get_buffer(part)[stays].clone())
    norm.num_features = int(stays.sum())


def _compare(small: RetrievalNet, images: Tensor, wanted: Tensor) -> None:
    try:
        found = F.normalize(small.features(images))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the channels of this backbone cannot be cut out: {one_line(error)[:200]}") from None
    if not torch.allclose(found, wanted, atol=TOLERANCE, rtol=0):
        worst = float((found - wanted).abs().max())
        raise ConfigError(
            f"the channels of this backbone cannot be cut out: features would differ by "
            f"{worst:.1e} (allowed: {TOLERANCE:g})"
        )
