"""Passes of masked subnetworks over one batch, whose gradients are integrated into one, for weights and scores.

The common part of `prunnet`, `joint` and the single networks: which capacities run (`draw`), and what becomes of
their gradients (`conflict.integrate_layers`). The first pass is the *main* one: it also trains BatchNorm, neck
and classifier and updates running statistics. The others touch only the weights that they keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from prunnet import prunable
from prunnet.communication import Pending
from prunnet.config import TrainConfig
from prunnet.conflict import LayerRows, integrate_layers
from prunnet.masks import LayerMasks, in_memory_order, laid_out_like, update_all
from prunnet.nets import RetrievalNet
from prunnet.objectives import Context, Objective, Term


class Masked(Objective):
    """Gradients of the main network and of subnetworks of the same scores.

    Args:
        term: a loss against an old network, added to every pass (or in place of the own loss).
    """

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context, term: Term | None = None) -> None:
        super().__init__(net, config, context, term)
        self.layers = prunable.layers(net)
        self.weights = {name: layer.get_parameter("weight") for name, layer in self.layers.items()}
        self.scores = {name: layer.get_parameter("score") for name, layer in self.layers.items()}
        pruned = {id(p) for p in (*self.weights.values(), *self.scores.values())}
        self.shared = [p for p in net.parameters() if id(p) not in pruned]
        self.capacities = self.draw(0)
        """Of the passes of the current step, the main one first; 1.0 is not masked."""
        self.masks = {name: LayerMasks(score, self.masked) for name, score in self.scores.items()}
        self._both = Both(net)
        self._threads = ThreadPoolExecutor(torch.get_num_threads())

    @property
    def masked(self) -> list[float]:
        """Capacities of the passes that are masked, in their order: all but a dense main pass."""
        return [capacity for capacity in self.capacities if capacity < 1.0]

    def draw(self, step: int) -> list[float]:
        """Capacities of a step's passes, the main one first; a function of the step alone."""
        raise NotImplementedError

    def pass_names(self) -> list[str]:
        """Names of the passes' losses."""
        return [f"loss_{capacity:g}" for capacity in self.capacities]

    def pass_weights(self, losses: Sequence[Tensor]) -> Tensor | None:
        """Weights of the passes where the method learns them."""
        return None

    def backward(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self.capacities = self.draw(step)
        self.update_masks()
        targets = () if self.term is None else self.term.targets(images, labels)
        pending, losses = [], []
        for index in range(len(self.capacities)):
            gradients, loss = self._pass(images, labels, targets, index)
            pending.append(gradients)
            losses.append(loss)
        weights = self.pass_weights(losses)
        self.integrate([gradients.wait() for gradients in pending], step, weights)
        return dict(zip(self.pass_names(), losses, strict=True))

    def update_masks(self) -> None:
        """Selects the masks of this step's capacities from the scores as they are now; layers share the threads."""
        if not self.masked:
            return
        update_all(
            list(self.masks.values()),
            list(self.scores.values()),
            self._threads,
            capacities=self.masked,
            allocation=self.config.allocation or "layer",
        )

    def _pass(self, images: Tensor, labels: Tensor, targets: tuple[Tensor, ...], index: int) -> tuple[Pending, Tensor]:
        weights: list[Tensor] = list(self.weights.values())
        tensors: dict[str, Tensor] = {}
        if self.capacities[index] < 1.0:
            mask = self._mask(index)
            weights = [self.masks[n].apply(w, mask).requires_grad_() for n, w in self.weights.items()]
            tensors = {f"net.{name}.weight": weight for name, weight in zip(self.weights, weights, strict=True)}
        if index == 0:
            loss = self._loss(images, labels, targets, tensors)
            gradients = torch.autograd.grad(loss, [*weights, *self.shared], allow_unused=True, materialize_grads=True)
        else:
            with prunable.frozen_statistics(self.net):
                loss = self._loss(images, labels, targets, tensors)
            gradients = torch.autograd.grad(loss, weights)
        return self.reducer.start(gradients), loss.detach()

    def _mask(self, index: int) -> int:
        """Which of `masks` a pass has."""
        return index - (self.capacities[0] == 1.0)

    def _loss(self, images: Tensor, labels: Tensor, targets: tuple[Tensor, ...], tensors: dict[str, Tensor]) -> Tensor:
        logits, features = self._both.run(images, tensors, self.dtype)
        return total_loss(self.config, self.term, logits, features, labels, targets)

    @torch.no_grad()
    def integrate(self, passes: list[list[Tensor]], step: int, weights: Tensor | None = None) -> None:
        """Fills `.grad` from the averaged gradients of all passes; `passes[0]` is the main one's."""
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, step))
        for parameter, gradient in zip(self.shared, passes[0][len(self.weights) :], strict=True):
            parameter.grad = gradient
        orders = [torch.randperm(len(passes), generator=generator).tolist() for _ in self.weights]
        layers = [
            self._layer_rows(name, [gradients[position] for gradients in passes])
            for position, name in enumerate(self.weights)
        ]
        integrate_layers(
            layers,
            orders,
            projection=self.config.projection or "none",
            block=self.config.block or "tensor",
            weighting=self.config.weighting or "mean",
            exponent=self.config.exponent,
            given=weights,
        )

    def _layer_rows(self, name: str, gradients: list[Tensor]) -> LayerRows:
        """One layer's gradients from all passes; each subnetwork's is put under its mask when it is read."""
        weight, score, masks = self.weights[name], self.scores[name], self.masks[name]
        # A convolution may hand its gradient back in another memory format than its weight has.
        rows = [in_memory_order(laid_out_like(gradient, weight)) for gradient in gradients]

        def fill(kernels: slice, out: Tensor) -> None:
            for index, gradient in enumerate(rows):
                if self.capacities[index] == 1.0:
                    out[:, index] = gradient[kernels]
                else:
                    masks.apply_rows(gradient[kernels], self._mask(index), out=out[:, index], kernels=kernels)

        return LayerRows(
            fill=fill,
            count=len(gradients),
            weight=in_memory_order(weight.detach()),
            score=in_memory_order(laid_out_like(score.detach(), weight)),
            weight_grad=in_memory_order(_grad(weight)),
            score_grad=in_memory_order(_grad(score)),
        )


class Both(nn.Module):
    """Lets functional_call reach logits and features at once."""

    def __init__(self, net: RetrievalNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(images)
        return self.net.classifier(features), features

    def run(self, images: Tensor, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(logits, features) with `tensors` in place of the parameters of their names, at least in float32."""
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits, features = functional_call(self, tensors, (images,)) if tensors else self(images)
        return _at_least_float32(logits), _at_least_float32(features)


def total_loss(
    config: TrainConfig,
    term: Term | None,
    logits: Tensor,
    features: Tensor,
    labels: Tensor,
    targets: tuple[Tensor, ...],
    own: Any = None,
) -> Tensor:
    """The network's own loss (cross-entropy unless `own` is given) and the weighted term."""
    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing) if own is None else own
    if term is None:
        return loss
    compared = term.loss(features, labels, targets)
    return loss + config.compatible_weight * compared if term.own_loss else compared


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _grad(parameter: Tensor) -> Tensor:
    """The parameter's gradient, made in its memory format where there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


def step_seed(seed: int, step: int) -> int:
    """One generator seed for each step of a run, alike on all ranks."""
    return (seed * 1_000_003 + step) % (2**63)
