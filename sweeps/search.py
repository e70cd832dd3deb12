"""Search for a recipe: Optuna proposes, Ray Train trains, shared actors test, and the front is drawn.

    python sweeps/search.py --recipe sweeps/recipes/search_demo.yaml
    ray job submit --working-dir . -- python sweeps/search.py --recipe sweeps/recipes/search_demo.yaml

The recipe names a base, the space around it, objectives, limits and the number of trials (docs/SEARCH.md). Choices
are made on validation classes; the test split is for the winner. The same command again resumes: an interrupted trial
continues from its own checkpoint. All files are written to runs/<name>/:

    study.journal   Optuna's (optuna-dashboard runs/<name>/study.journal)    results/     all rows, a folder a trial
    models/         the networks                                             trials.json  search.{json,png,svg,html}
    best.yaml       a recipe for sweeps/capacity.py, the best of the first objective; front/ holds the others'

Exit code: 0 finished; 1 some trial failed, the rest is there; 2 the recipe, data or cluster cannot serve;
130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refusal need none of them
    import runpy

    runpy.run_module("sweeps.commands.search", run_name="__main__")
    raise SystemExit

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from analysis import plots, search_page, search_plots
from analysis import search as found
from analysis.quantities import Quantity, dense_self_test
from cluster.evaluation import shared_actors
from cluster.placement import room_for_trials
from cluster.search import Job, Ledger, explore, hosting, run, scheduler
from cluster.session import session
from prunnet import results
from prunnet.config.trial import Trial
from prunnet.errors import ConfigError
from prunnet.experiments.validation_probe import ProbeConfig, spread
from prunnet.redact import shown
from prunnet.storage.atomic import write_bytes, write_text
from prunnet.storage.paths import remove
from prunnet.storage.seal import read_json, write_json, write_yaml
from sweeps.finished import open_data
from sweeps.printing import Console
from sweeps.run import Run, git_commit, open_run
from sweeps.run_folder import FRONT, clear
from sweeps.search_recipe import Choice, Constraint, Search
from sweeps.study import open_study
from sweeps.terminal_table import print_table

Row = dict[str, Any]


def search(asked: Search, *, fresh: bool = False, console: Console | None = None) -> int:
    """The whole job; returns the exit code (0, or 1 where a trial failed for good)."""
    console = console or Console()
    with open_run(asked.base, fresh=fresh, console=console) as run_folder:
        console.print(f"run {run_folder.folder}")
        open_data(asked.base, console).split(asked.base.sweep.split)
        study = open_study(asked, run_folder.folder, fresh=fresh)
        for point in asked.file.start:
            study.enqueue_trial(asked.parameters(point), skip_if_exists=True)
        with session(asked.base.cluster, state_api=True):
            baseline = explore_missing(asked, run_folder, study, console)
        if not study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            remove(run_folder.folder / "trials")  # stopped trials may have written again while they ended
        return conclude(asked, run_folder, study, baseline, console)


def explore_missing(asked: Search, run_folder: Run, study: optuna.Study, console: Console) -> list[Row]:
    """The baseline, then the trials that have not ended; returns the baseline's rows."""
    file, cluster = asked.file, asked.base.cluster
    concurrent = room_for_trials(cluster, file.concurrent)
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    left = max(0, file.trials - len(ended))
    orphans = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
    console.print(f"study {study.study_name}: {len(ended)} of {file.trials} trials ended before")
    if why := why_ended(asked, study):
        console.print(why)
        left = min(left, orphans)
    if orphans and left:
        console.print(f"{orphans} trial(s) were interrupted and go on from their last checkpoints")
    job = make_job(asked, run_folder, None)
    with hosting(shared_actors(cluster)) as hosts:
        baseline: list[Row] = []
        if file.baseline:
            console.print("baseline: the base recipe")
            baseline = run(job, Trial("search/baseline", asked.base), hosts)
            job = make_job(asked, run_folder, dense_self_test(baseline))
        if left:
            console.print(f"{left} trial(s) to run, {concurrent} at once")
            before = {t.user_attrs.get("trial_id") for t in ended}
            explore(
                Ledger(
                    study,
                    [q.label for q in file.objectives],
                    partial(trial_at, asked),
                    partial(tell, asked, job, console),
                    job,
                    enough=lambda: bool(why_ended(asked, study)),
                ),
                job,
                hosts,
                trials=left,
                concurrent=min(concurrent, left),
                attempts=file.attempts,
                stopping=scheduler(
                    file.stop.name,
                    grace=file.stop.grace_epochs,
                    reduction=file.stop.reduction,
                    epochs=asked.base.train.epochs,
                    seen=[r for r in partial_rows(run_folder) if r["trial_id"] in before],
                ),
            )
            if why := why_ended(asked, study):
                console.print(why)
    return baseline


def why_ended(asked: Search, study: optuna.Study) -> str:
    """Why no further trial starts, though some are left; empty where all are run."""
    patience, trials = asked.file.patience, study.get_trials(deepcopy=False)
    last = None if patience is None else found.stalled(trials, study.directions, patience)
    # Trials that were running when it was decided may fill the search up; that is then no early end.
    if last is None or sum(t.state.is_finished() for t in trials) >= asked.file.trials:
        return ""
    return f"ended early: nothing improved in {patience} trials up to trial {last}; raise `patience` to go on"


def make_job(asked: Search, run_folder: Run, reference: float | None) -> Job:
    """What all trials share; `reference` is the baseline's dense self-test."""
    file, sweep = asked.file, asked.base.sweep
    probe = None
    if file.stop.name != "none":
        probe = ProbeConfig(file.stop.capacities or spread(sweep.capacities), file.stop.images)
    score = partial(measure, objectives=file.objectives, constraints=file.constraints, reference=reference)
    known = [asked.base.model_dump(mode="json"), [d.values for d in file.space.values() if isinstance(d, Choice)]]
    return Job(str(run_folder.folder), score, probe, git_commit(), known)


