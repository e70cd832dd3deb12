"""Multiply-adds of layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunnet.pruning import prunable
from prunnet.pruning.network import PrunableNet


@torch.no_grad()
def layer_macs(net: PrunableNet, image_size: int) -> dict[str, int]:
    """Layer name -> multiply-adds of every convolution and linear layer for one image (no classifier)."""
    counted: dict[str, int] = {}
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def count(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            weight = module.get_parameter("weight")
            places = output.numel() // weight.shape[0]  # positions (or tokens) at which the kernels are applied
            counted[name] = counted.get(name, 0) + places * weight.numel()

        hooks.append(module.register_forward_hook(count))

    for name, module in net.named_modules():
        if prunable.is_prunable(module):
            watch(name, module)
    was_training = net.training
    try:
        net.eval()
        parameter = next(net.parameters())
        image = torch.zeros(1, net.spec["in_chans"], image_size, image_size).to(parameter)
        net.embed(image)
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    return counted
