"""The same modules with fewer channels: a training pass of a channel cut costs what the cut costs, not what the dense
network does.

Where only convolutions, linear layers and BatchNorms touch the channels that are cut, a masked pass and one with the
kept channels' tensors alone give the same loss and the same gradients: what is cut is not read, and BatchNorm knows
each channel by itself. Elsewhere (the heads of an attention, a layer of another kind) the pass stays a masked one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.networks.timm_library import timm
from prunnet.pruning.channel_scores import Ends
from prunnet.pruning.network import PrunableNet

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN = (*_CONVOLUTIONS, nn.Linear, timm.layers.Conv2dSame)
"""Exactly these: a layer that is derived from one may do something with its weight that depends on its shape. timm's
Conv2dSame (backbones from TensorFlow) pads by the image's size and the kernel's, and is a convolution then."""
_AGREE = 1e-3
"""Of the largest feature: by how much both ways may differ in float32."""


class Narrow:
    """One cut of a network of channels.

    Args:
        ends: layer -> (outputs, inputs) that stay, boolean.
        kept: the units that stay, boolean, group by group.
    """

    def __init__(self, net: PrunableNet, ends: Mapping[str, tuple[Tensor, Tensor]], kept: Sequence[Tensor]) -> None:
        self.net = net
        self.small: dict[str, Tensor] = {}
        """Weights of the pass, by layer."""
        self.ends: dict[str, Ends] = {}
        self._groups: dict[str, int] = {}
        for name, (made, read) in ends.items():
            module = net.get_submodule(name)
            whole = len(read) == module.get_parameter("weight").shape[1]
            self.ends[name] = Ends(_places(made), _places(read) if whole else None)
            if getattr(module, "groups", 1) != 1:
                self._groups[name] = int(module.groups) * int(made.sum()) // len(made)  # type: ignore[arg-type]
        self._norms = {name: _places(stays) for name, stays in _norms(net, kept).items()}

    def weights(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is left of each layer's weight, as leaves that ask for gradients."""
        self.small = {name: self.ends[name].cut(weight.detach()).requires_grad_() for name, weight in learned.items()}
        return self.small

    def widen(self, gradients: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of what is left -> of the whole weights, 0 elsewhere."""
        return {name: self.ends[name].widen(gradients[name], weight) for name, weight in learned.items()}

    def others(self) -> dict[str, Tensor]:
        """What goes with them: biases, and parameters and statistics of BatchNorms, by their names, `net.` before."""
        tensors = {}
        for name, places in (*((n, ends.made) for n, ends in self.ends.items()), *self._norms.items()):
            module = self.net.get_submodule(name)
            wanted = ("weight", "bias", "running_mean", "running_var") if name in self._norms else ("bias",)
            for part in wanted:
                tensor = module._parameters.get(part, module._buffers.get(part))
                if tensor is not None:
                    tensors[f"net.{name}.{part}"] = tensor.detach().index_select(0, places)
        return tensors

    @contextmanager
    def groups(self) -> Iterator[None]:
        """Grouped convolutions have fewer groups inside."""
        modules = {name: self.net.get_submodule(name) for name in self._groups}
        before = {name: module.groups for name, module in modules.items()}
        try:
            for name, module in modules.items():
                module.groups = self._groups[name]  # type: ignore[assignment]
            yield
        finally:
            for name, module in modules.items():
                module.groups = before[name]

    @torch.no_grad()
    def agrees(
        self,
        learned: Mapping[str, Tensor],
        masked: dict[str, Tensor],
        features: Callable[[dict[str, Tensor]], Tensor],
    ) -> bool:
        """Whether a few images get the features that they get from masked weights, both in evaluation mode.

        `features` runs the network with other tensors in place of those of their names (`net.` and the name in it).
        """
        training = self.net.training
        self.net.eval()
        try:
            wanted = features(masked)
            small = {f"net.{name}.weight": weight for name, weight in self.weights(learned).items()}
            with self.groups():
                found = features({**small, **self.others()})
        except (RuntimeError, ValueError):  # a module that knows how wide it is
            return False
        finally:
            self.net.train(training)
        return bool((found - wanted).abs().max() <= _AGREE * wanted.abs().max())


def can_be_narrow(net: PrunableNet) -> bool:
    """Whether all that touches the channels of a network is of the kinds that a narrow pass knows."""
    if net.channels is None:
        return False
    sites = {layer for group in net.channels.graph.groups for layer, _ in group.sites}
    modules = [net.get_submodule(name) for name in sites]
    heads = set(net.channels.graph.heads.values()) & sites
    return not heads and all(type(m) in _PLAIN or isinstance(m, _BatchNorm) for m in modules)


def _norms(net: PrunableNet, kept: Sequence[Tensor]) -> dict[str, Tensor]:
    """BatchNorm -> its channels that stay, boolean."""
    assert net.channels is not None
    stays: dict[str, Tensor] = {}
    for group, units in zip(net.channels.graph.groups, kept, strict=True):
        for (layer, side), numbers in group.sites.items():
            if side == "norm":
                unit = torch.as_tensor(numbers, device=units.device)
                mine = (unit < 0) | units[unit.clamp(min=0)]
                stays[layer] = stays[layer] & mine if layer in stays else mine
    return stays


def _places(stays: Tensor) -> Tensor:
    return stays.nonzero().squeeze(1)
