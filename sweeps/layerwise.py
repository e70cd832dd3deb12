"""Layer-wise capacities under a MACs budget, inside a trained network: a search without any training.

    python sweeps/layerwise.py --recipe sweeps/recipes/omniglot.yaml --budget 0.2 --budget 0.1 --budget 0.05

A budget is the MACs of the uniform subnetwork of that capacity. The evaluation actors test vectors of per-layer
densities on *validation* classes; the best one of each budget and the uniform subnetworks are then tested
on the recipe's split, into the run's results table. The network is the run's own (trained now if it is not there), or
`model.checkpoint`. The same command again resumes.

    layerwise/<budget>.journal       every vector that was tested (Optuna)
    layerwise/<budget>.safetensors   the chosen subnetwork, ready to be loaded
    layerwise/layerwise.json         the chosen vectors and the keys of their tests

Exit code: 0 finished; 1 some test failed; 2 the recipe, data or cluster cannot serve;
130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refusal need none of them
    import runpy

    runpy.run_module("sweeps.commands.layerwise", run_name="__main__")
    raise SystemExit

import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna

from cluster.evaluation import Subject, start_actor
from cluster.experiment import Driver
from cluster.layerwise import REACH, improve, look, sampler
from cluster.pool import Pool
from cluster.progress import bar
from cluster.session import session
from prunnet import results
from prunnet.config.recipe import Recipe, absolute_paths
from prunnet.data.base import Dataset
from prunnet.experiments.run import Failure, evaluate_missing, trained_networks
from prunnet.experiments.trained_networks import Family
from prunnet.experiments.work_units import Units, evaluation_plan, plan_units
from prunnet.storage.atomic import write_text
from prunnet.subnetworks.layer_budgets import Budget, Keep
from prunnet.subnetworks.trained import Cut
from sweeps.finished import open_data
from sweeps.printing import Console
from sweeps.run import Run, git_commit, open_run
from sweeps.study import journal, quiet_optuna
from sweeps.terminal_table import print_table

TRIAL = "layerwise"
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """The options of the search, beside the recipe."""

    budgets: tuple[float, ...] = (0.2, 0.1, 0.05)
    evaluations: int = 200
    grouping: Literal["layer", "block"] = "layer"
    sampler: str = "cmaes"
    seed: int = 0


def search_layers(recipe: Recipe, asked: Asked, console: Console | None = None) -> int:
    """The whole job; returns the exit code."""
    console = console or Console()
    recipe = absolute_paths(recipe)
    with open_run(recipe, console=console) as run, ExitStack() as cluster:
        console.print(f"run {run.folder}")
        validation = recipe.model_copy(
            update={"sweep": recipe.sweep.model_copy(update={"split": "validation", "gallery": "dense"})}
        )
        dataset = open_data(validation, console)
        dataset.split("validation")
        driver = Driver(run.training, console, cluster)
        family = trained_networks(recipe, dataset, driver.train, run.place, say=console.print)
        chosen = chosen_vectors(validation, asked, run, dataset, family, console)
        tested = recipe.model_copy(
            update={"sweep": recipe.sweep.model_copy(update={"gallery": "dense", "capacities": (1.0, *asked.budgets)})}
        )
        failures = test_chosen(tested, run, family, chosen, driver, console)
    return 1 if failures else 0


def chosen_vectors(
    recipe: Recipe, asked: Asked, run: Run, dataset: Dataset, family: Family, console: Console
) -> dict[float, Keep]:
    """Budget -> the best vector on validation classes."""
    net = family.largest.net
    units = plan_units(recipe, family, dataset)
    dense = next(unit for unit in units.features.values() if unit.capacity == family.top)
    metric = results.ranked_by(dataset.split("validation").protocol_name)
    plan = evaluation_plan(recipe, family, features=run.features, results=run.results)
    chosen: dict[float, Keep] = {}
    with session(recipe.cluster), bar(console) as progress:
        subject = Subject.put(plan, family.arrays(), units.calibration, dataset.split("validation"))
        pool: Pool[Any] = Pool(lambda: start_actor(recipe.cluster), recipe.cluster.actors, recipe.cluster.attempts)
        try:
            for capacity in asked.budgets:
                budget = Budget.of(net, recipe.data.image_size, capacity, asked.grouping)
                guesses = budget.guesses(net)
                values = look(pool, subject, dense, metric, [budget.keep(ratios) for ratios in guesses])
                known = [-1.0 if value is None else value for value in values]
                start = guesses[int(np.argmax(known))]
                task = progress.add_task(f"{capacity:g}", total=asked.evaluations, note="")
                keep, value = improve(
                    pool,
                    subject,
                    dense,
                    metric,
                    budget=budget,
                    start=start,
                    study=open_study(run, asked, capacity, family, len(budget.groups)),
                    evaluations=asked.evaluations,
                    report=lambda n, v, task=task: progress.update(task, completed=n, note=f"{100 * v:.1f}"),  # type: ignore[misc]
                )
                chosen[capacity] = keep
                console.print(
                    f"budget {capacity:g}: uniform {100 * known[0]:.1f}, best guess {100 * max(known):.1f}, "
                    f"after {asked.evaluations} tests {100 * value:.1f} (validation {metric})"
                )
        finally:
            pool.close()
    return chosen


def open_study(run: Run, asked: Asked, capacity: float, family: Family, groups: int) -> optuna.Study:
    """The study of one budget of this network, created if it does not exist."""
    quiet_optuna()
    folder = run.folder / TRIAL
    folder.mkdir(exist_ok=True)
    weights_sha = family.largest.header.weights_sha
    return optuna.create_study(
        storage=journal(folder / f"{capacity:g}.journal"),
        study_name=f"{weights_sha[:16]}-{asked.grouping}-{asked.sampler}-{asked.seed}-{REACH:g}",
        sampler=sampler(asked.sampler, asked.seed, groups),
        direction="maximize",
        load_if_exists=True,
    )


def test_chosen(
    recipe: Recipe, run: Run, family: Family, chosen: dict[float, Keep], driver: Driver, console: Console
) -> list[Failure]:
    """Tests chosen and uniform cuts on the recipe's split; returns what failed."""
    dataset = open_data(recipe, Console(quiet=True))
    outcome = evaluate_missing(
        recipe,
        dataset,
        family,
        driver.evaluate,
        features=run.features,
        results=run.results,
        trial=TRIAL,
        layerwise=list(chosen.values()),
        git_commit=git_commit(),
    )
    conclude(recipe, run, family, outcome.units, chosen, dataset, console)
    for failed in outcome.failures:
        console.print(f"capacity {failed.capacity:g} failed: {failed.error}", style="red")
    return outcome.failures


