"""What one score stands for: a weight (PrunNet), one of four weights of which two stay (`nm`), a kernel, or a channel
(METHODS section 7). A `Selection` holds the masks of all layers at some capacities, and knows what reaches the scores.

Only `channel` makes ordinary hardware faster; `nm` (2 of 4) does on GPUs with kernels for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

from torch import Tensor, nn

from prunnet.pruning.masks import LayerMasks, StoredMasks
from prunnet.pruning.narrow_pass import Narrow


class Selection:
    """The masks of a network's layers at several capacities, made anew from its scores by `update`.

    `layers` holds one set of masks a layer, in the order of the network: all that carry scores, then (granularity
    `channel`) further layers that read what may be cut, such as the neck.
    """

    layers: dict[str, LayerMasks] | dict[str, StoredMasks]
    fused = True
    """Whether a score's gradient is its own weight's times w * sign(s), so that it need not be stored."""

    def update(self, capacities: Sequence[float], threads: Executor | None = None) -> None:
        """Selects anew, from the scores as they are now."""
        raise NotImplementedError

    def narrow(self, mask: int) -> Narrow | None:
        """A cut as the same modules with smaller tensors; None where there is no such thing."""
        return None

    def score_rows(self, gradients: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]) -> list[ScoreRows]:
        """Gradients of scores that several weights share, from M passes (where not `fused`).

        gradients: one mapping a pass, layer name -> gradient of its (masked, or smaller) weight.
        """
        raise NotImplementedError


Cut = int | Narrow | None
"""What a pass had of the weights: a mask, smaller tensors, or (None) all of them."""
ScoreRows = tuple[nn.Parameter, Tensor]
"""A score tensor and its gradients [M, *shape]."""
