"""One step, one epoch, fit; checkpoints. torch.distributed, not Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.training.trainer import Trainer as Trainer
    from prunnet.training.trainer import fit as fit

__getattr__, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.training.trainer": ["Trainer", "fit"],
    },
)
