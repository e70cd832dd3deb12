"""Any timm model trains and is cut, or says in one line why not; docs/BACKBONES.md has a model of every family."""

from __future__ import annotations

import re
import time

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from benchmarks.backbones import MODELS
from prunnet.config.recipe import ModelConfig
from prunnet.errors import ConfigError
from prunnet.experiments.backbone_report import inspect_granularities
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from sweeps.cli import app
from tests.conftest import LITE0, REPOSITORY, needs_lite0


def made(name: str, image_size: int = 64, granularity: str = "weight", **options: object) -> RetrievalNet:
    return RetrievalNet.from_config(
        ModelConfig(backbone=name, options=options),
        classes=3,
        in_chans=1,
        score_init=None,
        seed=0,
        image_size=image_size,
        granularity=granularity,
    )


@needs_lite0
def test_lite0_starts_from_imagenets_weights_and_its_channels_are_found_in_seconds_of_a_processor() -> None:
    """At 224 px: tracing took 16 s of a processor, and memory bandwidth that others waited for."""
    before = time.process_time()
    net = RetrievalNet("tf_efficientnet_lite0", 3, weights=str(LITE0), granularity="channel")
    assert time.process_time() - before < 5
    assert net.channels is not None
    assert len(net.channels.graph.groups) == 24
    stem = net.get_submodule("backbone.conv_stem").get_parameter("weight")
    assert torch.equal(stem.detach(), load_file(LITE0)["conv_stem.weight"])


@pytest.mark.parametrize("name", ["lcnet_035", "ghostnet_050", "mobilenetv4_conv_small_035", "test_mambaout"])
def test_a_backbone_gives_out_more_than_its_num_features(name: str) -> None:
    """Issue 15, number 13: the neck was made for `num_features`, before a further layer of the head."""
    net = made(name).eval()
    assert net.neck[0].in_features != net.backbone.num_features  # type: ignore[union-attr]
    assert net.embed(torch.randn(2, 1, 64, 64)).shape == (2, 256)
    assert "features" not in net.spec


def test_what_comes_out_counts_where_timm_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunnet.networks.retrieval_net._features_of", lambda _: 7)
    net = made("test_resnet").eval()
    monkeypatch.undo()
    assert net.spec["features"] == net.backbone.num_features
    again = RetrievalNet(**net.spec).eval()
    again.load_state_dict(net.state_dict())
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(again.embed(images), net.embed(images))


def test_what_gives_no_vector_or_takes_no_such_image_is_said_in_one_line() -> None:
    """Issue 15, number 13: seen on one image in the driver, before Ray starts."""
    for name, options, says in (
        ("test_resnet", {"global_pool": ""}, r"gives \[1, \d+, \d+, \d+\] for an image of 1 x 64 x 64 pixels"),
        (
            "vit_tiny_patch16_224",
            {"img_size": 96, "depth": 1},
            r"does not take an image of 1 x 64 x 64 pixels: .*; valid: another",
        ),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            made(name, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "channel"),
    [
        ("test_resnet", {}, None),
        ("lcnet_035", {}, None),
        # The fused qkv is used through its weight, and LayerNorm mixes what the embedding makes.
        ("eva02_tiny_patch14_224", {"depth": 1, "img_size": 56}, "can be cut|cannot be"),
    ],
)
def test_every_granularity_trains_a_step_and_is_cut(name: str, options: dict[str, object], channel: str | None) -> None:
    """Issue 15, number 13: EVA-02's layers that are used through their weights broke channel tracing."""
    said = dict(inspect_granularities(ModelConfig(backbone=name, options=options), 56, 3))
    assert said["weight"] is said["nm"] is said["kernel"] is None
    if said["channel"] is not None:
        assert channel is not None, said
        assert re.search(channel, said["channel"])
        assert "\n" not in said["channel"]


def test_every_group_of_channels_has_a_score_of_its_own() -> None:
    """Issue 15, number 13: two groups that one convolution makes shared a name, and the second score was lost."""
    net = made("cs3darknet_focus_s", granularity="channel")
    assert net.channels is not None
    scores = prunable.scores(net)
    assert len({group.name for group in net.channels.graph.groups}) < len(net.channels.graph.groups)
    assert [id(score) for score in scores.values()] == [id(score) for score in net.channels.scores]


def test_a_module_that_is_used_twice_keeps_its_own_weights() -> None:
    """Issue 15, number 13: a masked pass left its tensors in CoaT's shared modules."""
    options = {"img_size": 64, "serial_depths": [2, 1, 1, 1], "parallel_depth": 0}
    assert dict(inspect_granularities(ModelConfig(backbone="coat_tiny", options=options), 64, 3))["weight"] is None


def test_doctor_tries_every_granularity_out() -> None:
    arguments = ["doctor", "backbone", "test_resnet", "--image-size", "64", "--train", "--set", "model.embedding_dim=8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for granularity in ("weight", "nm", "kernel", "channel"):
        assert f"granularity {granularity}: works" in result.stdout


def test_the_documents_table_holds_the_models_that_the_command_looks_at() -> None:
    page = (REPOSITORY / "docs" / "BACKBONES.md").read_text()
    named = re.findall(r"^\| `(\w+)`", page, flags=re.MULTILINE)
    assert sorted(named) == sorted(MODELS.split())
    assert len(named) >= 60
    assert not re.search("TRACEBACK|HANGS|EXIT", page)
