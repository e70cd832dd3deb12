"""Frozen modules stay to the bit, learn masks unless told otherwise, and have no part in the training of the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunnet.config.recipe import TrainConfig
from prunnet.errors import ConfigError
from prunnet.networks.frozen import Frozen
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.training.gradients.conflict import integrate_layers
from prunnet.training.gradients.rows import LayerRows
from prunnet.training.trainer import Trainer, make_optimizer
from tests import methods
from tests.conftest import tiny_net

FROZEN = ("backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2.*.bn*")


def trainer_of(net: RetrievalNet, **settings: object) -> Trainer:
    config = TrainConfig(
        **{"capacities": (0.5,), "epochs": 2, "batch_size": 8, "lr": 0.05, "precision": "fp32", **settings}  # type: ignore[arg-type]
    )
    return Trainer(net, methods.images(), config, preprocessing=methods.PREPROCESSING)


def net_of(method: str, **more: object) -> RetrievalNet:
    if method in ("switchable", "sfsc"):
        return methods.net_for(TrainConfig(method=method, capacities=(0.5,))).float()
    return tiny_net(options={"channels": [16, 16, 24, 32], "zero_init_last": False}, **more)


def is_frozen(name: str) -> bool:
    return name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1")) or (
        name.startswith("backbone.layer2.") and ".bn" in name
    )


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("prunnet", {}),
        ("prunnet", {"granularity": "channel", "channel_multiple": 8}),
        ("prunnet", {"block": "network", "optimizer": "adamw"}),
        ("joint", {}),
        ("switchable", {}),
        ("sfsc", {}),
        ("independent", {"alone": 0.5, "capacities": ()}),
    ],
    ids=str,
)
def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns(method: str, more: dict[str, object]) -> None:
    made = {key: value for key, value in more.items() if key in ("granularity", "channel_multiple")}
    net = net_of(method, **({**made, "image_size": 32} if made else {}))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trainer = trainer_of(net, method=method, freeze=FROZEN, weight_decay=0.1, clip_norm=1e-3, **more)
    trainer.run()
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in moved if is_frozen(name) and not prunable.is_score(name)} == set()
    weights = {name for name, _ in net.named_parameters() if not is_frozen(name) and not prunable.is_score(name)}
    assert weights <= moved
    statistics = {name for name in before if name.endswith("running_mean") and not is_frozen(name)}
    assert statistics <= moved
    scores = {name for name in before if prunable.is_score(name)}
    assert scores <= moved


@pytest.mark.parametrize("granularity", ["weight", "kernel", "channel"])
def test_masks_of_frozen_layers_are_learned_unless_their_scores_are_frozen_too(granularity: str) -> None:
    net = net_of("prunnet", granularity=granularity, channel_multiple=8, image_size=32)
    before = {name: score.detach().clone() for name, score in prunable.scores(net).items()}
    trainer_of(net, granularity=granularity, channel_multiple=8, freeze=("backbone.layer1",), freeze_scores=True).run()
    stayed = {name for name, score in prunable.scores(net).items() if torch.equal(score, before[name])}
    if granularity == "channel":
        # Groups of channels are frozen where all that make them are, not where a frozen layer only reads them.
        assert net.channels is not None
        makers = {g.name: {layer for layer, side in g.sites if side == "out"} for g in net.channels.graph.groups}
        assert stayed == {name for name, made in makers.items() if all(".layer1." in layer for layer in made)}
    else:
        assert stayed == {name for name in before if ".layer1." in name}
    assert set() < stayed < set(before)


def test_frozen_weights_have_no_part_in_the_norm_that_is_clipped() -> None:
    trainer = trainer_of(tiny_net(), freeze=("backbone.layer*", "neck"))
    images, labels = methods.batch()
    trainer.step(images.float(), labels)
    held = {name for name, p in trainer.net.named_parameters() if p.grad is None}
    assert held == set(trainer.frozen.parameters)
    assert "backbone.layer1.0.conv1.weight" in held
    assert "backbone.layer1.0.conv1.score" not in held
    assert "neck.0.weight" in held


def test_a_block_of_the_whole_network_leaves_frozen_weights_out() -> None:
    generator = torch.Generator().manual_seed(0)

    def layer(learned: tuple[bool, bool] = (True, True)) -> LayerRows:
        def drawn() -> Tensor:
            return torch.randn(3, 4, generator=generator).double()

        rows = [drawn() for _ in range(3)]
        return LayerRows(rows, drawn(), drawn(), drawn(), drawn(), learned=learned)

    def integrated(layers: list[LayerRows]) -> tuple[Tensor, Tensor]:
        orders = [[2, 0, 1]] * len(layers)
        integrate_layers(layers, orders, projection="sequential", block="network", weighting="cosine", exponent=0.5)
        assert layers[0].score_grad is not None
        return layers[0].weight_grad.clone(), layers[0].score_grad.clone()

    trained, frozen, masked = layer(), layer((False, False)), layer((False, True))
    alone = integrated([trained])
    assert all(torch.equal(a, b) for a, b in zip(integrated([trained, frozen]), alone, strict=True))
    weights, scores = integrated([trained, masked])
    assert torch.equal(weights, alone[0])
    assert not torch.equal(scores, alone[1])


def test_a_frozen_norm_stays_frozen_when_the_network_is_evaluated_in_between() -> None:
    net = tiny_net()
    trainer_of(net, freeze=("backbone.bn1",))
    assert net.train().backbone.get_submodule("bn1").training is False
    assert net.eval().train().backbone.get_submodule("bn1").training is False
    with prunable.batch_statistics(net):  # a subnetwork's pass
        assert net.backbone.get_submodule("bn1").training is True
    assert net.backbone.get_submodule("layer1.0.bn1").training is True
    trainer_of(net)
    assert net.train().backbone.get_submodule("bn1").training is True


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("backbone.layr1", "did you mean 'backbone.layer1'"),
        ("backbone.blocks.*", "no module is named 'backbone.blocks.*'"),
        ("backbone.act1", "no module is named 'backbone.act1'"),
        ("conv1", "valid: names below backbone, classifier, neck, or patterns"),
        ("*", "leaves nothing to train"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_all_is_refused_in_one_line(pattern: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Frozen.of(tiny_net(), [pattern], scores=True)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["prunnet", "switchable"])
def test_the_backbone_may_have_a_rate_of_its_own(method: str) -> None:
    net = net_of(method)
    rates = {
        id(p): group["base_lr"]
        for group in make_optimizer(net, TrainConfig(lr=0.1, backbone_lr=0.01, score_lr=0.5)).param_groups
        for p in group["params"]
    }
    for name, parameter in net.named_parameters():
        inside = name.startswith("backbone.") or "backbone|" in name
        assert rates[id(parameter)] == (0.5 if prunable.is_score(name) else 0.01 if inside else 0.1), name
