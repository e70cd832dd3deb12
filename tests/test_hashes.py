"""Hashes stay what they were: finished trainings, trials and rows of earlier versions still count as the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from prunnet import data
from prunnet.config import DataConfig, ModelConfig, Recipe, SweepConfig, TrainConfig, load_recipe, parse_recipe
from prunnet.data.transforms import Preprocessing
from prunnet.experiments.row_identity import identity_columns
from prunnet.experiments.stages import make_net
from prunnet.experiments.trained_networks import Family
from prunnet.experiments.trial import Trial
from prunnet.experiments.work_units import plan_units
from prunnet.storage.hashing import of_json, without_defaults
from prunnet.subnetworks.trained import TrainedHeader, TrainedNetwork
from sweeps.ablation_recipe import load_ablation
from sweeps.search_recipe import load_search
from tests.conftest import REPOSITORY, image_folder, tiny_net

RECIPES = REPOSITORY / "sweeps" / "recipes"
TRAININGS = {
    "colour": "08fe73cf90ab107b4ce65100dffe37c8c0b606e616af5477d27681656fa4a827",
    "demo": "f85a6ef20e1642379aeaf95431151054efa25b473f1769536793752452680337",
    "devices_omniglot": "9add93925b878b338408e9e3e8709be40022df0db0e9a922210292815853cef1",
    "layerwise_omniglot": "8b8972a1c75037cfae8a49d4448efb9a37694b02865292c16c107d1a0935497f",
    "omniglot": "b293be9b6f3bbf19bb8be0ab7993dc1695bfc613ffc5a6f7b6d6ee86fa316c8e",
    # pretrained: of another hash since mean and std of pixels are those of the weights
    "photographs": "e99aedd280ebf7071c63cf8acc7b720550fbaa4a80df40eecb36ab12c46f623a",
}
OF_WEIGHTS = "grocery"
"""Its hash covers the bytes of the pretrained weights, so it is no text that stands here."""
ABLATIONS = {
    "channel_rates_omniglot": ("methods/slr 0.1/s0/cd96a1f24b", "24ee4b77160f8396"),
    "finalists_omniglot": ("methods/trial 33/s1/34d27f9552", "8669542807239217"),
    "found_omniglot": ("methods/prunnet/s3/ae022c2087", "eb263c14bba4a07c"),
    "methods_omniglot": ("tuning/prunnet/train.lr=0.03/s0/ff386a8f55", "9d77e516c8fe6fc8"),
    "passes_omniglot": ("tuning/prunnet/train.lr=0.1/s0/a327637278", "8e0e7aa9ff540408"),
}
"""The first trial's identity, and the hash of all of them."""
SEARCHES = {
    "search_demo": "search/baseline/d2aae1cbec",
    "search_omniglot": "search/baseline/d968ea4b4a",
}
ROWS = {
    "plain": "6440bb351a7f49bd9997cd33979dc9d359dc3f95a2b5449038ad27924ff06157",
    "random": "e71712b45e102a61b182a07afc7c18d0f1c3dc526803c05e488c066d810b7e3f",
    "inside": "c022faaae870a6e46bbeef86fe99eb200b56edd4dd5a870d448a02a16a45080f",
}
"""config_hash of rows; like the hashes above, computed before one helper served all of them."""


def recipe_of(images: Path, kind: str = "plain") -> Recipe:
    sweep = {"capacities": [1.0, 0.5, 0.3], "calibration_images": 12, "batch_size": 6, "seed": 3}
    train = {"epochs": 1, "batch_size": 8, "precision": "fp32", "capacities": [0.5]}
    if kind == "inside":
        sweep, train = {**sweep, "inside": 0.5}, {**train, "granularity": "channel", "channel_multiple": 2}
    return parse_recipe(
        {
            "data": {"name": "imagefolder", "root": str(images), "image_size": 16, "validation_fraction": 0.2},
            "model": {"options": {"channels": [8, 8, 16, 32]}, "stem": "released", "embedding_dim": 16},
            "train": train,
            "sweep": {**sweep, **({"masks": "random"} if kind == "random" else {})},
            "cluster": {"workers": 1},
        }
    )


def networks_of(recipe: Recipe) -> Family:
    """An untrained one that says that this recipe has trained it."""
    net = make_net(recipe, data.load_for(recipe))
    header = TrainedHeader("w", recipe=recipe.trained_part(), workers=1, epoch=1, images_seen=1)
    return Family({1.0: TrainedNetwork(net, header)})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "images")


