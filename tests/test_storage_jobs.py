"""A whole run on an object store: data, checkpoints, features, results; killed, resumed, equal to one in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prunnet import results, storage
from prunnet.checkpoint import load_network
from tests.conftest import REPOSITORY, image_folder
from tests.object_store import s3_server
from tests.test_jobs import command, kill, run, start, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def outcome(folder: str) -> tuple[str, object]:
    _, header = load_network(f"{folder}/job/model.safetensors")
    return header["weights_sha"], results.deterministic(results.read(f"{folder}/job/results"))


def test_a_run_on_s3_is_killed_resumed_and_equal_to_one_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image_folder(tmp_path / "images", classes=10, per_class=10, side=16)
    archive = Path(shutil.make_archive(str(tmp_path / "data"), "zip", images))
    here = run(command(archive, tmp_path / "here"))
    assert here.returncode == 0, here.stdout + here.stderr
    with s3_server() as variables:
        for name, value in {**variables, "PRUNNET_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        storage.upload(archive, storage.place("s3://runs/data.zip"))
        there = [part.replace(str(archive), "s3://runs/data.zip") for part in command(archive, tmp_path / "there")]
        there = [part.replace(str(tmp_path / "there"), "s3://runs/there") for part in there]
        features = storage.place("s3://runs/there/job/features")
        job = start(there)
        wait_until(lambda: features.is_dir() and len(list(features.iterdir())) >= 2, job)
        kill(job)
        done = run(there)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "nothing to do" in done.stdout
        again = run(there)
        assert "36 of 36 finished before" in again.stdout
        assert outcome("s3://runs/there") == outcome(str(tmp_path / "here"))
        folder = storage.place("s3://runs/there/job")
        assert {"pareto.png", "report.html", "recipe.yaml", "manifest.json"} <= {p.name for p in folder.iterdir()}
        assert not (REPOSITORY / "s3:").exists()
