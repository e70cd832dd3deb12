"""Methods are what their names say: score inits, SFSC's evidence, BCT, NDPP and prototypes, each against a slow and
obvious version in float64; and a pass on smaller tensors is looked at when there is something to see."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import prunnet
from prunnet.config.recipe import TrainConfig, load_recipe
from prunnet.data.base import MemoryImages
from prunnet.errors import ConfigError, DataError
from prunnet.networks.files import load_network, save_network
from prunnet.pruning import prunable
from prunnet.pruning.narrow_pass import Narrow
from prunnet.storage.tensor_files import read_header
from prunnet.training.gradients.conflict import integrate_layers
from prunnet.training.gradients.reducer import Reducer
from prunnet.training.gradients.rows import LayerRows
from prunnet.training.objectives import ndpp
from prunnet.training.objectives.base import Context
from prunnet.training.objectives.bct import Bct
from prunnet.training.objectives.by_name import make_objective
from prunnet.training.objectives.masked import Masked
from prunnet.training.objectives.old_network import OldNetwork
from prunnet.training.objectives.prototypes import class_prototypes
from prunnet.training.objectives.sfsc import evidential_loss, kl_to_uniform
from prunnet.training.trainer import Trainer
from tests import reference
from tests.conftest import striped_images, tiny_net
from tests.methods import CLASSES, PREPROCESSING, batch, images, save_old

# --- scores ------------------------------------------------------------------------------------------------


def snipped(net: prunnet.RetrievalNet, **settings: Any) -> Trainer:
    config = TrainConfig(score_init="snip", batch_size=16, precision="fp32", **settings)
    return Trainer(net, striped_images(PREPROCESSING), config, preprocessing=PREPROCESSING)


@pytest.mark.parametrize("granularity", ["weight", "nm", "kernel", "channel"])
def test_snip_hears_every_branch(granularity: str) -> None:
    """Issue 15, number 12: timm starts the last BatchNorm scale of a branch at 0, so that 95% of the weights got
    saliency 0, stayed there, and the mask was the first output channels by index."""
    net = tiny_net(granularity=granularity, channel_multiple=2, image_size=32)
    before = {name: t.clone() for name, t in net.state_dict().items() if not prunable.is_score(name)}
    trainer = snipped(net, granularity=granularity, capacities=(0.5,))
    assert all(torch.equal(net.state_dict()[name], t) for name, t in before.items())  # restored to the bit
    slow = copy.deepcopy(net).double().train()
    for module in slow.modules():
        if isinstance(module, _BatchNorm):
            nn.init.ones_(module.weight)
    pixels, labels = next(trainer._batches(0, 0))
    F.cross_entropy(slow(pixels.double()), labels).backward()
    if granularity == "channel":
        assert all(float(score.detach().abs().min()) > 0 for score in prunable.scores(net).values())
        return
    for name, score in prunable.scores(net).items():
        weight = slow.get_submodule(name).weight
        saliency = weight.detach() * weight.grad
        if granularity == "kernel" and saliency.dim() == 4:
            saliency = saliency.sum((2, 3), keepdim=True)
        saliency, found = saliency.abs(), score.detach().double()
        assert float(saliency.max()) > 0, name
        assert torch.allclose(found / found.mean(), saliency / saliency.mean(), rtol=1e-2, atol=1e-2), name
        assert float(found.min()) > 0, name


def test_a_score_is_never_left_at_zero_and_the_rest_keep_their_order() -> None:
    """Issue 15, number 12: a score of exactly 0 never moves, since its gradient carries its sign."""
    for init in prunable.SCORE_INITS:
        plain, net = tiny_net(score_init=init), tiny_net(score_init=init)
        layers = list(prunable.layers(net).values())
        with torch.no_grad():
            layers[3].weight.zero_()
            layers[4].weight[:, ::2] = 0
        prunable.init_scores(net, init, 0)
        assert all(bool(score.detach().all()) for score in prunable.scores(net).values()), init
        for layer, same in zip(layers, prunable.layers(plain).values(), strict=True):
            if init != "magnitude" or bool(layer.weight.detach().all()):
                assert torch.equal(layer.score, same.score)  # nothing else has changed
    score, weight = layers[4].score.detach(), layers[4].weight.detach()  # constant: of no weight
    prunable.init_scores(net, "magnitude", 0)
    score = layers[4].score.detach()
    assert torch.equal(score[weight != 0], weight[weight != 0])
    assert float(score[weight == 0].abs().max()) < float(weight[weight != 0].abs().min())
    assert len(score[weight == 0].unique()) > 0.9 * int((weight == 0).sum())  # no order by index among them


# --- SFSC --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exp", "softplus"])
def test_the_evidential_loss_is_the_published_sum_for_each_evidence(kind: str) -> None:
    """Issue 15, number 12: `train.evidential`."""
    logits = 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    logits[0, 1] = 40.0  # clamped
    labels, total = torch.tensor([0, 3, 1, 1, 2]), 0.0
    for row, label in zip(logits.numpy(), labels.tolist(), strict=True):
        alpha = (np.exp(np.minimum(row, 15)) if kind == "exp" else np.log1p(np.exp(row))) + 1
        wrong = torch.tensor([[1.0 if k == label else a for k, a in enumerate(alpha)]], dtype=torch.float64)
        total += digamma(alpha.sum()) - digamma(alpha[label]) + 0.3 * float(kl_to_uniform(wrong))
    assert float(evidential_loss(logits, labels, 0.3, kind)) == pytest.approx(total / 5)


def test_with_many_classes_exp_pushes_as_cross_entropy_does_and_softplus_does_not() -> None:
    """Issue 15, number 12: softplus evidence with 578 classes can hardly learn."""
    pushes = {}
    for kind in ("exp", "softplus", "none"):
        logits = torch.zeros(1, 578, dtype=torch.float64)
        logits[0, 0] = 5.0
        logits.requires_grad_()
        label = torch.tensor([0])
        loss = F.cross_entropy(logits, label) if kind == "none" else evidential_loss(logits, label, 0.0, kind)
        pushes[kind] = -float(torch.autograd.grad(loss, logits)[0][0, 0])
    assert pushes["exp"] > 0.8 * pushes["none"]
    assert pushes["softplus"] < 0.3 * pushes["none"]


def test_what_changed_its_meaning_has_another_hash_and_nothing_else_has() -> None:
    """Issue 15, number 12: rows of the old definitions do not count as finished."""
    settled = {name: load_recipe(None, [f"train.method={name}"]) for name in ("sfsc", "sfsc_released", "joint")}
    assert [r.train.evidential for r in settled.values()] == ["exp", "none", None]
    said = ["evidential" in r.trained_part()["train"] for r in settled.values()]
    assert said == [True, True, False]
    assert settled["sfsc_released"].train.priorities == "equal"
    from prunnet.storage.hashing import METHOD_VERSION, of_json

    for overrides, same in (
        ([], True),
        (["train.score_init=magnitude"], True),
        (["train.score_init=snip"], False),
        (["train.bct_unknown=synthesise"], True),
    ):
        recipe = load_recipe(None, overrides)
        plain = of_json([METHOD_VERSION, recipe.trained_part(), recipe.cluster.workers])
        assert (recipe.training_hash() == plain) == same, overrides


# --- a classifier that nobody trains ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_old(tmp_path_factory.mktemp("old") / "model.safetensors")


@pytest.mark.parametrize("method", ["regression", "asymmetric"])
def test_a_classifier_that_no_loss_reaches_stays_and_is_no_teacher_for_bct(
    method: str, old: Path, tmp_path: Path
) -> None:
    """Issue 15, number 12: it was decayed, and such a file was accepted as `train.old` of `bct`."""
    net = tiny_net(embedding_dim=8)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    prunnet.fit(net, images(), method=method, old=str(old), alone=1.0, capacities=(), epochs=1, batch_size=8)  # type: ignore[arg-type]
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert not [name for name in changed if name.startswith("classifier")]
    assert "neck.0.weight" in changed

    says = {"untrained": ["classifier"]}, {"recipe": {"train": {"method": method}}}  # today's files, and older ones
    for number, header in enumerate(says):
        path = tmp_path / f"{number}.safetensors"
        save_network(path, net, PREPROCESSING, class_names=list(CLASSES), **header)
        with pytest.raises(ConfigError, match="classifier, which the training of .* never reached") as caught:
            bct_of(path)
        assert "\n" not in str(caught.value)


def bct_of(old: Path, **settings: Any) -> Bct:
    config = TrainConfig(method="bct", old=str(old), precision="fp32", **settings)
    known = OldNetwork(old, preprocessing=PREPROCESSING, class_names=CLASSES, embedding_dim=8)
    context = Context(Reducer(), torch.float32, images(), PREPROCESSING, known, 10)
    return Bct(tiny_net(embedding_dim=8), config, context)


def test_bct_synthesises_rows_for_classes_that_the_old_classifier_does_not_know(old: Path) -> None:
    """Issue 15, number 12: images of such classes were left out, and there was no other way. Today's default is as it
    was."""
    net, _ = load_network(old)  # knows b and d
    weight, bias = net.classifier.weight.detach().double(), net.classifier.bias.detach().double()
    every = images()
    with torch.no_grad():
        embeddings = net.eval().embed(PREPROCESSING.normalise(torch.from_numpy(every.pixels))).double()
    rows = [*weight]
    for label in (0, 2):
        mean = embeddings[torch.from_numpy(every.labels == label)].mean(0)
        rows.append(mean / mean.norm() * weight.norm(dim=1).mean())
    biases = torch.cat([bias, bias.mean().expand(2)])
    features, labels = torch.randn(4, 8, dtype=torch.float64), torch.tensor([0, 1, 3, 2])
    expected = F.cross_entropy(features @ torch.stack(rows).T + biases, torch.tensor([3, 0, 1, 4]))
    term = bct_of(old, bct_unknown="synthesise")
    assert float(term.loss(features, labels, term.targets(torch.empty(0), labels))) == pytest.approx(float(expected))
    assert len(bct_of(old).weight) == 3


# --- prototypes --------------------------------------------------------------------------------------------


def test_ndpp_as_released_multiplies_by_its_scale_twice(old: Path) -> None:
    """Issue 15, number 12: effective 0.16 and 0.004, as a named variant."""
    generator = torch.Generator().manual_seed(0)
    p, q = (F.normalize(torch.randn(4, 8, generator=generator).double()) for _ in range(2))
    term = make_objective(
        tiny_net(embedding_dim=8),
        TrainConfig(method="ndpp", old=str(old), ndpp_scale="released", precision="fp32"),
        Context(
            Reducer(),
            torch.float32,
            images(),
            PREPROCESSING,
            OldNetwork(old, preprocessing=PREPROCESSING, class_names=CLASSES, embedding_dim=8),
        ),
    ).term
    assert isinstance(term, ndpp.Ndpp)
    expected = torch.zeros(4, 8, dtype=torch.float64)
    for c in range(4):
        moved = p[c].clone()
        for others, scale in ((p, 0.4 * 0.4), (q, 0.4 * 0.01)):
            worth = [max(float(p[c] @ others[k]), 0.0) if k != c else 0.0 for k in range(4)]
            if sum(worth):
                moved += scale * sum(w * (p[c] - o) for w, o in zip(worth, others, strict=True)) / sum(worth)
        expected[c] = moved / moved.norm()
    assert torch.allclose(term.perturb(p, q, 0), expected)


class Share(Reducer):
    """A worker of many that keeps what it would send."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.rank, self.world = rank, world
        self.sent: list[Tensor] = []

    def average(self, tensors: Any) -> list[Tensor]:
        self.sent = [t.clone() for t in tensors]
        return list(tensors)


