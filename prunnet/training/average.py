"""`train.ema`: the exponential moving average of a network over the steps of its training, which becomes the trained
network.

`torch.optim.swa_utils.AveragedModel` averages all buffers or none; whole numbers, such as Swin's table of relative
positions, it would round down. Here its rule averages parameters, scores among them, and BatchNorm statistics; all
other buffers are copied.
"""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.subnetworks.batchnorm import running_statistics


class Average:
    """The average of a network that is trained, as a network of its own.

    Args:
        net: as it begins.
        decay: in (0, 1): what the average keeps of itself at a step.
    """

    def __init__(self, net: RetrievalNet, decay: float) -> None:
        self.net, self.decay = copy.deepcopy(net), decay

    def decay_at(self, step: int) -> float:
        """After `step` steps: min(decay, (1 + step) / (10 + step)), so that the average of a short training is not
        mostly what the network began as."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, net: RetrievalNet, step: int) -> None:
        """Takes in the network as it is after `step` steps; alike on all workers but for the statistics, of which each
        worker has its own."""
        mixed = {name for name, buffer in running_statistics(net) if buffer.is_floating_point()}
        mixed |= {name for name, _ in net.named_parameters()}
        own, current = self.net.state_dict(), net.state_dict()
        average = get_ema_multi_avg_fn(self.decay_at(step))
        average([own[name] for name in current if name in mixed], [current[n] for n in current if n in mixed], step)
        for name in current.keys() - mixed:
            own[name].copy_(current[name])
