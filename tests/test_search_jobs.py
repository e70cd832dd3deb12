"""A search for real: trials nested in Tune, stopped early, killed at any moment, submitted to a running head."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from prunnet import results
from prunnet.config.recipe import load_recipe
from tests.conftest import image_folder
from tests.test_jobs import Head, kill, run, start, wait_until
from tests.test_jobs import head as head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TRIALS, EPOCHS, CAPACITIES = 6, 4, [1.0, 0.5, 0.2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), classes=12, per_class=10, side=16)


def search_file(folder: Path, data: Path, **changes: Any) -> Path:
    """A search over tiny networks; two trials at once on two CPUs."""
    file = {
        "name": "search",
        "base": {
            "data": {"name": "imagefolder", "root": str(data), "image_size": 16, "validation_fraction": 0.3},
            "model": {"options": {"channels": [8, 8, 16, 32]}, "embedding_dim": 16},
            "train": {"epochs": EPOCHS, "batch_size": 8},
            "sweep": {"capacities": CAPACITIES, "calibration_images": 32},
            "cluster": {
                "workers": 1, "cpus_per_worker": 0.75, "actors": 1, "cpus_per_actor": 0.5, "storage": str(folder),
            },
        },
        "space": {
            "train.lr": {"low": 0.001, "high": 0.3, "log": True},
            "train.weighting": ["mean", "cosine"],
            "train.exponent": {"low": 0.1, "high": 2.0},
            "train.capacities": {"count": [1, 2], "low": 0.1, "high": 0.9, "step": 0.1, "gap": 0.2},
        },
        "objectives": ["mean_cross_map", {"name": "macs_within", "tolerance": 0.1}],
        "constraints": [{"of": {"name": "recall_at_1", "capacity": 0.2}, "at_least": 0.05}],
        "trials": TRIALS,
        "sampler": {"startup": 3},
        "stop": {"name": "asha", "images": None},
        **changes,
    }  # fmt: skip
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(file))
    return path


def command(recipe: Path, *more: str) -> list[str]:
    return [sys.executable, "sweeps/search.py", "--recipe", str(recipe), *more]


def records(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "search" / "trials.json").read_text())


def check_ledger(folder: Path) -> None:
    """Exactly the trials there should be, each with its rows and no other, and nothing left over."""
    found = records(folder)
    assert [r["number"] for r in found] == list(range(TRIALS))
    assert {r["state"] for r in found} <= {"complete", "stopped"}, [r["reason"] for r in found]
    table = results.read(folder / "search" / "results").to_pylist()
    assert len({row["unit_key"] for row in table}) == len(table)
    complete = Counter(row["trial_id"] for row in table if row["status"] == "complete")
    seen = {(row["trial_id"], row["epoch"]) for row in table if row["status"] == "partial"}
    for record in found:
        done = record["state"] == "complete"
        assert done or record["epoch"] < EPOCHS, "a trial that was trained to its end was not tested"
        assert complete.pop(record["trial_id"], 0) == (2 * len(CAPACITIES) - 1 if done else 0)
        epochs = {epoch for trial, epoch in seen if trial == record["trial_id"]}
        # One that is told to stop may be an epoch further on before it hears of it.
        assert set(range(1, (EPOCHS if done else record["epoch"]) + 1)) <= epochs <= set(range(1, EPOCHS + 1))
    assert [trial.split("/")[1] for trial in complete] == ["baseline"]
    assert not list((folder / "search" / "trials").glob("*"))
    assert not (folder / "search" / "tune").exists()


@pytest.fixture(scope="module")
def killed_thrice(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that is killed at three random moments, and then left in peace."""
    folder = tmp_path_factory.mktemp("killed")
    recipe, chance = search_file(folder, data), random.Random(7)
    journal = folder / "search" / "study.journal"

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    for _ in range(3):
        job, wanted = start(command(recipe)), lines() + chance.randrange(4, 14)
        wait_until(lambda wanted=wanted: lines() >= wanted, job, seconds=300)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 6))
        kill(job)
    last = run(command(recipe))
    assert last.returncode == 0, last.stdout + last.stderr
    assert "trial(s) to run, 2 at once" in last.stdout
    return folder


def test_killed_at_three_random_moments_it_ends_with_its_trials(killed_thrice: Path) -> None:
    check_ledger(killed_thrice)


