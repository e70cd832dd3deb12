"""SFSC: switchable widths, evidential loss, uncertainty priorities, PCGrad over the whole network (Wu et al., CVPR
2023, arXiv 2206.08289; METHODS section 3), and the variant that PrunNet's release compares with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prunnet.conflict import combine
from prunnet.objectives.masked import step_seed
from prunnet.objectives.switchable import Switchable


class Sfsc(Switchable):
    """The losses go through the full model's classifier, which the full model alone trains. Every other shared
    parameter gets the PCGrad combination of all passes, taken as one long vector."""

    def own_loss(self, logits: Tensor, labels: Tensor, index: int, step: int) -> Tensor | None:
        annealed = min(1.0, 2 * step / self.total_steps)
        return evidential_loss(logits, labels, self.config.evidence * annealed)

    def uncertainty(self, logits: Tensor) -> Tensor:
        return uncertainty(logits).mean()

    def combine(self, passes: list[list[Tensor]], uncertainties: list[Tensor], step: int) -> None:
        classifier = {id(p) for p in self.net.classifier.parameters()}
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
    """As re-implemented in PrunNet's release: the full model by plain cross-entropy, the others with a KL term of alpha
    itself at a constant 0.0005, no priorities, PCGrad over all shared parameters with the classifier, mean."""

    def own_loss(self, logits: Tensor, labels: Tensor, index: int, step: int) -> Tensor | None:
        return evidential_loss(logits, labels, 0.0005, whole=True) if index else None

    def combine(self, passes: list[list[Tensor]], uncertainties: list[Tensor], step: int) -> None:
        self._project(passes, list(range(len(self.shared))), self._priorities(uncertainties), step)


def evidential_loss(logits: Tensor, labels: Tensor, weight: float, *, whole: bool = False) -> Tensor:
    """Mean over images of E_Dir(alpha)[-log p_y] + weight * KL(Dir(alpha~) || Dir(1)), alpha = softplus(logits) + 1.

    E[-log p_y] = psi(S) - psi(alpha_y), S = sum alpha. alpha~ is alpha with the true class' entry set to 1, so that
    evidence for wrong classes alone is punished; `whole` takes alpha itself, as the release does.

    Args:
        logits: [B, K]. labels: [B]. weight: >= 0.
    """
    alpha = F.softplus(logits) + 1
    own = alpha.gather(1, labels[:, None])
    expected = torch.digamma(alpha.sum(dim=1)) - torch.digamma(own).squeeze(1)
    if weight == 0:
        return expected.mean()
    wrong = alpha if whole else alpha.scatter(1, labels[:, None], 1.0)
    return (expected + weight * kl_to_uniform(wrong)).mean()


def kl_to_uniform(alpha: Tensor) -> Tensor:
    """KL(Dir(alpha) || Dir(1, …, 1)) for alpha [B, K], > 0 -> [B]."""
    total = alpha.sum(dim=1, keepdim=True)
    classes = torch.tensor(float(alpha.shape[1]), dtype=alpha.dtype, device=alpha.device)
    log_normaliser = torch.lgamma(total).squeeze(1) - torch.lgamma(alpha).sum(dim=1) - torch.lgamma(classes)
    return log_normaliser + ((alpha - 1) * (torch.digamma(alpha) - torch.digamma(total))).sum(dim=1)


def uncertainty(logits: Tensor) -> Tensor:
    """u = K / S in (0, 1] for logits [B, K] -> [B]."""
    return logits.shape[1] / (F.softplus(logits) + 1).sum(dim=1)
