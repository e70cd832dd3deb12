"""What every backbone must do. The eight that are named in `experiments.backbone_report`, small, pass all of it."""

from __future__ import annotations

import copy
import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunnet import data
from prunnet.config.recipe import DataConfig, ModelConfig, TrainConfig, parse_recipe
from prunnet.data.transforms import Preprocessing
from prunnet.experiments.backbone_report import NAMED, inspect_backbone
from prunnet.export.formats import export, identity, open_export
from prunnet.networks.files import load_network, save_network
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.channel_graph import trace
from prunnet.pruning.macs import layer_macs
from prunnet.pruning.masks import keep_count
from prunnet.subnetworks.subnet import Subnetwork, subnetwork
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.objectives.base import Context
from prunnet.training.objectives.by_name import make_objective
from prunnet.training.objectives.masked import Masked
from prunnet.training.trainer import Trainer
from tests.conftest import LITE0, striped_images

SIDE = 64
SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]},
    "resnet50": {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]},
    "resnext50_32x4d": {"layers": [1, 1, 1, 1]},
    "mobilenetv2_100": {},
    "tf_efficientnet_lite0": {},
    "convnext_tiny": {"depths": [1, 1, 1, 1], "dims": [16, 24, 32, 48]},
    "vit_small_patch16_224": {"depth": 2, "embed_dim": 96, "num_heads": 3, "img_size": SIDE},
    "swin_tiny_patch4_window7_224": {
        "depths": [1, 1, 2, 1],
        "embed_dim": 24,
        "num_heads": [1, 2, 3, 6],
        "img_size": SIDE,
    },
}
KINDS = {
    "resnet18": {"conv 7x7", "conv 3x3", "conv 1x1"},
    "resnet50": {"conv 7x7", "conv 3x3", "conv 1x1"},
    "resnext50_32x4d": {"conv 7x7", "grouped 3x3 (32)", "conv 1x1"},
    "mobilenetv2_100": {"conv 3x3", "depthwise 3x3", "conv 1x1"},
    "tf_efficientnet_lite0": {"conv 3x3", "depthwise 3x3", "depthwise 5x5", "conv 1x1"},
    "convnext_tiny": {"conv 4x4", "depthwise 7x7", "linear", "conv 2x2"},
    "vit_small_patch16_224": {"conv 16x16", "linear"},
    "swin_tiny_patch4_window7_224": {"conv 4x4", "linear"},
}
WEIGHTS = {"tf_efficientnet_lite0": str(LITE0)} if LITE0.exists() else {}
"""ImageNet's, of those backbones that have them on this machine; the others start at random."""
pytestmark = pytest.mark.parametrize("name", SMALL)


@lru_cache(maxsize=len(SMALL))
def shared(name: str) -> RetrievalNet:
    """One network a backbone, which the tests do not change; no branch of it is switched off at the start."""
    return fresh(name).eval()


@lru_cache(maxsize=len(SMALL))
def by_channel(name: str) -> RetrievalNet:
    """As `shared`, with one score a set of tied channels, and no bias that is zero."""
    net = fresh(name, granularity="channel", channel_multiple=2, image_size=SIDE).eval()
    for parameter_name, parameter in net.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.uniform_(parameter, -0.1, 0.1)
    return net


