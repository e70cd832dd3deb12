"""Passes of masked subnetworks over one batch, whose gradients are integrated into one, for weights and scores.

The common part of `prunnet`, `joint` and the single networks: which capacities run (`draw`), and how their gradients
are integrated (`conflict.integrate_layers`). The first pass is the *main* one: it also trains BatchNorm, neck
and classifier and updates running statistics. The others touch only the weights that they keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunnet.config.recipe import TrainConfig
from prunnet.errors import ConfigError
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.granularities.base import Cut, ScoreRows
from prunnet.pruning.granularities.by_name import select
from prunnet.pruning.masks import LayerMasks, StoredMasks, in_memory_order, laid_out_like
from prunnet.pruning.narrow_pass import Narrow
from prunnet.training.gradients.conflict import integrate, integrate_layers
from prunnet.training.gradients.reducer import Pending
from prunnet.training.gradients.rows import LayerRows
from prunnet.training.objectives.base import Context, Objective, Part, Term, mean

_LOOKS = 10
"""How often in a training a pass on smaller tensors is compared with a masked one."""


@dataclass(frozen=True)
class _Pass:
    """The result of one pass, whose gradients are being averaged."""

    pending: Pending
    loss: Tensor
    narrow: Narrow | None
    """Whose tensors the gradients are of; None: of whole weights."""


class Masked(Objective):
    """Gradients of the main network and of subnetworks of the same scores.

    Args:
        term: a loss against an old network, added to every pass (or in place of the own loss).
    """

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context, term: Term | None = None) -> None:
        super().__init__(net, config, context, term)
        self.layers = prunable.layers(net)
        self.weights = {name: layer.get_parameter("weight") for name, layer in self.layers.items()}
        self.scores = prunable.scores(net)
        # Weights of frozen layers stay among `weights`: their scores may learn, from the weights' gradients.
        left_out = {id(p) for p in (*self.weights.values(), *self.scores.values(), *self.frozen.parameters.values())}
        of_net = {name: p for name, p in net.named_parameters() if id(p) not in left_out}
        self.shared = of_net | self.loss.parameters()
        """Trained by the main pass alone, the loss' class weights too."""
        self.capacities = self.draw(0)
        """Of the passes of the current step, the main one first; 1.0 is not masked."""
        _check_passes(net, config)
        self.selection = select(net, self.masked, allocation=config.allocation or "layer")
        self.readers = {
            name: net.get_submodule(name).get_parameter("weight")
            for name in self.selection.layers
            if name not in self.weights
        }
        """Shared weights that read what a mask cuts (granularity `channel`): masked, too, and trained by the main
        pass."""
        self._conflicts: list[Tensor] = []
        self._narrows: bool | None = None
        """Whether passes of channel subnetworks run on smaller tensors; None: not checked yet."""
        self._looks_every = max(1, context.total_steps // _LOOKS)
        """Steps between two checks that they still match masked passes."""
        self._both = Both(net)
        self._threads = ThreadPoolExecutor(torch.get_num_threads())

    @property
    def masks(self) -> Mapping[str, LayerMasks | StoredMasks]:
        """Layer name -> its masks, one for each of `masked`."""
        return self.selection.layers

    @property
    def masked(self) -> list[float]:
        """Capacities of the passes that are masked, in their order: all but a dense main pass."""
        return [capacity for capacity in self.capacities if capacity < 1.0]

    def conflicts(self) -> dict[str, float]:
        seen, self._conflicts = self._conflicts, []
        return dict(zip(self.weights, torch.stack(seen).mean(0).tolist(), strict=True)) if seen else {}

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
        parts = self.parts(images, labels)
        self._look(parts[0][0], step)
        passes = [self._pass(parts, index) for index in range(len(self.capacities))]
        losses = [run.loss for run in passes]
        weights = self.pass_weights(losses)
        self.integrate([run.pending.wait() for run in passes], step, weights, [run.narrow for run in passes])
        return dict(zip(self.pass_names(), losses, strict=True))

    def update_masks(self) -> None:
        """Selects the masks of this step's capacities from the scores as they are now; layers share the threads."""
        if self.masked:
            self.selection.update(self.masked, self._threads)

    def _pass(self, parts: Sequence[Part], index: int) -> _Pass:
        """Gradients of one pass, in the order of `weights`, `readers` and, from the main one, `shared`."""
        learned = {**self.weights, **self.readers}
        mask, narrow = self._mask(index), self._narrow(index)
        used: dict[str, Tensor] = dict(learned)
        tensors: dict[str, Tensor] = {}
        if narrow is not None:
            used = narrow.weights(learned)
            tensors = narrow.others()
        elif mask is not None:
            used = {name: self.masks[name].apply(w, mask).requires_grad_() for name, w in learned.items()}
        if mask is not None:
            tensors |= {f"net.{name}.weight": weight for name, weight in used.items()}
        wanted = [*used.values(), *(self.shared.values() if index == 0 else ())]
        with ExitStack() as inside:
            if mask is not None:
                inside.enter_context(prunable.batch_statistics(self.net))
            if index > 0:
                inside.enter_context(prunable.frozen_statistics(self.net))
            if narrow is not None:
                inside.enter_context(narrow.groups())
            *gradients, loss = mean(parts, lambda part: self._gradients(part, tensors, wanted))
        return _Pass(self.reducer.start(gradients), loss, narrow)

    def _gradients(self, part: Part, tensors: dict[str, Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        """Of the loss on a part of the batch; the last is the loss itself."""
        images, labels, targets = part
        logits, features = self._both.run(images, tensors, self.dtype)
        loss = total_loss(self.config, self.term, self.loss(logits, features, labels), features, labels, targets)
        return [*torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True), loss.detach()]

    def _narrow(self, index: int) -> Narrow | None:
        """A pass' cut as smaller tensors, where that gives what masks give; never the main one's, which trains what all
        capacities share."""
        mask = self._mask(index)
        return None if index == 0 or mask is None or not self._narrows else self.selection.narrow(mask)

    def _look(self, images: Tensor, step: int) -> None:
        """Checks that a pass on smaller tensors gives the features of the masked pass.

        At the first step of a process all BatchNorm scales are 1 for the check, since timm starts residual branches at
        scale 0, which would hide any difference. Later checks, ten a training, take the network as it is, each time
        another pass. Once a check fails on any worker, all passes are masked from then on."""
        first = self._narrows is None
        if len(self.capacities) == 1 or self._narrows is False or not (first or step % self._looks_every == 0):
            return
        index = 1 + step // self._looks_every % (len(self.capacities) - 1)
        mask = self._mask(index)
        assert mask is not None
        narrow = self.selection.narrow(mask)

        def features(tensors: dict[str, Tensor]) -> Tensor:
            return self._both.run(images[:2], tensors, torch.float32)[1]

        agrees = narrow is not None
        if narrow is not None:
            learned = {**self.weights, **self.readers}
            masked = {f"net.{n}.weight": self.masks[n].apply(w, mask) for n, w in learned.items()}
            with prunable.unit_scales(self.net) if first else nullcontext():
                agrees = narrow.agrees(learned, masked, features)
        # All workers alike, or they would send gradients of different sizes.
        self._narrows = bool(self.reducer.gather(torch.tensor(float(agrees), device=images.device)).min())

    def _mask(self, index: int) -> int | None:
        """Which of `masks` a pass has; None: it is dense."""
        return None if self.capacities[index] == 1.0 else index - (self.capacities[0] == 1.0)

    @torch.no_grad()
    def integrate(
        self,
        passes: list[list[Tensor]],
        step: int,
        weights: Tensor | None = None,
        narrows: Sequence[Narrow | None] = (),
    ) -> None:
        """Fills `.grad` from the averaged gradients of all passes; `passes[0]` is the main one's. `narrows`: the passes
        whose gradients are of smaller tensors."""
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, step))
        learned = {**self.weights, **self.readers}
        named = [dict(zip(learned, gradients, strict=False)) for gradients in passes]
        cuts = [cut or self._mask(index) for index, cut in enumerate(narrows or [None] * len(passes))]
        rest = passes[0][len(self.weights) + len(self.readers) :]
        for (name, parameter), gradient in zip(self.shared.items(), rest, strict=True):
            reader = name.removesuffix(".weight")
            main = self._mask(0)
            if main is not None and reader in self.readers:  # what was seen, and got the gradient, is its masked copy
                parameter.grad = self.masks[reader].apply(named[0][reader], main)
            else:
                parameter.grad = gradient
        options: dict[str, Any] = {
            "projection": self.config.projection or "none",
            "weighting": self.config.weighting or "mean",
            "exponent": self.config.exponent,
        }
        block = self.config.block or "tensor"
        orders = [torch.randperm(len(passes), generator=generator).tolist() for _ in self.weights]
        whole = [
            cut.widen(gradients, self.weights) if isinstance(cut, Narrow) else gradients
            for gradients, cut in zip(named, cuts, strict=True)
        ]
        layers = [self._layer_rows(name, [gradients[name] for gradients in whole], cuts) for name in self.weights]
        conflicts = integrate_layers(layers, orders, block=block, given=weights, threads=self._threads, **options)
        if conflicts is not None:
            self._conflicts.append(conflicts)
        if not self.selection.fused:
            order = torch.randperm(len(passes), generator=generator).tolist()
            rows = [row for row in self.selection.score_rows(named, cuts) if not self.frozen.holds(row[0])]
            _integrate_scores(rows, block, {**options, "order": order, "weights": weights})

    def _layer_rows(self, name: str, gradients: list[Tensor], cuts: Sequence[Cut]) -> LayerRows:
        """One layer's gradients from all passes; each subnetwork's is put under its mask when it is read (what was
        widened from smaller tensors is 0 already where nothing was)."""
        weight, masks = self.weights[name], self.masks[name]
        score = self.scores[name] if self.selection.fused else None
        # A convolution may hand its gradient back in another memory format than its weight has.
        gradients = [in_memory_order(laid_out_like(gradient, weight)) for gradient in gradients]
        for gradient, cut in zip(gradients, cuts, strict=True):
            if isinstance(masks, LayerMasks) and isinstance(cut, int):
                masks.zero_ties(gradient, cut)
        return LayerRows(
            gradients=gradients,
            weight=in_memory_order(weight.detach()),
            weight_grad=in_memory_order(_grad(weight)),
            score=None if score is None else in_memory_order(laid_out_like(score.detach(), weight)),
            score_grad=None if score is None else in_memory_order(_grad(score)),
            masks=masks,
            cuts=[cut if isinstance(cut, int) else None for cut in cuts],
            learned=(not self.frozen.holds(weight), score is None or not self.frozen.holds(self.scores[name])),
        )


