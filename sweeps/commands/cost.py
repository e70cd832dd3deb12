"""`prunnet cost`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunnet.config.choices import RUNTIMES, check_capacity
from prunnet.errors import ConfigError, echo
from sweeps.run import check_number

USUAL = (1.0, 0.8, 0.6, 0.4, 0.2)


def main(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a network's file.")],
    capacity: Annotated[list[float] | None, typer.Option(help="Capacity, repeatable; default: five.")] = None,
    runtime: Annotated[str, typer.Option(help=f"Runtime: {', '.join(RUNTIMES)}.")] = "eager",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of the runtime.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, or cuda where there is a GPU.")] = "cpu",
    seconds: Annotated[float, typer.Option(help="Least time for which each measurement is repeated.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a capacity.")] = False,
) -> None:
    check_number("--seconds", seconds, 0.01, 3600)
    if runtime not in RUNTIMES:
        raise ConfigError(f"--runtime {echo(runtime)}; valid: {', '.join(RUNTIMES)}")
    capacities = [check_capacity(value) for value in capacity or USUAL]
    from sweeps.cost import show_costs

    show_costs(run, capacities, runtime=runtime, threads=threads, device=device, seconds=seconds, as_json=as_json)
