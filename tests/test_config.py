"""Recipes are typed; whatever is wrong with one is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunnet.config.recipe import Recipe, load_recipe
from prunnet.errors import ConfigError
from sweeps.ablation_recipe import load_ablation

RECIPES = sorted((Path(__file__).parent.parent / "sweeps" / "recipes").glob("*.yaml"))
SWEEPS = [path for path in RECIPES if "\nbase:" not in path.read_text()]
ABLATIONS = [path for path in RECIPES if path not in SWEEPS and not path.name.startswith("search_")]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_recipe_that_comes_along_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert len(recipe.sweep.capacities) >= 10
    assert min(recipe.sweep.capacities) <= 0.1
    assert len(recipe.train.capacities) >= 2


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_every_ablation_that_comes_along_is_valid(path: Path) -> None:
    ablation = load_ablation(path)
    trials = [*ablation.methods_trials(None), *ablation.variants_trials(None), *ablation.upgrade_trials(None)]
    assert len({trial.id for trial in trials}) == len(trials) == len({trial.name for trial in trials})


def test_dotted_overrides_reach_every_section() -> None:
    recipe = load_recipe(
        None,
        [
            "model.backbone=resnet18",
            "sweep.capacities=[0.2,0.5]",
            "data.name=imagefolder",
            "data.root=/some/where",
            "train.epochs=3",
            "train.lr=1e-3",
            "model.options={channels: [8, 16, 32, 64]}",
            "name=mine",
        ],
    )
    assert recipe.sweep.capacities == (0.2, 0.5)
    assert (recipe.data.root, recipe.train.epochs, recipe.train.lr) == ("/some/where", 3, 1e-3)
    assert recipe.model.options == {"channels": [8, 16, 32, 64]}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epoch=3", "unknown recipe key 'train.epoch'; did you mean 'train.epochs'"),
        ("trian.epochs=3", "did you mean 'train'"),
        ("sweep.capacities=[0]", "0 < capacity <= 1"),
        ("sweep.capacities=[1.2]", "capacity 1.2 is out of range"),
        ("sweep.capacities=[.nan]", "not a finite number"),
        ("sweep.capacities=[]", "is empty"),
        ("train.capacities=[1.0, 0.5]", "below 1.0"),
        ("train.capacities=[0.5, 0.5]", "distinct"),
        ("train.epochs=many", "train.epochs"),
        ("train.projection=first", "'none', 'last' or 'sequential'"),
        ("data=3", "recipe section 'data' is 3"),
        ("train.epochs", "is not KEY=VALUE"),
        ("train.lr=[", "is not YAML"),
        ("name=../up", "name"),
        ("cluster.workers=0", "greater than or equal to 1"),
    ],
)
def test_mistakes_are_named_in_one_line(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    for text, says in (("a: [", "is not YAML"), ("- 1", "holds a list"), ("\x00", "is not YAML")):
        broken.write_text(text)
        with pytest.raises(ConfigError, match=says):
            load_recipe(broken)
    with pytest.raises(ConfigError, match="is not a file"):
        load_recipe(tmp_path / "absent.yaml")


def test_the_training_hash_holds_what_shapes_the_weights_and_nothing_else() -> None:
    base = Recipe().training_hash()
    for same in (
        "sweep.capacities=[0.5]",
        "cluster.actors=1",
        "name=other",
        "train.checkpoint_every_steps=5",
    ):
        assert load_recipe(None, [same]).training_hash() == base
    for other in (
        "train.seed=1",
        "train.lr=0.2",
        "cluster.workers=1",
        "data.seed=3",
        "model.embedding_dim=64",
    ):
        assert load_recipe(None, [other]).training_hash() != base


def test_a_bare_off_is_the_name_that_it_looks_like() -> None:
    assert load_recipe(None, ["sweep.measure=off"]).sweep.measure == "off"
    with pytest.raises(ConfigError, match="sweep.measure"):
        load_recipe(None, ["sweep.measure=on"])


def test_scores_of_channels_start_as_norms_and_learn_slowly_unless_said_otherwise() -> None:
    """Two recipes that differ in what was left out must not share a network."""
    plain, slow, fast = (
        load_recipe(None, words)
        for words in (
            [],
            ["train.granularity=channel"],
            ["train.granularity=channel", "train.score_lr=0.1", "train.score_init=kaiming_uniform"],
        )
    )
    assert (plain.train.score_rate, plain.train.score_init) == (0.1, "kaiming_uniform")
    assert (slow.train.score_rate, slow.train.score_init) == (0.001, "magnitude")
    assert (fast.train.score_rate, fast.train.score_init) == (0.1, "kaiming_uniform")
    same = load_recipe(None, ["train.granularity=channel", "train.score_lr=0.001"])
    assert same.training_hash() == slow.training_hash() != fast.training_hash()


@pytest.mark.parametrize("key", ["data.seed", "train.seed", "sweep.seed"])
@pytest.mark.parametrize("value", [-1, 2**63, 10**30])
def test_seeds_that_no_generator_takes_are_refused(key: str, value: int) -> None:
    """Issue 15, number 18: data.seed=-1, and integers beyond 64 bits."""
    with pytest.raises(
        ConfigError,
        match=rf"{key}: .*greater than or equal to 0 .*\(given: {value}\)|{key}={value}.*does not fit 64 bits",
    ) as caught:
        load_recipe(None, [f"{key}={value}"])
    assert "\n" not in str(caught.value)
    assert load_recipe(None, [f"{key}={2**63 - 1}"])


@pytest.mark.parametrize(
    "key", ["train.batch_size", "data.classes", "data.image_size", "data.resize", "cluster.loaders"]
)
def test_integers_beyond_64_bits_are_refused(key: str) -> None:
    """Issue 15, number 18."""
    with pytest.raises(ConfigError, match=rf"{key}=1000.*does not fit 64 bits"):
        load_recipe(None, [f"{key}={10**30}"])
    with pytest.raises(ConfigError, match=rf"{key}: Input should be less than"):
        load_recipe(None, [f"{key}={2**62}"])