def conclude(
    recipe: Recipe,
    run: Run,
    family: Family,
    units: Units,
    chosen: dict[float, Keep],
    dataset: Dataset,
    console: Console,
) -> None:
    """Saves the chosen subnetworks, and shows them beside the uniform ones."""
    rows = results.select(results.read(run.results), units.tests).to_pylist()
    record = []
    for capacity, keep in chosen.items():
        cut = family.largest.subnetwork(Cut.of_sweep(recipe.sweep, capacity, keep), units.calibration)
        cut.save(run.folder / TRIAL / f"{capacity:g}.safetensors", dataset.preprocessing)
        uniform, layerwise = pair(rows, capacity, keep)
        keys = {name: row and row["unit_key"] for name, row in (("uniform", uniform), ("layerwise", layerwise))}
        record.append({"budget": capacity, "keep": keep, "unit_keys": keys})
    write_text(run.folder / TRIAL / "layerwise.json", json.dumps(record, indent=1))
    show(rows, chosen, console)
    console.print(f"subnetworks {run.folder / TRIAL}")


def show(rows: list[Row], chosen: dict[float, Keep], console: Console) -> None:
    """Prints uniform and layer-wise subnetworks of equal MACs, one below the other."""
    head = ("budget", "cut", "MMACs", "weights kept", "cross mAP", "cross R@1")
    lines = []
    for capacity, keep in chosen.items():
        for name, row in zip(("uniform", "layer-wise"), pair(rows, capacity, keep), strict=True):
            if row is not None:
                kept, accuracy = row["params_kept"] / row["params_total"], (row["map"], row["recall_at_1"])
                numbers = (f"{row['macs'] / 1e6:.3f}", f"{kept:.1%}", *(f"{100 * value:.1f}" for value in accuracy))
                lines.append((f"{capacity:g}", name, *numbers))
    print_table(console, head, lines, drop=("weights kept", "MMACs", "cross R@1"), title="equal MACs")


def pair(rows: list[Row], capacity: float, keep: Keep) -> tuple[Row | None, Row | None]:
    """Cross-tests of the uniform subnetwork of a capacity and of a layer-wise one; None where one failed."""
    uniform = layerwise = None
    for row in rows:
        if row.get("rerank") is not None:
            continue
        if row["gallery_capacity"] == 1.0 and row["allocation"] == "layerwise":
            layerwise = row if json.loads(row["config_json"])["keep"] == keep else layerwise
        elif row["gallery_capacity"] == 1.0 and row["query_capacity"] == capacity:
            uniform = row
    return uniform, layerwise