def measure(
    rows: Sequence[Row], objectives: Sequence[Quantity], constraints: Sequence[Constraint], reference: float | None
) -> tuple[dict[str, float], dict[str, float]]:
    """A trial's objectives, and how far it is beyond each limit (at most 0: within)."""
    values = {q.label: q.of(rows, reference) for q in objectives}
    return values, {c.label: c.violation(c.of.of(rows, reference)) for c in constraints}


def trial_at(asked: Search, trial: optuna.Trial) -> Trial:
    """The trial of a point that Optuna proposes."""
    changes = asked.suggest(trial)
    trial.set_user_attr("changes", shown(changes))
    return Trial(f"search/{trial.number:04d}", asked.recipe(changes))


def tell(asked: Search, job: Job, console: Console, trial: FrozenTrial) -> None:
    """Prints a line for a trial that ended, and removes its checkpoints."""
    record = found.record_of(trial, asked.file.objectives)
    if record.trial_id:
        job.clear(record.trial_id)
    (line,) = found.table([record], asked.file.objectives)
    console.print(
        f"trial {line[0]}  " + "  ".join([*line[2:-1], record.reason or record.state, line[-1]]),
    )


def partial_rows(run_folder: Run) -> list[Row]:
    """Rows of validation tests that were made while trials were training."""
    return [row for row in results.read(run_folder.results).to_pylist() if row["status"] == "partial"]


def conclude(asked: Search, run_folder: Run, study: optuna.Study, baseline: list[Row], console: Console) -> int:
    """Writes records, front, figure, page and the best recipes, and shows the front; returns the exit code."""
    objectives, folder = asked.file.objectives, run_folder.folder
    told = [found.record_of(trial, objectives) for trial in study.get_trials(deepcopy=False)]
    records = [replace(record, changes=shown(record.changes), reason=shown(record.reason)) for record in told]
    write_text(folder / "trials.json", json.dumps([asdict(record) for record in records], indent=1))
    chosen = found.best_front(records, objectives)
    clear(folder, FRONT)
    for place, record in enumerate(chosen):
        text = recipe_text(asked, record)
        write_yaml(folder / "front" / f"trial-{record.number:04d}.yaml", text)
        if place == 0:
            write_yaml(folder / "best.yaml", text)
    costs = [r.values[q.label] for r in records if r.values for q in objectives if not q.higher]
    findings = found.Findings(
        name=asked.file.name,
        objectives=objectives,
        records=records,
        shares=found.importances(study, objectives),
        worst_cost=max([*costs, *(float(row["macs_dense"]) for row in baseline if row["macs_dense"])], default=1.0),
        baseline=baseline_values(asked, baseline),
        best=recipe_text(asked, chosen[0]) if chosen else "",
        ended=why_ended(asked, study),
    )
    keep_findings(findings, folder)
    draw(folder, console)
    return 1 if any(record.state == "failed" for record in records) else 0


def recipe_text(asked: Search, record: found.Record) -> str:
    """A trial as a recipe that sweeps/capacity.py takes, to be tested on the test split."""
    tree = shown(asked.tree(record.changes))
    tree["name"] = f"{asked.file.name}-{record.number:04d}"
    tree["sweep"]["split"] = "test"
    values = ", ".join(f"{name} {value:.6g}" for name, value in record.values.items())
    head = f"# Trial {record.number} of the search {asked.file.name}, on validation classes: {values}.\n"
    return head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=110)


def baseline_values(asked: Search, baseline: list[Row]) -> dict[str, float] | None:
    """The base recipe's own objectives."""
    if not baseline:
        return None
    return measure(baseline, asked.file.objectives, (), dense_self_test(baseline))[0]


def keep_findings(findings: found.Findings, folder: Path) -> None:
    """Writes `search.json`, from which table, figure and page are drawn."""
    write_json(folder / "search.json", json.loads(findings.to_json()))


def kept_findings(folder: Path) -> found.Findings:
    """What `keep_findings` wrote; ConfigError where there is nothing or it is damaged."""
    path = folder / "search.json"
    try:
        return found.Findings.from_json(json.dumps(read_json(path)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"{str(path)!r} is not there or torn: no finished search in this folder") from None


def draw(folder: Path, console: Console) -> None:
    """Draws table, figure and page from `search.json` in a search's folder."""
    findings = kept_findings(folder)
    show(findings, console)
    if any(record.state == "complete" for record in findings.records):
        for name, content in plots.rendered(search_plots.figure(findings), "png", "svg").items():
            write_bytes(folder / f"search.{name}", content)
        command = f"python sweeps/capacity.py --recipe {shown(folder / 'best.yaml')}"
        write_text(folder / "search.html", search_page.render(findings, command=command))
    for what in ("best.yaml", "search.png", "search.html"):
        if (folder / what).exists():
            console.print(f"{what:<12}{folder / what}")


def show(findings: found.Findings, console: Console) -> None:
    """The trials on the terminal, the front first."""
    objectives = findings.objectives
    *titles, _ = found.head(objectives)  # the changes of a trial do not fit on a terminal; the report has them
    lines: list[list[str]] = []
    if findings.baseline is not None:
        lines.append(["-", "baseline", *found.numbers(findings.baseline, objectives)])
    lines += [cells for *cells, _ in found.table(findings.records, objectives)]
    drop = [quantity.label for quantity in reversed(objectives[1:])]
    print_table(console, titles, lines, drop=drop, names=("state",), title="trials")
