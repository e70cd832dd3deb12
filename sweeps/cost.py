"""Measures what the capacities of a trained network cost on this device.

prunnet cost runs/demo
prunnet cost runs/demo --capacity 1.0 --capacity 0.5 --runtime onnxruntime --threads 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from prunnet.errors import ConfigError
from prunnet.experiments.trained_networks import Family, kept_recipe
from prunnet.export.latency import measure
from prunnet.subnetworks.subnet import Subnetwork
from prunnet.subnetworks.trained import Cut
from sweeps.printing import Console, print_json
from sweeps.terminal_table import print_table


def show_costs(
    run: Path,
    capacities: Sequence[float],
    *,
    runtime: str,
    threads: int,
    device: str,
    seconds: float,
    as_json: bool,
) -> None:
    """Measures subnetworks of a run's networks in turn, and prints a table, or one JSON object a capacity."""
    family, sweep = Family.of_run(run), kept_recipe(run).sweep
    preprocessing = family.largest.preprocessing
    console = Console()
    head = ("capacity", "MMACs", "compact", "bytes", "ms, batch 1", "ms, batch 32", "peak MB")
    lines, cuts = [], []
    for wanted in capacities:
        cuts.append(_on(family.network_for(wanted).masked(Cut.of_sweep(sweep, wanted)), device))
    with Console(stderr=True).status(f"measuring {len(cuts)} cuts by turns"):
        measured = measure(cuts, preprocessing, runtime=runtime, threads=threads, seconds=seconds)
    for wanted, cut, found in zip(capacities, cuts, measured, strict=True):
        ideal = cut.cost(preprocessing.image_size)
        if as_json:
            print_json({"capacity": wanted, **asdict(ideal), **asdict(found)}, indent=None)
            continue
        lines.append(
            (
                f"{wanted:g}",
                f"{ideal.macs / 1e6:.2f}",
                f"{ideal.macs_dense_equivalent / 1e6:.2f}",
                f"{found.bytes_on_disk:,}",
                f"{found.latency_ms_b1:.2f} ± {found.latency_spread_ms:.2f}",
                f"{found.latency_ms_b32:.1f}",
                "-" if found.peak_bytes is None else f"{found.peak_bytes / 1e6:.1f}",
            )
        )
    if not as_json:
        print_table(console, head, lines, drop=("compact", "peak MB", "bytes", "ms, batch 32", "MMACs"))
        console.print(f"{found.runtime}, {found.device}, {threads} threads, {preprocessing.image_size} px")


def _on(cut: Subnetwork, device: str) -> Subnetwork:
    try:
        return cut.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device!r} cannot be used: {str(error).splitlines()[0][:120]}") from None
