"""Refits a subnetwork layer by layer, so that each layer's output approximates the dense network's.

A mask leaves each layer with fewer inputs than it was trained on, and what goes missing adds up from layer to layer:
the subnetwork's embeddings drift away from those of the dense network, whose gallery they search. Here, from the first
layer to the last, the weights that the mask keeps are solved anew by least squares, so that from the subnetwork's own
input a layer's output comes as near to the dense network's as it can (reconstruction, as in channel pruning: He et al.
2017, arXiv 1707.06168; Luo et al. 2017, arXiv 1707.06342). It takes training images without labels, as the
re-estimation of BatchNorm does. There is no training by gradients, and masked weights stay 0.

One pass of the images through each of the two networks does it: when a layer's turn comes in the subnetwork, all before
it have their new weights, and BatchNorm normalises by the images' own statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.networks.timm_library import timm
from prunnet.subnetworks.subnet import Subnetwork

ROWS, LEAST, PER_INPUT = 16_384, 4_096, 64
"""Rows of the regression, over all images: `PER_INPUT` per input of an output, at least `LEAST`, at most `ROWS`. A row
is one position of a layer's output in one image."""
_SMALL = 2**24
"""Up to so many matrix elements (groups * outputs * inputs^2), all rows are solved in one batch."""
_FEW = 4
"""With at most so many distinct sets of kept inputs in a layer, each is solved directly, once for all its outputs."""
_ITERATIONS, _ENOUGH = 100, 1e-6
"""Conjugate gradients: most iterations, and the relative residual at which they stop."""


@dataclass(frozen=True)
class _Wanted:
    """What a layer should put out."""

    places: Tensor
    """[n, P]: at which places of each image, as indices of the flattened output."""
    outputs: Tensor
    """[n * P, O]: what the dense network's layer puts out there."""
    normalised: bool
    """Whether BatchNorm follows, so that a constant in the output makes no difference."""


@torch.no_grad()
def reconstruct(cut: Subnetwork, dense: Subnetwork, images: Tensor, ridge: float = 0.5) -> Subnetwork:
    """Refits the weights that `cut` keeps, one layer after the other, and returns it. Its BatchNorm statistics are then
    those of `images`: calibrate it again on more.

    Args:
        dense: capacity 1 of the same network, calibrated.
        images: normalised [n, C, H, W]; one layer's activations of all of them are in memory at a time, or a few.
        ridge: pull towards the old weights, above 0: `ridge` times inputs / places, in units of the inputs' variance.
            The less a layer is seen, the less it moves.

    A layer that is called twice in a pass, and a convolution of another kind than torch's or timm's plain ones, stays
    as it is.
    """
    assert cut.net is dense.net, "two subnetworks of one network"
    assert ridge > 0
    wanted = _wanted(dense, images)
    cut.own(f"{name}.{part}" for name in wanted for part in ("weight", "bias"))
    modules = {name: cut.net.get_submodule(name) for name in wanted}

    def refit(name: str, module: Any, given: tuple[Tensor, ...]) -> None:
        _refit(module, given[0], wanted.pop(name), cut.masks.get(name), ridge)

    with _hooked((module.register_forward_pre_hook, partial(refit, name)) for name, module in modules.items()):
        cut.calibrate([images])
    cut.reconstructed = True
    return cut


