"""Old and new networks: what reaches the old one, how two are compared, and what an upgrade is worth."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from prunnet import data
from prunnet.config.recipe import DataConfig, Recipe, parse_recipe
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError
from prunnet.evaluation.compare import Side, compare, data_of
from prunnet.evaluation.evaluator import Evaluator, features_path
from prunnet.evaluation.stored_features import load_features
from prunnet.experiments.stages import train_here
from prunnet.experiments.trained_networks import Family
from prunnet.experiments.work_units import evaluation_plan, plan_units
from prunnet.networks.files import Statistics, load_calibrated, load_network, network_sha, save_network
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.results.upgrade_metrics import p_1, p_comp, p_up, update_gain
from prunnet.retrieval.compatibility import negative_flips, right_at_one
from prunnet.retrieval.hits import from_ranks
from prunnet.subnetworks import calibration_loader, subnetwork
from prunnet.subnetworks.batchnorm import running_statistics
from prunnet.subnetworks.embed import embed, embed_test
from prunnet.training.objectives.old_network import OldNetwork, converted
from sweeps.cli import app
from tests.conftest import image_folder, tiny_net
from tests.layouts import LAYOUTS

# --- gains -------------------------------------------------------------------------------------------------


def test_gains_by_hand() -> None:
    assert update_gain(0.55, 0.5, 0.6) == pytest.approx(0.5)
    assert update_gain(0.55, 0.6, 0.6) is None
    assert p_up([0.6], [0.6]) == 0.5
    assert p_up([0.3], [0.6]) == pytest.approx(1 / (1 + math.exp(0.5)))
    assert p_comp([0.6], [0.5], [0.6]) == pytest.approx(1 / (1 + math.exp(-1)))
    assert p_comp([0.5], [0.5], [0.6]) == 0.5
    assert p_comp([0.5, 0.5], [0.5, 0.6], [0.6, 0.6]) is None
    up, comp = p_up([0.5], [0.6]), p_comp([0.55], [0.5], [0.6])
    assert comp is not None
    assert p_1([0.5], [0.55], [0.5], [0.6]) == pytest.approx(2 / (1 / up + 1 / comp))
    assert p_1([0.5], [0.55], [0.6], [0.6]) is None


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_better_cross_test_is_worth_more(crossed: float, old: float, best: float) -> None:
    gain, more = update_gain(crossed, old, best), update_gain(crossed + 0.1, old, best)
    assert (gain is None) == (best <= old)
    assert gain is None or more is None or more > gain


def test_negative_flips_by_hand() -> None:
    ranks = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [0, 1, 2]])
    relevant = [np.array([0]), np.array([0]), np.array([1]), np.array([0])]
    junk = [np.array([], int), np.array([1]), np.array([], int), np.array([0])]
    right = right_at_one(from_ranks(ranks, relevant, junk))
    assert right.tolist() == [True, True, False, False]  # junk is removed first; the last has no positive left
    assert negative_flips(right, np.array([False, True, True, True])) == 0.25
    assert negative_flips(right, right) == 0


# --- the old network ---------------------------------------------------------------------------------------

GREY = Preprocessing(16, 16, 1, False, (0.5,), (0.5,))
COLOUR = Preprocessing(24, 24, 3, True, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def test_images_are_converted_as_if_the_other_preprocessing_had_made_them() -> None:
    pixels = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    same_size = Preprocessing(16, 16, 3, True, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    expected = same_size.normalise(255 - pixels.expand(-1, 3, -1, -1))
    assert torch.allclose(converted(GREY.normalise(pixels), GREY, same_size), expected, atol=1e-5)
    back = converted(expected, same_size, GREY)
    assert torch.allclose(back, GREY.normalise(pixels), atol=1e-2)  # luma's weights sum to 1
    assert converted(GREY.normalise(pixels), GREY, COLOUR).shape == (2, 3, 24, 24)
    assert converted(expected, same_size, same_size) is expected


def test_an_old_network_may_be_a_saved_subnetwork_with_another_preprocessing(tmp_path: Path) -> None:
    net = tiny_net(3, in_chans=3)
    cut = subnetwork(net, 0.4).calibrate([torch.randn(8, 3, 24, 24)])
    cut.save(tmp_path / "old.safetensors", COLOUR)
    old = OldNetwork(tmp_path / "old.safetensors", preprocessing=GREY, embedding_dim=16)
    images = GREY.normalise(torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8))
    assert torch.allclose(old.embed(images), cut.embed(converted(images, GREY, COLOUR)), atol=1e-6)
    assert old.classifier is None
    with pytest.raises(ConfigError, match="embeddings of length 16, the new network 32"):
        OldNetwork(tmp_path / "old.safetensors", preprocessing=GREY, embedding_dim=32)
    cut.save(tmp_path / "unsaid.safetensors")
    with pytest.raises(CheckpointError, match="does not say what preprocessing"):
        OldNetwork(tmp_path / "unsaid.safetensors", preprocessing=GREY, embedding_dim=16)
    (tmp_path / "text").write_text("no")
    for path in (tmp_path / "absent", tmp_path / "text"):
        with pytest.raises(CheckpointError):
            OldNetwork(path, preprocessing=GREY, embedding_dim=16)


def shifted(net: RetrievalNet, by: float) -> Statistics:
    """Statistics that no images gave, so that their use is seen."""
    own = dict(running_statistics(net))
    return Statistics({n: t + by if n.endswith("running_mean") else t.clone() for n, t in own.items()}, "images")


def saved(path: Path, net: RetrievalNet, statistics: Statistics | None, **header: object) -> Path:
    save_network(path, net, GREY, statistics=statistics, class_names=["a", "b"], **header)
    return path


def test_an_old_network_embeds_with_the_statistics_that_it_had(tmp_path: Path) -> None:
    """Issue 15, number 12: BatchNorm was re-estimated on the new training images, and the gallery was written before.
    A file of before there were any gives its running ones."""
    net = tiny_net(seed=1)
    statistics = shifted(net, 0.5)
    plain, stored = saved(tmp_path / "plain", net, None), saved(tmp_path / "stored", net, statistics)
    images = GREY.normalise(torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8))
    running = subnetwork(net, 1.0).embed(images)
    cut = subnetwork(net, 1.0)
    cut.set_statistics(statistics.tensors, "images")
    old = {path: OldNetwork(path, preprocessing=GREY, embedding_dim=16) for path in (plain, stored)}
    assert torch.equal(old[plain].embed(images), running)
    assert torch.equal(old[stored].embed(images), cut.embed(images))
    assert not torch.allclose(running, cut.embed(images))
    loaded, header, found = load_calibrated(stored)
    assert header["weights_sha"] == network_sha(net) == network_sha(loaded)
    assert found is not None
    assert found.calibration == "images"
    assert found.tensors.keys() == statistics.tensors.keys()
    one, other = (
        parse_recipe({"train": {"method": "ndpp", "old": str(path)}}).with_files_seen().training_hash() for path in old
    )
    assert one != other  # it teaches something else


def test_a_training_saves_its_dense_networks_statistics_on_its_own_images(tmp_path: Path) -> None:
    settings = {
        "data": {"classes": 4, "images_per_class": 4, "image_size": 16},
        "model": {"embedding_dim": 8, "options": {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]}},
        "train": {"epochs": 1, "batch_size": 8, "capacities": [0.5]},
    }
    for method in ("prunnet", "switchable"):
        recipe = parse_recipe({**settings, "train": {**settings["train"], "method": method}})
        dataset = data.load_for(recipe)
        train_here(recipe, dataset, tmp_path / method)
        net, _, statistics = load_calibrated(tmp_path / method)
        cut = subnetwork(net, 1.0).calibrate(calibration_loader(dataset.train))
        assert statistics is not None
        assert statistics.calibration == cut.calibration
        assert all(torch.equal(tensor, statistics.tensors[name]) for name, tensor in cut.statistics().items())
        assert statistics.tensors.keys() == cut.statistics().keys()


@pytest.mark.parametrize("calibrate", [True, False])
def test_a_sweep_searches_the_old_gallery_as_the_old_network_wrote_it(tmp_path: Path, calibrate: bool) -> None:
    """Issue 15, number 12: in plan and evaluation, too. Without an old network, and for the new one's cuts, the keys
    are what they were."""
    recipe = parse_recipe(
        {
            "data": {"classes": 4, "images_per_class": 4, "image_size": 16},
            "sweep": {"capacities": [1.0, 0.5], "gallery": "dense", "calibrate": calibrate},
        }
    )
    dataset = data.load_for(recipe)
    trained = {"recipe": recipe.trained_part(), "workers": 1, "epoch": 1, "images_seen": 8, "train_seconds": 1.0}
    new, old = tiny_net(), tiny_net(seed=1)
    pre = dataset.preprocessing
    save_network(tmp_path / "new", new, pre, **trained)
    keys, files = {}, {}
    for name, statistics in (("none", None), ("half", shifted(old, 0.5)), ("plain", None)):
        save_network(tmp_path / name, old, pre, statistics=statistics, **trained)
        family = Family.load({1.0: tmp_path / "new"}, None if name == "none" else str(tmp_path / name))
        units = plan_units(recipe, family, dataset)
        keys[name] = {unit.key: unit for unit in units.features.values()}
        plan = evaluation_plan(recipe, family, features=tmp_path / "features", results=tmp_path / "results")
        split = dataset.split("test")
        evaluator = Evaluator(plan, family.arrays(), units.calibration, split)
        for unit in units.features.values():
            if unit.stored:
                evaluator.features(unit)
                files[name] = load_features(features_path(tmp_path / "features", unit.key), unit.key)
    own = set(keys["none"])
    assert own < set(keys["half"])
    assert own < set(keys["plain"])
    assert len(set(keys["half"]) | set(keys["plain"])) == len(own) + 2
    cut = subnetwork(old, 1.0)
    for name, statistics in (("plain", None), ("half", shifted(old, 0.5))):
        if statistics is not None:
            cut.set_statistics(statistics.tensors, "images")
        assert np.allclose(files[name].queries, embed(cut, split.queries), atol=1e-5), name
    assert files["half"].identity["calibration"] == "images"


def test_a_recipe_knows_an_old_network_by_its_weights_not_its_place(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_network(tmp_path / name, tiny_net(seed=seed), GREY)
    recipes = [parse_recipe({"train": {"method": "ndpp", "old": str(tmp_path / name)}}) for name in "abc"]
    seen = [recipe.with_files_seen() for recipe in recipes]
    for name in "abc":  # a hash opens no file
        (tmp_path / name).unlink()
    hashes = [recipe.training_hash() for recipe in seen]
    assert hashes[0] == hashes[1] != hashes[2]
    assert seen[0].with_files_seen() is seen[0]
    with pytest.raises(CheckpointError, match="is not a file"):
        parse_recipe({"train": {"method": "ndpp", "old": str(tmp_path / "d")}}).with_files_seen()


def test_a_share_of_the_training_classes_is_a_seeded_subset() -> None:
    config = DataConfig(classes=20, images_per_class=3, image_size=16)
    whole, half = data.load(config), data.load(config.model_copy(update={"train_fraction": 0.5}))
    assert len(half.class_names) == 10
    assert set(half.class_names) < set(whole.class_names)
    for label, name in enumerate(half.class_names):
        mine = half.train.read(np.flatnonzero(half.train.labels == label))
        theirs = whole.train.read(np.flatnonzero(whole.train.labels == whole.class_names.index(name)))
        assert np.array_equal(mine, theirs)
    assert half.test.fingerprint() == whole.test.fingerprint()


# --- prunnet evaluate --------------------------------------------------------------------------------------


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, Path]:
    """Networks that say what they were trained on: two that compare, one of another length, one of another size."""
    root = image_folder(tmp_path / "images", classes=8, per_class=5)
    paths = {}
    for name, seed, arguments, size in (
        ("new", 0, {}, 16),
        ("old", 1, {}, 16),
        ("long", 2, {"embedding_dim": 32}, 16),
        ("large", 3, {}, 24),
    ):
        config = {"name": "imagefolder", "root": str(root), "image_size": size}
        recipe: Recipe = parse_recipe({"data": config})
        paths[name] = tmp_path / f"{name}.safetensors"
        preprocessing = Preprocessing.from_config(recipe.data)
        save_network(paths[name], tiny_net(seed=seed, **arguments), preprocessing, recipe=recipe.trained_part())
    return paths


def evaluate(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_evaluate_prints_tests_flips_and_why_there_is_no_gain(networks: dict[str, Path]) -> None:
    said = evaluate("--query", networks["new"], "--gallery", networks["old"])
    assert said.count("self-test") >= 2
    assert "cross-test" in said
    assert "negative flips" in said
    assert "update_gain null" in said
    assert "give --independent" in said


def test_evaluate_says_in_numbers_what_the_parts_say(networks: dict[str, Path]) -> None:
    arguments = ("--query", networks["new"], "--gallery", networks["old"], "--independent", networks["new"], "--json")
    found = json.loads(evaluate(*arguments))
    maps = {name: metrics["map"] for name, metrics in found["tests"].items()}
    assert maps["independent"] == maps["query"]
    assert found["upgrade"]["p_up"] == 0.5  # the new network is its own control here
    if maps["query"] > maps["gallery"]:
        gain = (maps["cross"] - maps["gallery"]) / (maps["query"] - maps["gallery"])
        assert found["upgrade"]["update_gain"] == pytest.approx(gain)
        assert found["reason"] is None
    else:
        assert "is no better than the gallery's" in found["reason"]
    same = json.loads(evaluate("--query", networks["new"], "--gallery", networks["new"], "--json"))
    assert same["tests"]["cross"] == same["tests"]["query"] == same["tests"]["gallery"]
    assert same["flips"] == {"cross": 0.0, "query": 0.0}


def test_evaluate_takes_a_gallery_as_its_network_wrote_it(networks: dict[str, Path], tmp_path: Path) -> None:
    """Issue 15, number 12: the old side was re-estimated on the new training images."""
    net, header = load_network(networks["old"])
    again = {key: header[key] for key in ("recipe",)}
    stored = tmp_path / "stored.safetensors"
    own = shifted(net, 0.5)
    save_network(stored, net, Preprocessing.from_json(header["preprocessing"]), statistics=own, **again)
    sides = {name: Side.load(path) for name, path in (("new", networks["new"]), ("old", networks["old"]))}
    sides["stored"] = Side.load(stored)
    recipe = parse_recipe({"data": data_of(sides["new"]).model_dump()})
    found = {name: compare(sides["new"], sides[name], recipe=recipe, calibrate=True) for name in ("old", "stored")}
    # An older file: its running statistics, and a word about it.
    assert any("holds no calibrated statistics" in note for note in found["old"].notes)
    assert not any("holds no calibrated statistics" in note for note in found["stored"].notes)
    network = sides["stored"].network
    assert network is not None
    deployed = network.deployed()
    assert deployed.calibration == "images"
    dataset = data.load_for(recipe)
    queries, gallery = embed_test(deployed, dataset.split("test"))
    assert found["stored"].tests["gallery"] == dataset.split("test").truth().score(queries, gallery)
    assert all(torch.equal(t, own.tensors[n]) for n, t in deployed.statistics().items())
    assert not found["stored"].notes
    assert found["stored"].tests["query"] == found["old"].tests["query"]  # the new network's are its own matter


def test_evaluate_takes_capacities_subnetworks_and_other_preprocessing(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    net, header = load_network(networks["old"])
    cut = subnetwork(net, 0.3).calibrate([torch.randn(8, 1, 16, 16)])
    cut.save(tmp_path / "edge.safetensors", Preprocessing.from_json(header["preprocessing"]))
    edge = tmp_path / "edge.safetensors"
    said = evaluate("--query", networks["new"], "--query-capacity", 0.5, "--gallery", edge)
    assert "@ 0.5" in said
    assert "@ 0.3" in said
    said = evaluate("--query", networks["new"], "--gallery", networks["large"])
    assert "preprocessing of gallery differs: image_size 24 (query: 16)" in " ".join(said.split())


@pytest.mark.filterwarnings("ignore::prunnet.errors.DataWarning")
def test_evaluate_tests_on_another_benchmark_under_its_protocol(networks: dict[str, Path], tmp_path: Path) -> None:
    root = LAYOUTS["roxford5k"](tmp_path / "oxford")
    elsewhere = ("--set", "sweep.dataset=roxford5k", "--set", f"sweep.root={root}", "--json")
    found = json.loads(evaluate("--query", networks["new"], "--gallery", networks["old"], *elsewhere))
    assert found["tests"]["cross"]["queries"] == 3
    assert found["tests"]["cross"]["map"] == found["tests"]["cross"]["map_medium"]


def test_a_network_that_does_not_say_how_it_was_trained_is_tested_on_a_recipes_data(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    save_network(tmp_path / "bare.safetensors", tiny_net(seed=4), GREY)
    (tmp_path / "r.yaml").write_text(f"data: {{name: imagefolder, root: {tmp_path / 'images'}, image_size: 16}}")
    bare = ("--query", tmp_path / "bare.safetensors", "--gallery", networks["old"])
    assert "cross-test" in evaluate(*bare, "--recipe", tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match="give --recipe"):
        evaluate(*bare)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("new", "long"), "embeddings of length 16, gallery"),
        (("absent", "new"), "is not a file"),
        (("new", "old", "--query-capacity", "1.5"), "0 < capacity <= 1"),
        (("new", "old", "--query-capacity", "0"), "0 < capacity <= 1"),
        (("new", "old", "--split", "training"), "valid: test, validation"),
        (("new", "old", "--set", "data.nam=x"), "did you mean 'data.name'"),
        (("new", "old", "--set", "data.root=/no/such/place"), "/no/such/place"),
    ],
)
def test_evaluate_refuses_in_one_line(networks: dict[str, Path], arguments: tuple[str, ...], says: str) -> None:
    query, gallery, *more = arguments
    paths = [str(networks.get(name, f"/{name}.safetensors")) for name in (query, gallery)]
    result = CliRunner().invoke(app, ["evaluate", "--query", paths[0], "--gallery", paths[1], *more])
    assert result.exception is not None
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_doctor_says_what_is_prunable() -> None:
    result = CliRunner().invoke(app, ["doctor", "backbone", "convnext_atto", "--image-size", "64", "--layers"])
    assert result.exit_code == 0, result.output
    for said in ("depthwise 7x7", "conv 1x1", "in all", "stays dense: ", "LayerNorm", "stages.0.blocks.0.conv_dw"):
        assert said in result.stdout
    wrong = CliRunner().invoke(app, ["doctor", "backbone", "convnext_attt"])
    assert "did you mean 'convnext_atto'" in str(wrong.exception)
