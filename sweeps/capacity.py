"""Train or load a network, cut and evaluate many capacities, write Parquet, draw the front.

    python sweeps/capacity.py --recipe sweeps/recipes/demo.yaml
    python sweeps/capacity.py --recipe FILE --set model.backbone=resnet18 --set sweep.capacities=[0.2,0.5]
    ray job submit --working-dir . -- python sweeps/capacity.py --recipe sweeps/recipes/demo.yaml

Started alone, it starts a local Ray; under `ray job submit` (or with RAY_ADDRESS) it joins the cluster. The same
command again resumes: finished work is skipped. All files are written to runs/<name>/:

    model.safetensors   the trained network and its scores     results/     the results table, Parquet
    features/           embeddings of every capacity           pareto.png   report.html   recipe.yaml
    paper/              the front and the matrix as SVG, the table as Markdown and LaTeX, all rows as CSV

Exit code: 0 finished; 1 some capacity failed, the rest is there; 2 the recipe, data or cluster cannot serve;
130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis import tables
from analysis.frame import Frame
from cluster.experiment import Driver
from prunnet import data
from prunnet.config.recipe import Recipe, absolute_paths, load_recipe
from prunnet.data.base import Dataset
from prunnet.errors import DataWarning
from prunnet.experiments.run import Missing, Outcome, evaluate_missing, trained_networks
from prunnet.experiments.trained_networks import Family
from prunnet.export.latency import measure
from prunnet.pruning import prunable
from prunnet.redact import shown
from prunnet.storage.seal import read_text
from prunnet.subnetworks.trained import Cut
from sweeps.printing import Console
from sweeps.report_files import write_files
from sweeps.run import Run, git_commit, one_line_errors, open_run
from sweeps.terminal_table import print_table

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"


def sweep(recipe: Recipe, *, fresh: bool = False, console: Console | None = None) -> int:
    """The whole job; returns the exit code (0, or 1 where a capacity failed for good).

    Raises PrunnetError, with one line to show, where recipe, data, checkpoint or cluster cannot serve.
    """
    console = console or Console()
    recipe = absolute_paths(recipe)
    with open_run(recipe, fresh=fresh, console=console) as run, ExitStack() as cluster:
        console.print(f"run {run.folder}")
        driver = Driver(run.training, console, cluster)
        dataset = open_data(recipe, console)
        dataset.split(recipe.sweep.split)
        networks = trained_networks(recipe, dataset, driver.train, run.place, say=console.print)
        outcome = evaluate_missing(
            recipe,
            dataset,
            networks,
            lambda missing: driver.evaluate(measured(missing, cluster, console.print)),
            features=run.features,
            results=run.results,
            git_commit=git_commit(),
            say=console.print,
        )
        conclude(recipe, run, networks, outcome, console)
    return 1 if outcome.failures else 0


def open_data(recipe: Recipe, console: Console) -> Dataset:
    """Training set and tests; notes on these copies of the data are printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # printed once, below, instead of by every worker
        dataset = data.load_for(recipe)
    for note in dataset.notes:
        console.print(f"note: {note}", style="yellow")
    return dataset


def measured(missing: Missing, cluster: ExitStack, say: Callable[[str], object]) -> Missing:
    """The same work with latency, size and memory of every subnetwork, where the recipe asks for them: measured on this
    machine, by turns, before anybody else is at work on it."""
    how, threads, units = missing.recipe.sweep.measure, missing.recipe.sweep.measure_threads, missing.features
    if how == "off":
        return missing
    cluster.close()  # what is measured has the machine to itself
    networks, plan = missing.networks.everyone(), missing.plan
    subnetworks = [networks[unit.member].masked(unit.cut) for unit in units]
    say(f"measuring {len(units)} subnetworks by turns: {how}, {threads} threads")
    found = measure(subnetworks, plan.preprocessing, runtime=how, threads=threads)
    for unit, taken in zip(units, found, strict=True):
        say(f"capacity {unit.capacity:g}: {taken.latency_ms_b1:.2f} ms an image, {taken.bytes_on_disk:,} bytes")
    columns = {unit.key: asdict(taken) for unit, taken in zip(units, found, strict=True)}
    return replace(missing, plan=replace(plan, measured=columns))


def conclude(recipe: Recipe, run: Run, networks: Family, outcome: Outcome, console: Console) -> None:
    """Records what the sweep consists of and what failed; prints the table, draws the front, writes the report."""
    run.write_recipe(recipe)
    told = {
        "name": recipe.name,
        "unit_keys": list(outcome.units.tests),
        "failures": [tuple(failed) for failed in outcome.failures],
    }
    run.write_manifest({**told, **training_told(recipe, networks)})
    draw(run, console)


def training_told(recipe: Recipe, networks: Family) -> dict[str, Any]:
    """What the report says beside the tests: what each capacity keeps of each layer, losses and conflicts by epoch."""
    header, kept = networks.largest.header, {}
    for capacity in (c for c in recipe.sweep.capacities if c <= networks.top):
        network = networks.network_for(capacity)
        if prunable.layers(network.net):
            masks = network.masked(Cut.of_sweep(recipe.sweep, capacity)).masks
            kept[f"{capacity:g}"] = {name: float(mask.float().mean()) for name, mask in masks.items()}
    return {"kept": kept, "history": header.history, "conflicts": header.conflicts}


def draw(run: Run, console: Console, *, raw_csv: bool = False) -> None:
    """Table, front and report of the last sweep in a run's folder; `raw_csv` leaves texts in rows.csv as they are."""
    manifest = run.manifest()
    frame = Frame.load(run.results, manifest["unit_keys"])
    failures = [f"capacity {capacity:g} failed: {error}" for capacity, error in manifest["failures"]]
    if len(frame):
        print_table(
            console,
            tables.head(frame),
            tables.capacity_table(frame, tables.LINES),
            drop=tables.less_important(frame),
            title=f"{manifest['name']}: {len(frame)} tests",
        )
        if said := tables.shortened(frame):
            console.print(said)
        write_files(
            run.folder,
            frame,
            title=f"Capacity sweep {manifest['name']}",
            command=f"python sweeps/capacity.py --recipe {shown(run.recipe)}",
            recipe=shown(read_text(run.recipe)),
            raw_csv=raw_csv,
            failures=failures,
            **{name: manifest[name] for name in ("kept", "history", "conflicts") if name in manifest},
        )
        for what, path in (("results", run.results), ("front", run.folder / "pareto.png")):
            console.print(f"{what:<8}{path}")
        console.print(f"{'report':<8}{run.folder / 'report.html'}")
    for line in failures:
        console.print(line, style="red")


def main(
    recipe: Annotated[Path, typer.Option(help="YAML recipe.")] = DEFAULT_RECIPE,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, dotted, e.g. train.epochs=3.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what the run has and start over.")] = False,
) -> None:
    """Train or load, sweep capacities, write Parquet, draw the front."""
    with one_line_errors():
        code = sweep(load_recipe(recipe, set_ or ()), fresh=fresh)
    sys.exit(code)


if __name__ == "__main__":
    with one_line_errors():  # --help, too, may meet a full disk or a terminal without UTF-8
        typer.run(main)