def test_prototypes_need_no_image_of_every_class_on_every_worker(old: Path) -> None:
    """Issue 15, number 12: a worker without an image asserted; a class without any got a prototype of zeros."""
    known = OldNetwork(old, preprocessing=PREPROCESSING, class_names=CLASSES, embedding_dim=8)
    context = Context(Reducer(), torch.float32, images(), PREPROCESSING, known)
    whole = class_prototypes(known.embed, context)
    workers = [Share(rank, 20) for rank in range(20)]  # of 16 images
    for worker in workers:
        class_prototypes(known.embed, replace(context, reducer=worker))
    total = torch.stack([worker.sent[0] for worker in workers]).sum(0)
    assert torch.allclose(F.normalize(total).float(), whole, atol=1e-5)

    gap = images()
    gap = MemoryImages(gap.pixels[gap.labels != 2], gap.labels[gap.labels != 2], PREPROCESSING)
    with pytest.raises(DataError, match="class 2 of 4 has no training image"):
        class_prototypes(known.embed, replace(context, train_set=gap))


# --- integration and narrow passes -------------------------------------------------------------------------

SIZES = st.integers(-30, 30).map(lambda exponent: 10.0**exponent)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.just(0.0) | SIZES, min_size=3, max_size=3),
    weight_size=st.sampled_from([1e-8, 1.0, 1e8]),
    block=st.sampled_from(["kernel", "tensor", "network"]),
    how=st.sampled_from([("last", "cosine"), ("sequential", "mean"), ("none", "mgda")]),
    compiled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_size_of_gradients_leaves_the_range_of_float32(
    sizes: list[float], weight_size: float, block: str, how: tuple[str, str], compiled: bool, seed: int
) -> None:
    """Issue 15, number 12: rows were not scaled as in `integrate`, so that squares became 0 or infinite."""
    generator = torch.Generator().manual_seed(seed)
    factors, order = torch.tensor(sizes)[:, None, None], [2, 0, 1]
    shapes = [(4, 6), (2, 9)]
    rows = [torch.randn(3, *shape, generator=generator) * factors for shape in shapes]
    weights = [torch.randn(*shape, generator=generator) * weight_size for shape in shapes]
    scores = [torch.randn(*shape, generator=generator) for shape in shapes]
    found = []
    for dtype in (torch.float32, torch.float64):
        layers = [
            LayerRows(
                list(r.to(dtype)),
                w.to(dtype),
                torch.empty_like(w, dtype=dtype),
                s.to(dtype),
                torch.empty_like(w, dtype=dtype),
            )
            for r, w, s in zip(rows, weights, scores, strict=True)
        ]
        if not compiled:
            for layer in layers:
                layer.__dict__["loops"] = None
        integrate_layers(layers, [order, order], projection=how[0], weighting=how[1], block=block, exponent=0.5)
        found.append([(layer.weight_grad.double(), layer.score_grad.double()) for layer in layers])  # type: ignore[union-attr]
    # The min-norm combination weighs a row by the inner products of large and small rows, of which float32 keeps too
    # little where one is a million times the other. (Far beyond that the large one gets no weight.)
    apart = [max(a, b) / min(a, b) for a, b in itertools.combinations(filter(None, sizes), 2)]
    lost = how[1] == "mgda" and any(1e4 < ratio < 1e12 for ratio in apart)
    for single, double in zip(*found, strict=True):
        for gradient, exact in zip(single, double, strict=True):
            most = float(exact.abs().max())
            if 1e-35 < most < 1e37:  # else float32 has no such numbers
                assert gradient.isfinite().all()
                far = float((gradient - exact).abs().max())
                assert lost or far <= (1e-3 if how[1] == "mgda" else 1e-4) * most
    if block != "network" and how[1] != "mgda":
        wide = rows[0].double()
        slow = reference.integrate(wide, how[0], block, how[1], 0.5, order)
        assert torch.allclose(found[1][0][0], slow, rtol=1e-6, atol=1e-9 * float(slow.abs().max()))


