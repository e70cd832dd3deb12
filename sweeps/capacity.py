"""Train or load a network, cut and evaluate many capacities, write Parquet, draw the front.

    python sweeps/capacity.py --recipe sweeps/recipes/demo.yaml
    python sweeps/capacity.py --recipe FILE --set model.backbone=resnet18 --set sweep.capacities=[0.2,0.5]
    ray job submit --working-dir . -- python sweeps/capacity.py --recipe sweeps/recipes/demo.yaml

Alone it starts a Ray of its own; under `ray job submit` (or with RAY_ADDRESS) it joins the cluster. The same
command again resumes: what is finished is not done twice. Everything lands in runs/<name>/:

    model.safetensors   the trained network and its scores     results/     the results table, Parquet
    features/           embeddings of every capacity           pareto.png   report.html   recipe.yaml
    paper/              the front and the matrix as SVG, the table as Markdown and LaTeX, all rows as CSV

Exit code: 0 finished; 1 some capacity failed, the rest is there; 2 the recipe, data or cluster cannot serve;
130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refusal need none of them
    from sweeps.cli import script
    from sweeps.commands import sweep

    script(sweep.main)
    raise SystemExit

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis import tables
from analysis.frame import Frame
from cluster.evaluation import Subject, evaluate
from cluster.progress import bar
from cluster.session import session
from cluster.training import train
from prunnet import data, prunable, results
from prunnet.checkpoint import load_network
from prunnet.config import Recipe
from prunnet.data.base import Dataset
from prunnet.errors import DataWarning
from prunnet.evaluation import FeaturesUnit, Plan
from prunnet.families import Family, finished, fitting, make_net, stages
from prunnet.latency import measure
from prunnet.plan import Units, allocation_of, evaluation_plan, network_arrays, plan_units
from prunnet.seal import read_text
from prunnet.storage import shown
from prunnet.subnetworks import subnetwork
from prunnet.training import steps_per_epoch
from sweeps.printing import Console
from sweeps.report_files import write_files
from sweeps.run import Run, absolute_paths, git_commit, open_run
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
                cluster.close()  # what is measured has the machine to itself
            failures = evaluate_missing(recipe, run, dataset, family, units, console)
        conclude(recipe, run, family, units, failures, console)
    return 1 if failures else 0


def open_data(recipe: Recipe, console: Console) -> Dataset:
    """Training set and tests, with what a user should know of these copies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # said once, below, instead of by every worker
        dataset = data.load_for(recipe)
    for note in dataset.notes:
        console.print(f"note: {note}", style="yellow")
    return dataset


def trained_networks(recipe: Recipe, run: Run, dataset: Dataset, console: Console, cluster: ExitStack) -> Family:
    """What is swept: a given checkpoint, this run's finished networks, or those that are trained now. `cluster` keeps
    the session that is opened for it, which whoever needs one next joins."""
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
    # What workers would refuse is said here, at once, before any is started.
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
    """Evaluates what the results table does not hold yet; returns (capacity, error) of what failed for good."""
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
            if not console.is_terminal and done:  # where no bar can move, lines tell
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
    """The plan with latency, size and memory of every subnetwork, where the recipe asks for them: measured on this
    machine, by turns, before anybody else is at work on it."""
    how, threads = recipe.sweep.measure, recipe.sweep.measure_threads
    if how == "off" or not units:
        return plan
    cuts = []
    for unit in units:
        net, header = family.everyone()[unit.member]
        cuts.append(subnetwork(net, unit.capacity, allocation=allocation_of(header), inside=plan.inside))
    say(f"measuring {len(cuts)} cuts by turns: {how}, {threads} threads")
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
    """What the report says beside the tests: what each capacity keeps of each layer, losses and conflicts by epoch."""
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