def test_a_search_leaves_its_trials_front_and_best_recipe(killed_thrice: Path) -> None:
    folder = killed_thrice / "search"
    assert all((folder / name).stat().st_size > 0 for name in ("search.png", "search.html", "study.journal"))
    best = load_recipe(folder / "best.yaml")
    assert best.sweep.split == "test"
    found = records(killed_thrice)
    chosen = next(r for r in found if f"search-{r['number']:04d}" == best.name)
    assert best.train.lr == pytest.approx(chosen["changes"]["train.lr"])
    assert chosen["values"]["mean_cross_map"] == max(
        r["values"]["mean_cross_map"] for r in found if r["state"] == "complete" and r["feasible"]
    )


def test_the_same_command_again_does_nothing(killed_thrice: Path) -> None:
    before = (killed_thrice / "search" / "trials.json").read_text()
    again = run(command(killed_thrice / "search.yaml"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{TRIALS} of {TRIALS} trials ended before" in again.stdout
    assert (killed_thrice / "search" / "trials.json").read_text() == before


def test_a_killed_trial_goes_on_from_its_checkpoint(data: Path, tmp_path: Path) -> None:
    """The driver of a trial dies, and its training with it; Tune starts it again, and it is not trained from zero."""
    recipe = search_file(tmp_path, data, trials=1, baseline=False, objectives=["mean_cross_map"])
    job = start(command(recipe, "--set", "train.epochs=8"))
    snapshots = lambda: list(tmp_path.glob("search/trials/*/train-*/checkpoint_manager_snapshot.json"))  # noqa: E731
    wait_until(lambda: any(s.read_text().count("checkpoint_dir_name") >= 2 for s in snapshots()), job)
    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("search/results/*/*.parquet")}
    killed = 0
    for process in psutil.Process(job.pid).children(recursive=True):
        if any("ray::ImplicitFunc" in part or "trainable" in part for part in process.cmdline()[:1]):
            process.kill()
            killed += 1
    assert killed
    output = job.communicate(timeout=600)[0]
    assert job.returncode == 0, output
    (record,) = records(tmp_path)
    assert record["state"] == "complete"
    # It went on from its checkpoint: what it had written down of its first epochs was not written again.
    assert written
    assert written == {p: p.stat().st_mtime_ns for p in written}
    (trial_rows,) = {row["trial_id"] for row in results.read(tmp_path / "search" / "results").to_pylist()}
    assert trial_rows == record["trial_id"]


def test_a_trial_that_diverges_fails_with_its_reason_and_the_others_go_on(data: Path, tmp_path: Path) -> None:
    recipe = search_file(
        tmp_path,
        data,
        trials=2,
        space={"train.lr": [1.0e12, 0.05]},
        start=[{"train.lr": 1.0e12}, {"train.lr": 0.05}],
        constraints=[],
        objectives=["mean_cross_map"],
        baseline=False,
        stop={"name": "none"},
    )
    done = run(command(recipe, "--set", "train.precision=fp32"))
    assert done.returncode == 1, done.stdout + done.stderr
    first, second = records(tmp_path)
    assert first["state"] == "failed"
    assert "diverged in epoch 1" in first["reason"]
    assert second["state"] == "complete"


def test_what_cannot_run_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    recipe = search_file(tmp_path, data)
    done = run(command(recipe, "--set", "cluster.workers=2", "--set", "cluster.cpus_per_worker=1"))
    assert done.returncode == 2
    assert "1 actors x 0.5 + 2 workers x 1 = 2.5 CPU(s) for one trial, the nodes have 2" in done.stderr


def test_a_search_is_submitted_twice_and_the_second_resumes(data: Path, head: Head, tmp_path: Path) -> None:
    recipe = search_file(tmp_path, data, trials=2)
    submit = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", head.jobs, "--working-dir", "."]
    arguments = ["python", "sweeps/search.py", "--recipe", str(recipe)]
    first: subprocess.CompletedProcess[str] = run([*submit, "--", *arguments], env=head.environment)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 trial(s) to run" in first.stdout
    second = run([*submit, "--", *arguments], env=head.environment)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "2 of 2 trials ended before" in second.stdout
    deadline = time.monotonic() + 60
    while head.free_cpus() != "2.0 of 2.0":
        assert time.monotonic() < deadline, "CPUs were not given back"
        time.sleep(1)
