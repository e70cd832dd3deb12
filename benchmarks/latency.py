"""Do cuts make a device faster? Dense ResNet-18 against its compact cuts, 224 px, batch 1, two threads, in one run.

    python -m benchmarks.latency
    python -m benchmarks.latency --runtime compile --backbone mobilenetv2_100

The cuts are interleaved with the dense network, round after round, so that a machine whose clock wanders treats them
alike; what counts is the median over rounds. Values of weights play no part, so nothing is trained. On a GPU, where
there is one, in bf16, and 2:4 beside the others on the kernels for it where the backbone has linear layers
(`--backbone vit_small_patch16_224`).

Last line: JSON, `speedup_channel_0.5`, `speedup_channel_0.25`, `speedup_weight_0.5`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import nn

from benchmarks.common import interleaved, median, show, speed_of, spread
from prunnet import RetrievalNet, subnetwork
from prunnet.cost import Cost
from prunnet.sparse_kernels import use_sparse_kernels

CUTS = (("channel", 0.5), ("channel", 0.25), ("weight", 0.5))


def cut_network(backbone: str, granularity: str, capacity: float, size: int) -> tuple[nn.Module, Cost]:
    """The compact network of a cut, channels-last, and its cost."""
    net = RetrievalNet(backbone, 2, granularity=granularity, image_size=size)
    cut = subnetwork(net, capacity)
    small = cut.compact(size).to(memory_format=torch.channels_last)
    return small, cut.cost(size)


def main(
    backbone: Annotated[str, typer.Option(help="Any timm name.")] = "resnet18",
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 224,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 1,
    threads: Annotated[int, typer.Option(help="Of the runtime.")] = 2,
    rounds: Annotated[int, typer.Option(help="Of all networks.")] = 60,
    runtime: Annotated[str, typer.Option(help="eager or compile.")] = "eager",
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_num_threads(threads)
    cuts = {"dense": cut_network(backbone, "weight", 1.0, size)}
    kinds = (*CUTS, ("nm", 0.5)) if device == "cuda" else CUTS
    cuts |= {f"{kind}_{capacity:g}": cut_network(backbone, kind, capacity, size) for kind, capacity in kinds}
    images = torch.randn(batch, 3, size, size, device=device, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)

    def runner(net: nn.Module, name: str) -> Callable[[], None]:
        plain = net.to(device, dtype).eval()
        if name.startswith("nm"):
            print(f"{name}: {use_sparse_kernels(plain)} linear layers on kernels for 2:4")
        ready = torch.compile(plain) if runtime == "compile" else plain

        def run() -> None:
            with torch.inference_mode():
                ready(images)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    taken = interleaved({name: runner(net, name) for name, (net, _) in cuts.items()}, rounds, warmup=10)
    print(f"{backbone}, {runtime}, {dtype}, batch {batch}, {size} px, {rounds} rounds, all in each")
    for name, (_, cost) in cuts.items():
        times, ratio, share = taken[name], speed_of(taken, name, "dense"), cost.macs / cost.macs_dense
        print(
            f"{name:14} {1e3 * median(times):8.2f} ms  +-{spread(times):4.0%}  {ratio:5.2f} x  {share:6.1%} of the MACs"
        )
    show(**{f"speedup_{name}": speed_of(taken, name, "dense") for name in cuts if name != "dense"})


if __name__ == "__main__":
    typer.run(main)
