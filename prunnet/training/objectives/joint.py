"""Joint training: PrunNet's passes, the plain sum of their gradients, no conflict handling (METHODS section 4).

BatchNorm, neck and classifier are trained by the dense pass alone, as in PrunNet, so that the two differ in
nothing but the integration.
"""

from __future__ import annotations

from prunnet.training.objectives.prunnet import PrunNet


class Joint(PrunNet):
    """`projection: none`, `weighting: mean`: (N + 1) times the mean is the sum."""
