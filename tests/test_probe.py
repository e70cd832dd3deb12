"""A look at a network in training shows what a test would show, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prunnet import data, results
from prunnet.config.recipe import Recipe, parse_recipe
from prunnet.data.base import some_of
from prunnet.errors import ConfigError
from prunnet.experiments.stages import make_trainer
from prunnet.experiments.validation_probe import Probe, ProbeConfig, score, spread
from prunnet.networks.files import network_sha
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.trainer import Trainer
from tests.conftest import image_folder


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    root = image_folder(tmp_path / "images", classes=10, per_class=6, side=16)
    return parse_recipe(
        {
            "data": {"name": "imagefolder", "root": str(root), "image_size": 16, "validation_fraction": 0.4},
            "model": {"options": {"channels": [8, 8, 16, 32]}, "embedding_dim": 16},
            "train": {"epochs": 2, "batch_size": 8, "capacities": [0.5, 0.2]},
            "sweep": {"split": "validation", "calibration_images": 16},
        }
    )


def trainer_of(recipe: Recipe) -> tuple[Trainer, Probe]:
    dataset = data.load_for(recipe)
    return make_trainer(recipe, dataset), Probe(recipe, ProbeConfig((0.5, 0.2), None, 16), dataset)


def test_the_training_ends_with_the_same_bits(recipe: Recipe) -> None:
    torch.set_num_threads(1)
    undisturbed, _ = trainer_of(recipe)
    undisturbed.run()
    watched, probe = trainer_of(recipe)
    seen = []
    watched.run(after_epoch=lambda trainer: seen.append(probe.look(trainer.net, Reducer())))
    assert network_sha(undisturbed.net) == network_sha(watched.net)
    assert len(seen) == 2
    assert all(0 < value <= 1 for look in seen for value in look.values())
    assert score({0.5: 0.4, 0.2: 0.2}) == pytest.approx(0.3)


def test_rows_of_a_look_are_partial_and_not_finished(recipe: Recipe, tmp_path: Path) -> None:
    trainer, probe = trainer_of(recipe)
    trainer.run(
        after_epoch=lambda t: (
            results.write_part(tmp_path / "rows", probe.rows(t, probe.look(t.net, Reducer()), "search/0")) and None
        )
    )
    table = results.read(tmp_path / "rows")
    assert set(table["status"].to_pylist()) == {"partial"}
    assert sorted(table["epoch"].to_pylist()) == [1, 1, 2, 2]
    assert results.finished_keys(tmp_path / "rows") == set()


def test_part_of_a_test_keeps_whole_classes(recipe: Recipe) -> None:
    test = data.load_for(recipe).split("validation")
    part = some_of(test, 10, seed=0)
    assert len(part.gallery) == 12  # two classes of six
    assert part.queries is part.gallery
    assert len(np.unique(part.gallery.labels)) == 2
    assert [len(r) for r in part.relevant()] == [5] * 12
    assert some_of(test, 1000, seed=0) is test
    with pytest.raises(ConfigError, match="lists of their own"):
        some_of(type(test)(test.queries, test.gallery, False, lists={"relevant": []}), 3, seed=0)


def test_a_look_is_spread_over_the_capacities() -> None:
    assert spread((1.0, 0.8, 0.6, 0.4, 0.2, 0.05)) == (0.8, 0.4, 0.05)
    assert spread((1.0,)) == (1.0,)
    assert spread((0.3, 0.2)) == (0.3, 0.2)
