"""Gradients averaged over the workers, asynchronously: `start` now, `wait` when they are needed.

Conflict projection is not linear, so averaging has to come before it, and DDP's hooks (which average the sum)
cannot be used. One flat buffer a backward pass keeps it to one collective each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Pending:
    """Gradients of one pass on their way."""

    def __init__(self, tensors: Sequence[Tensor], flat: Tensor | None = None, work: dist.Work | None = None) -> None:
        self._tensors, self._flat, self._work = tensors, flat, work

    def wait(self) -> list[Tensor]:
        """The averaged tensors, in the order given to `start`."""
        if self._work is None or self._flat is None:
            return list(self._tensors)
        self._work.wait()
        pieces = self._flat.split([t.numel() for t in self._tensors])
        return [piece.as_strided(t.shape, t.stride()) for piece, t in zip(pieces, self._tensors, strict=True)]


class Reducer:
    """Averages over the workers of `group` (None: the default group); with one worker it does nothing."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.world = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
        self.rank = dist.get_rank(group) if self.world > 1 else 0

    def start(self, tensors: Sequence[Tensor]) -> Pending:
        """Begins to average; the tensors must be alike in shape and layout on all ranks."""
        if self.world == 1:
            return Pending(tensors)
        tensors = [_dense(t) for t in tensors]
        flat = torch.cat([_memory(t) for t in tensors])
        flat /= self.world
        return Pending(tensors, flat, dist.all_reduce(flat, group=self.group, async_op=True))

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Averages and waits."""
        return self.start(tensors).wait()

    def gather(self, tensor: Tensor) -> Tensor:
        """[*shape] on each rank -> [world, *shape] on all."""
        if self.world == 1:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.stack(parts)


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself where its memory is one dense block in a known order, else a contiguous copy."""
    if tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return tensor
    return tensor.contiguous()


def _memory(tensor: Tensor) -> Tensor:
    """A dense tensor's storage as one row, without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,))
