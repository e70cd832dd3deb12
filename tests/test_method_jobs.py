"""Every method through Ray: a few steps of each in one Ray Train run, families and upgrades in the main job, and an
ablation that is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch
import yaml
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.session import session
from prunnet import results
from prunnet.config.recipe import ClusterConfig
from prunnet.data.transforms import Augmentation
from prunnet.networks.files import load_network
from prunnet.storage.tensor_files import read_header
from prunnet.training.trainer import Trainer
from tests import methods
from tests.conftest import image_folder
from tests.test_jobs import checkpoints, descendants, run, start, wait_until

pytestmark = pytest.mark.slow


def few_steps(case: str, old: Path) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """Two steps of a case on this worker's share of the batches; the trainer, and what each parameter moved."""
    config = methods.config_of(case, old, epochs=1, lr=0.02)
    trainer = Trainer(
        methods.net_for(config).float(),
        methods.images(),
        config,
        preprocessing=methods.PREPROCESSING,
        augmentation=Augmentation(rotate=5),
        class_names=methods.CLASSES,
    )
    before = {name: p.detach().clone() for name, p in trainer.learned().items()}
    trainer.run()
    return trainer, {name: p.detach() - before[name] for name, p in trainer.learned().items()}


def chain(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    world = ray.train.get_context().get_world_size()
    for case in methods.CASES:
        trainer, moved = few_steps(case, Path(config["old"]))
        everyones = {name: trainer.reducer.gather(change) for name, change in moved.items()}
        assert trainer.reducer.world == world == 2
        for name, changes in everyones.items():
            assert torch.equal(changes[0], changes[1]), (case, name)
        if trainer.reducer.rank == 0:
            torch.save(moved, Path(config["folder"]) / f"{case}.pt")
    ray.train.report({"cases": len(methods.CASES)})


def test_one_ray_train_run_chains_a_few_steps_of_every_method(tmp_path: Path) -> None:
    old = methods.save_old(tmp_path / "old.safetensors")
    with session(ClusterConfig(workers=2, actors=1)):
        TorchTrainer(
            chain,
            train_loop_config={"old": str(old), "folder": str(tmp_path)},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name="chain", storage_path=str(tmp_path / "ray")),
        ).fit()
    for case in methods.CASES:
        found = torch.load(tmp_path / f"{case}.pt")
        _, alone = few_steps(case, old)
        assert set(found) == set(alone)
        assert any(float(change.abs().max()) > 0 for change in found.values()), case
        if methods.METHODS[methods.config_of(case, old).method].network == "masks":  # no BatchNorm to differ
            for name, change in alone.items():
                scale = max(float(change.norm()), 1e-5)
                assert float((found[name] - change).norm()) < 0.05 * scale, (case, name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), classes=10, per_class=8, side=16)


def job(data: Path, storage: Path, *settings: str) -> list[str]:
    """The main job on a small folder of images."""
    common = (
        f"data={{name: imagefolder, root: {data}, image_size: 16}}",
        "model={stem: released, embedding_dim: 16, options: {channels: [8, 8, 16, 32]}}",
        "sweep={capacities: [1.0, 0.5, 0.3], calibration_images: 32}",
        f"cluster={{storage: {storage}, workers: 2, actors: 2}}",
        "train.epochs=2",
        "train.batch_size=16",
        "train.lr=0.05",
    )
    sets = [part for setting in (*common, *settings) for part in ("--set", setting)]
    return [sys.executable, "sweeps/capacity.py", *sets]


