"""Methods, variants and upgrades x seeds, as one resumable job into one results table.

    python sweeps/ablation.py --recipe sweeps/recipes/methods_omniglot.yaml
    ray job submit --working-dir . -- python sweeps/ablation.py --recipe sweeps/recipes/methods_omniglot.yaml
    python sweeps/ablation.py --recipe … --local          # one trial after the other in this process, without Ray
    python sweeps/ablation.py --recipe … --list           # what there is to do

A trial is one method (or variant) and one seed: it trains its networks, cuts and tests all capacities, and its rows
carry its name. One actor works on one trial; as many run as the cluster has room for. The recipe's `table` is a
single Parquet file that can be kept in a repository: rows in it are not made again, and it grows with every trial.

Rates are tuned first, per method, on validation classes; `analysis.comparison` turns the table into docs/RESULTS.md.
Exit code: 0 finished; 1 some trial failed, the rest is there; 2 the recipe, data or cluster cannot serve;
130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refusal need none of them
    import runpy

    runpy.run_module("sweeps.commands.ablation", run_name="__main__")
    raise SystemExit

from collections.abc import Sequence

from prunnet import process, results
from prunnet.config.trial import Trial
from prunnet.errors import PrunnetError
from prunnet.experiments.trial import run_trial
from prunnet.storage.atomic import check_output
from sweeps.ablation_recipe import Ablation
from sweeps.printing import Console
from sweeps.run import Run, git_commit, open_run


def ablate(
    ablation: Ablation,
    *,
    local: bool = False,
    device: str = "cpu",
    fresh: bool = False,
    console: Console | None = None,
) -> int:
    """The whole job; returns the exit code (0, or 1 where a trial failed for good)."""
    console = console or Console()
    failures = 0
    check_output(ablation.table, "table")
    if fresh and ablation.table.exists():
        results.read_packed(ablation.table)  # nothing else is deleted
    with open_run(ablation.base, fresh=fresh, console=console) as run:
        if fresh:
            ablation.table.unlink(missing_ok=True)
        console.print(f"run {run.folder}")
        if ablation.table.exists():
            results.unpack(ablation.table, run.results)
        for name, trials in phases(ablation, run):
            missing = unfinished(trials, run, ablation)
            console.print(f"{name}: {len(trials) - len(missing)} of {len(trials)} trials finished before")
            work = run_here if local else run_on_cluster
            failures += work(missing, run, ablation, device, console)
    return 1 if failures else 0


def phases(ablation: Ablation, run: Run):  # type: ignore[no-untyped-def]
    """Yields (name, trials). A phase is planned when the earlier ones are done, since tuned rates come from the
    table."""
    yield "tuning", ablation.tuning()
    yield "tuning of taught methods", ablation.tuning(taught=True, table=results.read(run.results))
    table = results.read(run.results)
    yield "methods", ablation.methods_trials(table)
    yield "upgrade", ablation.upgrade_trials(table)
    yield "variants", ablation.variants_trials(table)


def unfinished(trials: Sequence[Trial], run: Run, ablation: Ablation) -> list[Trial]:
    """Trials whose rows are not all in the table."""
    ids = results.read(run.results)["trial_id"].to_pylist()
    return [trial for trial in trials if ids.count(trial.id) < ablation.rows_of(trial)]


def run_here(trials: Sequence[Trial], run: Run, ablation: Ablation, device: str, console: Console) -> int:
    """One trial after the other in this process; returns how many failed."""
    process.prepare(ablation.base.cluster.cpus_per_actor)  # as an actor
    failed = 0
    for trial in trials:
        try:
            run_trial(trial, run.folder, device=device, git_commit=git_commit())
        except PrunnetError as error:
            failed += 1
            console.print(f"{trial.name} failed: {error}", style="red")
            continue
        done(trial, run, ablation, console)
    return failed


def run_on_cluster(trials: Sequence[Trial], run: Run, ablation: Ablation, device: str, console: Console) -> int:
    """Trials on actors; returns how many failed."""
    if not trials:
        return 0
    from cluster.trials import run_trials

    failed = run_trials(
        trials,
        run.folder,
        ablation.base.cluster,
        git_commit=git_commit(),
        on_done=lambda trial: done(trial, run, ablation, console),
        report=lambda line: console.print(line),
    )
    for trial, error in failed:
        console.print(f"{trial.name} failed: {error}", style="red")
    return len(failed)


def done(trial: Trial, run: Run, ablation: Ablation, console: Console) -> None:
    """Packs the table and prints that the trial is done."""
    rows = results.pack(run.results, ablation.table)
    console.print(f"{trial.name} done; {rows} rows in {ablation.table}")


def show(ablation: Ablation, console: Console | None = None) -> None:
    """Prints all trials of the recipe, and whether the table holds them."""
    console = console or Console()
    table = results.read_packed(ablation.table) if ablation.table.exists() else None
    known = [] if table is None else table["trial_id"].to_pylist()
    trials = [*ablation.tuning(), *([] if table is None else ablation.tuning(taught=True, table=table))]
    trials += [*ablation.methods_trials(table), *ablation.variants_trials(table), *ablation.upgrade_trials(table)]
    for trial in trials:
        console.print(f"{'in the table' if trial.id in known else 'to do':<14}{trial.name}")
