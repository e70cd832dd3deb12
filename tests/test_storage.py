"""An object store holds what a folder holds: whole files, results written once, features and networks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from prunnet import data, results, storage
from prunnet.config.recipe import DataConfig, load_recipe
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError, DataError, ResultsError
from prunnet.evaluation.stored_features import load_features, make_features
from prunnet.networks.files import load_network, save_network
from prunnet.storage.atomic import put_in_place, write_text
from prunnet.storage.tensor_files import read_header
from prunnet.subnetworks.subnet import subnetwork
from sweeps.run import Run, absolute_paths, open_run
from tests.conftest import image_folder, tiny_net
from tests.object_store import s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with s3_server() as variables:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        yield
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(server: None, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on S3 of this test's own."""
    monkeypatch.setenv("PRUNNET_CACHE", str(tmp_path / "cache"))
    return storage.place(f"s3://runs/{request.node.name}")


def row(key: str, value: float = 0.5) -> dict[str, object]:
    return {"unit_key": key, "status": "complete", "map": value, "trial_id": None}


def test_a_file_is_there_whole_or_not_at_all(bucket: Path) -> None:
    path = bucket / "a" / "manifest.json"
    write_text(path, "first")
    assert path.read_text() == "first"

    def fails() -> None:
        with put_in_place(path) as temporary:
            temporary.write_text("torn")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["manifest.json"]
    storage.remove(bucket / "a")
    assert not path.exists()
    storage.remove(bucket / "a")


def test_a_copy_follows_its_original(bucket: Path) -> None:
    path = bucket / "model.bin"
    assert storage.local(path) is path  # nothing there
    write_text(path, "one")
    first = storage.local(path)
    assert (first.name, first.read_text()) == ("model.bin", "one")
    assert storage.local(path) == first
    write_text(path, "three")
    assert storage.local(str(path)).read_text() == "three"


def test_results_are_written_once_by_many(bucket: Path) -> None:
    parts = [[row(f"{n}a", n / 10), row(f"{n}b")] for n in range(6)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda rows: results.write_part(str(bucket), rows), parts * 2))
    table = results.read(str(bucket))
    assert sorted(table["unit_key"].to_pylist()) == sorted(r["unit_key"] for rows in parts for r in rows)
    assert len(list(bucket.iterdir())) == 6
    results.write_part(results.trial_folder(str(bucket), "search/0001/ab"), [row("c")])
    assert len(results.finished_keys(str(bucket))) == 13
    assert results.pack(str(bucket), str(bucket) + "-packed.parquet") == 13
    write_text(bucket / "part-0.parquet", "torn")
    with pytest.raises(ResultsError, match="torn part 'part-0.parquet'"):
        results.read(str(bucket))


def test_networks_and_features_come_back_as_they_were(bucket: Path, preprocessing: Preprocessing) -> None:
    net = tiny_net()
    save_network(str(bucket / "model.safetensors"), net, preprocessing)
    again, header = load_network(str(bucket / "model.safetensors"))
    assert header == read_header(str(bucket / "model.safetensors"))
    assert all((again.state_dict()[name] == tensor).all() for name, tensor in net.state_dict().items())
    with pytest.raises(CheckpointError, match="is not a file"):
        load_network(str(bucket / "other.safetensors"))

    recipe = load_recipe(None, ["data.image_size=16", "data.classes=4", "data.images_per_class=2"])
    test = data.load_for(recipe).test
    path = bucket / "features" / "key"
    with pytest.raises(CheckpointError, match="not there or torn"):
        load_features(path)
    identity = {"key": "key", "cost": {}}
    made = make_features(path, subnetwork(net, 0.5), test, 64, identity, 0.0)
    stored = load_features(path, "key")
    assert stored.identity == made
    assert stored.queries.shape == (len(test.queries), 16)
    (path / "queries.npy").unlink()
    write_text(path / "queries.npy", "torn")
    with pytest.raises(CheckpointError, match="damaged"):
        load_features(path, "key")


def test_a_run_lies_on_the_store_and_is_held_by_one_driver(bucket: Path) -> None:
    recipe = load_recipe(None, [f"cluster.storage={bucket}", "name=here"])
    with open_run(recipe) as run:
        assert str(run.folder) == f"{bucket}/here"
        run.write_recipe(recipe)
        run.write_manifest({"name": "here", "unit_keys": [], "failures": []})
        with pytest.raises(ConfigError, match="another job is at work"), open_run(recipe):
            pass
    assert Run(storage.place(f"{bucket}/here")).manifest()["name"] == "here"
    with open_run(recipe, fresh=True) as run:
        assert not run.recipe.exists()


def test_data_are_copied_once_a_machine(bucket: Path, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", classes=6, per_class=3)
    for file in root.rglob("*.png"):
        storage.upload(file, bucket / "images" / file.relative_to(root))
    config = DataConfig(name="imagefolder", root=str(root), image_size=16, test_fraction=0.5)
    here = data.load(config)
    there = data.load(config.model_copy(update={"root": f"{bucket}/images"}))
    assert np.array_equal(here.train.read(np.arange(5)), there.train.read(np.arange(5)))
    assert here.class_names == there.class_names
    with pytest.raises(DataError, match="nothing is there"):
        data.load(config.model_copy(update={"root": f"{bucket}/nowhere"}))


def test_urls_stay_urls_and_files_become_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(
        None, ["data.name=imagefolder", "data.root=s3://b/images.zip", "model.checkpoint=file:///m.st"]
    )
    made = absolute_paths(recipe)
    assert (made.data.root, made.model.checkpoint) == ("s3://b/images.zip", "/m.st")
    assert storage.place("file:///tmp/x") == Path("/tmp/x")
    with pytest.raises(ConfigError, match="cannot be used"):
        storage.place("nonsense://x/y")
