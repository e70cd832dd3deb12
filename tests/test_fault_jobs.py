"""What a machine does to a job: its disk fills or becomes read-only, its memory runs out, its object store spills.
Each ends in one line or a finished table, and what was finished is kept."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray._private.internal_api import memory_summary

from prunnet import results
from prunnet.config.recipe import load_recipe
from sweeps.capacity import sweep
from tests.conftest import image_folder
from tests.test_jobs import command, outcome, run, start, wait_until

pytestmark = pytest.mark.slow

SMALL = ("train.epochs=3", "sweep.capacities=[1.0,0.4,0.2]", "cluster.workers=1", "cluster.actors=1")
FEW = tuple(part for setting in SMALL for part in ("--set", setting))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), classes=10, per_class=10, side=16)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    done = run(command(data, storage, *FEW))
    assert done.returncode == 0, done.stdout + done.stderr
    return storage


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB: a run with its report takes 6."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Takes all but `leave` bytes of a disk."""
    filler = disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - leave))
    return filler


def test_a_full_disk_is_said_in_a_line_and_what_was_finished_is_kept(data: Path, undisturbed: Path, disk: Path) -> None:
    shutil.copytree(undisturbed, disk, dirs_exist_ok=True)
    for name in ("results", "features"):
        shutil.rmtree(disk / "job" / name)
    filler = fill(disk, leave=40_000)
    full = run(command(data, disk, *FEW))
    assert full.returncode in (1, 2), full.stdout + full.stderr
    assert "No space left on device" in full.stdout + full.stderr
    assert "Traceback" not in full.stdout + full.stderr
    filler.unlink()
    done = run(command(data, disk, *FEW))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to do" in done.stdout
    assert outcome(disk) == outcome(undisturbed)


def test_a_disk_that_fills_while_training_ends_the_job_and_it_goes_on_later(
    data: Path, undisturbed: Path, disk: Path
) -> None:
    filler = fill(disk, leave=600_000)  # the first checkpoint fits, the second does not
    full = run(command(data, disk, *FEW, "--set", "cluster.max_failures=0"))
    assert full.returncode == 2, full.stdout + full.stderr
    assert "No space left on device" in full.stderr
    assert full.stderr.count("\n") == 1
    filler.unlink()
    done = run(command(data, disk, *FEW))
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(disk) == outcome(undisturbed)


def test_a_folder_that_becomes_read_only_keeps_what_it_has(data: Path, undisturbed: Path, disk: Path) -> None:
    shutil.copytree(undisturbed, disk, dirs_exist_ok=True)
    for name in ("results", "features"):
        shutil.rmtree(disk / "job" / name)
    job = start(command(data, disk, *FEW))
    wait_until(lambda: "tests: 0 of" in (job.stdout.readline() if job.stdout else ""), job)
    while subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode:
        assert job.poll() is None, "the job was over before its folder became read-only"
        time.sleep(0.05)  # a file is being written
    output = job.communicate(timeout=600)[0]
    assert job.returncode in (1, 2), output
    assert "Read-only file system" in output
    assert "Traceback" not in output
    refused = run(command(data, disk, *FEW))
    assert refused.returncode == 2
    assert "cannot be written (Read-only file system); set cluster.storage" in refused.stderr
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    done = run(command(data, disk, *FEW))
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(disk) == outcome(undisturbed)


def test_workers_that_the_machine_has_no_memory_for_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray kills workers when the machine's memory passes a threshold; here any use is too much."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    done = run(command(data, tmp_path, *FEW, "--set", "cluster.max_failures=0"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "memory" in done.stderr


def test_an_object_store_that_is_full_spills_and_the_table_is_the_same(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("sweeps/recipes/demo.yaml", command(data, tmp_path, *FEW)[3::2])
    ray.init("local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
    try:
        ballast = [ray.put(np.full(30_000_000, i, np.uint8)) for i in range(4)]
        assert sweep(recipe) == 0
        assert "Spilled" in memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
        assert [int(ray.get(held)[0]) for held in ballast] == [0, 1, 2, 3]
    finally:
        ray.shutdown()
    assert outcome(tmp_path) == outcome(undisturbed)
    assert results.read(tmp_path / "job" / "results").num_rows == 9


def test_fresh_starts_over(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    done = run([*command(data, tmp_path, *FEW), "--fresh"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to do" not in done.stdout
    assert "0 of 9 finished before" in done.stdout
    assert outcome(tmp_path) == outcome(undisturbed)