def narrow_objective(total_steps: int) -> Masked:
    """Channels of a network whose residual branches timm starts silent."""
    net = tiny_net(granularity="channel", channel_multiple=2, image_size=32)
    config = TrainConfig(granularity="channel", channel_multiple=2, capacities=(0.7, 0.3), precision="fp32")
    context = Context(Reducer(), torch.float32, images(), PREPROCESSING, None, total_steps)
    objective = make_objective(net.train(), config, context)
    assert isinstance(objective, Masked)
    return objective


def wrong(others: Callable[[Narrow], dict[str, Tensor]]) -> Callable[[Narrow], dict[str, Tensor]]:
    """Narrow passes that get the statistics of a layer inside a residual branch wrong."""

    def broken(self: Narrow) -> dict[str, Tensor]:
        tensors = others(self)
        (name,) = [n for n in tensors if n.endswith("layer4.1.bn1.running_mean")]
        return tensors | {name: tensors[name] + 10}

    return broken


def test_a_narrow_pass_is_looked_at_with_every_branch_heard_and_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 12: it was looked at once, at step 0, when every residual branch is silent."""
    inputs, labels = batch()
    inputs = inputs.float()
    right = narrow_objective(20)
    right.backward(inputs, labels, 0)
    assert right._narrows is True
    with monkeypatch.context() as patch:
        patch.setattr(Narrow, "others", wrong(Narrow.others))
        objective = narrow_objective(20)
        objective.backward(inputs, labels, 0)
        assert objective._narrows is False
        with torch.no_grad():  # as after some training
            right.net.get_submodule("backbone.layer4.1.bn2").weight.fill_(1.0)
        right.backward(inputs, labels, 1)
        assert right._narrows is True  # not every step
        right.backward(inputs, labels, 2)
        assert right._narrows is False


def test_what_was_trained_is_said_by_the_file(old: Path, tmp_path: Path) -> None:
    from prunnet.experiments.stages import train_here

    recipe = load_recipe(
        None,
        [
            "data.classes=4", "data.images_per_class=4", "data.image_size=16", "train.alone=1.0",
            "train.method=regression",
            f"train.old={old}", "train.epochs=1", "train.batch_size=8", "model.embedding_dim=8",
            "model.options={layers: [1, 1, 1, 1], channels: [4, 4, 4, 4]}", "train.capacities=[]",
        ],
    )  # fmt: skip
    from prunnet import data

    train_here(recipe, data.load_for(recipe), tmp_path / "m.safetensors")
    assert read_header(tmp_path / "m.safetensors")["untrained"] == ["classifier"]
