"""One network alone at one capacity (METHODS section 4): the dense one, or a subnetwork whose mask is learned by its
own scores, with BatchNorm, neck and classifier of its own.

With a term it is a student: `bct`, `asymmetric`, `regression`, `prototypes`, `ndpp`, `odpp`.
"""

from __future__ import annotations

from prunnet.training.objectives.masked import Masked


class Independent(Masked):
    """A single pass at `train.alone` (None: dense)."""

    def draw(self, step: int) -> list[float]:
        return [self.config.alone or 1.0]
