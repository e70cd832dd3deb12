"""Trials of a search: each a Ray Train run inside a Ray Tune trial, tested by shared evaluation actors.

Optuna's storage is the only record of trials. A trial that a killed driver left RUNNING is resumed under its number,
with its parameters, and its training continues from its own last checkpoint. Tune's own state is not kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from cluster import environment
from cluster.experiment import evaluate_on
from cluster.placement import driver_resources
from cluster.training import FINAL, Watch, train
from prunnet import data, results
from prunnet.config.methods import METHODS
from prunnet.config.recipe import Recipe
from prunnet.config.trial import Trial
from prunnet.data.base import Dataset
from prunnet.errors import PrunnetError, one_line
from prunnet.experiments.run import by_hash, evaluate_missing, trained_networks
from prunnet.experiments.validation_probe import ProbeConfig
from prunnet.redact import restored, shown
from prunnet.results.table import ranked_by, trial_folder
from prunnet.storage.atomic import write_text
from prunnet.storage.paths import place, remove

VALUE, LIMIT, FAILED = "value:", "limit:", "failed"
"""Keys of a trial's last report: its objectives, how far it is beyond each limit, or why it failed."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What all trials of a search share."""

    folder: str
    """On storage that all nodes share; it holds `models/`, `trials/` (checkpoints), `features/` and `results/`."""
    measure: Callable[[Sequence[Row]], tuple[dict[str, float], dict[str, float]]]
    """A trial's complete rows -> its objectives, and how far it is beyond each limit; PrunnetError where one is
    undefined."""
    probe: ProbeConfig | None
    git_commit: str | None
    known: Any = ()
    """Values of the trials' recipes with the credentials of their URLs. Tune writes each trial's recipe to disk without
    credentials, and they are restored from these."""

    def results_of(self, trial: Trial) -> Path:
        return trial_folder(place(self.folder) / "results", trial.id)

    def work_of(self, trial: Trial) -> Path:
        """Checkpoints and features, until it is finished."""
        return self._work(trial.id)

    def _work(self, trial_id: str) -> Path:
        return place(self.folder) / "trials" / trial_id.replace("/", "-")

    def note_error(self, trial: Trial, error: BaseException) -> None:
        """Stores the error of a trial's process: the trial's reason if it fails for good."""
        write_text(self.work_of(trial) / "error.txt", one_line(error)[:1000])

    def last_error(self, trial_id: str) -> str:
        try:
            return (self._work(trial_id) / "error.txt").read_text(encoding="utf-8")
        except OSError:
            return "its processes died in every attempt"

    def clear(self, trial_id: str) -> None:
        """Removes the checkpoints of a trial that ended."""
        remove(self._work(trial_id))


def run(job: Job, trial: Trial, hosts: Sequence[Any], callbacks: Sequence[Any] = ()) -> list[Row]:
    """Trains and tests what is missing of one trial; returns its complete rows.

    Raises PrunnetError for errors that a second try would repeat.
    """
    recipe, dataset, console = trial.recipe, data.load_for(trial.recipe), Console(quiet=True)
    probe = None if METHODS[recipe.train.method].single else job.probe
    watch = None if probe is None else Watch(probe, trial.id, str(job.results_of(trial)))

    def train_stage(ready: Recipe, images: Dataset, path: Path) -> None:
        train(ready, job.work_of(trial), path, console, images, watch=watch, callbacks=callbacks)

    networks = trained_networks(recipe, dataset, train_stage, by_hash(place(job.folder) / "models"))
    outcome = evaluate_missing(
        recipe,
        dataset,
        networks,
        partial(evaluate_on, hosts),
        features=job.work_of(trial) / "features",
        results=job.results_of(trial),
        trial=trial.id,
        git_commit=job.git_commit,
    )
    if outcome.failures:
        raise PrunnetError("; ".join(f"capacity {failed.capacity:g}: {failed.error}" for failed in outcome.failures))
    table = results.select(results.read(job.results_of(trial)), outcome.units.tests)
    job.clear(trial.id)
    return table.to_pylist()


def trainable(config: dict[str, Any], *, job: Job, hosts: Sequence[Any]) -> None:
    """A Tune trial. An error that a second try would repeat is reported and fails the trial; any other is raised, and
    Tune tries again."""
    trial = Trial(config["name"], Recipe.model_validate(restored(config["recipe"], job.known)))
    try:
        rows = run(job, trial, hosts, callbacks=[TuneReportCallback()])
        values, limits = job.measure(rows)
        if bad := [name for name, value in {**values, **limits}.items() if not math.isfinite(value)]:
            raise PrunnetError(f"{', '.join(bad)} is not a finite number")
    except FINAL as error:
        tune.report({FAILED: one_line(error)[:1000]})
        return
    except Exception as error:
        job.note_error(trial, error)
        raise
    tune.report({**{VALUE + n: v for n, v in values.items()}, **{LIMIT + n: v for n, v in limits.items()}})


