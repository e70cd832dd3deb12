"""Layer-wise capacities spend their whole budget, and nothing but it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunnet import data
from prunnet.config.recipe import parse_recipe
from prunnet.errors import ConfigError
from prunnet.experiments.stages import Family, make_net
from prunnet.experiments.work_units import kept_share, plan_units
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning.macs import layer_macs
from prunnet.subnetworks.layer_budgets import Budget
from prunnet.subnetworks.subnet import subnetwork
from tests.conftest import tiny_net

NET = tiny_net()
SIDE = 16


@given(
    st.lists(st.floats(-3, 3), min_size=len(Budget.of(NET, SIDE, 0.2).groups), max_size=30),
    st.sampled_from([0.9, 0.5, 0.2, 0.05]),
)
def test_every_vector_spends_the_budget(logs: list[float], capacity: float) -> None:
    budget = Budget.of(NET, SIDE, capacity)
    shares = budget.shares(np.exp(logs[: len(budget.groups)]))
    spent = budget.fixed + float((shares * np.array(budget.macs)).sum())
    assert spent == pytest.approx(budget.limit, rel=1e-6)
    assert ((shares >= budget.floor) & (shares <= 1)).all()


def test_equal_ratios_are_the_uniform_subnetwork() -> None:
    budget = Budget.of(NET, SIDE, 0.3)
    keep = budget.keep(budget.uniform)
    assert list(keep.values()) == pytest.approx([0.3] * len(keep))
    uniform, layerwise = subnetwork(NET, 0.3), subnetwork(NET, 0.3, keep=keep)
    assert uniform.mask_sha == layerwise.mask_sha
    assert kept_share(NET, keep) == pytest.approx(0.3, abs=1e-3)


def test_costs_are_what_the_budget_says() -> None:
    budget = Budget.of(NET, SIDE, 0.2)
    rng = np.random.default_rng(0)
    cut = subnetwork(NET, 0.2, keep=budget.keep(np.exp(rng.normal(0, 1, len(budget.groups)))))
    # Whole weights only, so it is off by at most half a weight a layer, at all places that layer is applied.
    slack = sum(layer_macs(NET, SIDE)[name] / mask.numel() for name, mask in cut.masks.items())
    assert abs(cut.cost(SIDE).macs - budget.limit) <= slack


def test_dear_weights_are_kept_less_by_the_guesses() -> None:
    budget = Budget.of(NET, SIDE, 0.2)
    flat, *steeper = budget.guesses(NET, powers=(0.0, 0.25, 1.0))
    assert set(flat.tolist()) == {1.0}
    for ratios in steeper:
        assert ratios[0] < ratios[-1]  # the stem is applied at every pixel, the last layers at one


def test_blocks_share_a_fraction() -> None:
    budget = Budget.of(NET, SIDE, 0.2, "block")
    assert len(budget.groups) < len(Budget.of(NET, SIDE, 0.2).groups)
    assert sorted(name for names in budget.groups for name in names) == sorted(subnetwork(NET, 0.5).masks)


@pytest.mark.parametrize(
    ("ratios", "says"), [([1.0], "numbers above 0"), ([0.0] * 20, "numbers above 0"), ([float("nan")] * 20, "above 0")]
)
def test_vectors_that_are_none_are_refused(ratios: list[float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Budget.of(NET, SIDE, 0.2).keep(ratios)


def test_budgets_that_cannot_be_met_are_refused() -> None:
    budget = Budget.of(NET, SIDE, 0.02, floor=0.05)
    with pytest.raises(ConfigError, match="is below what the floor of 0.05 a layer costs"):
        budget.keep(budget.uniform)
    with pytest.raises(ConfigError, match="carries no scores"):
        Budget.of(RetrievalNet("resnet18", 4, in_chans=1, scored=False), SIDE, 0.2)
    with pytest.raises(ConfigError, match="must name every prunable layer"):
        subnetwork(NET, 0.2, keep={"backbone.conv1": 0.5})


def test_a_vector_has_a_row_of_its_own() -> None:
    recipe = parse_recipe(
        {
            "data": {"name": "glyphs", "image_size": 16, "classes": 4, "images_per_class": 4},
            "model": {"options": {"channels": [8, 8, 16, 32]}, "embedding_dim": 16, "stem": "released"},
            "sweep": {"capacities": [0.5], "gallery": "dense", "calibration_images": 8},
        }
    )
    dataset = data.load_for(recipe)
    net = make_net(recipe, dataset)
    header = {
        "weights_sha": "w", "net": net.spec, "recipe": recipe.trained_part(), "workers": 1, "epoch": 1,
        "images_seen": 1, "train_seconds": 1.0,
    }  # fmt: skip
    family = Family({1.0: (net, header)})
    budget = Budget.of(net, 16, 0.5)
    vectors = [budget.keep(ratios) for ratios in budget.guesses(net)[1:3]]
    units = plan_units(recipe, family, dataset, "layerwise", vectors)
    plain = plan_units(recipe, family, dataset, "layerwise")
    assert set(plain.tests) < set(units.tests)
    more = [units.tests[key].row for key in units.tests if key not in plain.tests]
    assert [row["allocation"] for row in more] == ["layerwise", "layerwise"]
    assert [json.loads(row["config_json"])["keep"] for row in more] == vectors
    assert len({row["config_hash"] for row in more}) == 2
