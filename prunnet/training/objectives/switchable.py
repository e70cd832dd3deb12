"""Switchable widths with the plain sum of the losses (slimmable networks, Yu et al. 2019; docs/METHODS.md, section
4)."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from prunnet.config.recipe import TrainConfig
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import SwitchableNet
from prunnet.pruning import prunable
from prunnet.training.objectives.base import Context, Objective, Part, Term, mean
from prunnet.training.objectives.masked import Both, total_loss


class Switchable(Objective):
    """One pass a width, the full network first; each width's BatchNorm sees its own pass alone."""

    net: SwitchableNet

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context, term: Term | None = None) -> None:
        assert isinstance(net, SwitchableNet)
        super().__init__(net, config, context, term)
        self.total_steps = context.total_steps
        self.capacities = [1.0, *net.switch]
        full = [p for _, norm in net._norms() for p in norm.parameters() if not self.frozen.holds(p)]
        self.norms: list[list[nn.Parameter]] = [full, *(list(norms.parameters()) for norms in net.norms)]
        """BatchNorm parameters of each pass."""
        owned = {id(p) for norms in self.norms for p in norms}
        of_net = [p for p in net.parameters() if id(p) not in owned and not self.frozen.holds(p)]
        self.shared = [*of_net, *self.loss.parameters().values()]
        self._both = Both(net)

    def backward(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        pending, losses, uncertainties = [], [], []
        parts = self.parts(images, labels)
        for index in range(len(self.capacities)):
            *gradients, loss, uncertainty = mean(parts, partial(self._gradients, index=index, step=step))
            pending.append(self.reducer.start(gradients))
            losses.append(loss)
            uncertainties.append(uncertainty)
        passes = [gradients.wait() for gradients in pending]
        for norms, averaged in zip(self.norms, passes, strict=True):
            for parameter, gradient in zip(norms, averaged[len(self.shared) :], strict=True):
                parameter.grad = gradient
        with torch.no_grad():
            self.combine([averaged[: len(self.shared)] for averaged in passes], uncertainties, step)
        return {f"loss_{c:g}": loss for c, loss in zip(self.capacities, losses, strict=True)}

    def _gradients(self, part: Part, index: int, step: int) -> list[Tensor]:
        """Of the loss on a part of the batch; the last two are the loss and the uncertainty."""
        images, labels, targets = part
        logits, features = self._forward(images, index)
        own = self.own_loss(logits, labels, index, step)
        own = self.loss(logits, features, labels) if own is None else own
        loss = total_loss(self.config, self.term, own, features, labels, targets)
        wanted = [*self.shared, *self.norms[index]]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        return [*gradients, loss.detach(), self.uncertainty(logits.detach())]

    def _forward(self, images: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """(logits, features) of pass `index`; 0 is the full network."""
        tensors = {f"net.{n}": t for n, t in self.net.sub_model(index - 1).items()} if index else {}
        with ExitStack() as inside:
            if index:  # a width's BatchNorms are its own, and train where the full network's are frozen
                inside.enter_context(self.net.narrowed(index - 1))
                inside.enter_context(prunable.batch_statistics(self.net, tracked=True))
            return self._both.run(images, tensors, self.dtype)

    def own_loss(self, logits: Tensor, labels: Tensor, index: int, step: int) -> Tensor | None:
        """A pass' own loss where it is the method's; None: `train.loss`."""
        return None

    def uncertainty(self, logits: Tensor) -> Tensor:
        """The uncertainty of a pass, a scalar, for `combine`."""
        return logits.new_zeros(())

    def combine(self, passes: list[list[Tensor]], uncertainties: list[Tensor], step: int) -> None:
        """Fills `.grad` of the shared parameters from the averaged gradients of all passes."""
        for parameter, *gradients in zip(self.shared, *passes, strict=True):
            parameter.grad = torch.stack(gradients).sum(0)
