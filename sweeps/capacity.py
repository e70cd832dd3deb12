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
    import runpy

    runpy.run_module("sweeps.commands.sweep", run_name="__main__")
    raise SystemExit

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cluster.evaluation import Subject, evaluate
from cluster.progress import bar
from cluster.session import session
from cluster.training import train
from prunnet import results
from prunnet.config.recipe import Recipe
from prunnet.data.base import Dataset
from prunnet.evaluation.evaluator import FeaturesUnit, Plan
from prunnet.experiments.stages import Family, finished, fitting, make_net, stages
from prunnet.experiments.work_units import Units, evaluation_plan, network_arrays, plan_units
from prunnet.export.latency import measure
from prunnet.networks.files import allocation_of, load_network
from prunnet.pruning import prunable
from prunnet.subnetworks.subnet import subnetwork
from prunnet.training.trainer import steps_per_epoch
from sweeps.drawing import draw
from sweeps.finished import determinants, open_data
from sweeps.printing import Console
from sweeps.run import Run, absolute_paths, git_commit, open_run

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
        conclude(recipe, run, dataset, family, units, failures, console)
    return 1 if failures else 0


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
    recipe: Recipe,
    run: Run,
    dataset: Dataset,
    family: Family,
    units: Units,
    failures: list[tuple[float, str]],
    console: Console,
) -> None:
    """Records what the sweep consists of and what failed; prints the table, draws the front, writes the report."""
    run.write_recipe(recipe)
    told = {"name": recipe.name, "unit_keys": list(units.tests), "failures": failures}
    determined = {"determined_by": determinants(recipe, run, dataset)}
    run.write_manifest({**told, **training_told(recipe, family), **determined})
    draw(run, console)


def training_told(recipe: Recipe, family: Family) -> dict[str, Any]:
    """What the report says beside the tests: what each capacity keeps of each layer, losses and conflicts by epoch."""
    net, header = family.members[family.top]
    kept = {}
    for capacity in (c for c in recipe.sweep.capacities if prunable.layers(net) and c <= family.top):
        cut = subnetwork(net, capacity, allocation=allocation_of(header), weights_sha=header["weights_sha"])
        kept[f"{capacity:g}"] = {name: float(mask.float().mean()) for name, mask in cut.masks.items()}
    return {"kept": kept, "history": header.get("history", []), "conflicts": header.get("conflicts", [])}
