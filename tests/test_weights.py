"""Weights to start from, and other input sizes."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import save_file

from cluster.experiment import Driver
from prunnet import data
from prunnet.config.recipe import ModelConfig, load_recipe, parse_recipe
from prunnet.errors import ConfigError
from prunnet.networks.retrieval_net import RetrievalNet, make_backbone
from tests.conftest import LITE0, needs_lite0

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
    hashes = [
        load_recipe(None, [f"model.weights={path}"]).with_files_seen().training_hash() for path in (weights, copy)
    ]
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


# --- weights that do not fit ---------------------------------------------------------------------------------


def state_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def saved(state: dict[str, torch.Tensor], path: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return str(path)


def without_classifier(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.", "_orig_mod.", "state_dict.model.module."])
def test_weights_in_a_wrapper_are_loaded(prefix: str, weights: Path, tmp_path: Path) -> None:
    """Issue 15, number 8: a prefix left every weight at random, without a word."""
    state = state_of(weights)
    path = saved({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "w.safetensors")
    loaded = make_backbone("resnet18", options=OPTIONS, weights=path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in without_classifier(state).items())


def test_half_precision_and_what_surrounds_a_backbone_are_no_obstacle(weights: Path, tmp_path: Path) -> None:
    state = {f"backbone.{name}": tensor.half() for name, tensor in without_classifier(state_of(weights)).items()}
    state |= {"neck.0.weight": torch.zeros(3, 3), "backbone.conv1.score": torch.zeros(3)}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    loaded = make_backbone("resnet18", options=OPTIONS, weights=saved(state, tmp_path / "w.safetensors"))
    expected = state_of(weights)["conv1.weight"].half().float()
    assert torch.equal(loaded.conv1.weight, expected)  # type: ignore[arg-type]


def test_weights_that_do_not_fit_are_refused_by_name(weights: Path, tmp_path: Path) -> None:
    """Issue 15, number 8: one foreign tensor, or another network's file, left the backbone at random."""
    whole = state_of(weights)
    lacking = {name: tensor for name, tensor in whole.items() if name != "layer2.0.bn2.weight"}
    misshapen = {**whole, "layer1.0.conv1.weight": torch.zeros(8, 8, 5, 5)}
    other = timm.create_model("mobilenetv2_100").state_dict()
    deeper = timm.create_model("resnet34", **OPTIONS).state_dict()
    endless = {**whole, "bn1.bias": whole["bn1.bias"] / 0}
    for state, says in (
        (lacking, r"of 126 tensors that the backbone has: 1 missing \(layer2.0.bn2.weight\)$"),
        (misshapen, r"1 of another shape \(layer1.0.conv1.weight \[8, 8, 5, 5\] instead of \[8, 64, 3, 3\]\)"),
        ({**whole, "projector.0.weight": torch.zeros(2)}, r"1 foreign \(projector.0.weight\)"),
        ({f"encoder.{name}": tensor for name, tensor in whole.items()}, r"foreign \(encoder.bn1.bias, "),
        ({**whole, "bn1.bias": torch.zeros(8, dtype=torch.int8)}, r"1 not floating-point \(bn1.bias \(int8\)\)"),
        (other, r"101 missing \(conv1.weight, layer1.0.conv1.weight, .*256 foreign \(.*named as .* 'mobilenetv2_100'$"),
        (deeper, r"80 foreign \(layer1.2.bn1.bias, .*; its tensors are named as those of 'resnet34'$"),
        (endless, r"1 with numbers that are not finite \(bn1.bias\)$"),
    ):
        path = saved(state, tmp_path / "w.safetensors")
        with pytest.raises(ConfigError, match=rf"does not fit 'resnet18': .*{says}") as caught:
            make_backbone("resnet18", options=OPTIONS, weights=path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_what_is_adapted_is_said_in_one_line_and_nothing_else(weights: Path, tmp_path: Path) -> None:
    """Weights that were changed, and names and classifiers that were left out, passed without a word."""
    whole = state_of(weights)
    bare = without_classifier(whole)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in bare.items()}
    left = "its classifier (fc.bias, fc.weight) is left out"
    for state, channels, says in (
        (bare, 3, None),
        (whole, 3, left),
        ({**bare, "fc.weight": torch.zeros(7, 32), "fc.bias": torch.zeros(7)}, 3, left),
        ({**whole, "fc.bias": whole["fc.bias"] / 0}, 3, left),
        (half, 3, "float16 is made float32"),
        ({f"module.{name}": tensor for name, tensor in bare.items()}, 3, "'module.' before its names is left out"),
        (
            {f"state_dict.module.{n}": t for n, t in bare.items()},
            3,
            "'state_dict.module.' before its names is left out",
        ),
        (
            {f"model.{n}": t for n, t in half.items()},
            3,
            "'model.' before its names is left out; float16 is made float32",
        ),
        (bare, 1, "conv1.weight [64, 3, 7, 7] is made [64, 1, 7, 7]"),
    ):
        path = saved(state, tmp_path / "w.safetensors")
        net = RetrievalNet("resnet18", 4, in_chans=channels, options=OPTIONS, weights=path)
        assert net.adapted == (None if says is None else f"model.weights={path!r}: {says}")
        assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
        assert "adapted" not in net.spec


