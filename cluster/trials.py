"""Whole trials on actors: one actor trains and tests one trial at a time (`prunnet.experiments`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from cluster.pool import Pool
from cluster.session import session
from prunnet import process
from prunnet.config.recipe import ClusterConfig
from prunnet.config.trial import Trial
from prunnet.experiments.trial import run_trial


class Worker:
    """Runs trials in its own process."""

    def __init__(self, folder: str, cpus: float, device: str, git_commit: str | None) -> None:
        process.prepare(cpus)
        self.folder, self.device, self.git_commit = Path(folder), device, git_commit

    def run(self, trial: Trial) -> int:
        return run_trial(trial, self.folder, device=self.device, git_commit=self.git_commit)


def run_trials(
    trials: Sequence[Trial],
    folder: Path,
    cluster: ClusterConfig,
    *,
    git_commit: str | None,
    on_done: Callable[[Trial], None],
    report: Callable[[str], None],
) -> list[tuple[Trial, str]]:
    """Runs trials on `cluster.actors` actors.

    A dead actor is replaced; its trial resumes from the last finished epoch.

    Returns:
        (trial, error) of each trial that failed `cluster.attempts` times.
    """
    actor = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor)(Worker)
    device = "cuda" if cluster.gpus_per_actor else "cpu"
    with session(cluster.model_copy(update={"workers": 1, "cpus_per_worker": cluster.cpus_per_actor})):
        pool: Pool[Trial] = Pool(
            lambda: actor.remote(str(folder), cluster.cpus_per_actor, device, git_commit),
            min(cluster.actors, len(trials)),
            cluster.attempts,
        )
        try:
            outcome = pool.run(
                trials,
                lambda a, trial: a.run.remote(trial),
                on_done=lambda trial, _: on_done(trial),
                on_retry=lambda trial, why: report(f"{trial.name} is tried again: {why}"),
            )
        finally:
            pool.close()
    return outcome.failed
