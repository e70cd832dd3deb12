"""Which variants a method takes, and what is said of the others."""

from __future__ import annotations

import pytest

import prunnet
from prunnet.config.methods import METHODS, VARIANTS
from prunnet.config.recipe import TrainConfig, load_recipe, parse_recipe
from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError
from tests.conftest import striped_images, tiny_net


@pytest.mark.parametrize("name", METHODS)
def test_every_method_settles_its_variants_and_a_settled_recipe_is_valid_again(name: str) -> None:
    old = "old.safetensors" if METHODS[name].teacher == "old" else None
    config = TrainConfig(method=name, old=old)
    method = METHODS[name]
    for variant in VARIANTS:
        assert getattr(config, variant) == {**method.open, **method.fixed}.get(variant), variant
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.method=prunet"], "unknown train.method 'prunet'; did you mean 'prunnet'"),
        (["train.method=switchable", "train.score_init=normal"], "a switchable network has widths"),
        (["train.method=sfsc", "train.allocation=global"], "no scores"),
        (["train.method=joint", "train.projection=last"], "with conflict handling it would be prunnet"),
        (["train.method=independent", "train.weighting=cosine"], "trained by itself at one capacity"),
        (["train.method=sfsc_released", "train.reduction=sum"], "as it was released"),
        (["train.priorities=equal"], "belong to sfsc"),
        (["train.evidential=exp"], "evidential, priorities and reduction belong to sfsc"),
        (["train.method=sfsc_released", "train.evidential=exp"], "as it was released"),
        (["train.method=sfsc", "train.evidential=none", "train.priorities=uncertainty"], "valid: equal"),
        (["train.method=sfsc", "train.evidential=relu"], "'exp', 'softplus' or 'none'"),
        (["train.method=ndpp"], "needs train.old"),
        (["train.compatible=odpp"], "needs train.old"),
        (["train.method=bct", "train.compatible=odpp", "train.old=x"], "a single network says so by train.method"),
        (["train.method=prunnet", "train.old=x"], "set train.compatible to one of bct"),
        (["train.method=independent", "train.old=x"], "nothing of it is used"),
        (["train.alone=0.5"], "one network for all capacities"),
        (["train.score_init=snipp"], "'magnitude', 'snip' or 'constant'"),
        (["train.weighting=median"], "'mean', 'cosine', 'mgda' or 'uncertainty'"),
        (["train.compatible=odp"], "unknown train.compatible 'odp'; did you mean 'odpp'"),
        (["train.compatible=joint"], "valid: asymmetric, bct, ndpp, odpp, prototypes, regression"),
        (["train.compatible=[ndpp]"], "train.compatible=['ndpp']; valid: a name"),
        (["train.granularity=5"], "train.granularity=5; valid: a name"),
        (["train.granularity=kernel", "train.allocation=global"], "with granularity 'kernel'; valid: layer"),
    ],
)
def test_senseless_combinations_are_refused_with_the_reason(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_network_of_the_other_kind_is_refused(preprocessing: Preprocessing) -> None:
    images = striped_images(preprocessing)
    plain, unscored = tiny_net(), tiny_net(scored=False)
    widths = prunnet.SwitchableNet("resnet18", 4, in_chans=1, switch=[0.5])
    for net, settings, says in (
        (
            plain,
            {"method": "sfsc"},
            "trains a SwitchableNet with switch=\\[0.5\\], not a RetrievalNet",
        ),
        (widths, {"method": "switchable", "capacities": (0.3,)}, "with switch=\\[0.5\\]"),
        (widths, {}, "needs a network with scores; this SwitchableNet has none"),
        (unscored, {"method": "joint"}, "needs a network with scores"),
    ):
        with pytest.raises(ConfigError, match=says):
            prunnet.fit(net, images, batch_size=8, epochs=1, **{"capacities": (0.5,), **settings})  # type: ignore[arg-type]
    history = prunnet.fit(widths, images, batch_size=8, epochs=1, method="switchable", capacities=(0.5,))
    assert set(history[0]) >= {"loss_1", "loss_0.5"}


def test_a_single_network_needs_no_other_capacities() -> None:
    assert parse_recipe({"train": {"method": "independent", "capacities": []}}).train.capacities == ()
    with pytest.raises(ConfigError, match="is empty"):
        parse_recipe({"train": {"capacities": []}})
