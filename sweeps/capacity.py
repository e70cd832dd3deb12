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
from cluster.evaluation import Subject, evaluate
from cluster.progress import bar
from cluster.session import session
from cluster.training import train
from prunnet import data, results
from prunnet.config.recipe import Recipe, load_recipe
from prunnet.data.base import Dataset
from prunnet.errors import DataWarning
from prunnet.evaluation.evaluator import FeaturesUnit, Plan
from prunnet.experiments.stages import Family, finished, fitting, make_net, stages
from prunnet.experiments.work_units import Units, evaluation_plan, network_arrays, plan_units
from prunnet.export.latency import measure
from prunnet.networks.files import allocation_of, load_network
from prunnet.pruning import prunable
from prunnet.redact import shown
from prunnet.storage.seal import read_text
from prunnet.subnetworks.subnet import subnetwork
from prunnet.training.trainer import steps_per_epoch
from sweeps.printing import Console
from sweeps.report_files import write_files
from sweeps.run import Run, absolute_paths, git_commit, one_line_errors, open_run
from sweeps.terminal_table import print_table

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"
NOT_FETCHED = {"pretrained": False, "weights": None}


def sweep(recipe: Recipe, *, fresh: bool = False, console: Console | None = None) -> int:
    """The whole job; returns the exit code (0, or 1 where a capacity failed for good).

    Raises PrunnetError, with one line to show, where recipe, data, checkpoint or cluster cannot serve.
    """
    console = console or Console()
    recipe = absolute_paths(recipe)
    with open_run(recipe, fresh=fresh, console=console) as run:
        console.print(f"run {run.folder}")
        dataset = open_data(recipe, console)
        dataset.split(recipe.sweep.split)
        with ExitStack() as cluster:
            family = trained_networks(recipe, run, dataset, console, cluster)
            units = plan_units(recipe, family, dataset)
            if recipe.sweep.measure != "off":
                cluster.close()  # nothing else may run while latency is measured
            failures = evaluate_missing(recipe, run, dataset, family, units, console)
        conclude(recipe, run, family, units, failures, console)
    return 1 if failures else 0


