"""Pixel mean and standard deviation are those of the backbone's pretrained weights, unless the recipe says others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from safetensors.torch import save_file

from prunnet import data, results
from prunnet.config.recipe import DataConfig, Recipe, parse_recipe
from prunnet.config.trial import Trial
from prunnet.data.pixel_values import as_said, data_seen, note, with_values_of
from prunnet.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from prunnet.errors import ConfigError
from prunnet.evaluation.compare import seen_through
from prunnet.experiments.stages import train_here
from prunnet.experiments.trained_networks import Source
from prunnet.experiments.trial import run_trial
from prunnet.storage.tensor_files import read_header
from tests.conftest import image_folder

COLOUR = {"channels": 3, "image_size": 32}


def seen(backbone: str = "tf_efficientnet_lite0", *, pretrained: bool = True, **section: Any) -> Preprocessing:
    recipe = parse_recipe({"data": {**COLOUR, **section}, "model": {"backbone": backbone, "pretrained": pretrained}})
    return Preprocessing.from_config(data_seen(recipe))


def test_pretrained_weights_bring_their_own_mean_and_std() -> None:
    assert (seen().mean, seen().std) == ((0.5,) * 3, (0.5,) * 3)
    assert (seen("resnet18").mean, seen("resnet18").std) == (IMAGENET_MEAN, IMAGENET_STD)
    grey = seen("resnet18", channels=1)
    assert (grey.mean, grey.std) == (pytest.approx((0.449,)), pytest.approx((0.226,)))


def test_what_the_recipe_says_wins_and_nothing_changes_without_pretrained_weights() -> None:
    assert seen(pretrained=False).mean == IMAGENET_MEAN
    said = seen(mean=[0.1, 0.2, 0.3])
    assert (said.mean, said.std) == ((0.1, 0.2, 0.3), (0.5,) * 3)
    assert seen(mean=0.25, std=0.2) == Preprocessing.from_config(DataConfig(**COLOUR, mean=0.25, std=0.2))
    assert seen("unheard_of").mean == IMAGENET_MEAN  # refused where the network is made


def test_the_hash_changes_where_the_result_does() -> None:
    """Networks of pretrained weights were trained on ImageNet's values before."""

    def of(model: dict[str, Any], **section: Any) -> Recipe:
        return parse_recipe({"data": {**COLOUR, **section}, "model": model})

    plain, pretrained = of({}), of({"pretrained": True})
    assert not plain.takes_pixel_values
    assert pretrained.takes_pixel_values
    assert not of({"pretrained": True}, mean=0.5, std=0.5).takes_pixel_values
    assert plain.training_hash() == "09106bac92abde5dbb654f3a27da85ccb3646c4be3636c0646a9c865c4305928"
    assert (
        of({"pretrained": True}, mean=0.5, std=0.5).training_hash()
        == "94b3c67591664724ae9f486445da9c510e0f75f6fe459e8c450bbd79f88aaa91"
    )
    assert pretrained.training_hash() != "93c92745377989cc623413fef7ec20973c59d11297fa33a0ba40aaf97abdbd28"


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"mean": [0.5, 0.5]}, "data.mean: valid: a number, or a list of three"),
        ({"mean": "bright"}, "data.mean: valid: a number, or a list of three"),
        ({"mean": float("nan")}, "data.mean: valid: a number, or a list of three"),
        ({"std": [0.5, 0.5, 0]}, "data.std: valid: above 0"),
        ({"std": -1}, "data.std: valid: above 0"),
        ({"channels": 1, "mean": [0.5, 0.5, 0.5]}, r"data.mean=\[0.5, 0.5, 0.5\] makes no sense with data.channels=1"),
    ],
)
def test_other_values_are_refused_in_one_line(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_recipe({"data": {**COLOUR, **section}})
    assert "\n" not in str(caught.value)


def test_any_preprocessing_can_be_said_in_a_recipe() -> None:
    for mean in ((0.1, 0.2, 0.3), (0.5,) * 3, IMAGENET_MEAN):
        made = Preprocessing(16, 16, 3, False, mean, IMAGENET_STD)
        assert Preprocessing.from_config(seen_through(DataConfig(), made)) == made
        assert made.mean in (as_said(made.mean), (as_said(made.mean),) * 3)
    assert with_values_of({"mean": None}, {"model": {}}, {"mean": [1, 1, 1]}) == {"mean": None}


def test_what_was_used_is_recorded_and_used_again(tmp_path: Path) -> None:
    """In the network's header and the rows; by what reads a run later, which has no `model` section; in a note."""
    backbone = timm.create_model("test_resnet", num_classes=0)
    save_file(backbone.state_dict(), tmp_path / "weights.safetensors")
    recipe = parse_recipe(
        {
            "data": {
                "name": "imagefolder",
                "root": str(image_folder(tmp_path / "images", classes=6, per_class=6, side=32)),
                **COLOUR,
            },
            "model": {
                "backbone": "test_resnet",
                "weights": str(tmp_path / "weights.safetensors"),
                "embedding_dim": 8,
            },
            "train": {"capacities": [0.5], "epochs": 1, "batch_size": 8, "precision": "fp32", "lr": 0.01},
            "sweep": {"capacities": [1.0], "calibration_images": 8},
            "cluster": {"workers": 1, "storage": str(tmp_path / "runs")},
        }
    )
    assert note(recipe) == "data.mean=0.5 and data.std=0.5, as the weights of test_resnet were trained with (timm)"
    dataset = data.load_for(recipe)
    assert note(recipe) in dataset.notes
    half = ((0.5,) * 3, (0.5,) * 3)
    assert (dataset.preprocessing.mean, dataset.test.queries.preprocessing.std) == half
    assert dataset.train.read(np.arange(1)).shape == (1, 3, 32, 32)

    train_here(recipe, dataset, tmp_path / "model.safetensors")
    header = read_header(tmp_path / "model.safetensors")
    assert header["preprocessing"]["mean"] == header["preprocessing"]["std"] == [0.5] * 3
    assert Source.of(tmp_path / "model.safetensors").trained_on.preprocessing == dataset.preprocessing

    run_trial(Trial("t", recipe), tmp_path / "study")
    (row,) = results.read(tmp_path / "study" / "results").to_pylist()
    assert row["preprocessing_sha"] == dataset.preprocessing.sha()

    swept = parse_recipe(
        {
            **recipe.model_dump(include={"data", "sweep", "cluster"}),
            "model": {"checkpoint": str(tmp_path / "model.safetensors")},
        }
    )
    assert data_seen(swept).mean == data_seen(swept).std == 0.5
    assert note(swept) == f"data.mean=0.5 and data.std=0.5, as {tmp_path / 'model.safetensors'} was trained with"
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    torn = swept.model_copy(
        update={"model": swept.model.model_copy(update={"checkpoint": str(tmp_path / "torn.safetensors")})}
    )
    assert data_seen(torn) is torn.data
