"""Switchable widths (slimmable networks, as SFSC and SwitchNet use them): sub-model i runs the first share of every
layer's channels, with a BatchNorm of its own.

A width is a slice: the sub-model's tensors are views of the full network's, put in their place by
`torch.func.functional_call`, and a depthwise convolution gets as many groups as channels for the time of the
pass. `extract` makes a sub-model a plain, smaller `RetrievalNet` with equal features.

Works where layers are tied only by equal channel counts: ResNets and MobileNetV2 (residual additions, depthwise
convolutions). Grouped convolutions and LayerNorm are refused; concatenations show in a dry run, and are too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.config.choices import check_capacity
from prunnet.errors import ConfigError
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning.width_slices import _check_sliceable, _kept, channels, width_of


class SwitchableNet(RetrievalNet):
    """A RetrievalNet whose narrower sub-models share its weights.

    Args:
        switch: capacities of the sub-models beside the full network, each in (0, 1).
        arguments: as of RetrievalNet, without scores.

    Raises:
        ConfigError: a backbone that cannot be made narrower by slicing, with the reason.
    """

    def __init__(self, *arguments: Any, switch: Sequence[float], **named: Any) -> None:
        super().__init__(*arguments, **{**named, "scored": False})
        del self.spec["scored"]
        self.spec["switch"] = [float(c) for c in switch]
        for module in self.backbone.modules():
            _check_sliceable(module)
        # One BatchNorm a layer and sub-model, keyed "capacity index", "layer name" (no dots in module names).
        self.norms = nn.ModuleList(
            nn.ModuleDict({_key(name): _narrow_norm(norm, self._width_at(name, c)) for name, norm in self._norms()})
            for c in self.spec["switch"]
        )
        for index in range(len(self.norms)):
            self._dry_run(index)

    @property
    def switch(self) -> list[float]:
        """Capacities of the sub-models, as they were given."""
        return list(self.spec["switch"])

    def sub_model(self, index: int) -> dict[str, Tensor]:
        """Tensors of sub-model `index` by parameter and buffer name: slices of the shared ones (gradients flow
        through them), and its own BatchNorm's."""
        tensors = self._slices(width_of(self.switch[index]))
        for key, norm in self.norms[index].items():  # type: ignore[operator]
            name = key.replace("|", ".")
            tensors |= {f"{name}.{part}": t for part, t in (*norm.named_parameters(), *norm.named_buffers())}
        return tensors

    @contextmanager
    def narrowed(self, index: int) -> Iterator[None]:
        """For the time of a pass of sub-model `index`: depthwise convolutions have as many groups as channels."""
        width = width_of(self.switch[index])
        depthwise = [m for m in self.backbone.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        groups = [m.groups for m in depthwise]
        try:
            for module in depthwise:
                module.groups = channels(module.groups, width)
            yield
        finally:
            for module, before in zip(depthwise, groups, strict=True):
                module.groups = before

    def extract(self, capacity: float) -> RetrievalNet:
        """A plain, smaller network with copies of the tensors of this capacity; at a trained one its features
        equal the sub-model's.

        A capacity that was never trained takes the BatchNorm of the next larger trained one, sliced: calibrate it.
        """
        capacity = check_capacity(capacity)
        spec = {key: value for key, value in self.spec.items() if key != "switch"}
        width = 1.0 if capacity == 1.0 else width_of(capacity)
        plain = RetrievalNet(**{**spec, "width": width}, scored=False).to(next(self.parameters()).device)
        larger = [c for c in self.switch if c >= capacity]
        source = self.state_dict()
        if capacity < 1.0 and larger:
            source |= self.sub_model(self.switch.index(min(larger)))
        with torch.no_grad():
            for name, target in plain.state_dict(keep_vars=True).items():
                tensor = source[name]
                target.copy_(tensor[tuple(slice(0, n) for n in target.shape)] if target.dim() else tensor)
        return plain.train(self.training)

    def _norms(self) -> list[tuple[str, _BatchNorm]]:
        return [
            (name, module)
            for name, module in self.named_modules()
            if isinstance(module, _BatchNorm) and not name.startswith("norms.")
        ]

    def _width_at(self, name: str, capacity: float) -> float:
        return width_of(capacity) if name.startswith("backbone.") else 1.0  # the embedding keeps its length

    def _slices(self, width: float) -> dict[str, Tensor]:
        """Convolutions of the backbone and the neck's linear layer, sliced."""
        tensors = {}
        first = True
        for name, module in self.backbone.named_modules(prefix="backbone"):
            if isinstance(module, nn.Conv2d):
                for part, kept in _kept(module, width, first).items():
                    tensors[f"{name}.{part}"] = module.get_parameter(part)[kept]
                first = False
        neck = self.neck[0]
        assert isinstance(neck, nn.Linear)
        tensors["neck.0.weight"] = neck.weight[:, : channels(neck.in_features, width)]
        return tensors

    @torch.no_grad()
    def _dry_run(self, index: int) -> None:
        image = torch.zeros(2, self.spec["in_chans"], 64, 64)
        try:
            with self.narrowed(index):
                self.eval()
                functional_call(self, self.sub_model(index), (image,))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"backbone {self.spec['backbone']!r} cannot be made narrower by slicing its channels: "
                f"{' '.join(str(error).split())[:160]}; valid: ResNets and MobileNetV2"
            ) from None
        finally:
            self.train()


def build(spec: dict[str, Any]) -> RetrievalNet:
    """The network that a description (`net.spec`) stands for."""
    return SwitchableNet(**spec) if "switch" in spec else RetrievalNet(**spec)


def _narrow_norm(norm: _BatchNorm, width: float) -> _BatchNorm:
    """A BatchNorm of its own for a narrower sub-model, as freshly initialised as `norm`."""
    kind = nn.BatchNorm1d if isinstance(norm, nn.BatchNorm1d) else nn.BatchNorm2d
    own = kind(channels(norm.num_features, width), eps=norm.eps, momentum=norm.momentum)
    with torch.no_grad():
        own.weight.copy_(norm.weight[: own.num_features])
        own.bias.copy_(norm.bias[: own.num_features])
    return own


def _key(name: str) -> str:
    return name.replace(".", "|")
