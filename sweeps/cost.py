"""Measures what the capacities of a trained network cost on this device.

prunnet cost runs/demo
prunnet cost runs/demo --capacity 1.0 --capacity 0.5 --runtime onnxruntime --threads 2
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prunnet.errors import ConfigError, echo
from prunnet.experiments.trained_networks import Family, kept_recipe
from prunnet.export.latency import RUNTIMES, SECONDS, measure
from prunnet.subnetworks.subnet import Subnetwork
from prunnet.subnetworks.trained import Cut
from sweeps.printing import Console, print_json
from sweeps.run import check_number
from sweeps.terminal_table import print_table

USUAL = (1.0, 0.8, 0.6, 0.4, 0.2)


def main(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a network's file.")],
    capacity: Annotated[
        list[float] | None, typer.Option(help="A capacity to measure, repeatable; default: five.")
    ] = None,
    runtime: Annotated[str, typer.Option(help=f"{', '.join(RUNTIMES)}.")] = "eager",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of the runtime.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, or cuda where there is a GPU.")] = "cpu",
    seconds: Annotated[float, typer.Option(help="Shortest measuring time of each subnetwork.")] = SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a capacity.")] = False,
) -> None:
    check_number("--seconds", seconds, 0.01, 3600)
    if runtime not in RUNTIMES:
        raise ConfigError(f"--runtime {echo(runtime)}; valid: {', '.join(RUNTIMES)}")
    family, sweep = Family.of_run(run), kept_recipe(run).sweep
    preprocessing = family.largest.preprocessing
    console = Console()
    head = ("capacity", "MMACs", "compact", "bytes", "ms, batch 1", "ms, batch 32", "peak MB")
    lines, cuts = [], []
    for wanted in capacity or USUAL:
        cuts.append(_on(family.network_for(wanted).masked(Cut.of_sweep(sweep, wanted)), device))
    with Console(stderr=True).status(f"measuring {len(cuts)} cuts by turns"):
        measured = measure(cuts, preprocessing, runtime=runtime, threads=threads, seconds=seconds)
    for wanted, cut, found in zip(capacity or USUAL, cuts, measured, strict=True):
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
