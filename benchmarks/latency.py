"""Do cuts make a device faster? Dense ResNet-18 against its compact cuts, 224 px, batch 1, two threads, in one run.

    python -m benchmarks.latency
    python -m benchmarks.latency --runtime compile --backbone mobilenetv2_100
    python -m benchmarks.latency --model RUN/model.safetensors --runtime onnxruntime --threads 1 --batch 32

The cuts are interleaved with the dense network, round after round, so that changes of the machine's clock affect all
alike; what counts is the median over rounds. Values of weights play no part, so nothing is trained. On a GPU, where
there is one, in bf16, and 2:4 beside the others on the kernels for it where the backbone has linear layers
(`--backbone vit_small_patch16_224`).

With `--model` it is the cuts of a trained network, at its own image size. Several sessions of onnxruntime live beside
each other, whose idle threads spin, so it takes one thread only.

Last line: JSON, `speedup_channel_0.5`, `speedup_channel_0.25`, `speedup_weight_0.5` (`--model`: of its granularity).
Ends after `--minutes 10`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.common import MINUTES_HELP, Benchmark, median, speed_of, spread
from prunnet import RetrievalNet, subnetwork
from prunnet.data.transforms import Preprocessing
from prunnet.export.latency import runner_of
from prunnet.export.sparse_kernels import use_sparse_kernels
from prunnet.networks.files import load_network
from prunnet.storage.tensor_files import read_header
from prunnet.subnetworks.cost import Cost

Runner = Callable[[Tensor], Any]
CUTS = (("channel", 0.5), ("channel", 0.25), ("weight", 0.5))


def cut_network(backbone: str, granularity: str, capacity: float, size: int) -> tuple[nn.Module, Cost]:
    """The compact network of a cut, channels-last, and its cost."""
    net = RetrievalNet(backbone, 2, granularity=granularity, image_size=size)
    cut = subnetwork(net, capacity)
    small = cut.compact(size).to(memory_format=torch.channels_last)
    return small, cut.cost(size)


def cuts_of(model: Path, folder: Path, runtime: str, threads: int) -> tuple[dict[str, Runner], dict[str, Cost], int]:
    """Cuts of a trained network as callables, what they cost, and its image size."""
    net, header = load_network(model)
    preprocessing = Preprocessing(**header["preprocessing"])
    cuts = {"dense": subnetwork(net, 1.0)}
    cuts |= {f"{net.granularity}_{c:g}": subnetwork(net, c) for c in (0.5, 0.25)}
    for name in cuts:
        (folder / name).mkdir()
    runners = {name: runner_of(cut, preprocessing, runtime, folder / name, threads) for name, cut in cuts.items()}
    size = preprocessing.image_size
    return runners, {name: cut.cost(size) for name, cut in cuts.items()}, size


def main(
    backbone: Annotated[str, typer.Option(help="Any timm name.")] = "resnet18",
    model: Annotated[Path | None, typer.Option(help="A trained network's file, in place of a backbone.")] = None,
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 224,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 2,
    rounds: Annotated[int, typer.Option(help="Of all networks.")] = 60,
    runtime: Annotated[str, typer.Option(help="eager or compile; with --model also onnxruntime.")] = "eager",
    minutes: Annotated[float, typer.Option(help=MINUTES_HELP)] = 10.0,
) -> None:
    device = "cuda" if torch.cuda.is_available() and model is None else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_num_threads(threads)
    if runtime == "onnxruntime" and (model is None or threads > 1):
        raise typer.BadParameter("onnxruntime is measured with --model and --threads 1")

    def runner(net: nn.Module, name: str) -> Runner:
        plain = net.to(device, dtype).eval()
        if name.startswith("nm"):
            print(f"{name}: {use_sparse_kernels(plain)} linear layers on kernels for 2:4")
        return torch.compile(plain) if runtime == "compile" else plain

    with Benchmark(minutes) as benchmark, tempfile.TemporaryDirectory() as folder:
        benchmark.stage("cutting networks")
        if model is None:
            kinds = (*CUTS, ("nm", 0.5)) if device == "cuda" else CUTS
            made = {"dense": cut_network(backbone, "weight", 1.0, size)}
            made |= {f"{kind}_{capacity:g}": cut_network(backbone, kind, capacity, size) for kind, capacity in kinds}
            runners = {name: runner(net, name) for name, (net, _) in made.items()}
            costs, channels = {name: cost for name, (_, cost) in made.items()}, 3
        else:
            runners, costs, size = cuts_of(model, Path(folder), runtime, threads)
            channels = Preprocessing(**read_header(model)["preprocessing"]).channels
        images = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
        if runtime != "onnxruntime":
            images = images.contiguous(memory_format=torch.channels_last)

        def timed(run: Runner) -> Callable[[], None]:
            def once() -> None:
                with torch.inference_mode():
                    run(images)
                if device == "cuda":
                    torch.cuda.synchronize()

            return once

        with benchmark.stage(f"{runtime}, batch {batch}"):
            taken = benchmark.interleaved({n: timed(run) for n, run in runners.items()}, rounds, warmup=10)
        benchmark.found(**{f"speedup_{name}": speed_of(taken, name, "dense") for name in costs if name != "dense"})
        print(
            f"{model or backbone}, {runtime}, {dtype}, batch {batch}, {size} px, "
            f"{len(taken['dense'])} rounds, all in each"
        )
        for name, cost in costs.items():
            times, ratio, share = taken[name], speed_of(taken, name, "dense"), cost.macs / cost.macs_dense
            print(
                f"{name:14} {1e3 * median(times):8.2f} ms  +-{spread(times):4.0%}  {ratio:5.2f} x  "
                f"{share:6.1%} of the MACs"
            )


if __name__ == "__main__":
    typer.run(main)
