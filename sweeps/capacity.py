"""Train or load a network, cut and evaluate many capacities, write Parquet, draw the front.

    python sweeps/capacity.py --recipe sweeps/recipes/demo.yaml
    python sweeps/capacity.py --recipe FILE --set model.backbone=resnet18 --set sweep.capacities=[0.2,0.5]
    ray job submit --working-dir . -- python sweeps/capacity.py --recipe sweeps/recipes/demo.yaml

Started alone, it starts a local Ray; under `ray job submit` (or with RAY_ADDRESS) it joins the cluster. The same
command again resumes: finished work is skipped. All files are written to runs/<name>/:

    model.safetensors   the trained network and its scores     results/     the results table, Parquet
    features/           embeddings of every capacity           pareto.png   report.html   recipe.yaml
    sheet.json          what each capacity finds for a few queries   sheet.png   its contact sheet
    paper/              the front and the matrix as SVG, the table as Markdown and LaTeX, all rows as CSV

Exit code: 0 finished; 1 some capacity failed, the rest is there; 2 the recipe, data or cluster cannot serve;
130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refusal need none of them
    import runpy

    runpy.run_module("sweeps.commands.sweep", run_name="__main__")
    raise SystemExit

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from cluster.experiment import Driver
from prunnet.config.recipe import Recipe, absolute_paths
from prunnet.data.base import Dataset
from prunnet.experiments.run import Missing, Outcome, evaluate_missing, trained_networks
from prunnet.experiments.trained_networks import Family
from prunnet.export.latency import measure
from prunnet.pruning import prunable
from prunnet.subnetworks.trained import Cut
from sweeps.drawing import draw
from sweeps.finished import determinants, open_data
from sweeps.printing import Console
from sweeps.run import Run, git_commit, open_run
from sweeps.sheet import keep_sheet


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
        conclude(recipe, run, dataset, networks, outcome, console)
    return 1 if outcome.failures else 0


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


def conclude(recipe: Recipe, run: Run, dataset: Dataset, networks: Family, outcome: Outcome, console: Console) -> None:
    """Records what the sweep consists of and what failed; prints the table, draws the front and the contact
    sheet, writes the report."""
    run.write_recipe(recipe)
    keep_sheet(recipe, run, dataset.split(recipe.sweep.split), outcome.units)
    told = {
        "name": recipe.name,
        "unit_keys": list(outcome.units.tests),
        "failures": [tuple(failed) for failed in outcome.failures],
        "determined_by": determinants(recipe, run, dataset),
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
