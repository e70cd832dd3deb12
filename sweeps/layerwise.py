"""Layer-wise capacities under a MACs budget, inside a trained network: a search without any training.

    python sweeps/layerwise.py --recipe sweeps/recipes/omniglot.yaml --budget 0.2 --budget 0.1 --budget 0.05

A budget is what the uniform subnetwork of that capacity costs. Vectors of keep fractions, one a layer, are looked at by
the evaluation actors on *validation* classes; the best one of each budget and the uniform subnetworks are then tested
on the recipe's split, into the run's results table. The network is the run's own (trained now if it is not there), or
`model.checkpoint`. The same command again resumes.

    layerwise/<budget>.journal       every vector that was looked at (Optuna)
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
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna

from cluster.evaluation import Subject, evaluate, start_actor
from cluster.layerwise import REACH, improve, look, sampler
from cluster.pool import Pool
from cluster.progress import bar
from cluster.session import session
from prunnet import results
from prunnet.config.recipe import Recipe
from prunnet.data.base import Dataset
from prunnet.experiments.stages import Family
from prunnet.experiments.work_units import Units, evaluation_plan, network_arrays, plan_units
from prunnet.storage.atomic import write_text
from prunnet.subnetworks.batchnorm import calibration_loader
from prunnet.subnetworks.layer_budgets import Budget, Keep
from prunnet.subnetworks.subnet import subnetwork
from sweeps.capacity import trained_networks
from sweeps.finished import open_data
from sweeps.printing import Console
from sweeps.run import Run, absolute_paths, git_commit, open_run
from sweeps.study import journal, quiet_optuna
from sweeps.terminal_table import print_table

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"
TRIAL = "layerwise"
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What to search, beside the recipe."""

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
        family = trained_networks(recipe, run, dataset, console, cluster)
        chosen = chosen_vectors(validation, asked, run, dataset, family, console)
        tested = recipe.model_copy(
            update={"sweep": recipe.sweep.model_copy(update={"gallery": "dense", "capacities": (1.0, *asked.budgets)})}
        )
        failures = test_chosen(tested, run, family, chosen, console)
    return 1 if failures else 0


def chosen_vectors(
    recipe: Recipe, asked: Asked, run: Run, dataset: Dataset, family: Family, console: Console
) -> dict[float, Keep]:
    """Budget -> the best vector on validation classes."""
    net, _ = family.members[family.top]
    units = plan_units(recipe, family, dataset)
    dense = next(unit for unit in units.features.values() if unit.capacity == family.top)
    metric = results.ranked_by(dataset.split("validation").protocol_name)
    plan = evaluation_plan(recipe, family, features=run.features, results=run.results)
    chosen: dict[float, Keep] = {}
    with session(recipe.cluster), bar(console) as progress:
        subject = Subject.put(plan, network_arrays(family), units.calibration, dataset.split("validation"))
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
                    f"after {asked.evaluations} looks {100 * value:.1f} (validation {metric})"
                )
        finally:
            pool.close()
    return chosen


def open_study(run: Run, asked: Asked, capacity: float, family: Family, groups: int) -> optuna.Study:
    """The looks at one budget of this very network, as far as they are."""
    quiet_optuna()
    folder = run.folder / TRIAL
    folder.mkdir(exist_ok=True)
    _, header = family.members[family.top]
    return optuna.create_study(
        storage=journal(folder / f"{capacity:g}.journal"),
        study_name=f"{header['weights_sha'][:16]}-{asked.grouping}-{asked.sampler}-{asked.seed}-{REACH:g}",
        sampler=sampler(asked.sampler, asked.seed, groups),
        direction="maximize",
        load_if_exists=True,
    )


def test_chosen(
    recipe: Recipe, run: Run, family: Family, chosen: dict[float, Keep], console: Console
) -> list[tuple[float, str]]:
    """Tests chosen and uniform cuts on the recipe's split; returns what failed."""
    dataset = open_data(recipe, Console(quiet=True))
    units = plan_units(recipe, family, dataset, TRIAL, list(chosen.values()))
    finished = results.finished_keys(run.results)
    missing = units.missing_tests(finished)
    failures: list[tuple[float, str]] = []
    if missing:
        plan = evaluation_plan(recipe, family, features=run.features, results=run.results, git_commit=git_commit())
        with session(recipe.cluster):
            subject = Subject.put(plan, network_arrays(family), units.calibration, dataset.split(recipe.sweep.split))
            failures = evaluate(
                subject,
                units.needed_features(missing),
                lambda lost: units.missing_tests(finished, lost),
                recipe.cluster,
                lambda stage, done, message: console.print(message) if message else None,
            )
    conclude(recipe, run, family, units, chosen, dataset, console)
    for capacity, error in failures:
        console.print(f"capacity {capacity:g} failed: {error}", style="red")
    return failures


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
    net, header = family.members[family.top]
    sweep, record = recipe.sweep, []
    for capacity, keep in chosen.items():
        cut = subnetwork(net, capacity, keep=keep, weights_sha=header["weights_sha"])
        if sweep.calibrate:
            count, size = sweep.calibration_images, sweep.batch_size
            cut.calibrate(calibration_loader(dataset.train, count=count, seed=sweep.seed, batch_size=size))
        cut.save(run.folder / TRIAL / f"{capacity:g}.safetensors", dataset.preprocessing)
        uniform, layerwise = pair(rows, capacity, keep)
        keys = {name: row and row["unit_key"] for name, row in (("uniform", uniform), ("layerwise", layerwise))}
        record.append({"budget": capacity, "keep": keep, "unit_keys": keys})
    write_text(run.folder / TRIAL / "layerwise.json", json.dumps(record, indent=1))
    show(rows, chosen, console)
    console.print(f"subnetworks {run.folder / TRIAL}")


def show(rows: list[Row], chosen: dict[float, Keep], console: Console) -> None:
    """Uniform and layer-wise cuts of the same MACs, one under the other."""
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
    """Cross-tests of the uniform cut of a capacity, and of a layer-wise one; None where one failed."""
    uniform = layerwise = None
    for row in rows:
        if row["gallery_capacity"] == 1.0 and row["allocation"] == "layerwise":
            layerwise = row if json.loads(row["config_json"])["keep"] == keep else layerwise
        elif row["gallery_capacity"] == 1.0 and row["query_capacity"] == capacity:
            uniform = row
    return uniform, layerwise
