"""What one score stands for: a weight (PrunNet), one of four weights of which two stay (`nm`), a kernel, or a channel
(docs/METHODS.md, section 7). A `Selection` holds the masks of all layers at some capacities, and computes the gradients
of the scores; `prunnet.config.granularities` names that of each granularity.

Only `channel` makes ordinary hardware faster; `nm` (2 of 4) does on GPUs with kernels for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

from torch import Tensor, nn

from prunnet.pruning.masks import LayerMasks, StoredMasks
from prunnet.pruning.narrow_pass import Narrow
from prunnet.pruning.network import PrunableNet


class Selection:
    """The masks of a network's layers at several capacities, made anew from its scores by `update`.

    `layers` holds one set of masks a layer, in the order of the network: all that carry scores, then (granularity
    `channel`) further layers that read what may be cut, such as the neck.
    """

    layers: dict[str, LayerMasks] | dict[str, StoredMasks]
    fused = True
    """Whether a score's gradient is its own weight's times w * sign(s), so that it need not be stored."""
    prunes = ""
    """Which layers it can prune, for messages, such as "whose inputs come in fours"; empty: all."""

    def __init__(
        self, net: PrunableNet, scores: Mapping[str, Tensor], capacities: Sequence[float], allocation: str
    ) -> None:
        """
        Args:
            scores: those of the network (`prunable.scores`), or others of their shapes.
            allocation: of the capacity to the layers, one that the granularity has.
        """
        raise NotImplementedError

    @classmethod
    def score_shape(cls, weight: Tensor) -> Sequence[int] | None:
        """The shape of a layer's scores, which broadcasts to its weight's [O, I, …]; None where the layer is not
        pruned. (Not asked for scores of channels.)"""
        return weight.shape

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
