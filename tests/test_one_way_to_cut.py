"""What is exported, embedded, measured and reported is the subnetwork that was tested, however it was cut."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from prunnet import data, results
from prunnet.config import Recipe, parse_recipe
from prunnet.data.base import Dataset
from prunnet.errors import CheckpointError, ConfigError, ResultsError
from prunnet.evaluation.evaluator import features_path
from prunnet.evaluation.stored_features import StoredFeatures, load_features
from prunnet.experiments.run import Outcome, evaluate_missing, in_this_process, trained_networks
from prunnet.experiments.stages import train_here
from prunnet.experiments.trained_networks import Family, Source
from prunnet.export import open_export
from prunnet.export.embedding_sets import EmbeddingSet
from prunnet.export.latency import Measured
from prunnet.subnetworks import calibration_loader, subnetwork
from prunnet.subnetworks.embed import embed_test
from prunnet.subnetworks.layer_budgets import Budget
from prunnet.subnetworks.trained import Cut
from sweeps import capacity as capacity_job
from sweeps.capacity import measured, training_told
from sweeps.cli import app
from sweeps.run import Run
from tests.conftest import image_folder

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "uniform": {},
    "layer-wise": {},
    "random": {"sweep": {"masks": "random"}},
    "reconstructed": {"sweep": {"reconstruct": True, "reconstruct_images": 12}, "train": {"granularity": "channel"}},
    "within channels": {"sweep": {"inside": 0.5}, "train": {"granularity": "channel", "channel_multiple": 2}},
}


@dataclass(frozen=True)
class Swept:
    """A run's folder after a sweep that was made in this process."""

    run: Run
    recipe: Recipe
    dataset: Dataset
    networks: Family
    outcome: Outcome

    @property
    def row(self) -> dict[str, Any]:
        """The cross-test of the smallest subnetwork, or of the layer-wise one where there is one."""
        rows = results.read(self.run.results).to_pylist()
        rows = [row for row in rows if row["gallery_capacity"] == 1.0 and row["query_capacity"] < 1.0]
        layerwise = [row for row in rows if row["allocation"] == "layerwise"]
        return (layerwise or sorted(rows, key=lambda row: row["query_capacity"]))[0]

    def stored(self, row: dict[str, Any]) -> StoredFeatures:
        """The features that a row tested."""
        key = self.outcome.units.tests[row["unit_key"]].query
        return load_features(features_path(self.run.features, key), key)


def recipe_of(images: Path, **changes: dict[str, Any]) -> Recipe:
    tree: dict[str, dict[str, Any]] = {
        "data": {"name": "imagefolder", "root": str(images), "image_size": 16, "train_fraction": 0.8},
        "model": {"options": {"channels": [8, 8, 16, 32]}, "stem": "released", "embedding_dim": 16},
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "capacities": [0.5]},
        "sweep": {
            "capacities": [1.0, 0.3], "gallery": "dense", "calibration_images": 12, "batch_size": 6, "seed": 3,
        },
        "cluster": {"workers": 1},
    }  # fmt: skip
    for section, values in changes.items():
        tree[section] = {**tree[section], **values}
    return parse_recipe(tree)


def swept(folder: Path, images: Path, kind: str) -> Swept:
    recipe, run = recipe_of(images, **KINDS[kind]), Run(folder)
    dataset = data.load_for(recipe)
    networks = trained_networks(recipe, dataset, train_here, run.place)
    vectors = []
    if kind == "layer-wise":
        budget = Budget.of(networks.largest.net, 16, 0.3)
        vectors = [budget.keep(budget.guesses(networks.largest.net)[5])]
    outcome = evaluate_missing(
        recipe, dataset, networks, in_this_process, features=run.features, results=run.results, layerwise=vectors
    )
    run.write_recipe(recipe)
    return Swept(run, recipe, dataset, networks, outcome)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "images", classes=10)


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return swept(tmp_path_factory.mktemp(request.param.replace(" ", "_")), images, request.param)