def fresh(name: str, **arguments: Any) -> RetrievalNet:
    net = RetrievalNet(name, 4, embedding_dim=16, options=SMALL[name], weights=WEIGHTS.get(name), **arguments)
    if name in WEIGHTS:  # trained: no end of a branch is zero
        return net
    for module in net.backbone.modules():  # zero-initialised ends of residual branches, ConvNeXt's layer scale of 1e-6
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(getattr(module, "gamma", None), nn.Parameter):
            nn.init.uniform_(module.gamma, 0.5, 1.5)
    return net


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_a_pass_on_fewer_channels_gives_the_gradients_of_a_masked_pass(name: str) -> None:
    """In training mode, where BatchNorm sees the batch; in float64. Attention keeps masks: its heads have a width."""
    net = copy.deepcopy(by_channel(name)).double().train()
    config = parse_recipe({"train": {"granularity": "channel", "channel_multiple": 2, "capacities": [0.6, 0.3]}}).train
    batch, labels = images(6).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    found = []
    for narrows in (None, False):
        objective = make_objective(net, config, Context(Reducer(), torch.float32, None, None, None, 10))  # type: ignore[arg-type]
        assert isinstance(objective, Masked)
        objective._narrows = narrows
        net.zero_grad()
        torch.manual_seed(0)  # Swin drops branches at random
        losses = objective.backward(batch, labels, step=3)
        found.append((losses, {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}))
        assert objective._narrows is (
            narrows is None and name not in ("vit_small_patch16_224", "swin_tiny_patch4_window7_224")
        )
    (narrow_losses, narrow), (masked_losses, masked) = found
    assert {n: float(v) for n, v in narrow_losses.items()} == pytest.approx(
        {n: float(v) for n, v in masked_losses.items()}, rel=1e-9
    )
    assert narrow.keys() == masked.keys()
    for key, gradient in masked.items():
        assert torch.allclose(narrow[key], gradient, atol=1e-9), key


def test_the_named_backbones_are_the_tested_ones(name: str) -> None:
    assert name in NAMED
    assert set(SMALL) == set(NAMED)


def test_features_at_capacity_one_are_timms(name: str) -> None:
    net = shared(name)
    plain = timm.create_model(name, num_classes=0, **SMALL[name]).eval()
    plain.load_state_dict({k: v for k, v in net.backbone.state_dict().items() if not k.endswith(".score")})
    with torch.inference_mode():
        assert torch.equal(net.backbone(images()), plain(images()))
        expected = nn.functional.normalize(net.neck(plain(images())))
    assert torch.allclose(subnetwork(net, 1.0).embed(images()), expected, atol=1e-6)


def test_masks_keep_exactly_k_weights_a_layer_and_nest(name: str) -> None:
    cuts = [subnetwork(shared(name), c) for c in (0.8, 0.5, 0.2, 0.05)]
    for cut in cuts:
        assert all(int(m.sum()) == keep_count(m.numel(), cut.capacity) for m in cut.masks.values())
    for large, small in itertools.pairwise(cuts):
        assert all(not bool((small.masks[n] & ~large.masks[n]).any()) for n in small.masks)


def test_outputs_differ_between_capacities(name: str) -> None:
    features = [subnetwork(shared(name), c).embed(images()) for c in (1.0, 0.6, 0.2)]
    for one, other in itertools.combinations(features, 2):
        assert float((one - other).abs().max()) > 1e-3


def test_scores_and_weights_of_every_prunable_layer_get_a_gradient(name: str) -> None:
    net = fresh(name).train()
    config = TrainConfig(precision="fp32", capacities=(0.5,))
    objective = make_objective(net, config, Context(Reducer(), torch.float32))
    objective.backward(images(8), torch.arange(8) % 4, 0)
    for layer_name, layer in prunable.layers(net).items():
        for part in ("weight", "score"):
            gradient = layer.get_parameter(part).grad
            assert gradient is not None
            assert float(gradient.abs().max()) > 0, (layer_name, part)
            assert bool(gradient.isfinite().all()), (layer_name, part)


