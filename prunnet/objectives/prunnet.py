"""PrunNet's step (arXiv 2504.11879, CVPR 2025; METHODS section 2): N + 1 passes over one batch, whose gradients
are integrated without conflict, for weights and scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from prunnet import prunable
from prunnet.communication import Reducer
from prunnet.config import TrainConfig
from prunnet.conflict import integrate_with_scores
from prunnet.masks import LayerMasks, in_memory_order, laid_out_like
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
        self._buffer: Tensor | None = None

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
        """Selects the masks of all capacities from the scores as they are now."""
        for name, score in self.scores.items():
            self.masks[name].update(score)

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
        for position, (name, weight) in enumerate(self.weights.items()):
            order = torch.randperm(len(passes), generator=generator).tolist()
            score = self.scores[name]
            rows = self._masked_rows(name, [gradients[position] for gradients in passes])
            for parameter in (weight, score):
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(weight)
            assert weight.grad is not None
            assert score.grad is not None
            integrate_with_scores(
                rows,
                in_memory_order(laid_out_like(weight * score.sign(), weight)),
                out=(in_memory_order(weight.grad), in_memory_order(score.grad)),
                projection=self.config.projection,
                block=self.config.block,
                weighting=self.config.weighting,
                exponent=self.config.exponent,
                order=order,
            )

    def _masked_rows(self, name: str, gradients: list[Tensor]) -> Tensor:
        """Gradients of one weight -> rows [O, M, n], each subnetwork's under its mask; in shared scratch memory."""
        # A convolution may hand its gradient back in another memory format than its weight has.
        flat = [in_memory_order(laid_out_like(gradient, self.weights[name])) for gradient in gradients]
        kernels, size = flat[0].shape
        rows = self._scratch(kernels * len(gradients) * size, flat[0]).view(kernels, len(gradients), size)
        rows[:, 0] = flat[0]
        for index, gradient in enumerate(flat[1:]):
            self.masks[name].apply_rows(gradient, index, out=rows[:, index + 1])
        return rows

    def _scratch(self, size: int, like: Tensor) -> Tensor:
        if self._buffer is None or self._buffer.dtype != like.dtype:
            largest = max(weight.numel() for weight in self.weights.values())
            self._buffer = like.new_empty(largest * (len(self.config.capacities) + 1))
        return self._buffer[:size]


def step_seed(seed: int, step: int) -> int:
    """One generator seed for each step of a run, alike on all ranks."""
    return (seed * 1_000_003 + step) % (2**63)
