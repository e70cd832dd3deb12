"""2 of 4 weights on the kernels that GPUs have for it (torch's semi-structured sparse tensors; Ampere and later).

They multiply matrices, so linear layers alone gain: a ViT's, hardly a ResNet's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS, COLUMNS = 32, 64
"""Multiples that the kernels ask of a 16-bit weight's shape."""


def fits(weight: Tensor) -> bool:
    """Whether a weight [O, I] may run on the kernels: of each four along the input at least two are zero."""
    if weight.dim() != 2 or weight.shape[0] % ROWS or weight.shape[1] % COLUMNS:
        return False
    return bool(((weight != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all())


def use_sparse_kernels(net: nn.Module) -> int:
    """Puts the linear layers of a compact network of granularity `nm` on the sparse kernels, in place; says how many.

    The network must be on a GPU, in float16 or bfloat16 (RuntimeError from torch otherwise).
    """
    chosen = [module for module in net.modules() if isinstance(module, nn.Linear) and fits(module.weight)]
    for module in chosen:
        sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach())
        module.weight = nn.Parameter(sparse, requires_grad=False)
    return len(chosen)
