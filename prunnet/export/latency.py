"""Measures what a subnetwork costs on this device: milliseconds, bytes, peak memory.

All figures are of the *compact* network, which a device would run. Masks alone save nothing there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunnet.config.choices import RUNTIMES
from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError, unknown
from prunnet.export.formats import export, identity, open_export, quiet
from prunnet.subnetworks.subnet import Subnetwork

SECONDS = 1.0
"""How long a measurement is repeated, at least."""
_TURNS = 5


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass over a batch."""

    median_ms: float
    spread_ms: float
    """Interquartile range over blocks of runs."""
    runs: int


@dataclass(frozen=True)
class Measured:
    """What a subnetwork costs on a device."""

    latency_ms_b1: float
    latency_ms_b32: float
    latency_spread_ms: float
    """At batch 1."""
    bytes_on_disk: int
    """Of the exported .safetensors in fp32: kept weights and the bit mask."""
    peak_bytes: int | None
    """Peak memory of a process that opens the compact network and embeds 32 images, above one that has only loaded
    torch (on a GPU: allocated on the device)."""
    runtime: str
    threads: int
    device: str


def measure(
    cuts: Sequence[Subnetwork],
    preprocessing: Preprocessing,
    *,
    runtime: str = "eager",
    threads: int = 1,
    seconds: float = SECONDS,
    peak: bool = True,
) -> list[Measured]:
    """Times the compact networks of some subnetworks where they are, in turn, so that changes in the machine's speed
    affect all alike. Nothing else should run on the machine.

    Args:
        runtime: `eager`, `compile` (torch.compile), or `onnxruntime` (CPU).
        seconds: how long each batch size of each is repeated, at least.
        peak: also start processes that measure the peak memory (seconds).

    Raises ConfigError for an unknown runtime or a backbone that cannot be made compact.
    """
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(place) for place in range(len(cuts))]
        runs = []
        for cut, folder in zip(cuts, folders, strict=True):
            folder.mkdir()
            runs.append(runner_of(cut, preprocessing, runtime, folder, threads))
        one, many = (times_of(runs, _images(cuts, preprocessing, b), threads=threads, seconds=seconds) for b in (1, 32))
        return [
            Measured(
                latency_ms_b1=one[place].median_ms,
                latency_ms_b32=many[place].median_ms,
                latency_spread_ms=one[place].spread_ms,
                bytes_on_disk=_size(cut, preprocessing, folder),
                peak_bytes=_peak(cut, preprocessing, folder) if peak else None,
                runtime=runtime_name(runtime),
                threads=threads,
                device=device_name(cut.device),
            )
            for place, (cut, folder) in enumerate(zip(cuts, folders, strict=True))
        ]


def times_of(
    runs: Sequence[Callable[[Tensor], Any]], images: Tensor, *, threads: int, seconds: float = SECONDS
) -> list[Latency]:
    """Median and spread of each `run(images)` over several turns, a warm-up before each, synchronised on GPUs."""
    with quiet():  # it warns of compilers that it does not find
        from torch.utils.benchmark import Timer
    taken = [list[float]() for _ in runs]
    counts = [0] * len(runs)
    with torch.inference_mode():
        for _ in range(_TURNS):
            for place, run in enumerate(runs):
                for _ in range(3):
                    run(images)
                timer = Timer("run(images)", globals={"run": run, "images": images}, num_threads=threads)
                found = timer.blocked_autorange(min_run_time=seconds / _TURNS)
                taken[place] += found.times
                counts[place] += found.number_per_run * len(found.times)
    return [_latency(times, count) for times, count in zip(taken, counts, strict=True)]


def _latency(times: Sequence[float], count: int) -> Latency:
    lower, middle, upper = np.quantile(times, (0.25, 0.5, 0.75))
    return Latency(1e3 * float(middle), 1e3 * float(upper - lower), count)


def _images(cuts: Sequence[Subnetwork], preprocessing: Preprocessing, batch: int) -> Tensor:
    side = preprocessing.image_size
    return torch.randn(batch, preprocessing.channels, side, side, device=cuts[0].device)


def _size(cut: Subnetwork, preprocessing: Preprocessing, folder: Path) -> int:
    path = folder / "edge.safetensors"
    export(cut, path, identity(cut, preprocessing))
    return path.stat().st_size


def runtime_name(runtime: str) -> str:
    """As it stands in the results table: name and version."""
    if runtime == "onnxruntime":
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"
    return f"torch {torch.__version__} {runtime}"


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def runner_of(
    cut: Subnetwork, preprocessing: Preprocessing, runtime: str, folder: Path, threads: int
) -> Callable[[Tensor], Any]:
    """Normalised images -> embeddings by the compact network in a runtime, whose file, if any, goes into the folder."""
    if runtime == "onnxruntime":
        if cut.device.type != "cpu":
            raise ConfigError(f"runtime 'onnxruntime' is measured on the CPU, not on {cut.device}")
        export(cut, folder / "edge.onnx", identity(cut, preprocessing))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return open_export(folder / "edge.onnx").embed
        finally:
            torch.set_num_threads(before)
    if runtime not in RUNTIMES:
        raise ConfigError(unknown("runtime", runtime, RUNTIMES))
    net: nn.Module = cut.compact(preprocessing.image_size)
    if cut.device.type == "cpu":
        net = net.to(memory_format=torch.channels_last)
    return torch.compile(net) if runtime == "compile" else net


_PROBE = """
import sys, torch
torch.set_num_threads(1)
def kilobytes(what):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(what)))
images = torch.zeros(32, *map(int, sys.argv[2:]))
torch.nn.functional.conv2d(images[:1, :1], torch.zeros(1, 1, 3, 3))
import timm.models
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
net = torch.load(sys.argv[1], weights_only=False)
with torch.inference_mode():
    net(images)
print(1024 * (kilobytes("VmHWM") - before))
"""


def _peak(cut: Subnetwork, preprocessing: Preprocessing, folder: Path) -> int | None:
    net = cut.compact(preprocessing.image_size)
    shape = (preprocessing.channels, preprocessing.image_size, preprocessing.image_size)
    if cut.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(cut.device)
        with torch.inference_mode():
            net(torch.zeros(32, *shape, device=cut.device))
        return torch.cuda.max_memory_allocated(cut.device)
    path = folder / "net.pt"
    torch.save(net, path)  # our own file, of a moment ago, read by our own process
    command = [sys.executable, "-P", "-c", _PROBE, str(path), *map(str, shape)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(found.stdout) if found.returncode == 0 else None  # a system that does not count peaks
