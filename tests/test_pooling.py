"""Poolings between backbone and neck: what they compute, and that networks with them train, cut, resume and export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunnet.config.recipe import ModelConfig, Recipe, TrainConfig
from prunnet.errors import ConfigError
from prunnet.export.formats import export, identity, open_export
from prunnet.networks.files import load_network, network_sha, save_network
from prunnet.networks.pooling import GeM, make_pooling
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import SwitchableNet
from prunnet.pruning.macs import layer_macs
from prunnet.subnetworks.subnet import subnetwork
from prunnet.training import resume
from prunnet.training.trainer import Trainer, make_optimizer
from tests import methods
from tests.conftest import tiny_net

POOLINGS = ("timm", "avg", "max", "gem")


def net_of(pooling: str, **more: object) -> RetrievalNet:
    return tiny_net(options={"channels": [8, 16, 16, 32]}, pooling=pooling, **more)


def maps(count: int = 2) -> Tensor:
    return torch.randn(count, 5, 3, 4, generator=torch.Generator().manual_seed(0)).abs() + 0.1


def test_what_each_pooling_computes() -> None:
    flat = maps().flatten(2)
    assert torch.allclose(make_pooling("avg")(maps()), flat.mean(2))
    assert torch.equal(make_pooling("max")(maps()), flat.amax(2))
    assert torch.allclose(make_pooling("gem")(maps()), flat.pow(3).mean(2).pow(1 / 3))
    assert torch.allclose(make_pooling("gem", 1.0)(maps()), flat.mean(2))
    assert torch.allclose(make_pooling("gem", 500.0)(maps()), flat.amax(2), rtol=1e-2)


@pytest.mark.parametrize("p", [0.5, 3.0, 60.0])
@pytest.mark.parametrize("size", [0.0, 1e-9, 1.0, 1e4])
def test_no_exponent_and_no_size_of_activations_breaks_gem(p: float, size: float) -> None:
    given = (size * maps()).requires_grad_()
    pooling = GeM(p)
    pooled = pooling(given)
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert given.grad is not None
    assert given.grad.isfinite().all()
    assert pooling.p.grad is not None
    assert pooling.p.grad.isfinite().all()
    assert GeM(p)((size * maps()).half()).isfinite().all()


def test_gems_gradient_is_that_of_the_plain_formula() -> None:
    given = maps().double().requires_grad_()
    assert torch.autograd.gradcheck(GeM(2.5).double(), (given,))
    pooling = GeM(2.5).double()
    p = torch.tensor([2.5], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(given.pow(p).mean((2, 3)).pow(1 / p).sum(), p)
    (found,) = torch.autograd.grad(pooling(given).sum(), pooling.p)
    assert torch.allclose(found, expected)


def test_average_pooling_gives_the_network_that_timm_gives() -> None:
    images = torch.randn(2, 1, 32, 32)
    assert torch.allclose(net_of("avg").eval().embed(images), net_of("timm").eval().embed(images), atol=1e-6)
    assert layer_macs(net_of("gem"), 32) == layer_macs(net_of("timm"), 32)


@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
def test_channels_are_tied_as_they_are_without_it(pooling: str) -> None:
    found, plain = net_of(pooling).channel_graph(32), net_of("timm").channel_graph(32)
    assert [group.name for group in found.groups] == [group.name for group in plain.groups]
    assert [group.units for group in found.groups] == [group.units for group in plain.groups]
    assert found.kept == plain.kept


def trainer_of(net: RetrievalNet, **settings: object) -> Trainer:
    config = TrainConfig(
        **{"capacities": (0.5,), "epochs": 2, "batch_size": 8, "lr": 0.05, "precision": "fp32", **settings}  # type: ignore[arg-type]
    )
    return Trainer(net, methods.images(), config, preprocessing=methods.PREPROCESSING)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_narrow_passes_agree_and_the_exponent_learns_from_the_main_pass_alone(pooling: str) -> None:
    channel = {"granularity": "channel", "channel_multiple": 8}
    trainer = trainer_of(net_of(pooling, **channel, image_size=32), **channel)
    images, labels = methods.batch()
    trainer.step(images.float(), labels)
    assert trainer.objective._narrows  # type: ignore[attr-defined]
    if pooling == "gem":
        assert isinstance(trainer.net.pooling, GeM)
        both = trainer.net.pooling.p.grad
        alone = trainer_of(net_of(pooling), method="independent", capacities=())
        alone.step(images.float(), labels)
        assert torch.allclose(both, alone.net.pooling.p.grad)  # type: ignore[union-attr, arg-type]
        assert float(trainer.net.pooling.p.detach()) != 3.0


def test_the_exponent_does_not_decay() -> None:
    net = net_of("gem")
    groups = make_optimizer(net, TrainConfig(backbone_lr=0.01)).param_groups
    (own,) = [group for group in groups if any(p is net.pooling.p for p in group["params"])]
    assert len(own["params"]) == 1
    assert (own["weight_decay"], own["base_lr"]) == (0.0, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


class Stopped(Exception):
    pass


def test_a_stopped_run_resumes_to_the_same_bits_and_its_file_loads(tmp_path: Path) -> None:
    whole = trainer_of(net_of("gem"))
    whole.run()
    recipe = Recipe(train=whole.config)

    def stop(trainer: Trainer) -> None:
        if trainer.progress.step == 3:
            resume.save(tmp_path, trainer, recipe, methods.CLASSES)
            raise Stopped

    with pytest.raises(Stopped):
        trainer_of(net_of("gem")).run(after_step=stop)
    resumed = trainer_of(net_of("gem"))
    resume.restore(tmp_path, resumed, recipe)
    resumed.run()
    assert network_sha(resumed.net) == network_sha(whole.net)
    save_network(tmp_path / "model.safetensors", whole.net, methods.PREPROCESSING)
    loaded, header = load_network(tmp_path / "model.safetensors")
    assert header["net"]["pooling"] == "gem"
    assert network_sha(loaded) == network_sha(whole.net)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".safetensors"])
@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
def test_an_export_opens_with_the_same_embeddings(pooling: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    net = net_of(pooling, granularity="channel", channel_multiple=8, image_size=32, embedding_dim=8)
    cut = subnetwork(net, 0.5)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    cut.calibrate([images])
    path = tmp_path / f"cut{suffix}"
    export(cut, path, identity(cut, methods.PREPROCESSING))
    assert cut.compact(32).neck[0].in_features < 32  # type: ignore[index, operator]
    opened = open_export(path, trust_code=True)
    assert torch.allclose(opened.embed(images), cut.embed(images), atol=1e-5)


def test_widths_of_a_switchable_network_pool_alike() -> None:
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]}
    net = SwitchableNet("resnet18", 4, in_chans=1, embedding_dim=8, options=options, pooling="gem", switch=[0.5])
    net.eval()
    images = torch.randn(2, 1, 32, 32)
    with net.narrowed(0):
        inside = torch.func.functional_call(net, net.sub_model(0), (images,))
    assert torch.allclose(net.extract(0.5)(images), inside, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"backbone": "test_vit", "pooling": "gem"}, r"gives \[1, \d+, 64\].*valid: model.pooling=timm"),
        (
            {"backbone": "swin_tiny_patch4_window7_224", "options": {"depths": [1, 1], "num_heads": [1, 2]}},
            r"takes a map \[1, channels, height, width\].*valid: model.pooling=timm",
        ),
        ({"backbone": "test_resnet", "options": {"global_pool": "max"}}, "global_pool='max' beside model.pooling"),
    ],
)
def test_what_gives_no_map_is_refused_in_one_line(model: dict[str, object], says: str) -> None:
    config = ModelConfig.model_validate({"pooling": "max", **model})
    with pytest.raises(ConfigError, match=says) as caught:
        RetrievalNet.from_config(config, classes=2, in_chans=3, score_init=None, seed=0, image_size=64)
    assert "\n" not in str(caught.value)


def test_a_backbone_with_layers_behind_its_pooling_takes_another() -> None:
    """MobileNetV3 has a convolution between pooling and classifier: it sees the map."""
    config = ModelConfig(backbone="mobilenetv3_small_050", pooling="gem", gem_p=2.0, embedding_dim=8)
    net = RetrievalNet.from_config(config, classes=2, in_chans=1, score_init=None, seed=0, image_size=64)
    assert net.eval().embed(torch.randn(2, 1, 64, 64)).shape == (2, 8)
    assert float(net.pooling.get_parameter("p").detach()) == 2.0
    assert "gem_p" not in net.spec
