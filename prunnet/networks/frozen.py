"""What `train.freeze` names: parameters that are not trained, BatchNorms whose statistics stay.

Frozen parameters keep `requires_grad`: the scores of a frozen layer learn from the gradient of its weights. The
training loop drops the gradients of frozen parameters before it clips and steps, so that nothing moves or decays them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.errors import ConfigError, echo
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable

_ALWAYS = frozenset(["norms", "channels"])
"""What patterns do not reach: the BatchNorms of a switchable network's widths, which belong to the widths and train;
the scores of channel groups."""
_NEAR = 3
"""Names that a message suggests, at most."""


@dataclass(frozen=True)
class Frozen:
    """Parameters and BatchNorms of a network that a training leaves as they are."""

    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    """Modules that stay in evaluation mode (`RetrievalNet.held`)."""

    @classmethod
    def of(cls, net: RetrievalNet, patterns: Sequence[str], *, scores: bool = False) -> Frozen:
        """What the patterns name, with all that is inside.

        Args:
            patterns: names of modules such as `backbone.layer1`, or patterns as of `fnmatch`, whose `*` matches dots
                too.
            scores: the scores of frozen layers do not train either. One of a group of channels is frozen where all
                layers that make these channels are.

        Raises:
            ConfigError: a pattern that names no module with parameters or statistics; nothing is left to train.
        """
        modules = {name: module for name, module in net.named_modules() if name and name.split(".")[0] not in _ALWAYS}
        holding = [name for name, m in modules.items() if any(True for _ in chain(m.parameters(), m.buffers()))]
        roots: set[str] = set()
        for pattern in patterns:
            found = [name for name in holding if fnmatchcase(name, pattern)]
            if not found:
                raise ConfigError(_nothing(pattern, holding))
            roots.update(found)
        inside = {name for name in modules if any(f"{name}.".startswith(f"{root}.") for root in roots)}
        frozen = {
            f"{name}.{part}": parameter
            for name in sorted(inside)
            for part, parameter in modules[name].named_parameters(recurse=False)
            if part != "score"
        }
        if scores:
            frozen |= _scores_of(net, inside)
        left = [n for n, p in net.named_parameters() if n not in frozen and not n.startswith("norms.")]
        if patterns and not left:
            raise ConfigError(f"train.freeze={echo(list(patterns))} leaves nothing to train; valid: a part of it")
        return cls(frozen, tuple(sorted(name for name in inside if isinstance(modules[name], _BatchNorm))))

    def holds(self, parameter: Tensor) -> bool:
        """Whether a parameter is frozen."""
        return id(parameter) in self._ids

    @cached_property
    def _ids(self) -> frozenset[int]:
        return frozenset(map(id, self.parameters.values()))

    def drop_gradients(self) -> None:
        """None, not 0: weight decay and momentum would move what has a gradient of 0."""
        for parameter in self.parameters.values():
            parameter.grad = None


def _scores_of(net: RetrievalNet, frozen: set[str]) -> dict[str, nn.Parameter]:
    """The scores of frozen layers, by the names of their parameters."""
    channels = prunable.channels_of(net)
    if channels is None:
        return {f"{name}.score": score for name, score in prunable.scores(net).items() if name in frozen}
    return {
        f"channels.scores.{number}": score
        for number, (group, score) in enumerate(zip(channels.graph.groups, channels.scores, strict=True))
        if all(layer in frozen for layer, side in group.sites if side == "out")
    }


def _nothing(pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=_NEAR, cutoff=0.4)
    hint = f" did you mean {' or '.join(map(repr, near))}?" if near else ""
    parts = sorted({name.split(".")[0] for name in names})
    return f"train.freeze: no module is named {echo(pattern)};{hint} valid: names below {', '.join(parts)}, or patterns"
