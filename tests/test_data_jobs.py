"""The main job on data sets of each kind, on packed stores and on an object store, with a real Ray."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from cluster.session import session
from prunnet import data, results, storage
from prunnet.config.recipe import ClusterConfig
from prunnet.data import packed
from prunnet.networks.files import load_network
from sweeps.capacity import sweep
from tests.conftest import REPOSITORY, image_folder
from tests.layouts import LAYOUTS
from tests.object_store import s3_server
from tests.test_jobs import command, kill, run, start, wait_until
from tests.test_layouts import check_rows, config, recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def test_the_main_job_reads_data_sets_in_workers_and_actors(tmp_path: Path) -> None:
    """A list that two workers share, a benchmark that is only tested on, and one with a protocol of its own. Each data
    set is trained on and tested without Ray in tests/test_layouts.py, by the same pipeline."""
    with session(ClusterConfig(workers=2, actors=1)):
        for name, workers in (("inshop", 2), ("roxford5k", 1), ("gldv2", 1)):
            wanted = recipe(name, tmp_path / name, cluster={"loaders": 1, "workers": workers})
            assert sweep(wanted) == 0, name
            check_rows(name, results.read(tmp_path / name / "runs" / name / "results").to_pylist())


def test_a_packed_store_gives_the_same_table_from_the_command_line(tmp_path: Path) -> None:
    root = LAYOUTS["inshop"](tmp_path / "inshop")
    packed.pack(data.whole(config("inshop", root)), tmp_path / "packed")
    tables = []
    for name, where in (("folder", root), ("store", tmp_path / "packed")):
        settings = {
            "name": name,
            "data.root": where,
            "data.name": "inshop",
            "data.image_size": 16,
            "data.resize": 18,
            "model.options": "{channels: [8, 8, 16, 16]}",
            "model.pretrained": "false",
            "train.epochs": 1,
            "train.batch_size": 8,
            "sweep.capacities": "[1.0, 0.4]",
            "sweep.calibration_images": 16,
            "cluster.storage": tmp_path,
        }
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        done = run([sys.executable, "sweeps/capacity.py", "--recipe", "sweeps/recipes/photographs.yaml", *sets])
        assert done.returncode == 0, done.stderr
        rows = results.read(tmp_path / name / "results").sort_by([("query_capacity", "ascending")]).to_pylist()
        tables.append([(r["query_capacity"], r["gallery_capacity"], r["map"], r["recall_at_1"]) for r in rows])
    assert sorted(tables[0]) == sorted(tables[1])


def outcome_at(folder: str) -> tuple[str, object]:
    _, header = load_network(f"{folder}/job/model.safetensors")
    return header["weights_sha"], results.deterministic(results.read(f"{folder}/job/results"))


@pytest.mark.timeout(900)
def test_a_run_on_s3_is_killed_resumed_and_equal_to_one_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, checkpoints, features and results on an object store."""
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
        assert outcome_at("s3://runs/there") == outcome_at(str(tmp_path / "here"))
        folder = storage.place("s3://runs/there/job")
        assert {"pareto.png", "report.html", "recipe.yaml", "manifest.json"} <= {p.name for p in folder.iterdir()}
        assert not (REPOSITORY / "s3:").exists()