def _integrate_scores(rows: list[ScoreRows], block: str, options: dict[str, Any]) -> None:
    """Scores that stand for several weights. One of a channel is a number, which has no direction: the block is
    then the whole tensor."""
    if block == "network" and rows:
        flat = torch.cat([of_score.flatten(1) for _, of_score in rows], dim=1)
        joined = integrate(flat, block="tensor", **options).split([score.numel() for score, _ in rows])
        for (score, _), gradient in zip(rows, joined, strict=True):
            score.grad = gradient.view_as(score)
        return
    for score, of_score in rows:
        score.grad = integrate(of_score, block=block if score.dim() > 1 else "tensor", **options)


def _check_passes(net: RetrievalNet, config: TrainConfig) -> None:
    """ConfigError if the network has another granularity than the settings."""
    if net.granularity != config.granularity:
        raise ConfigError(
            f"train.granularity={config.granularity!r} does not fit a network made with granularity={net.granularity!r}"
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
            # Not tied: a module that a backbone uses at two places (CoaT) would keep the other tensors for good.
            masked = functional_call(self, tensors, (images,), tie_weights=False) if tensors else self(images)
        return _at_least_float32(masked[0]), _at_least_float32(masked[1])


def total_loss(
    config: TrainConfig,
    term: Term | None,
    own: Tensor,
    features: Tensor,
    labels: Tensor,
    targets: tuple[Tensor, ...],
) -> Tensor:
    """The network's own loss and the weighted term."""
    if term is None:
        return own
    compared = term.loss(features, labels, targets)
    return own + config.compatible_weight * compared if term.own_loss else compared


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
