"""Every registered loss: against a slow and obvious version, in a resumed training, and in a file that is loaded
again; recipes that ask for one in a wrong way. That two workers equal one is in test_workers.py, by the cases of
methods.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunnet
from prunnet.config.losses import DEFAULT, LOSSES, Loss, all_options
from prunnet.config.recipe import Recipe, TrainConfig, load_recipe, parse_recipe
from prunnet.data.base import MemoryImages
from prunnet.errors import ConfigError
from prunnet.networks.files import load_network, network_sha, save_network
from prunnet.pruning import prunable
from prunnet.subnetworks.subnet import subnetwork
from prunnet.training import resume
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.losses.base import NetworkLoss, Setting
from prunnet.training.losses.by_name import OwnLoss
from prunnet.training.objectives.base import Context
from prunnet.training.objectives.bct import Bct
from prunnet.training.objectives.old_network import OldNetwork
from prunnet.training.trainer import Trainer, steps_per_epoch
from tests import methods, reference
from tests.conftest import net_without_batchnorm, striped_images, tiny_net
from tests.methods import CLASSES, PREPROCESSING

OTHERS = [name for name in LOSSES if name != DEFAULT]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "normface": [{"temperature": 0.3}],
    "cosface": [{"scale": 16, "margin": 0.2}],
    "arcface": [{"scale": 8}, {"scale": 8, "margin": 120}],
    "subcenter_arcface": [{"scale": 8, "sub_centers": 2}],
    "proxy_anchor": [{"alpha": 4, "margin": 0.3}],
    "supcon": [{"temperature": 0.5}],
    "multi_similarity": [{"beta": 10, "base": 0.1}, {"beta": 10, "miner": "none"}],
    "triplet": [
        {"miner": "none"},
        {"miner": "hard", "margin": 0.5},
        {"miner": "hard", "swap": True},
        {"smooth_loss": True},
    ],
    "circle": [{"gamma": 8, "m": 0.25}],
}
"""Beside the defaults."""


def settings_of(name: str, **more: Any) -> dict[str, Any]:
    """Of `train`, for a loss on the images of methods.py."""
    sampling = {"sampling": "balanced", "per_class": 2} if LOSSES[name].sees == "pairs" else {}
    return {"loss": name, "precision": "fp32", "batch_size": 8, "capacities": (0.7, 0.3), **sampling, **more}


def loss_of(name: str, options: dict[str, Any] | None = None) -> OwnLoss:
    config = TrainConfig(**settings_of(name, loss_options=options or {}))
    return OwnLoss(net_without_batchnorm(), config, Reducer())


def features_of_a_batch(labels: list[int]) -> tuple[Tensor, Tensor]:
    """Features [B, 8] that are neither normalised nor apart, float64, with a gradient."""
    generator = torch.Generator().manual_seed(4)
    features = 3 * torch.randn(len(labels), 8, generator=generator, dtype=torch.float64)
    return features.requires_grad_(), torch.tensor(labels)


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in OTHERS for options in [{}, *SETTINGS.get(name, [])]]
)
def test_a_loss_and_its_gradients_are_those_of_the_obvious_version(name: str, options: dict[str, Any]) -> None:
    loss = loss_of(name, options)
    features, labels = features_of_a_batch([0, 1, 0, 2, 1, 0, 3, 2])
    weights = list(loss.parameters().values())
    rows = weights[0] if weights else None
    if rows is not None and rows.shape[0] == features.shape[1]:
        rows = rows.T  # the library keeps class weights as columns
    assert len(weights) <= 1
    slow = reference.LOSSES[name](features, labels, rows, all_options(name, loss_options(name, options)))
    fast = loss(torch.empty(0), features, labels)
    assert float(slow.detach()) > 0
    assert float(fast.detach()) == pytest.approx(float(slow.detach()), rel=1e-10)
    wanted = [features, *weights]
    for found, expected in zip(torch.autograd.grad(fast, wanted), torch.autograd.grad(slow, wanted), strict=True):
        assert float(expected.abs().max()) > 0
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-12)


def loss_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return TrainConfig(**settings_of(name, loss_options=options)).loss_options


def test_cross_entropy_is_what_it_was_to_the_bit() -> None:
    logits, labels = torch.randn(8, 4), torch.randint(0, 4, (8,))
    config = TrainConfig(label_smoothing=0.1)
    found = OwnLoss(tiny_net(), config, Reducer())(logits, torch.empty(8, 8), labels)
    assert torch.equal(found, F.cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize("name", [name for name in OTHERS if LOSSES[name].sees == "pairs"])
def test_a_batch_without_pairs_has_gradients_of_zero_or_of_what_it_has(name: str) -> None:
    for labels in ([0, 1, 2, 3], [1, 1, 1, 1]):
        features, classes = features_of_a_batch(labels)
        loss = loss_of(name)(torch.empty(0), features, classes)
        (gradient,) = torch.autograd.grad(loss, features)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", OTHERS)
def test_float32_features_of_a_bf16_pass_give_a_float32_loss(name: str) -> None:
    config = TrainConfig(**settings_of(name))
    loss = OwnLoss(tiny_net(embedding_dim=8), config, Reducer())
    features, labels = features_of_a_batch([0, 1, 0, 1])
    found = loss(torch.empty(0), features.bfloat16().float(), labels)
    assert found.dtype == torch.float32
    assert bool(found.isfinite())


# --- trainings ---------------------------------------------------------------------------------------------


def trainer_of(name: str, **more: Any) -> Trainer:
    config = TrainConfig(**settings_of(name, epochs=2, lr=0.05, **more))
    net = tiny_net(embedding_dim=8)
    return Trainer(net, methods.images(), config, preprocessing=PREPROCESSING, class_names=CLASSES)


def bits(trainer: Trainer) -> str:
    return network_sha(trainer.net) + "".join(str(p.tolist()) for p in trainer.objective.learned().values())


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", OTHERS)
def test_a_stopped_training_resumes_to_the_same_bits_and_its_network_is_loaded_again(name: str, tmp_path: Path) -> None:
    whole = trainer_of(name)
    start = {key: parameter.detach().clone() for key, parameter in whole.learned().items()}
    whole.run()
    moved = {key for key, parameter in whole.learned().items() if not torch.equal(parameter, start[key])}
    assert not {key for key in moved if key.startswith("classifier")}
    assert {key for key in start if key.startswith("loss.")} <= moved
    recipe = Recipe(train=whole.config)

    def stop(trainer: Trainer) -> None:
        if trainer.progress.step == 3:
            resume.save(tmp_path, trainer, recipe, CLASSES)
            raise Stopped

    with pytest.raises(Stopped):
        trainer_of(name).run(after_step=stop)
    resumed = trainer_of(name)
    resume.restore(tmp_path, resumed, recipe)
    resumed.run()
    assert bits(resumed) == bits(whole)

    resume.save(tmp_path / "end", resumed, recipe, CLASSES)
    resume.export(tmp_path / "end", recipe, tmp_path / "model.safetensors")
    loaded, header = load_network(tmp_path / "model.safetensors")
    assert header["untrained"] == ["classifier"]
    images = methods.batch()[0].float()
    for capacity in (1.0, 0.3):
        assert torch.equal(subnetwork(loaded, capacity).embed(images), subnetwork(whole.net, capacity).embed(images))


def test_the_main_pass_alone_trains_the_class_weights() -> None:
    """All passes go through them, and the gradient is that of the dense pass."""
    config = TrainConfig(**settings_of("cosface"))
    net = net_without_batchnorm(image_size=32)
    objective = methods.objective_of(config, net)
    images, labels = methods.batch()
    found = methods.gradients(objective, net, (images, labels))
    (weight,) = objective.loss.parameters().values()
    dense = objective.loss(torch.empty(0), net.features(images), labels)
    assert torch.allclose(found["loss.theirs.W"], torch.autograd.grad(dense, weight)[0], atol=1e-12)


def test_class_weights_start_alike_and_differ_by_the_seed() -> None:
    starts = [trainer_of("cosface", seed=seed).learned()["loss.theirs.W"] for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_the_norm_that_is_clipped_has_the_class_weights_in_it() -> None:
    trainer = trainer_of("cosface", clip_norm=1e-3)
    images, labels = methods.batch()
    trainer.step(images.float(), labels)
    every = [p.grad for p in trainer.learned().values() if p.grad is not None]
    assert float(torch.nn.utils.get_total_norm(every)) == pytest.approx(1e-3, rel=1e-3)


class Turned(NetworkLoss):
    """Another package's, whose weights get gradients of another memory format than theirs."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.weight = nn.Parameter(torch.randn(setting.embedding_dim, setting.classes))

    def forward(self, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(features, self.weight.T.contiguous()), labels)