@pytest.fixture(scope="module")
def uniform(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return swept(tmp_path_factory.mktemp("only_uniform"), images, "uniform")


def ask(*words: object) -> Any:
    """A command that succeeds."""
    outcome = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome


def refused(*words: object) -> str:
    """What a command that does not succeed says."""
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(outcome.exception, (ConfigError, CheckpointError, ResultsError)), outcome.exception
    return str(outcome.exception)


def test_the_export_of_a_row_has_the_features_that_were_tested(made: Swept, tmp_path: Path) -> None:
    row = made.row
    ask("export", made.run.folder, "--row", row["unit_key"][:12], "--to", tmp_path / "edge.safetensors")
    exported = open_export(tmp_path / "edge.safetensors")
    queries, _ = embed_test(exported, made.dataset.split("test"), 6)
    assert np.allclose(queries, made.stored(row).queries, atol=1e-6)
    assert exported.identity.mask_sha == made.stored(row).identity["mask_sha"]
    assert exported.identity.calibration == made.stored(row).identity["calibration"]
    # The uniform subnetwork with the defaults of a recipe, as it was exported once, is another one.
    plain = subnetwork(made.networks.largest.net, row["query_capacity"]).calibrate(
        calibration_loader(made.dataset.train)
    )
    assert not np.allclose(embed_test(plain, made.dataset.split("test"), 6)[0], queries, atol=1e-3)


def test_a_row_is_embedded_without_an_export(made: Swept, images: Path, tmp_path: Path) -> None:
    key = made.row["unit_key"]
    ask("export", made.run.folder, "--row", key, "--to", tmp_path / "edge.safetensors")
    ask("embed", tmp_path / "edge.safetensors", images, "--out", tmp_path / "exported")
    ask("embed", made.run.folder, images, "--row", key, "--out", tmp_path / "of_row")
    exported, of_row = (EmbeddingSet.load(tmp_path / name) for name in ("exported", "of_row"))
    assert np.allclose(exported.embeddings, of_row.embeddings, atol=1e-6)
    assert exported.identity == of_row.identity


def test_best_exports_the_row_that_it_prints(made: Swept, tmp_path: Path) -> None:
    limit = made.row["macs"]
    found = ask("best", made.run.folder, "--macs", limit, "--export", tmp_path / "best.safetensors")
    row = json.loads(found.stdout)
    queries, _ = embed_test(open_export(tmp_path / "best.safetensors"), made.dataset.split("test"), 6)
    assert np.allclose(queries, made.stored(row).queries, atol=1e-6)
    said = ask("best", made.run.folder, "--macs", limit).stderr
    assert f"prunnet export {made.run.folder} --row {row['unit_key'][:16]} --to edge.onnx" in said


def test_a_capacity_is_cut_as_the_run_swept_it(made: Swept) -> None:
    (row,) = [
        row
        for row in results.read(made.run.results).to_pylist()
        if row["query_capacity"] == 0.3 and row["gallery_capacity"] == 1.0 and row["allocation"] != "layerwise"
    ]
    cut = Source.of(made.run.folder).at(0.3)
    stored = made.stored(row)
    assert (cut.mask_sha, cut.calibration) == (stored.identity["mask_sha"], stored.identity["calibration"])


def test_a_row_says_all_that_its_subnetwork_is(made: Swept) -> None:
    units = made.outcome.units
    for key, row in {row["unit_key"]: row for row in results.read(made.run.results).to_pylist()}.items():
        test = units.tests[key]
        assert Cut.of_row(row) == units.features[test.query].cut
        assert Cut.of_row(row, "gallery") == units.features[test.gallery].cut


def test_what_is_kept_of_each_layer_is_what_the_sweep_kept(made: Swept) -> None:
    kept = training_told(made.recipe, made.networks)["kept"]["0.3"]
    masks = made.networks.largest.masked(Cut.of_sweep(made.recipe.sweep, 0.3)).masks
    assert kept == {name: float(mask.float().mean()) for name, mask in masks.items()}
    whole = subnetwork(made.networks.largest.net, 0.3).masks
    inside = made.recipe.sweep.inside
    for name, share in kept.items():
        if inside < 1.0 and name.startswith("backbone"):
            assert share < 0.6 * float(whole[name].float().mean())


def test_the_subnetworks_that_are_measured_are_those_that_are_tested(
    made: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def measure(cuts: list[Any], *_: Any, **__: Any) -> list[Measured]:
        seen.extend(cut.mask_sha for cut in cuts)
        return [Measured(1.0, 2.0, 0.1, 3, None, "eager", 1, "cpu") for _ in cuts]

    monkeypatch.setattr(capacity_job, "measure", measure)
    sweep = made.recipe.sweep.model_copy(update={"measure": "eager"})
    recipe = made.recipe.model_copy(update={"sweep": sweep})
    from contextlib import ExitStack

    with ExitStack() as cluster:
        evaluate_missing(
            recipe,
            made.dataset,
            made.networks,
            lambda missing: in_this_process(measured(missing, cluster, lambda line: None)),
            features=tmp_path / "features",
            results=tmp_path / "results",
        )
    identities = [load_features(path).identity for path in (tmp_path / "features").iterdir()]
    assert sorted(seen) == sorted(identity["mask_sha"] for identity in identities)
    assert len(seen) == 2


def test_a_key_that_names_no_row_or_several_is_refused_with_those_that_do(uniform: Swept, tmp_path: Path) -> None:
    keys = results.read(uniform.run.results)["unit_key"].to_pylist()
    export = ("export", uniform.run.folder, "--to", tmp_path / "x.onnx", "--row")
    assert all(key[:16] in refused(*export, "zz") for key in keys)
    assert "--row 'zz': " in refused("export", uniform.run.model, "--to", tmp_path / "x.onnx", "--row", "zz")
    several = [{"unit_key": key, "status": "complete"} for key in ("aab", "aac")]
    with pytest.raises(ConfigError, match=r"2 rows have a unit_key that begins with 'aa'; valid: aab, aac"):
        results.row_of(results.as_table(several), "aa")
    assert results.row_of(results.as_table(several), "aab")["unit_key"] == "aab"


def test_the_loss_of_precision_of_a_row_is_measured_in_the_gallery_that_it_searched(
    made: Swept, tmp_path: Path
) -> None:
    said = ask(
        "export", made.run.folder, "--row", made.row["unit_key"], "--to", tmp_path / "x.safetensors", "--measure"
    )
    assert f"masked network, fp32\t{100 * made.row['map']:.2f}" in said.stdout


def test_saved_subnetworks_and_networks_are_embedded_and_exported(uniform: Swept, images: Path, tmp_path: Path) -> None:
    """`embed --help` promised them, and refused them."""
    saved = tmp_path / "saved.safetensors"
    Source.of(uniform.run.folder).at(0.3).save(saved, uniform.dataset.preprocessing)
    ask("export", saved, "--to", tmp_path / "edge.onnx")
    models = {"saved": saved, "exported": tmp_path / "edge.onnx", "network": uniform.run.model}
    for name, model in models.items():
        ask("embed", model, images, "--out", tmp_path / name)
    sets = {name: EmbeddingSet.load(tmp_path / name) for name in models}
    assert np.allclose(sets["saved"].embeddings, sets["exported"].embeddings, atol=1e-4)
    assert sets["network"].identity.capacity == 1.0
    assert sets["saved"].identity.mask_sha == sets["exported"].identity.mask_sha
    assert "rank" in ask("query", tmp_path / "saved", tmp_path / "network", "--top", 1).stdout
    assert "takes neither --capacity nor --row" in refused(
        "export", saved, "--capacity", 0.3, "--to", tmp_path / "y.onnx"
    )
    assert "without the gallery" in refused("export", saved, "--measure", "--to", tmp_path / "y.onnx")


def test_a_swept_checkpoint_is_found_by_the_run_that_swept_it(uniform: Swept, tmp_path: Path) -> None:
    """Such a run holds no network of its own, and its data need not be those of the network's training."""
    recipe = uniform.recipe.model_copy(
        update={"model": uniform.recipe.model.model_copy(update={"checkpoint": str(uniform.run.model)})}
    )
    run = Run(tmp_path / "run")
    networks = trained_networks(recipe, uniform.dataset, train_here, run.place)
    evaluate_missing(recipe, uniform.dataset, networks, in_this_process, features=run.features, results=run.results)
    run.write_recipe(recipe)
    key = uniform.row["unit_key"]
    for name, folder in (("one", run.folder), ("other", uniform.run.folder)):
        ask("export", folder, "--row", key, "--to", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_a_trial_of_a_search_searches_the_gallery_of_the_old_network(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches left it out. Ray Train and the actors are replaced by this process."""
    from cluster import search
    from prunnet.experiments.trial import Trial

    before = recipe_of(images, train={"method": "independent", "capacities": []})
    train_here(before, data.load_for(before), tmp_path / "old.safetensors")
    recipe = recipe_of(images, train={"compatible": "ndpp", "old": str(tmp_path / "old.safetensors")})
    monkeypatch.setattr(
        search, "train", lambda ready, folder, path, console, dataset, **_: train_here(ready, dataset, path)
    )
    monkeypatch.setattr(search, "evaluate_on", lambda hosts, missing: in_this_process(missing))
    job = search.Job(str(tmp_path / "search"), lambda rows: ({}, {}), None, None)
    rows = search.run(job, Trial("search/0", recipe), [])
    assert sorted(row["query_capacity"] for row in rows if row["gallery_source"] == "old") == [0.3, 1.0]
