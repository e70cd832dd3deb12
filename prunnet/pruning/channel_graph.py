"""Which channels of a network can only be cut together, found by running it.

A channel can be cut out only with everything that is tied to it: what a residual sum adds to it, the depthwise or
grouped convolution that it passes through, its BatchNorm, the same place of a fused projection, and whatever reads it.
No names are looked at, nor kinds of blocks: one layer after the other sends NaN through the network, in a pattern of
its channels, and where the NaN arrives is what depends on them. Image b of the batch has NaN in all channels whose
number has bit b, image bits + b in all others; an input channel that NaN reaches in exactly one of each pair
has read off the number of the one channel that it depends on. One that NaN reaches in both depends on several
(LayerNorm, softmax), so none of these can be cut without changing the others, and they are kept, with the reason.
All other layers answer zeros, so that a pass costs next to nothing but what stands between the layers. That grows with
the image, and what is tied does not: the passes are made on a small image where the network takes one.

The one rule that NaN cannot show is that of attention: query and key meet in a product over the places of a head. A
module with `num_heads` whose one fused projection is three times as wide as what its other linear layer reads is cut at
the same places of all heads, in query, key and value alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.errors import ConfigError
from prunnet.pruning.prunable import is_prunable

Slot = tuple[str, str, int]
"""(layer, `out`, `in` or `norm`, channel)."""


@dataclass(frozen=True)
class Group:
    """Units of the same kind: each is a set of channels that are cut together, or not at all."""

    units: int
    width: int
    """Channels a unit of one layer has: 1, or those of a group of a grouped convolution."""
    sites: dict[tuple[str, str], np.ndarray]
    """(layer, side) -> [channels] the unit of each channel, -1 where it is of another group or of none."""

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return next(layer for layer, side in self.sites if side == "out")


@dataclass(frozen=True)
class ChannelGraph:
    """The groups of a network, and why the other channels are kept."""

    groups: tuple[Group, ...]
    kept: dict[str, str]
    """Layer whose output channels are all kept -> the reason."""
    heads: dict[str, str]
    """Module of an attention -> its fused projection."""


_SIDES = (32, 64)
"""Pixels of the smaller images that are tried, in order."""


@torch.no_grad()
def trace(net: nn.Module, run: Callable[[Tensor], Any], image: Tensor) -> ChannelGraph:
    """The channel groups of `net`.

    Args:
        run: what is run for an image batch, such as `net.features`.
        image: [1, C, H, W], of a size that the network takes. A smaller one is used in its place where all layers are
            then called alike.

    Raises:
        ConfigError: a network that makes NaN by itself, so that nothing can be seen.
    """
    was_training = net.training
    net.eval()
    try:
        with _one_thread():
            small = _smallest(net, run, image)
        with nullcontext() if small is image else _one_thread():
            return _Tracer(net, run, small).graph()
    finally:
        net.train(was_training)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of operations of some microseconds each: further threads would only wait for each other, spinning."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _smallest(net: nn.Module, run: Callable[[Tensor], Any], image: Tensor) -> Tensor:
    """A small part of the image for which the network calls the same layers, in the same order, with as many channels;
    the image itself where there is none: networks made for one size, and those whose parts depend on it."""
    wanted: list[tuple[str, int, int]] | None = None
    for side in _SIDES:
        if side >= min(image.shape[-2:]):
            break
        wanted = wanted or _calls(net, run, image)
        small = image[..., :side, :side]
        with suppress(Exception):  # models raise errors of any kind for a size that they do not take
            if _calls(net, run, small) == wanted:
                return small
    return image


def _calls(net: nn.Module, run: Callable[[Tensor], Any], image: Tensor) -> list[tuple[str, int, int]]:
    """Name, dimensions and channels of what each prunable layer gives, call by call."""
    called: list[tuple[str, int, int]] = []

    def record(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            called.append((name, output.dim(), output.shape[axis]))

        return hook

    hooks = [m.register_forward_hook(record(name)) for name, m in net.named_modules() if is_prunable(m)]
    try:
        run(torch.zeros_like(image))
    finally:
        for hook in hooks:
            hook.remove()
    return called


class _SettledError(Exception):
    """The rest of a pass can show nothing new."""


class _Tracer:
    def __init__(self, net: nn.Module, run: Callable[[Tensor], Any], image: Tensor) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.readers: dict[str, nn.Module] = {}
        """Modules whose input is looked at: the layers, and all others that own tensors."""
        for name, module in net.named_modules():
            if is_prunable(module):
                self.layers[name] = module
            if any(True for _ in module.parameters(recurse=False)) and not getattr(module, "channelwise", False):
                self.readers[name] = module
        self.net, self.run = net, run
        widest = max(_channels(module, "out") for module in self.layers.values())
        self.bits = max(1, int(widest - 1).bit_length())
        self.images = image.expand(2 * self.bits, -1, -1, -1)
        self.shapes: dict[str, list[torch.Size]] = {}
        self._record_shapes()
        self.layers = {name: layer for name, layer in self.layers.items() if name in self.shapes}
        self.heads = dict(self._attentions())
        self.parent: dict[Slot, Slot] = {}
        self.reasons: dict[Slot, str] = {}

    def graph(self) -> ChannelGraph:
        clean = self._arrivals(None)
        if any(bool(pattern.any()) for pattern in clean.values()):
            raise ConfigError("the network makes NaN of zeros, so its channels cannot be traced")
        for name, layer in self.layers.items():
            self._tie_groups(name, layer)
            for slot in (*_slots(layer, name, "out"), *_slots(layer, name, "in")):
                self._find(slot)
        for name in self.layers:
            if not self._last(name):
                self._follow(name, self._arrivals(name))
        for projection in self.heads.values():
            self._tie_heads(projection)
        return self._collect()

    def _record_shapes(self) -> None:
        def record(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Tensor) -> None:
                self.shapes.setdefault(name, []).append(output.shape)

            return hook

        hooks = [layer.register_forward_hook(record(name)) for name, layer in self.layers.items()]
        try:
            self.run(torch.zeros_like(self.images))
        finally:
            for hook in hooks:
                hook.remove()

    def _last(self, name: str) -> bool:
        """Whether it is the last layer that is run: its outputs leave the network."""
        return name == list(self.shapes)[-1]

    def _arrivals(self, source: str | None) -> dict[str, Tensor]:
        """Reader -> [2 bits, channels] where NaN arrives that `source` sends out (None: nobody does).

        The pass ends where a reader settles that the channels are kept, or a module around the source has let none of
        its NaN out.
        """
        arrived: dict[str, Tensor] = {}

        def look(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                pattern = self._pattern(module, inputs[0])
                arrived[name] = arrived[name] | pattern if name in arrived else pattern
                if source is not None and bool(pattern.any()) and self._refused(source, name, pattern):
                    raise _SettledError

            return hook

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(output.isnan().any()):
                raise _SettledError

        hooks = [module.register_forward_pre_hook(look(name)) for name, module in self.readers.items()]
        hooks += [module.register_forward_hook(leave) for module in self._around(source)]
        try:
            with self._answering(source), suppress(_SettledError):
                self.run(torch.zeros_like(self.images))
        finally:
            for hook in hooks:
                hook.remove()
        return arrived

    def _around(self, source: str | None) -> list[nn.Module]:
        """The modules that a layer is part of, where it is called once."""
        if source is None or len(self.shapes[source]) > 1:
            return []
        parts = source.split(".")
        return [self.net.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]

    def _pattern(self, module: nn.Module, given: Tensor) -> Tensor:
        """[2 bits, channels]: where an input holds NaN. A batch that was split otherwise than by images counts as
        mixed."""
        axis = 1 if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, _BatchNorm)) else given.dim() - 1
        holds = given.isnan()
        if not bool(holds.any()):
            return torch.zeros(len(self.images), given.shape[axis], dtype=torch.bool)
        if given.shape[0] % len(self.images):
            return torch.ones(len(self.images), given.shape[axis], dtype=torch.bool)
        return holds.movedim(axis, -1).reshape(len(self.images), -1, given.shape[axis]).any(1).cpu()

    @contextmanager
    def _answering(self, source: str | None) -> Iterator[None]:
        """Every layer answers zeros; `source` has NaN in its pattern of channels."""
        try:
            for name, layer in self.layers.items():
                layer.forward = self._answer(name, layer, name == source)
            yield
        finally:
            for layer in self.layers.values():
                del layer.forward  # the class' own again

    def _answer(self, name: str, layer: nn.Module, loud: bool) -> Callable[[Tensor], Tensor]:
        calls = iter(self.shapes[name])

        def forward(_: Tensor) -> Tensor:
            answer = self.images.new_zeros(next(calls))
            if loud:
                axis = answer.dim() - 1 if isinstance(layer, nn.Linear) else 1
                by_image = answer.movedim(axis, -1)
                by_image = by_image.view(len(self.images), -1, by_image.shape[-1]) if axis != 1 else by_image
                number = torch.arange(answer.shape[axis])
                for bit in range(self.bits):
                    has = (number >> bit & 1).bool()
                    by_image[bit, ..., has] = torch.nan
                    by_image[self.bits + bit, ..., ~has] = torch.nan
            return answer

        return forward

    def _follow(self, source: str, arrivals: dict[str, Tensor]) -> None:
        """Unites the source's channels with those that they reach, or notes why they cannot be cut."""
        for reader, pattern in arrivals.items():
            if not bool(pattern.any()):
                continue
            reason = self._refused(source, reader, pattern)
            if reason is not None:
                for slot in _slots(self.layers[source], source, "out"):
                    self.reasons.setdefault(slot, reason)
            else:
                self._unite(source, reader, pattern)

    def _refused(self, source: str, reader: str, pattern: Tensor) -> str | None:
        """Why the source's channels cannot be cut, seen from one reader; None: they can."""
        module, where = self.readers[reader], reader.removeprefix("backbone.")
        if not (is_prunable(module) or isinstance(module, _BatchNorm)):
            return f"they pass through {type(module).__name__} ({where})"
        mixed = bool((pattern[: self.bits] & pattern[self.bits :]).any())
        return f"they are mixed with others before {where}" if mixed and not self._attended(source, reader) else None

    def _attended(self, source: str, reader: str) -> bool:
        """Whether `source` is the fused projection of the attention whose result `reader` reads."""
        module, _, last = reader.rpartition(".")
        return last == "proj" and self.heads.get(module) == source

    def _unite(self, source: str, reader: str, pattern: Tensor) -> None:
        side = "norm" if isinstance(self.readers[reader], _BatchNorm) else "in"
        made = _channels(self.layers[source], "out")
        numbers = (pattern[: self.bits] * (1 << torch.arange(self.bits))[:, None]).sum(0)
        for channel in torch.nonzero(pattern.any(0)).flatten().tolist():
            number = int(numbers[channel])
            if self._attended(source, reader):  # query and key reach all places of a head; the value's is what is read
                number = 2 * made // 3 + channel
            assert number < made, (source, reader, channel)
            self._join((source, "out", number), (reader, side, channel))

    def _tie_groups(self, name: str, layer: nn.Module) -> None:
        """A grouped convolution stays one: a group's inputs and outputs are cut together."""
        groups = getattr(layer, "groups", 1)
        if groups == 1:
            return
        for side in ("in", "out"):
            size = _channels(layer, side) // groups
            for channel in range(_channels(layer, side)):
                self._join((name, "out", channel // size * (_channels(layer, "out") // groups)), (name, side, channel))

    def _attentions(self) -> Iterator[tuple[str, str]]:
        for name, module in self.net.named_modules():
            fused, out = getattr(module, "qkv", None), getattr(module, "proj", None)
            if not (isinstance(fused, nn.Linear) and isinstance(out, nn.Linear) and hasattr(module, "num_heads")):
                continue
            if f"{name}.qkv" not in self.layers:
                continue  # used through its weight (EVA, BEiT), so its output cannot be traced
            extra = [getattr(module, part, None) for part in ("q_norm", "k_norm", "norm", "gate", "rope", "rotary_emb")]
            plain = all(part is None or isinstance(part, nn.Identity) for part in extra)
            if plain and fused.out_features == 3 * out.in_features and out.in_features % _heads(module) == 0:
                yield name, f"{name}.qkv"

    def _tie_heads(self, projection: str) -> None:
        """The same place of all heads, in query, key and value, is one unit."""
        module = self.net.get_submodule(projection.rpartition(".")[0])
        made = _channels(self.layers[projection], "out")
        place = made // 3 // _heads(module)
        for channel in range(made):
            self._join((projection, "out", channel % place), (projection, "out", channel))

    def _find(self, slot: Slot) -> Slot:
        root = slot
        while self.parent.setdefault(root, root) != root:
            root = self.parent[root]
        while self.parent[slot] != root:
            self.parent[slot], slot = root, self.parent[slot]
        return root

    def _join(self, one: Slot, other: Slot) -> None:
        self.parent[self._find(other)] = self._find(one)

    def _collect(self) -> ChannelGraph:
        """Components that may be cut, sorted into groups of the same layers."""
        components: dict[Slot, list[Slot]] = {}
        for slot in list(self.parent):
            components.setdefault(self._find(slot), []).append(slot)
        last = list(self.shapes)[-1]
        kept = dict.fromkeys((n for n in self.layers if n == last), "they are what the network puts out")
        groups: dict[tuple[Any, ...], list[list[Slot]]] = {}
        for members in components.values():
            makers = [slot for slot in members if slot[1] == "out"]
            reason = next((self.reasons[slot] for slot in makers if slot in self.reasons), None)
            if any(slot[0] == last for slot in makers) or not makers:
                continue
            if reason is None and not any(slot[1] == "in" for slot in members):
                reason = "nothing is seen to read them"
            if reason is not None:
                kept |= {layer: kept.get(layer, reason) for layer, _, _ in makers}
                continue
            sites: dict[tuple[str, str], int] = {}
            for layer, side, _ in members:
                sites[layer, side] = sites.get((layer, side), 0) + 1
            groups.setdefault(tuple(sorted(sites.items())), []).append(members)
        order = {name: place for place, name in enumerate(self.shapes)}
        made = [self._group(units, order) for units in groups.values()]
        return ChannelGraph(tuple(sorted(made, key=lambda g: order[g.name])), kept, self.heads)

    def _group(self, units: list[list[Slot]], order: dict[str, int]) -> Group:
        def first(members: list[Slot]) -> tuple[int, int]:
            return min((order[layer], channel) for layer, side, channel in members if side == "out")

        units = sorted(units, key=first)
        names = sorted({slot[:2] for slot in units[0]}, key=lambda site: (order.get(site[0], len(order)), site))
        makers = [site for site in names if site[1] == "out"]
        sites = {
            (layer, side): np.full(_channels(self.readers[layer], side), -1)
            for layer, side in [*makers, *(site for site in names if site[1] != "out")]
        }
        for number, members in enumerate(units):
            for layer, side, channel in members:
                sites[layer, side][channel] = number
        fused = any(layer in self.heads.values() for layer, _ in makers)
        width = 1 if fused else min(sum(s[:2] == maker for s in units[0]) for maker in makers)
        return Group(len(units), width, sites)


def _heads(module: Any) -> int:
    return int(module.num_heads)


def _channels(module: nn.Module, side: str) -> int:
    if isinstance(module, _BatchNorm):
        return module.num_features
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    return int(module.out_channels if side == "out" else module.in_channels)  # type: ignore[arg-type]


def _slots(layer: nn.Module, name: str, side: str) -> list[Slot]:
    return [(name, side, channel) for channel in range(_channels(layer, side))]
