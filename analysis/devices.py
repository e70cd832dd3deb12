"""Figure for devices: accuracy over multiply-adds and over measured latency, a line a granularity.

    python -m analysis.devices docs/evidence/devices_omniglot.parquet docs/devices.png

Cross-tests in the dense gallery of the same network, those that were not re-ranked, mean over seeds and, with several,
bars of one standard deviation.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from analysis import commands, plots
from analysis.frame import deviation
from prunnet.results import ConfigError, ResultsError, check_output, plain, read, read_packed, write_bytes
from prunnet.results.table import check_tests

Row = Mapping[str, Any]
COLOURS = {"weight": plots.BLUE, "channel": plots.ORANGE, "nm": plots.GREY, "kernel": "#009E73"}
OTHERS = "#CC79A7", "#56B4E9", "#F0E442"
"""By turns, of granularities that other packages bring."""
TITLES = {"weight": "single weights", "channel": "channels", "nm": "2 of 4 weights", "kernel": "kernels"}


def by_capacity(rows: Sequence[Row], granularity: str, column: str) -> dict[float, list[float]]:
    """Capacity -> the column's values, one a seed, of the cross-tests of a granularity; capacities without are left
    out."""
    found: dict[float, list[float]] = {}
    for row in rows:
        own = (row.get("gallery_source") or "own") == "own" and row["gallery_capacity"] == 1.0
        chosen = own and (row.get("mask_source") or "scores") == "scores"  # not the control of random masks
        if chosen and (row["granularity"] or "weight") == granularity and row[column] is not None:
            found.setdefault(row["query_capacity"], []).append(row[column])
    return found


def figure(rows: Sequence[Row], latency: str = "latency_ms_b1") -> Figure:
    """The two fronts side by side, over the same accuracies. ResultsError where no row was measured."""
    measured = [row for row in rows if row[latency] is not None]
    if not measured:
        raise ResultsError(f"no row has {latency}; train with sweep.measure=onnxruntime (or eager, compile)")
    drawn, axes = plots.plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained", sharey=True)
    theirs = sorted({row["granularity"] or "weight" for row in rows} - TITLES.keys())
    colours = COLOURS | dict(zip(theirs, itertools.cycle(OTHERS), strict=False))
    for granularity in [name for name in colours if by_capacity(rows, name, "map")]:
        _draw(axes[0], rows, granularity, "macs", 1e6, colours[granularity])
        _draw(axes[1], rows, granularity, latency, 1.0, colours[granularity])
    batch = "an image" if latency.endswith("_b1") else f"a batch of {latency.rpartition('b')[2]}"
    how = sorted({f"{row['runtime']}, threads: {row['threads']}, {row['device']}" for row in measured})
    axes[0].set(xlabel="MMACs an image, of the weights that are kept", ylabel="mAP in the dense gallery (%)")
    axes[1].set(xlabel=f"measured ms {batch} ({'; '.join(how)})")
    for each in axes:
        each.set_xscale("log")
        each.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        each.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        each.xaxis.set_minor_locator(NullLocator())
        each.grid(color=plots.GREY, alpha=0.25)
    axes[0].legend(loc="lower right")
    return drawn


def _draw(axes: Any, rows: Sequence[Row], granularity: str, column: str, unit: float, colour: str) -> None:
    costs, worths = by_capacity(rows, granularity, column), by_capacity(rows, granularity, "map")
    capacities = sorted(costs.keys() & worths.keys())
    x = [statistics.mean(costs[c]) / unit for c in capacities]
    y = [100 * statistics.mean(worths[c]) for c in capacities]
    spread = [100 * deviation(worths[c]) for c in capacities]
    seeds = max((len(worths[c]) for c in capacities), default=0)
    name = f"{TITLES.get(granularity, granularity)}, {seeds} seed{'s' if seeds != 1 else ''}"
    axes.errorbar(x, y, spread, marker="o", lw=1, capsize=2, color=colour, label=name)
    for place in (0, len(capacities) // 2, len(capacities) - 1) if capacities else ():
        label = f"{capacities[place]:g}"
        axes.annotate(label, (x[place], y[place]), xytext=(4, -11), textcoords="offset points", size=8)


def main(
    source: Annotated[Path, typer.Argument(help="Results folder, or a table in one file.")],
    target: Annotated[Path, typer.Argument(help="Picture to write: .png or .svg.")],
) -> None:
    """Draw accuracy over multiply-adds and over measured latency, a line a granularity."""
    kind = target.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg"):
        raise ConfigError(f"TARGET {str(target)!r}; valid: a name that ends in .png or .svg")
    check_output(target, "TARGET")
    table = (read if source.is_dir() else read_packed)(source)
    check_tests(table, source)
    rows = plain(table).to_pylist()
    write_bytes(target, plots.rendered(figure(rows), kind)[kind])


if __name__ == "__main__":
    commands.run(main)