def test_the_main_job_trains_a_family_and_then_an_upgrade_of_many_capacities(data: Path, tmp_path: Path) -> None:
    first = job(data, tmp_path, "name=family", "train.method=bct", "train.capacities=[0.5]")
    done = run(first)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "family"
    headers = [read_header(folder / name) for name in ("model.safetensors", "model-0.5.safetensors")]
    assert [h["recipe"]["train"]["method"] for h in headers] == ["independent", "bct"]
    assert headers[1]["recipe"]["train"]["old"] == headers[0]["weights_sha"]
    rows = {(r["query_capacity"], r["gallery_capacity"]): r for r in results.read(folder / "results").to_pylist()}
    assert rows[0.5, 1.0]["query_weights_sha"] == headers[1]["weights_sha"]
    assert rows[0.5, 1.0]["gallery_weights_sha"] == headers[0]["weights_sha"]
    assert rows[0.3, 1.0]["query_weights_sha"] == headers[1]["weights_sha"]  # cut from the next larger network
    again = run(first)
    assert again.stdout.count("finished before") == 3, again.stdout

    old = folder / "model.safetensors"
    upgrade = job(data, tmp_path, "name=upgrade", "train.capacities=[0.5]", "train.compatible=ndpp", f"train.old={old}")
    done = run(upgrade)
    assert done.returncode == 0, done.stdout + done.stderr
    rows_of = [r for r in results.read(tmp_path / "upgrade" / "results").to_pylist() if r["gallery_source"] == "old"]
    assert {r["query_capacity"] for r in rows_of} == {1.0, 0.5, 0.3}
    assert {r["gallery_weights_sha"] for r in rows_of} == {headers[0]["weights_sha"]}
    assert {r["method"] for r in rows_of} == {"prunnet+ndpp"}


def test_switchable_training_survives_a_killed_worker(data: Path, tmp_path: Path) -> None:
    settings = ("train.method=sfsc", "train.capacities=[0.5]", "train.evidence=0.001", "train.epochs=12")
    undisturbed, disturbed = (job(data, tmp_path / where, "name=job", *settings) for where in ("a", "b"))
    done = run(undisturbed)
    assert done.returncode == 0, done.stdout + done.stderr
    process = start(disturbed)
    wait_until(lambda: checkpoints(tmp_path / "b") >= 1, process)
    os.kill(descendants(process, "RayTrainWorker")[0].pid, signal.SIGKILL)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    hashes = [load_network(tmp_path / where / "job" / "model.safetensors")[1]["weights_sha"] for where in ("a", "b")]
    assert hashes[0] == hashes[1]


SMALL: dict[str, Any] = {
    "name": "small",
    "seeds": [0],
    "base": {
        "data": {"name": "glyphs", "classes": 20, "images_per_class": 6, "image_size": 16, "invert": True},
        "model": {"stem": "released", "embedding_dim": 16, "options": {"channels": [8, 8, 8, 8]}},
        "train": {"capacities": [0.5, 0.2], "epochs": 2, "batch_size": 32},
        "sweep": {"capacities": [1.0, 0.5, 0.2, 0.1], "gallery": "dense", "calibration_images": 32},
        "cluster": {"actors": 2, "cpus_per_actor": 1},
    },
    "tuning": {"values": [0.03, 0.1], "set": {"train.epochs": 1}},
    "methods": {
        "prunnet": {},
        "independent": {"train.method": "independent"},
        "regression": {"train.method": "regression"},
        "switchable": {"train.method": "switchable"},
    },
    "variants": {"calibrate: false": {"sweep.calibrate": False}},
    "upgrade": {
        "old": {"train.method": "independent", "train.capacities": [], "data.train_fraction": 0.5},
        "new": {
            "independent": {"train.method": "independent", "train.capacities": []},
            "odpp": {"train.method": "odpp", "train.capacities": []},
            "prunnet+ndpp": {"train.compatible": "ndpp"},
        },
    },
}


def ablation(folder: Path, *more: str) -> list[str]:
    """The ablation job; its table lies in the folder, too."""
    tree = json.loads(json.dumps(SMALL)) | {"table": str(folder / "table.parquet")}
    tree["base"]["cluster"]["storage"] = str(folder / "runs")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return [sys.executable, "sweeps/ablation.py", "--recipe", str(folder / "small.yaml"), *more]


def test_a_killed_ablation_ends_with_the_table_of_an_undisturbed_one_without_ray(tmp_path: Path) -> None:
    done = run(ablation(tmp_path / "local", "--local"))
    assert done.returncode == 0, done.stdout + done.stderr
    expected = results.deterministic(results.read_packed(tmp_path / "local" / "table.parquet"))
    names = {name.rsplit("/", 1)[0] for name in expected["trial_id"].to_pylist()}
    assert len(names) == 8 + 4 + 4 + 1

    command = ablation(tmp_path / "killed")
    process = start(command)
    table = tmp_path / "killed" / "table.parquet"
    wait_until(table.exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shared = tmp_path / "killed" / "runs"
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished before" in done.stdout
    assert results.deterministic(results.read_packed(table)).equals(expected)
    # The table alone is enough to go on from, as in a fresh checkout.
    shared.rename(tmp_path / "away")
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " done;" not in done.stdout