def open_data(recipe: Recipe, console: Console) -> Dataset:
    """Training set and tests; notes on these copies of the data are printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # printed once, below, instead of by every worker
        dataset = data.load_for(recipe)
    for note in dataset.notes:
        console.print(f"note: {note}", style="yellow")
    return dataset


def trained_networks(recipe: Recipe, run: Run, dataset: Dataset, console: Console, cluster: ExitStack) -> Family:
    """The networks to sweep: a given checkpoint, this run's finished networks, or ones that are trained now. The Ray
    session that a training opens stays open in `cluster`, and later steps join it."""
    if recipe.model.checkpoint:
        console.print(f"network from {recipe.model.checkpoint}")
        net, header = load_network(recipe.model.checkpoint)
        fitting(header, recipe.model.checkpoint, dataset.preprocessing)
        return Family({1.0: (net, header)})
    files: dict[float, Path] = {}
    for stage in stages(recipe):
        files[stage.capacity] = run.folder / stage.file
        train_stage(stage.ready(run.model), run, files[stage.capacity], dataset, console, cluster)
    return Family.load(files, recipe.train.old)


def train_stage(recipe: Recipe, run: Run, path: Path, dataset: Dataset, console: Console, cluster: ExitStack) -> None:
    """One network on the cluster, unless it is finished."""
    if finished(path, recipe, dataset):
        console.print(f"training: {path.name} finished before ({recipe.train.epochs} epochs), nothing to do")
        return
    # Refuse here, before any worker starts, what the workers would refuse.
    make_net(recipe.model_copy(update={"model": recipe.model.model_copy(update=NOT_FETCHED)}), dataset)
    steps_per_epoch(len(dataset.train), recipe.train, recipe.cluster.workers)
    capacity = f" at capacity {recipe.train.alone:g}" if recipe.train.alone else ""
    console.print(
        f"training {recipe.train.method}{capacity} on {len(dataset.train)} images of {len(dataset.class_names)} classes"
    )
    cluster.enter_context(session(recipe.cluster))
    train(recipe, run.training, path, console, dataset)


def evaluate_missing(
    recipe: Recipe, run: Run, dataset: Dataset, family: Family, units: Units, console: Console
) -> list[tuple[float, str]]:
    """Evaluates the units whose rows are not in the results table; returns (capacity, error) of each that failed
    `cluster.attempts` times."""
    finished = results.finished_keys(run.results)
    missing = units.missing_tests(finished)
    rows = sum(len(unit.rows) for unit in missing)
    console.print(f"tests: {len(units.tests) - rows} of {len(units.tests)} finished before")
    if not missing:
        return []
    features = units.needed_features(missing)
    split = dataset.split(recipe.sweep.split)
    plan = evaluation_plan(recipe, family, features=run.features, results=run.results, git_commit=git_commit())
    plan = with_measured(plan, recipe, family, features, console.print)
    with session(recipe.cluster), bar(console) as progress:
        tasks = {
            "features": progress.add_task("capacities", total=len(features), note=""),
            "tests": progress.add_task("tests", total=len(missing), note=""),
        }

        def report_progress(stage: str, done: int, message: str | None) -> None:
            progress.advance(tasks[stage], done)
            if not console.is_terminal and done:  # without a terminal, print lines instead of a bar
                task = progress.tasks[tasks[stage]]
                message = f"{task.description} {task.completed:g}/{task.total:g}"
            if message:
                console.print(message)

        remaining: Callable[[set[str]], Any] = lambda lost: units.missing_tests(finished, lost)  # noqa: E731
        subject = Subject.put(plan, network_arrays(family), units.calibration, split)
        return evaluate(subject, features, remaining, recipe.cluster, report_progress)


def with_measured(
    plan: Plan, recipe: Recipe, family: Family, units: list[FeaturesUnit], say: Callable[[str], object]
) -> Plan:
    """The plan with latency, size and memory of every subnetwork, if the recipe asks for them. They are measured in
    turn on this machine, before evaluation actors use it."""
    how, threads = recipe.sweep.measure, recipe.sweep.measure_threads
    if how == "off" or not units:
        return plan
    cuts = []
    for unit in units:
        net, header = family.everyone()[unit.member]
        cuts.append(subnetwork(net, unit.capacity, allocation=allocation_of(header), inside=plan.inside))
    say(f"measuring {len(cuts)} subnetworks in turn: {how}, {threads} threads")
    found = measure(cuts, plan.preprocessing, runtime=how, threads=threads)
    for unit, taken in zip(units, found, strict=True):
        say(f"capacity {unit.capacity:g}: {taken.latency_ms_b1:.2f} ms an image, {taken.bytes_on_disk:,} bytes")
    return replace(plan, measured={unit.key: asdict(taken) for unit, taken in zip(units, found, strict=True)})


def conclude(
    recipe: Recipe, run: Run, family: Family, units: Units, failures: list[tuple[float, str]], console: Console
) -> None:
    """Records what the sweep consists of and what failed; prints the table, draws the front, writes the report."""
    run.write_recipe(recipe)
    told = {"name": recipe.name, "unit_keys": list(units.tests), "failures": failures}
    run.write_manifest({**told, **training_told(recipe, family)})
    draw(run, console)


def training_told(recipe: Recipe, family: Family) -> dict[str, Any]:
    """The report's further content: per-layer densities of each capacity, losses and conflicts by epoch."""
    net, header = family.members[family.top]
    kept = {}
    for capacity in (c for c in recipe.sweep.capacities if prunable.layers(net) and c <= family.top):
        cut = subnetwork(net, capacity, allocation=allocation_of(header), weights_sha=header["weights_sha"])
        kept[f"{capacity:g}"] = {name: float(mask.float().mean()) for name, mask in cut.masks.items()}
    return {"kept": kept, "history": header.get("history", []), "conflicts": header.get("conflicts", [])}


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