def test_class_weights_follow_their_gradients_whatever_the_memory_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused optimiser walks weight and gradient side by side in memory."""
    monkeypatch.setitem(LOSSES._own, "turned", Loss("turned", Turned))
    trainer = trainer_of("turned", clip_norm=1e9)
    weight = trainer.learned()["loss.weight"]
    before = weight.detach().clone()
    images, labels = methods.batch()
    trainer.net.train()
    trainer.objective.backward(images.float(), labels, 0)
    assert weight.grad is not None
    assert weight.grad.stride() != weight.stride()
    trainer.step(images.float(), labels)
    assert float(weight.grad.abs().max()) > 0
    assert torch.allclose(weight.detach() - before, -0.05 * weight.grad, atol=1e-6)


def test_snip_takes_the_loss_of_the_training() -> None:
    scores = [trainer_of(name, score_init="snip").net for name in ("cosface", "normface")]
    first, second = (next(iter(prunable.scores(net).values())).detach() for net in scores)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["cosface", "supcon"])
def test_a_network_learns_to_tell_classes_apart(name: str) -> None:
    images = striped_images(PREPROCESSING, per_class=8)
    more = {"loss_options": {"scale": 8}} if name == "cosface" else {"per_class": 4}
    settings = settings_of(name, epochs=6, batch_size=16, lr=0.05, **more)
    history = prunnet.fit(tiny_net(), images, **settings)
    assert history[-1]["loss_1"] < 0.8 * history[0]["loss_1"]
    assert history[-1]["loss_0.3"] < 0.9 * history[0]["loss_0.3"]


def test_a_network_of_another_loss_is_no_teacher_for_bct(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_network(path, tiny_net(embedding_dim=8), PREPROCESSING, class_names=list(CLASSES), untrained=["classifier"])
    config = TrainConfig(**settings_of("cosface", method="bct", old=str(path)))
    old = OldNetwork(path, preprocessing=PREPROCESSING, class_names=CLASSES, embedding_dim=8)
    with pytest.raises(ConfigError, match="every train.loss but cross_entropy") as caught:
        Bct(tiny_net(embedding_dim=8), config, Context(Reducer(), torch.float32, methods.images(), PREPROCESSING, old))
    assert "\n" not in str(caught.value)


# --- recipes -----------------------------------------------------------------------------------------------

PAIRS = ["train.sampling=balanced", "train.loss=supcon"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.loss=cosfase"], "unknown train.loss 'cosfase'; did you mean 'cosface'"),
        (["train.loss=3"], "train.loss=3; valid: a name"),
        (["train.loss=cosface", "train.loss_options={scal: 16}"], "train.loss='cosface' 'scal'; did you mean"),
        (["train.loss=cosface", "train.loss_options.margin=-1"], "with train.loss='cosface'; valid: 0 <= marg"),
        (["train.loss=cosface", "train.loss_options.scale=0"], "valid: 0 < scale <= 1e+06"),
        (["train.loss=cosface", "train.loss_options.scale=.nan"], "is not a finite number"),
        (["train.loss=cosface", "train.loss_options.scale=true"], "loss_options.scale=True"),
        (["train.loss=cosface", "train.loss_options=[16]"], "valid: a mapping"),
        (["train.loss=subcenter_arcface", "train.loss_options.sub_centers=1.5"], "<= 100, whole"),
        (["train.loss=triplet", "train.loss_options.miner=hrd"], "with train.loss='triplet'; valid: none, hard"),
        (["train.loss=triplet", "train.loss_options.swap=1"], "swap=1 with train.loss='triplet'; valid: true, false"),
        (["train.loss_options={scale: 16}"], "train.loss='cross_entropy' has no options"),
        (["train.loss=triplet"], "set train.sampling=balanced"),
        ([*PAIRS, "train.batch_size=4"], "images of two classes at once"),
        ([*PAIRS, "train.batch_size=30"], "train.batch_size=30 is no multiple of train.per_class=4"),
        ([*PAIRS, "train.batch_size=16", "train.accumulate=4"], "in train.accumulate=4 parts holds fewer"),
        (["train.method=sfsc", "train.loss=cosface"], "its evidential loss is its own"),
        (["train.method=sfsc_released", "train.loss=cosface"], "kept as it was released"),
        (["train.method=regression", "train.loss=cosface"], "in place of train.loss"),
        (["train.compatible=asymmetric", "train.old=x", "train.loss=cosface"], "train.compatible='asymmetric'"),
        (["train.method=bct", "train.loss=cosface"], "set train.old to a network that cross_entropy trained"),
        (["train.label_smoothing=0.1", "train.loss=cosface"], "it smooths cross-entropy"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_parts_that_cut_a_class_are_refused_when_the_workers_are_known() -> None:
    config = TrainConfig(**settings_of("supcon", batch_size=24, accumulate=2, per_class=4))
    assert steps_per_epoch(100, config, 1) == 4
    with pytest.raises(ConfigError, match="leaves 6 images a part and worker, no multiple of train.per_class=4"):
        steps_per_epoch(100, config, 2)


def test_a_term_that_replaces_the_loss_is_refused_whatever_its_method_says(tmp_path: Path) -> None:
    """Another package's method need not say it in its `Method`."""
    old = methods.save_old(tmp_path / "old.safetensors")
    config = methods.config_of("regression", old).model_copy(update={"loss": "cosface"})
    with pytest.raises(ConfigError, match="makes no sense with 'regression', which replaces it"):
        methods.objective_of(config, methods.net_for(config))