def test_every_recipe_that_comes_along_is_pinned() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*TRAININGS, OF_WEIGHTS, *ABLATIONS, *SEARCHES}


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_have_the_hashes_that_they_had(name: str) -> None:
    assert load_recipe(RECIPES / f"{name}.yaml").training_hash() == TRAININGS[name]


@pytest.mark.parametrize("name", ABLATIONS)
def test_trials_of_ablations_have_the_identities_that_they_had(name: str) -> None:
    ablation = load_ablation(RECIPES / f"{name}.yaml")
    trials = [*ablation.tuning(), *ablation.methods_trials(None), *ablation.variants_trials(None)]
    ids = [trial.id for trial in (*trials, *ablation.upgrade_trials(None))]
    assert (ids[0], of_json(ids)[:16]) == ABLATIONS[name]


@pytest.mark.parametrize("name", SEARCHES)
def test_trials_of_searches_have_the_identities_that_they_had(name: str) -> None:
    assert Trial("search/baseline", load_search(RECIPES / f"{name}.yaml").base).id == SEARCHES[name]


@pytest.mark.parametrize("kind", ROWS)
def test_rows_have_the_configuration_hashes_that_they_had(kind: str, images: Path) -> None:
    recipe = recipe_of(images, kind)
    columns = identity_columns(recipe, networks_of(recipe).members, data.load_for(recipe))
    assert columns["config_hash"] == ROWS[kind]
    assert columns["preprocessing_sha"] == "03db669bf960d31d83fca69646039beddf9fbd52f652f0de53a3b7e66c98d138"


# --- a key that somebody adds -----------------------------------------------------------------------------------


class MoreData(DataConfig):
    added: int = 7


class MoreModel(ModelConfig):
    added: tuple[int, ...] = (1, 2)


class MoreTrain(TrainConfig):
    added: str | None = None


class MoreSweep(SweepConfig):
    added: float = 0.5


class MoreRecipe(Recipe):
    data: MoreData = MoreData()
    model: MoreModel = MoreModel()
    train: MoreTrain = MoreTrain()
    sweep: MoreSweep = MoreSweep()


def hashes(recipe: Recipe) -> dict[str, object]:
    networks, dataset = networks_of(recipe), data.load_for(recipe)
    units = plan_units(recipe, networks, dataset)
    return {
        "training": recipe.training_hash(),
        "trial": Trial("a", recipe).id,
        "configuration": identity_columns(recipe, networks.members, dataset)["config_hash"],
        "features": list(units.features),
        "rows": list(units.tests),
    }


@pytest.mark.parametrize("kind", ROWS)
def test_a_new_key_of_a_recipe_changes_no_hash_until_it_is_set(kind: str, images: Path) -> None:
    recipe = recipe_of(images, kind)
    before, after = hashes(recipe), hashes(MoreRecipe.model_validate(recipe.model_dump()))
    assert before == after
    for section, trained in (("data", True), ("model", True), ("train", True), ("sweep", False)):
        tree = recipe.model_dump()
        tree[section]["added"] = {"model": (3,), "train": "x"}.get(section, 8)
        told = hashes(MoreRecipe.model_validate(tree))
        assert (told["training"] != before["training"]) == trained, section
        assert told["trial"] != before["trial"], section
        assert told["configuration"] != before["configuration"], section


def test_a_new_key_of_the_preprocessing_changes_no_hash_until_it_is_set() -> None:
    @dataclass(frozen=True)
    class More(Preprocessing):
        added: tuple[int, ...] = (1,)

    arguments = (16, 20, 1, False, (0.5,), (0.5,))
    assert More(*arguments).sha() == Preprocessing(*arguments).sha()
    assert More(*arguments, added=(2,)).sha() != Preprocessing(*arguments).sha()


def test_a_network_says_nothing_of_what_it_leaves_at_its_default() -> None:
    first = {"backbone", "classes", "embedding_dim", "in_chans", "stem", "neck_norm", "options"}
    assert set(tiny_net().spec) == first
    assert set(tiny_net(width=0.5, scored=False).spec) == first | {"width", "scored"}
    channel = tiny_net(granularity="channel", channel_multiple=2, image_size=16).spec
    assert set(channel) == first | {"granularity", "channel_multiple", "image_size"}


def test_only_keys_at_their_default_are_left_out() -> None:
    assert without_defaults({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 1, "d": 0}) == {"b": 2, "c": 3}