class Ledger(Searcher):
    """Tune's search algorithm: asks Optuna for points, resumes interrupted trials, and tells Optuna how each trial
    ended.

    Ray's own OptunaSearch would leave a trial without all values RUNNING for ever, record a stopped one as COMPLETE,
    and drop constraints.

    Args:
        objectives: names of the values, in the study's order.
        suggest: an Optuna trial -> the trial to run. PrunnetError, where its point is no recipe, fails that trial.
        on_end: called with every trial that ended.
        job: whose folder may hold the last error of a trial.
        enough: asked before each new trial; where it says yes, none starts any more. Interrupted trials still go on.
    """

    def __init__(
        self,
        study: optuna.Study,
        objectives: Sequence[str],
        suggest: Callable[[optuna.Trial], Trial],
        on_end: Callable[[FrozenTrial], None],
        job: Job,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric=VALUE + objectives[0], mode="max")  # Tune needs a metric; it is not used here
        self.study, self._objectives, self._point, self._on_end, self._job = study, objectives, suggest, on_end, job
        self._enough = enough
        self._running: dict[str, optuna.Trial] = {}
        self._orphans = [t._trial_id for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def __getstate__(self) -> dict[str, Any]:
        return {}  # the Tuner pickles what it was given, for a restore that is not used

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: Optuna's storage holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError

    def suggest(self, trial_id: str) -> Any:
        """The next point; Tune asks once a trial. `Searcher.FINISHED` where no further trial is to start."""
        asked = 0
        while True:
            asked += 1
            again = bool(self._orphans)
            if not again and self._enough():
                return Searcher.FINISHED
            trial = optuna.Trial(self.study, self._orphans.pop(0)) if again else self.study.ask()
            try:
                ready = self._point(trial)
            except PrunnetError as error:
                self._end(trial, TrialState.FAIL, reason=str(error))
                if asked > 100:
                    raise
                continue
            self._running[trial_id] = trial
            trial.set_user_attr("trial_id", ready.id)
            if again:
                trial.set_user_attr("taken up again", trial.user_attrs.get("taken up again", 0) + 1)
            return {"name": ready.name, "recipe": shown(ready.recipe.model_dump(mode="json"))}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Does nothing: only the end of a trial counts."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna: COMPLETE with values, PRUNED where it was stopped early, or FAIL with the reason."""
        trial, result = self._running.pop(trial_id), result or {}
        values = [result.get(VALUE + name) for name in self._objectives]
        if error:
            self._end(trial, TrialState.FAIL, reason=self._job.last_error(trial.user_attrs["trial_id"]))
        elif FAILED in result:
            self._end(trial, TrialState.FAIL, reason=result[FAILED])
        elif None not in values:
            for key, value in result.items():
                if key.startswith(LIMIT):
                    trial.set_constraint(key.removeprefix(LIMIT), value)
            self._end(trial, TrialState.COMPLETE, values)
        elif "score" in result:
            trial.set_user_attr("epoch", result["epoch"])
            trial.set_user_attr("score", result["score"])
            self._end(trial, TrialState.PRUNED)
        else:
            self._end(trial, TrialState.FAIL, reason="the trial's process died without an error message")

    def _end(
        self, trial: optuna.Trial, state: TrialState, values: Sequence[Any] | None = None, reason: str | None = None
    ) -> None:
        if reason is not None:
            trial.set_user_attr("reason", reason)
        self.study.tell(trial, values, state=state)
        (told,) = (t for t in self.study.get_trials(deepcopy=False) if t.number == trial.number)
        self._on_end(told)


def scheduler(name: str, *, grace: int, reduction: float, epochs: int, seen: Iterable[Row]) -> TrialScheduler:
    """ASHA, the median rule, or none, over `score` by `epoch`.

    Args:
        seen: partial rows of trials that ended before this driver began: a resumed search compares with them, too.
    """
    last = epochs - 1  # trials that reach the last epoch are tested in any case
    if name == "none" or last < 1:
        return FIFOScheduler()
    if name == "median":
        return MedianStoppingRule(time_attr="epoch", metric="score", mode="max", grace_period=grace)
    asha = ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        grace_period=min(grace, last),
        max_t=last,
        reduction_factor=reduction,
        stop_last_trials=False,
    )
    for trial, epoch, score in _scores(seen):
        stand_in: Any = SimpleNamespace(trial_id=trial)
        if trial not in asha._trial_info:
            asha.on_trial_add(None, stand_in)  # type: ignore[arg-type]
        asha.on_trial_result(None, stand_in, {"epoch": epoch, "score": score})  # type: ignore[arg-type]
    return asha


def _scores(rows: Iterable[Row]) -> list[tuple[str, int, float]]:
    """(trial, epoch, mean over the capacities) of partial rows, epoch after epoch."""
    looks: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        value = row[ranked_by(row["protocol"])]
        looks.setdefault((row["epoch"], row["trial_id"]), []).append(value)
    return [(trial, epoch, sum(values) / len(values)) for (epoch, trial), values in sorted(looks.items())]


def explore(
    ledger: Ledger,
    job: Job,
    hosts: Sequence[Any],
    *,
    trials: int,
    concurrent: int,
    attempts: int,
    stopping: TrialScheduler,
) -> None:
    """Runs `trials` trials, `concurrent` at once."""
    environment.set_for_tune(concurrent)
    storage = place(job.folder) / "tune"
    remove(storage)
    asked = tune.with_resources(tune.with_parameters(trainable, job=job, hosts=list(hosts)), driver_resources())
    tuner = tune.Tuner(
        asked,
        tune_config=tune.TuneConfig(
            search_alg=ledger,
            scheduler=stopping,
            num_samples=trials,
            max_concurrent_trials=concurrent,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(place(job.folder)),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=attempts - 1),
        ),
    )
    tuner.fit()
    remove(storage)


@contextlib.contextmanager
def hosting(hosts: Sequence[Any]) -> Any:
    """Ends shared actors when the block ends."""
    try:
        yield hosts
    finally:
        for host in hosts:
            ray.kill(host)
