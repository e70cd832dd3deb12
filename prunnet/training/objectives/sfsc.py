"""SFSC: switchable widths, evidential loss, uncertainty priorities, PCGrad over the whole network (Wu et al., CVPR
2023, arXiv 2206.08289; docs/METHODS.md, section 3), and what PrunNet's release runs under that name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prunnet.training.gradients.conflict import combine
from prunnet.training.objectives.masked import step_seed
from prunnet.training.objectives.switchable import Switchable

_LARGEST = 15.0
"""Logit up to which evidence grows as its exponent: exp(15) is a hundred times the classes of large data sets, and
float32 still resolves the sums of evidence."""


class Sfsc(Switchable):
    """The losses go through the full model's classifier (or class weights), which the full model alone trains. Every
    other shared parameter gets the PCGrad combination of all passes, taken as one long vector."""

    def own_loss(self, logits: Tensor, labels: Tensor, index: int, step: int) -> Tensor | None:
        if self.config.evidential == "none":
            return None
        annealed = min(1.0, 2 * step / self.total_steps)
        return evidential_loss(logits, labels, self.config.evidence * annealed, self._kind)

    def uncertainty(self, logits: Tensor) -> Tensor:
        return uncertainty(logits, self._kind).mean()

    @property
    def _kind(self) -> str:
        return self.config.evidential or "exp"

    def combine(self, passes: list[list[Tensor]], uncertainties: list[Tensor], step: int) -> None:
        classifier = {id(p) for p in (*self.net.classifier.parameters(), *self.loss.parameters().values())}
        body = [i for i, p in enumerate(self.shared) if id(p) not in classifier]
        for parameter, gradient in zip(self.shared, passes[0], strict=True):
            if id(parameter) in classifier:
                parameter.grad = gradient
        self._project(
            [[gradients[i] for i in body] for gradients in passes], body, self._priorities(uncertainties), step
        )

    def _priorities(self, uncertainties: list[Tensor]) -> Tensor:
        """Weights of the passes, sum N + 1."""
        (mean,) = self.reducer.average([torch.stack(uncertainties)])
        if self.config.priorities == "equal":
            return torch.ones_like(mean)
        return len(mean) * mean / mean.sum()

    def _project(self, passes: list[list[Tensor]], places: list[int], priorities: Tensor, step: int) -> None:
        """PCGrad in Gram space, and its result as gradients of `shared[places]`."""
        count = len(passes)
        gram = priorities.new_zeros(count, count, dtype=torch.float64)
        for layer in zip(*passes, strict=True):
            rows = torch.stack(layer).flatten(1)
            gram += (rows @ rows.T).double()
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, step))
        order = torch.randperm(count, generator=generator).tolist()
        (coefficients,) = combine(
            [gram[None]], [order], projection="sequential", weighting="mean", exponent=0.0, scales=priorities[None]
        )
        if self.config.reduction == "mean":
            coefficients = coefficients / count
        for place, *tensors in zip(places, *passes, strict=True):
            stacked = torch.stack(tensors)
            weights = coefficients[0].to(stacked)
            self.shared[place].grad = torch.einsum("i,i...->...", weights, stacked)


class SfscReleased(Sfsc):
    """As PrunNet's release runs it: each of its commands sets USE_SFSC_LOSS to False, so that what is left is
    cross-entropy with PCGrad over all shared parameters, the classifier among them; no priorities, mean."""

    def combine(self, passes: list[list[Tensor]], uncertainties: list[Tensor], step: int) -> None:
        self._project(passes, list(range(len(self.shared))), self._priorities(uncertainties), step)


def evidence(logits: Tensor, kind: str) -> Tensor:
    """The evidence for each class, >= 0: `exp` of the logit (clamped at 15) or `softplus`. [B, K] -> [B, K].

    Beside it every class has a prior mass of 1. Softplus must reach a logit of K to outweigh the K of them, and its
    gradient is then a K-th of cross-entropy's; exp reaches it at log K.
    """
    return F.softplus(logits) if kind == "softplus" else torch.exp(logits.clamp(max=_LARGEST))


def evidential_loss(logits: Tensor, labels: Tensor, weight: float, kind: str) -> Tensor:
    """Mean over images of E_Dir(alpha)[-log p_y] + weight * KL(Dir(alpha~) || Dir(1)), alpha = evidence + 1.

    E[-log p_y] = psi(S) - psi(alpha_y), S = sum alpha. alpha~ is alpha with the true class' entry set to 1, so that
    evidence for wrong classes alone is punished.

    Args:
        logits: [B, K]. labels: [B]. weight: >= 0. kind: see `evidence`.
    """
    alpha = evidence(logits, kind) + 1
    own = alpha.gather(1, labels[:, None])
    expected = torch.digamma(alpha.sum(dim=1)) - torch.digamma(own).squeeze(1)
    if weight == 0:
        return expected.mean()
    wrong = alpha.scatter(1, labels[:, None], 1.0)
    return (expected + weight * kl_to_uniform(wrong)).mean()


def kl_to_uniform(alpha: Tensor) -> Tensor:
    """KL(Dir(alpha) || Dir(1, …, 1)) for alpha [B, K], > 0 -> [B]."""
    total = alpha.sum(dim=1, keepdim=True)
    classes = torch.tensor(float(alpha.shape[1]), dtype=alpha.dtype, device=alpha.device)
    log_normaliser = torch.lgamma(total).squeeze(1) - torch.lgamma(alpha).sum(dim=1) - torch.lgamma(classes)
    return log_normaliser + ((alpha - 1) * (torch.digamma(alpha) - torch.digamma(total))).sum(dim=1)


def uncertainty(logits: Tensor, kind: str) -> Tensor:
    """u = K / S in (0, 1] for logits [B, K] -> [B]."""
    return logits.shape[1] / (evidence(logits, kind) + 1).sum(dim=1)
