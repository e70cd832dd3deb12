"""PrunNet's step (arXiv 2504.11879, CVPR 2025; METHODS section 2): N + 1 passes over one batch, whose gradients
are integrated without conflict, for weights and scores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from prunnet import prunable
from prunnet.communication import Reducer
from prunnet.config import TrainConfig
from prunnet.conflict import LayerRows, integrate_layers
from prunnet.masks import LayerMasks, in_memory_order, laid_out_like, update_all
from prunnet.nets import RetrievalNet


class PrunNet:
    """Gradients of the dense network and of the subnetworks of `config.capacities`.

    The dense pass also trains BatchNorm, neck and classifier and updates running statistics; a subnetwork's
    pass touches only the weights that it keeps.
    """

    def __init__(self, net: RetrievalNet, config: TrainConfig, reducer: Reducer, dtype: torch.dtype) -> None:
        self.net, self.config, self.reducer, self.dtype = net, config, reducer, dtype
        self.layers = prunable.layers(net)
        self.weights = {name: layer.get_parameter("weight") for name, layer in self.layers.items()}
        self.scores = {name: layer.get_parameter("score") for name, layer in self.layers.items()}
        pruned = {id(p) for p in (*self.weights.values(), *self.scores.values())}
        self.shared = [p for p in net.parameters() if id(p) not in pruned]
        self.masks = {name: LayerMasks(score, config.capacities) for name, score in self.scores.items()}
        self._threads = ThreadPoolExecutor(torch.get_num_threads())

    def backward(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        self.update_masks()
        dense, losses["loss_1"] = self._dense_pass(images, labels)
        pending = [dense]
        for index, capacity in enumerate(self.config.capacities):
            gradients, losses[f"loss_{capacity:g}"] = self._subnetwork_pass(images, labels, index)
            pending.append(gradients)
        self.integrate([gradients.wait() for gradients in pending], step)
        return losses

    def update_masks(self) -> None:
        """Selects the masks of all capacities from the scores as they are now; layers share the threads."""
        update_all(list(self.masks.values()), list(self.scores.values()), self._threads)

    def _loss(self, images: Tensor, labels: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = functional_call(self.net, tensors, (images,)) if tensors else self.net(images)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def _dense_pass(self, images: Tensor, labels: Tensor):  # type: ignore[no-untyped-def]
        loss = self._loss(images, labels, {})
        gradients = torch.autograd.grad(loss, [*self.weights.values(), *self.shared])
        return self.reducer.start(gradients), loss.detach()

    def _subnetwork_pass(self, images: Tensor, labels: Tensor, index: int):  # type: ignore[no-untyped-def]
        kept = {
            f"{name}.weight": self.masks[name].apply(weight, index).requires_grad_()
            for name, weight in self.weights.items()
        }
        with prunable.frozen_statistics(self.net):
            loss = self._loss(images, labels, kept)
        return self.reducer.start(torch.autograd.grad(loss, list(kept.values()))), loss.detach()

    @torch.no_grad()
    def integrate(self, passes: list[list[Tensor]], step: int) -> None:
        """Fills `.grad` from the averaged gradients of all passes; `passes[0]` is the dense one's."""
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
            projection=self.config.projection,
            block=self.config.block,
            weighting=self.config.weighting,
            exponent=self.config.exponent,
        )

    def _layer_rows(self, name: str, gradients: list[Tensor]) -> LayerRows:
        """One layer's gradients from all passes; each subnetwork's is put under its mask when it is read."""
        weight, score, masks = self.weights[name], self.scores[name], self.masks[name]
        # A convolution may hand its gradient back in another memory format than its weight has.
        dense, *subnetworks = (in_memory_order(laid_out_like(gradient, weight)) for gradient in gradients)

        def fill(kernels: slice, out: Tensor) -> None:
            out[:, 0] = dense[kernels]
            for index, gradient in enumerate(subnetworks):
                masks.apply_rows(gradient[kernels], index, out=out[:, index + 1], kernels=kernels)

        return LayerRows(
            fill=fill,
            count=len(gradients),
            weight=in_memory_order(weight.detach()),
            score=in_memory_order(laid_out_like(score.detach(), weight)),
            weight_grad=in_memory_order(_grad(weight)),
            score_grad=in_memory_order(_grad(score)),
        )


def _grad(parameter: Tensor) -> Tensor:
    """The parameter's gradient, made in its memory format where there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


def step_seed(seed: int, step: int) -> int:
    """One generator seed for each step of a run, alike on all ranks."""
    return (seed * 1_000_003 + step) % (2**63)
