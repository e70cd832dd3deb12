"""Weights to start from, and other input sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from prunnet.config import ModelConfig, load_recipe
from prunnet.errors import ConfigError
from prunnet.nets import RetrievalNet, make_backbone

OPTIONS = {"channels": [8, 8, 16, 32]}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A local file of timm's own, three channels and a classifier."""
    torch.manual_seed(5)
    model = timm.create_model("resnet18", **OPTIONS)
    save_file(model.state_dict(), tmp_path / "resnet18.safetensors")
    return tmp_path / "resnet18.safetensors"


def test_a_local_file_is_the_start(weights: Path) -> None:
    net = RetrievalNet("resnet18", 4, options=OPTIONS, weights=str(weights))
    from safetensors.torch import load_file

    saved = load_file(weights)
    assert torch.equal(net.backbone.layer1[0].conv1.weight, saved["layer1.0.conv1.weight"])  # type: ignore[union-attr, index]
    assert "weights" not in net.spec  # a saved network must not look for the file again
    other = RetrievalNet("resnet18", 4, options=OPTIONS)
    assert not torch.equal(other.backbone.layer1[0].conv1.weight, saved["layer1.0.conv1.weight"])  # type: ignore[union-attr, index]


def test_the_first_convolution_is_adapted_to_grey_images(weights: Path) -> None:
    backbone = make_backbone("resnet18", in_chans=1, options=OPTIONS, weights=str(weights))
    from safetensors.torch import load_file

    assert torch.allclose(backbone.conv1.weight, load_file(weights)["conv1.weight"].sum(1, keepdim=True), atol=1e-6)  # type: ignore[union-attr, arg-type]


def test_what_cannot_be_had_or_does_not_fit_is_said_in_one_line(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(weights.read_bytes()[:1000])
    for path, says in (
        (tmp_path / "absent.safetensors", "that can be read"),
        (tmp_path / "torn.safetensors", "does not fit 'resnet18'"),
        (Path(__file__), "is not a .safetensors file"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            make_backbone("resnet18", options=OPTIONS, weights=str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="does not fit 'resnet50'"):
        make_backbone("resnet50", weights=str(weights))


def test_a_failed_download_names_the_local_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refused)
    with pytest.raises(ConfigError, match=r"could not get weights.*set model.weights to a local .safetensors file"):
        make_backbone("resnet18", pretrained=True)


def test_the_hash_of_a_training_holds_the_content_of_its_start(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    hashes = [load_recipe(None, [f"model.weights={path}"]).training_hash() for path in (weights, copy)]
    assert hashes[0] == hashes[1] != load_recipe(None, []).training_hash()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_backbones_for_one_size_are_made_for_the_recipes(name: str) -> None:
    net = RetrievalNet.from_config(
        ModelConfig(backbone=name), classes=3, in_chans=1, score_init=None, seed=0, image_size=64
    )
    assert net.spec["options"] == {"img_size": 64}
    assert net.eval().embed(torch.randn(2, 1, 64, 64)).shape == (2, 256)
    plain = RetrievalNet.from_config(ModelConfig(), classes=3, in_chans=1, score_init=None, seed=0, image_size=64)
    assert plain.spec["options"] == {}