def test_a_saved_network_round_trips(name: str, tmp_path: Path) -> None:
    net = shared(name)
    save_network(tmp_path / "m.safetensors", net, Preprocessing(SIDE, SIDE, 3, False, (0.5,) * 3, (0.5,) * 3))
    loaded, _ = load_network(tmp_path / "m.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert torch.equal(subnetwork(loaded, 0.3).embed(images()), subnetwork(net, 0.3).embed(images()))


def test_an_extracted_subnetwork_gives_equal_features(name: str, tmp_path: Path) -> None:
    cut = subnetwork(shared(name), 0.3).calibrate([images(8)])
    cut.save(tmp_path / "edge.safetensors")
    assert torch.equal(Subnetwork.load(tmp_path / "edge.safetensors").embed(images()), cut.embed(images()))


@pytest.mark.parametrize("capacity", [0.8, 0.4, 0.05])
def test_a_compact_network_gives_equal_features_and_is_smaller(name: str, capacity: float) -> None:
    net = by_channel(name)
    cut = subnetwork(net, capacity)
    if any(isinstance(module, nn.BatchNorm2d) for module in net.backbone.modules()):
        cut.calibrate([images(64)])  # or signals fade, layer by layer, until little but rounding is left of them
    small = cut.compact(SIDE)
    with torch.inference_mode():
        assert torch.allclose(small(images()), cut.embed(images()), atol=1e-5)
    exact = subnetwork(copy.deepcopy(net).double(), capacity).calibrate([images(32).double()])
    with torch.inference_mode():
        assert torch.allclose(exact.compact(SIDE)(images().double()), exact.embed(images().double()), atol=1e-6)
    whole = sum(p.numel() for n, p in cut.net.named_parameters() if n.startswith(("backbone.", "neck.")))
    assert sum(p.numel() for p in small.parameters()) < whole
    assert not any("score" in parameter for parameter, _ in small.named_parameters())


def test_channels_that_weight_masks_leave_idle_are_cut_out(name: str) -> None:
    cut = subnetwork(fresh(name), 0.01)
    small = cut.compact(SIDE)
    with torch.inference_mode():
        assert torch.allclose(small(images()), cut.embed(images()), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < cut.cost(SIDE).params_total


def test_what_channels_are_tied_to_and_which_are_kept(name: str) -> None:
    """Facts of each architecture: how many groups there are, and why the rest is kept."""
    channels = by_channel(name).channels
    assert channels is not None
    reasons = {reason.partition(" (")[0] for reason in channels.graph.kept.values()}
    reasons.discard("they are what the network puts out")
    expected = {
        "resnet18": (9, set()),  # the stem, and of each block the inner channels and the stream
        "resnet50": (13, set()),
        "resnext50_32x4d": (9, set()),  # both inner layers of a block go group by group
        "mobilenetv2_100": (25, set()),
        "tf_efficientnet_lite0": (24, set()),
        "convnext_tiny": (4, {f"they pass through {norm}" for norm in ("ConvNeXtBlock", "LayerNorm", "LayerNorm2d")}),
        "vit_small_patch16_224": (4, {"they pass through LayerNorm"}),  # heads and hidden units of two blocks
        "swin_tiny_patch4_window7_224": (10, {"they pass through LayerNorm"}),
    }
    assert (len(channels.graph.groups), reasons) == expected[name]


def test_channels_are_tied_alike_in_the_whole_image_and_in_a_small_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = shared(name)
    found = trace(net, net.features, images(1))
    monkeypatch.setattr("prunnet.pruning.channel_graph._SIDES", ())
    whole = trace(net, net.features, images(1))
    assert (found.kept, found.heads) == (whole.kept, whole.heads)
    for one, other in zip(found.groups, whole.groups, strict=True):
        assert (one.units, one.width) == (other.units, other.width)
        assert list(one.sites) == list(other.sites)
        assert all(np.array_equal(one.sites[site], other.sites[site]) for site in one.sites)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".pt2"])
@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_exports_round_trip(name: str, granularity: str, suffix: str, tmp_path: Path) -> None:
    """Of random images, and of letters."""
    cut = subnetwork(by_channel(name) if granularity == "channel" else shared(name), 0.4).calibrate([images(64)])
    preprocessing = Preprocessing(SIDE, SIDE, 3, False, (0.5,) * 3, (0.5,) * 3)
    export(cut, tmp_path / f"edge{suffix}", identity(cut, preprocessing))
    opened = open_export(tmp_path / f"edge{suffix}", trust_code=True)
    letters = data.load(DataConfig(classes=4, images_per_class=2, image_size=SIDE)).train.read(np.arange(5))
    real = preprocessing.normalise(torch.from_numpy(letters))
    for batch in (images(1), images(3), real):
        assert torch.allclose(opened.embed(batch), cut.embed(batch), atol=1e-4)