@pytest.mark.parametrize("name", LOSSES)
def test_equal_recipes_have_equal_hashes_however_they_are_written(name: str) -> None:
    plain = parse_recipe({"train": settings_of(name)})
    defaults = {key: option.default for key, option in LOSSES[name].options.items()}
    written = parse_recipe({"train": settings_of(name, loss_options=defaults)})
    assert written.training_hash() == plain.training_hash()
    assert parse_recipe(written.model_dump(mode="json")) == written
    assert (plain.training_hash() == parse_recipe({"train": settings_of(DEFAULT)}).training_hash()) == (name == DEFAULT)
    for options in SETTINGS.get(name, []):
        other = parse_recipe({"train": settings_of(name, loss_options=options)})
        assert other.training_hash() != plain.training_hash()
        assert parse_recipe(other.model_dump(mode="json")) == other
        exact = {key: float(value) if type(value) is int else value for key, value in options.items()}
        assert parse_recipe({"train": settings_of(name, loss_options=exact)}).training_hash() == other.training_hash()


def test_images_of_every_class_are_compared_in_a_balanced_batch() -> None:
    """What `check_parts` relies on: the images of a class lie side by side."""
    trainer = trainer_of("supcon")
    labels = trainer.train_set.labels[trainer._order(0)]
    assert isinstance(trainer.train_set, MemoryImages)
    assert (labels[:, 0::2] == labels[:, 1::2]).all()
