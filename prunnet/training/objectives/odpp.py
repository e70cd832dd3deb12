"""ODPP: optimisation-driven prototype perturbation (arXiv 2503.14824; METHODS section 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prunnet.training.objectives.masked import step_seed
from prunnet.training.objectives.prototypes import Prototypes

THRESHOLD, RATE, EPOCHS, BATCH = 0.9, 1e-3, 100, 1024


class Odpp(Prototypes):
    """Old prototypes with a learned offset each, found anew every epoch as the new prototypes move."""

    moves = True

    def perturb(self, old: Tensor, new: Tensor, epoch: int) -> Tensor:
        return perturb(old, new, seed=step_seed(self.config.seed, epoch))[0]


def perturb(
    old: Tensor,
    new: Tensor,
    *,
    seed: int,
    threshold: float = THRESHOLD,
    rate: float = RATE,
    epochs: int = EPOCHS,
    batch: int = BATCH,
) -> tuple[Tensor, list[float]]:
    """(p~ [classes, d], the objective of every step): p~_c = normalize(p_c + offset_c), offsets zero at first, by Adam.

    Args:
        old, new: [classes, d] unit prototypes p and q.
        threshold: similarity up to which two prototypes may stay.
        batch: classes of a step; every epoch visits each class once.
    """
    offsets = torch.zeros_like(old, requires_grad=True)
    adam = torch.optim.Adam([offsets], lr=rate)
    generator = torch.Generator().manual_seed(seed)
    course = []
    for _ in range(epochs):
        for classes in torch.randperm(len(old), generator=generator).split(batch):
            classes = classes.to(old.device)
            if len(classes) < 2:
                continue
            value = crowding(F.normalize(old[classes] + offsets[classes]), new[classes], threshold)
            (gradient,) = torch.autograd.grad(value, offsets)
            offsets.grad = gradient
            adam.step()
            course.append(float(value.detach()))
    return F.normalize(old + offsets.detach()), course


def crowding(perturbed: Tensor, new: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """mean max(<p~_i, p~_j> - t, 0) + mean max(<p~_i, q_j> - t, 0) over pairs i != j of [classes, d] prototypes."""
    count = len(perturbed)
    other = ~torch.eye(count, dtype=torch.bool, device=perturbed.device)
    among_old = (perturbed @ perturbed.T - threshold).clamp(min=0)[other].mean()
    among_new = (perturbed @ new.T - threshold).clamp(min=0)[other].mean()
    return among_old + among_new