def test_macs_agree_with_torchs_own_counter(name: str) -> None:
    net = shared(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.embed(images(1))
    counted = counter.get_flop_counts()["Global"]
    matmuls = {torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm}
    expected = sum(flops for operation, flops in counted.items() if operation in matmuls)
    assert 2 * sum(layer_macs(net, SIDE).values()) == expected
    assert subnetwork(net, 1.0).cost(SIDE).macs * 2 == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_without_nan(name: str, precision: str) -> None:
    preprocessing = Preprocessing(SIDE, SIDE, 3, False, (0.5,) * 3, (0.5,) * 3)
    grey = striped_images(preprocessing, per_class=4)
    colour = type(grey)(grey.pixels.repeat(3, axis=1), grey.labels, preprocessing)
    config = TrainConfig(epochs=2, batch_size=8, lr=0.02, precision=precision, capacities=(0.5, 0.2))  # type: ignore[arg-type]
    trainer = Trainer(fresh(name), colour, config, preprocessing=preprocessing)
    history = trainer.run()
    assert trainer.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert len(history) == 2
    assert all(bool(t.isfinite().all()) for t in trainer.net.state_dict().values())


def test_channels_last_equals_contiguous(name: str) -> None:
    contiguous, last = fresh(name).eval(), fresh(name).eval()
    last.load_state_dict(contiguous.state_dict())
    last = last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = images().contiguous(memory_format=torch.channels_last)
    for capacity in (1.0, 0.3):
        a, b = subnetwork(contiguous, capacity), subnetwork(last, capacity)
        assert all(torch.equal(a.masks[n], b.masks[n]) for n in a.masks)
        assert torch.allclose(a.embed(images()), b.embed(batch), atol=1e-5)


def test_what_is_prunable_is_what_was_decided(name: str) -> None:
    facts = inspect_backbone(ModelConfig(backbone=name, options=SMALL[name]), SIDE)
    assert {layer.kind for layer in facts.layers} == KINDS[name]
    named = {n for n, m in shared(name).backbone.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert {layer.name for layer in facts.layers} == named
    dense = {kind for kind in facts.dense if "Norm" not in kind and not kind.endswith("bias")}
    allowed = {"neck", "WindowAttention.relative_position_bias_table", "ConvNeXtBlock.gamma"}
    allowed |= {"VisionTransformer.cls_token", "VisionTransformer.pos_embed"}
    assert dense <= allowed
    assert (facts.widths is None) == (name in ("resnet18", "resnet50", "mobilenetv2_100", "tf_efficientnet_lite0"))


@pytest.mark.slow
def test_at_full_size(name: str) -> None:
    """As users make it: 224 px, all layers; features, MACs, and a cut that trains for one step."""
    net = RetrievalNet.from_config(
        ModelConfig(backbone=name), classes=4, in_chans=3, score_init="kaiming_uniform", seed=0, image_size=224
    ).eval()
    plain = timm.create_model(name, num_classes=0).eval()
    plain.load_state_dict({k: v for k, v in net.backbone.state_dict().items() if not k.endswith(".score")})
    batch = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(net.backbone(batch), plain(batch))
    known = {"resnet18": 1.81, "resnet50": 4.09, "resnext50_32x4d": 4.23, "mobilenetv2_100": 0.30}
    known |= {"tf_efficientnet_lite0": 0.385}  # at 224 px, padded as in TensorFlow
    known |= {"convnext_tiny": 4.46, "vit_small_patch16_224": 4.24, "swin_tiny_patch4_window7_224": 4.35}
    assert sum(layer_macs(net, 224).values()) / 1e9 == pytest.approx(known[name], abs=0.015)  # published, no attention
    assert subnetwork(net, 0.2).embed(batch).isfinite().all()
    objective = make_objective(net.train(), TrainConfig(capacities=(0.5,)), Context(Reducer(), torch.bfloat16))
    losses = objective.backward(batch, torch.tensor([0, 1]), 0)
    assert all(bool(loss.isfinite()) for loss in losses.values())
