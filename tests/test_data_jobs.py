"""Every data set through the main job on a real Ray: one epoch, then its own protocol."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.session import session
from prunnet import data, results
from prunnet.config import ClusterConfig
from prunnet.data import packed
from sweeps.capacity import sweep
from tests.layouts import LAYOUTS
from tests.test_jobs import run
from tests.test_layouts import check_rows, config, recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.timeout(1500)  # eleven starts of a worker group
def test_every_data_set_is_trained_on_and_tested_by_the_main_job(tmp_path: Path) -> None:
    with session(ClusterConfig(workers=2, actors=1)):
        for name in LAYOUTS:
            workers = 2 if name == "inshop" else 1  # how workers share a list does not depend on the list
            wanted = recipe(name, tmp_path / name, cluster={"loaders": 1, "workers": workers})
            assert sweep(wanted) == 0, name
            check_rows(name, results.read(tmp_path / name / "runs" / name / "results").to_pylist())


def test_a_packed_store_gives_the_same_table_from_the_command_line(tmp_path: Path) -> None:
    root = LAYOUTS["inshop"](tmp_path / "inshop")
    packed.pack(data.whole(config("inshop", root)), tmp_path / "store")
    tables = []
    for name, where in (("folder", root), ("store", tmp_path / "store")):
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