def test_a_pickle_is_refused_by_its_name_or_its_first_bytes_and_never_opened(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "renamed.safetensors")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    for name in ("renamed.safetensors", "old.safetensors", "weights.pth", "weights.bin"):
        with pytest.raises(ConfigError, match=r"pickles are not opened.*safetensors.torch.save_file\(") as caught:
            make_backbone("resnet18", options=OPTIONS, weights=str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="pickles are not opened"):  # when the recipe is read
        load_recipe(None, ["model.weights=weights.pth"])


@pytest.mark.parametrize(
    ("prefix", "scale", "says"),
    [("module.", 1.0, "note: model.weights=.*'module.' before its names is left out"), ("", torch.nan, "not finite")],
)
def test_the_driver_says_it_once_and_refuses_before_a_cluster_is_asked(
    prefix: str, scale: float, says: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"{prefix}{n}": t * scale if t.is_floating_point() else t for n, t in state_of(weights).items()}
    path = saved(state, tmp_path / "w.safetensors")
    tree = {
        "data": {"name": "glyphs", "classes": 4, "images_per_class": 4, "image_size": 16},
        "model": {"weights": path, "options": OPTIONS, "embedding_dim": 8},
        "train": {"batch_size": 8},
    }
    recipe = parse_recipe(tree)

    def asked(*_: object) -> None:
        raise RuntimeError("a cluster is asked")

    monkeypatch.setattr("cluster.experiment.session", asked)
    console = Console(record=True, width=1000)
    with ExitStack() as cluster, pytest.raises((RuntimeError, ConfigError)) as caught:
        Driver(tmp_path, console, cluster).train(recipe, data.load_for(recipe), tmp_path / "model.safetensors")
    printed = console.export_text()
    told = printed if prefix else str(caught.value)
    assert len(re.findall(says, told)) == 1
    assert isinstance(caught.value, RuntimeError if prefix else ConfigError)


def test_weights_that_timm_fetches_must_fit_too(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 8: `model.pretrained` goes the same way (the download is replaced)."""
    state = state_of(weights)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))
    loaded = make_backbone("resnet18", in_chans=1, options=OPTIONS, pretrained=True).state_dict()
    assert torch.equal(loaded["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    assert torch.allclose(loaded["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True), atol=1e-6)
    del state["layer1.0.conv1.weight"]
    with pytest.raises(ConfigError, match=r"model.pretrained: .*1 missing \(layer1.0.conv1.weight\)"):
        make_backbone("resnet18", options=OPTIONS, pretrained=True)


def test_position_embeddings_are_brought_to_the_recipes_size(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64)
    path = saved(source.state_dict(), tmp_path / "vit.safetensors")
    loaded = make_backbone("vit_tiny_patch16_224", options={"depth": 1, "img_size": 96}, weights=path).state_dict()
    assert loaded["pos_embed"].shape == (1, 37, 192)
    assert torch.equal(loaded["blocks.0.attn.qkv.weight"], source.state_dict()["blocks.0.attn.qkv.weight"])


@needs_lite0
def test_real_weights_are_loaded_whole() -> None:
    loaded = make_backbone("tf_efficientnet_lite0", in_chans=1, weights=str(LITE0)).state_dict()
    state = state_of(LITE0)
    same = [name for name, tensor in state.items() if name in loaded and torch.equal(tensor, loaded[name])]
    assert len(same) >= len(loaded) - 1  # all but the first convolution
