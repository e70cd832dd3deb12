"""What a subnetwork costs on this device, measured: milliseconds, bytes, peak memory.

All are of the *compact* network: what a device would run. Masks alone save nothing there, and their figures say so.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError, unknown
from prunnet.export import export, identity, open_export, quiet
from prunnet.subnetworks import Subnetwork

RUNTIMES = ("eager", "compile", "onnxruntime")
SECONDS = 1.0
"""How long a measurement is repeated, at least."""


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
    cut: Subnetwork,
    preprocessing: Preprocessing,
    *,
    runtime: str = "eager",
    threads: int = 1,
    seconds: float = SECONDS,
    peak: bool = True,
) -> Measured:
    """Times the compact network of a subnetwork where its network is, alone on the machine if the figure is to mean
    much.

    Args:
        runtime: `eager`, `compile` (torch.compile), or `onnxruntime` (CPU).
        seconds: how long each batch size is repeated, at least.
        peak: also start a process that measures the peak memory (seconds).

    Raises ConfigError for an unknown runtime or a backbone that cannot be made compact.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = runner_of(cut, preprocessing, runtime, Path(folder), threads)
        side = preprocessing.image_size
        images = {b: torch.randn(b, preprocessing.channels, side, side, device=cut.device) for b in (1, 32)}
        times = {batch: time_of(run, given, threads=threads, seconds=seconds) for batch, given in images.items()}
        export(cut, Path(folder) / "edge.safetensors", identity(cut, preprocessing))
        size = (Path(folder) / "edge.safetensors").stat().st_size
        used = _peak(cut, preprocessing, Path(folder)) if peak else None
    return Measured(
        latency_ms_b1=times[1].median_ms,
        latency_ms_b32=times[32].median_ms,
        latency_spread_ms=times[1].spread_ms,
        bytes_on_disk=size,
        peak_bytes=used,
        runtime=runtime_name(runtime),
        threads=threads,
        device=device_name(cut.device),
    )


def time_of(run: Callable[[Tensor], Any], images: Tensor, *, threads: int, seconds: float = SECONDS) -> Latency:
    """Median and spread of `run(images)`, after a warm-up, synchronised on GPUs."""
    with quiet():  # it speaks of compilers that it does not find
        from torch.utils.benchmark import Timer
    with torch.inference_mode():
        for _ in range(3):
            run(images)
        timer = Timer("run(images)", globals={"run": run, "images": images}, num_threads=threads)
        found = timer.blocked_autorange(min_run_time=seconds)
    return Latency(1e3 * found.median, 1e3 * found.iqr, found.number_per_run * len(found.times))


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
    command = [sys.executable, "-c", _PROBE, str(path), *map(str, shape)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(found.stdout) if found.returncode == 0 else None  # a system that does not count peaks