def _wanted(dense: Subnetwork, images: Tensor) -> dict[str, _Wanted]:
    """By layer, in the order in which they are called."""
    named = dict(dense.net.named_modules())
    layers = {n: m for n, m in named.items() if _is_plain(m) and not n.startswith("classifier")}
    norms = [module for module in named.values() if isinstance(module, _BatchNorm)]
    found: dict[str, _Wanted] = {}
    calls: Counter[str] = Counter()
    normalised: set[str] = set()
    last: tuple[str, Any] = ("", None)
    generator = torch.Generator().manual_seed(0)

    def seen(name: str, module: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal last
        by_place, calls[name], last = _by_place(output, module), calls[name] + 1, (name, output)
        images, places = by_place.shape[:2]
        rows = min(ROWS, max(LEAST, PER_INPUT * module.weight[0].numel()))
        drawn = torch.rand(images, places, generator=generator).argsort(1)[:, : max(1, rows // images)]
        chosen = drawn.to(by_place.device)
        outputs = by_place.gather(1, chosen[..., None].expand(-1, -1, by_place.shape[2])).flatten(0, 1)
        found[name] = _Wanted(chosen, outputs, normalised=False)

    def norm(module: Any, given: tuple[Tensor, ...]) -> None:
        if given[0] is last[1]:
            normalised.add(last[0])

    hooks: list[tuple[Callable[..., Any], Any]] = [
        *((module.register_forward_hook, partial(seen, name)) for name, module in layers.items()),
        *((module.register_forward_pre_hook, norm) for module in norms),
    ]
    with _hooked(hooks):
        dense.embed(images)
    once = {name: each for name, each in found.items() if calls[name] == 1}
    return {name: _Wanted(each.places, each.outputs, name in normalised) for name, each in once.items()}


def _is_plain(module: nn.Module) -> bool:
    """Whether an output is the weight times the input, plus a bias. Exact types: a subclass may change its weight."""
    return type(module) in (nn.Linear, nn.Conv2d, timm.layers.Conv2dSame)


def _refit(module: Any, given: Tensor, wanted: _Wanted, mask: Tensor | None, ridge: float) -> None:
    """Changes a layer's weight, and its bias, in place."""
    groups = getattr(module, "groups", 1)
    every = _inputs(module, given, wanted.places)  # [groups, rows, D]
    weight = module.weight.reshape(groups, -1, every.shape[2])
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.reshape(weight.shape)
    # Whole groups, outputs and inputs that are cut are left out of all sums.
    alive, made, read = kept.any(2).any(1), kept.any(2).any(0), kept.any(1).any(0)
    kept, old = (tensor[alive][:, made][..., read] for tensor in (kept, weight.double()))
    x = every[alive][..., read]
    y = wanted.outputs.unflatten(1, (groups, -1)).transpose(0, 1)[alive][..., made]
    rows, columns = x.shape[1:]
    centred = wanted.normalised or module.bias is not None
    mean_x = x.mean(1, keepdim=True) if centred else torch.zeros_like(x[:, :1])
    mean_y = y.mean(1, keepdim=True) if centred else torch.zeros_like(y[:, :1])
    x, y = x - mean_x, y - mean_y
    gram = (x.transpose(1, 2) @ x).double()
    variances = gram.diagonal(dim1=1, dim2=2)
    pull = (ridge * columns / rows * variances.mean(1)).clamp(min=torch.finfo(torch.float32).tiny)
    target = (y.transpose(1, 2) @ x).double() + pull[:, None, None] * old
    variances.add_(pull[:, None])  # a view: the diagonal of `gram`
    found = solved(gram, target, kept, old)
    places = torch.meshgrid(*(each.nonzero()[:, 0] for each in (alive, made, read)), indexing="ij")
    module.weight.copy_(torch.zeros_like(weight).index_put_(places, found.to(weight)).reshape(module.weight.shape))
    if module.bias is not None:
        bias = module.bias.reshape(groups, -1).clone()
        constant = (mean_y - mean_x @ found.transpose(1, 2).to(mean_x))[:, 0]
        constant = torch.where(kept.any(2), constant, bias[alive][:, made])
        bias[places[0][..., 0], places[1][..., 0]] = constant
        module.bias.copy_(bias.flatten())


def solved(gram: Tensor, target: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    """The rows w of W [groups, O, D] that minimise w G w' - 2 w t', each over the entries that are kept; 0 elsewhere.

    Args:
        gram: G [groups, D, D], positive definite.
        target: t [groups, O, D].
        kept: boolean [groups, O, D].
        start: [groups, O, D], near the solution, where it is approached step by step.
    """
    groups, outputs, columns = kept.shape
    if groups * outputs * columns**2 <= _SMALL:
        return _at_once(gram[:, None], target, kept)
    return torch.stack([_by_rows(*each) for each in zip(gram, target, kept, start, strict=True)])


def _at_once(gram: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """All rows in one batch: what is not kept is an unknown of its own, which is 0."""
    own = kept.to(gram)
    systems = gram * own[..., :, None] * own[..., None, :] + torch.diag_embed(1 - own)
    return torch.cholesky_solve((target * own)[..., None], torch.linalg.cholesky(systems))[..., 0]


def _by_rows(gram: Tensor, target: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    sets, of_row = torch.unique(kept, dim=0, return_inverse=True)
    exact = kept.sum(1).double().pow(3).sum() / 3
    if len(sets) > _FEW and exact > 2 * _ITERATIONS * len(kept) * len(gram) ** 2:
        return _approached(gram, target, kept.to(gram), start)
    new = torch.zeros_like(target)
    for number, of_set in enumerate(sets):
        inputs, rows = of_set.nonzero()[:, 0], (of_row == number).nonzero()[:, 0]
        if len(inputs):
            factor = torch.linalg.cholesky(gram[inputs[:, None], inputs])
            found = torch.cholesky_solve(target[rows[:, None], inputs].T, factor)
            new[rows[:, None], inputs] = found.T
    return new


def _approached(gram: Tensor, target: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    """By conjugate gradients, all rows side by side, preconditioned by the diagonal."""
    scale = kept / gram.diagonal()
    new = start * kept
    residual = (target - new @ gram) * kept
    direction = step = residual * scale
    worth = (residual * step).sum(1, keepdim=True)
    limit = _ENOUGH**2 * ((target * kept) ** 2 * scale).sum(1, keepdim=True)
    for _ in range(_ITERATIONS):
        if bool((worth <= limit).all()):
            break
        through = (direction @ gram) * kept
        length = worth / (direction * through).sum(1, keepdim=True).clamp(min=1e-300)
        new = new + length * direction
        residual = residual - length * through
        step = residual * scale
        before, worth = worth, (residual * step).sum(1, keepdim=True)
        direction = step + worth / before.clamp(min=1e-300) * direction
    return new


def _by_place(output: Tensor, module: nn.Module) -> Tensor:
    """A layer's output for each place of each image: [n, places, O]."""
    if isinstance(module, nn.Conv2d):
        return output.flatten(2).transpose(1, 2)
    return output.reshape(len(output), -1, output.shape[-1])


def _inputs(module: Any, given: Tensor, places: Tensor) -> Tensor:
    """What a layer reads at some places [n, P] of its output: [groups, n * P, D]."""
    if isinstance(module, nn.Linear):
        flat = given.reshape(len(given), -1, given.shape[-1])
        return flat.gather(1, places[..., None].expand(-1, -1, flat.shape[2])).flatten(0, 1)[None]
    padded = _padded(module, given)
    (high, wide), (down, across), (far, off) = module.kernel_size, module.stride, module.dilation
    width = (padded.shape[3] - off * (wide - 1) - 1) // across + 1
    y = (places // width * down)[..., None] + far * torch.arange(high, device=given.device)
    x = (places % width * across)[..., None] + off * torch.arange(wide, device=given.device)
    images = torch.arange(len(given), device=given.device)[:, None, None, None]
    patches = padded.permute(0, 2, 3, 1)[images, y[..., :, None], x[..., None, :]]  # [n, P, high, wide, C]
    patches = patches.flatten(0, 1).permute(0, 3, 1, 2)
    return patches.unflatten(1, (module.groups, -1)).flatten(2).transpose(0, 1)


def _padded(module: Any, given: Tensor) -> Tensor:
    """A convolution's input with the margin that it adds itself."""
    if isinstance(module, timm.layers.Conv2dSame):
        return timm.layers.pad_same(given, module.kernel_size, module.stride, module.dilation)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(given, module._reversed_padding_repeated_twice, mode=mode)


@contextmanager
def _hooked(hooks: Iterable[tuple[Callable[..., Any], Any]]) -> Iterator[None]:
    """Hooks of modules, as (where it is registered, the hook), inside the block."""
    with ExitStack() as stack:
        for register, hook in hooks:
            stack.callback(register(hook).remove)
        yield
