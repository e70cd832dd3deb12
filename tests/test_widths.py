"""Switchable widths: slices of one network, each with a BatchNorm of its own, and plain networks cut out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError
from prunnet.networks.files import load_network, save_network
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import SwitchableNet
from prunnet.pruning.width_slices import channels, width_of
from prunnet.subnetworks.subnet import Subnetwork, subnetwork

NARROW = {
    "resnet18": {"channels": [8, 8, 12, 16]},
    "resnet50": {"channels": [8, 8, 12, 16], "layers": [1, 1, 1, 1]},
    "mobilenetv2_100": {},
}


def switchable(name: str = "resnet18", **arguments: object) -> SwitchableNet:
    """Small, in evaluation mode, with BatchNorm parameters and statistics that tell the widths apart."""
    options = {"in_chans": 1, "embedding_dim": 8, "options": NARROW[name], "switch": [0.8, 0.2], **arguments}
    net = SwitchableNet(name, 4, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))  # type: ignore[union-attr]
    return net.eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NARROW)
def test_an_extracted_sub_model_is_a_plain_smaller_network_with_equal_features(name: str) -> None:
    net = switchable(name)
    full = sum(p.numel() for p in net.backbone.parameters())
    for index, capacity in enumerate(net.switch):
        plain = net.extract(capacity)
        with net.narrowed(index):
            expected = functional_call(net, net.sub_model(index), (images(),))
        assert torch.allclose(plain(images()), expected, atol=1e-6)
        assert type(plain) is RetrievalNet
        share = sum(p.numel() for p in plain.backbone.parameters()) / full
        assert share == pytest.approx(capacity, abs=0.06)  # parameters match the capacity, up to rounded channels
    assert torch.equal(net.extract(1.0)(images()), net(images()))


def test_widths_share_weights_but_no_batchnorm() -> None:
    net = switchable()
    first = net.extract(0.2)
    with torch.no_grad():
        net.backbone.conv1.weight.add_(1)
    assert not torch.allclose(net.extract(0.2)(images()), first(images()))
    with torch.no_grad():
        net.norms[0].get_submodule("backbone|bn1").weight.add_(1)
    changed = net.extract(0.2)
    assert torch.equal(changed.backbone.bn1.weight, first.backbone.bn1.weight)
    assert not torch.equal(net.extract(0.8).backbone.bn1.weight[:2], first.backbone.bn1.weight[:2])


def test_only_a_passs_own_batchnorm_sees_it() -> None:
    net = switchable().train()
    before = {name: b.clone() for name, b in net.named_buffers()}
    with net.narrowed(1):
        functional_call(net, net.sub_model(1), (images(),))
    changed = {name for name, b in net.named_buffers() if not torch.equal(b, before[name])}
    assert changed == {name for name, _ in net.named_buffers() if name.startswith("norms.1.")}


def test_a_capacity_that_was_never_trained_takes_the_next_larger_batchnorm() -> None:
    net = switchable()
    cut = net.extract(0.5)
    width = channels(64, width_of(0.5))  # the stem
    assert torch.equal(cut.backbone.bn1.weight, net.norms[0].get_submodule("backbone|bn1").weight[:width])
    assert subnetwork(net, 0.5).embed(images()).shape == (3, 8)


def test_a_cut_costs_what_its_widths_cost(tmp_path: Path) -> None:
    net = switchable()
    dense, small = subnetwork(net, 1.0), subnetwork(net, 0.2)
    assert dense.weights_sha == small.weights_sha
    assert small.cost(64).macs == small.cost(64).macs_dense
    assert small.cost(64).params_kept < 0.4 * dense.cost(64).params_kept
    small.save(tmp_path / "small.safetensors", Preprocessing(64, 64, 1, False, (0.5,), (0.5,)))
    assert torch.equal(Subnetwork.load(tmp_path / "small.safetensors").embed(images()), small.embed(images()))


def test_a_saved_switchable_network_round_trips(tmp_path: Path) -> None:
    net = switchable()
    save_network(tmp_path / "m.safetensors", net, Preprocessing(64, 64, 1, False, (0.5,), (0.5,)))
    loaded, _ = load_network(tmp_path / "m.safetensors")
    assert isinstance(loaded, SwitchableNet)
    assert torch.equal(loaded.eval().extract(0.2)(images()), net.extract(0.2)(images()))


def test_depthwise_groups_are_put_back() -> None:
    net = switchable("mobilenetv2_100")
    groups = [m.groups for m in net.modules() if isinstance(m, nn.Conv2d)]
    with pytest.raises(KeyError), net.narrowed(0):
        raise KeyError
    assert groups == [m.groups for m in net.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("name", ["resnext50_32x4d", "convnext_atto", "vit_tiny_patch16_224", "densenet121"])
def test_backbones_that_slicing_would_break_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="valid: ResNets and MobileNetV2"):
        SwitchableNet(name, 4, switch=[0.5])
