"""Each loss and step against a slow, obvious version, a closed form, or a hand-made example."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate as quadrature
from torch import Tensor

from prunnet.config.losses import DEFAULT, LOSSES
from prunnet.config.recipe import TrainConfig
from prunnet.errors import ConfigError
from prunnet.pruning import prunable
from prunnet.pruning.masks import global_counts, keep_count
from prunnet.subnetworks.subnet import subnetwork
from prunnet.training.objectives import ndpp, odpp
from prunnet.training.objectives.asymmetric import MARGIN, Asymmetric
from prunnet.training.objectives.bct import Bct
from prunnet.training.objectives.masked import Masked, step_seed
from prunnet.training.objectives.prototypes import Prototypes, prototype_loss
from prunnet.training.objectives.prunnet import PrunNet, drawn
from prunnet.training.objectives.regression import Regression
from prunnet.training.objectives.sfsc import evidential_loss, kl_to_uniform, uncertainty
from prunnet.training.objectives.switchable import Switchable
from prunnet.training.trainer import steps_per_epoch
from tests import reference
from tests.conftest import tiny_net
from tests.methods import CASES, batch, config_of, gradients, images, net_for, objective_of, save_old

COUPLED = {"asymmetric", "prunnet + asymmetric"} | {
    case for case, settings in CASES.items() if LOSSES[settings.get("loss", DEFAULT)].sees != "image"
}
"""Their loss compares the images of a batch."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_old(tmp_path_factory.mktemp("old") / "model.safetensors")


# --- evidential loss (SFSC) --------------------------------------------------------------------------------


def test_expected_loss_equals_an_integral_over_the_dirichlet() -> None:
    """E[-log p_1] for two classes: the Dirichlet is a Beta(alpha_1, alpha_2)."""
    logits = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    a, b = (F.softplus(logits) + 1)[0].tolist()
    density = lambda p: p ** (a - 1) * (1 - p) ** (b - 1)  # noqa: E731
    weight = quadrature.quad(density, 0, 1)[0]
    expected = quadrature.quad(lambda p: -math.log(p) * density(p), 0, 1)[0] / weight
    assert float(evidential_loss(logits, torch.tensor([0]), 0.0, "softplus")) == pytest.approx(expected, rel=1e-7)


def test_kl_equals_an_integral_over_the_dirichlet() -> None:
    """Three classes: KL(Dir(alpha) || uniform), the uniform density on the triangle being 2."""
    alpha = torch.tensor([[2.5, 1.3, 1.0]], dtype=torch.float64)
    a, b, c = alpha[0].tolist()
    normaliser = math.exp(math.lgamma(a + b + c) - math.lgamma(a) - math.lgamma(b) - math.lgamma(c))

    def integrand(y: float, x: float) -> float:
        density = normaliser * x ** (a - 1) * y ** (b - 1) * (1 - x - y) ** (c - 1)
        return density * math.log(density / 2) if density > 0 else 0.0

    expected, _ = quadrature.dblquad(integrand, 0, 1, 0, lambda x: 1 - x)
    assert float(kl_to_uniform(alpha)) == pytest.approx(expected, rel=1e-5)
    assert float(kl_to_uniform(torch.ones(1, 4, dtype=torch.float64))) == pytest.approx(0, abs=1e-12)


def test_only_evidence_for_wrong_classes_is_punished() -> None:
    logits, label = torch.tensor([[5.0, -20.0, -20.0]], dtype=torch.float64), torch.tensor([0])
    for kind in ("exp", "softplus"):
        nothing = float(evidential_loss(logits, label, 0.0, kind))
        punished = [float(evidential_loss(logits, label, w, kind)) - nothing for w in (1.0, 2.0)]
        assert punished == pytest.approx([0, 0], abs=1e-6)


def test_uncertainty_is_classes_over_evidence() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    for kind, evidence in (("exp", math.exp), ("softplus", lambda z: math.log1p(math.exp(z)))):
        first = [evidence(z) + 1 for z in logits[0].tolist()]
        assert float(uncertainty(logits, kind)[0]) == pytest.approx(4 / sum(first))


# --- prototypes --------------------------------------------------------------------------------------------


def unit(*rows: list[float]) -> Tensor:
    return F.normalize(torch.tensor(rows, dtype=torch.float64))


def test_ndpp_on_three_prototypes_by_hand() -> None:
    old = unit([1, 0], [0.8, 0.6], [-1, 0])
    new = unit([0, 1], [0.6, 0.8], [0, -1])
    # Class 0: other old prototypes have similarities 0.8 and -1 (clamped to 0), so the push is p_0 - p_1.
    # Other new prototypes: <p_0, q_1> = 0.6 and <p_0, q_2> = 0, so the push is p_0 - q_1.
    first = [1 + 0.4 * (1 - 0.8) + 0.01 * (1 - 0.6), 0.4 * (0 - 0.6) + 0.01 * (0 - 0.8)]
    # Class 2: nobody is near: it stays.
    perturbed = ndpp.perturb(old, new, neighbours=2)
    assert torch.allclose(perturbed[0], unit(first)[0])
    assert torch.allclose(perturbed[2], old[2])
    assert torch.equal(ndpp.perturb(old, new, neighbours=2, s_old=0, s_new=0), old)
    assert (perturbed[0] @ perturbed[1]) < (old[0] @ old[1])  # farther apart


def test_odpp_starts_at_the_prototypes_and_its_objective_falls() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.ones(16, dtype=torch.float64)
    old = F.normalize(centre + 0.2 * torch.randn(12, 16, generator=generator).double())
    new = F.normalize(centre + 0.2 * torch.randn(12, 16, generator=generator).double())
    perturbed, course = odpp.perturb(old, new, seed=0)
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    start = np.mean([max(float(old[i] @ old[j]) - 0.9, 0) for i, j in pairs])
    start += np.mean([max(float(old[i] @ new[j]) - 0.9, 0) for i, j in pairs])
    assert course[0] == pytest.approx(start)
    assert course[-1] < 0.5 * course[0]
    assert float(odpp.crowding(perturbed, new)) < course[0]
    assert torch.allclose(perturbed.norm(dim=1), torch.ones(12, dtype=torch.float64))
    far_apart = torch.eye(4, dtype=torch.float64)
    assert torch.equal(odpp.perturb(far_apart, far_apart.roll(1, 0) * 0, seed=0)[0], far_apart)


@pytest.mark.parametrize("everyone_is_perturbed", [True, False])
def test_prototype_loss_is_a_softmax_over_cosines(everyone_is_perturbed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    old, own = (F.normalize(torch.randn(3, 5, generator=generator).double()) for _ in range(2))
    features, labels = torch.randn(4, 5, generator=generator).double(), torch.tensor([2, 0, 1, 1])
    everyone = own if everyone_is_perturbed else old
    total = 0.0
    for feature, label in zip(features, labels.tolist(), strict=True):
        cosines = [float(feature @ (own if c == label else everyone)[c] / feature.norm()) for c in range(3)]
        exponents = [math.exp(cosine / 0.07) for cosine in cosines]
        total -= math.log(exponents[label] / sum(exponents))
    assert float(prototype_loss(features, labels, everyone, own, 0.07)) == pytest.approx(total / 4)


def test_prototypes_are_normalised_means_of_normalised_embeddings(old: Path) -> None:
    config = config_of("prototypes", old)
    objective = objective_of(config, net_for(config))
    assert isinstance(objective, Masked)
    term = objective.term
    assert isinstance(term, Prototypes)
    every = images()
    from prunnet.networks.files import load_network
    from tests.methods import PREPROCESSING

    net, _ = load_network(old)
    with torch.no_grad():
        embeddings = net.eval().embed(PREPROCESSING.normalise(torch.from_numpy(every.pixels)))
    for label in range(4):
        mean = F.normalize(embeddings[torch.from_numpy(every.labels == label)].mean(dim=0), dim=0)
        assert torch.allclose(term.old_prototypes[label], mean, atol=1e-5)
    assert torch.equal(term.perturbed, term.old_prototypes)


def test_perturbed_prototypes_are_refreshed_every_epoch(old: Path) -> None:
    config = config_of("ndpp", old)
    net = net_for(config)
    objective = objective_of(config, net)
    objective.start_epoch(0)
    first = objective.state()["perturbed"].clone()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    objective.start_epoch(1)
    assert not torch.equal(objective.state()["perturbed"], first)


# --- students ----------------------------------------------------------------------------------------------


def term_of(case: str, old: Path) -> object:
    config = config_of(case, old)
    objective = objective_of(config, net_for(config))
    assert isinstance(objective, Masked)
    return objective.term


def test_bcts_classifier_is_the_old_one_and_frozen(old: Path) -> None:
    from prunnet.networks.files import load_network

    term = term_of("bct", old)
    assert isinstance(term, Bct)
    net, _ = load_network(old)
    assert torch.equal(term.weight, net.classifier.weight)
    assert not term.weight.requires_grad
    features, labels = torch.randn(4, 8, requires_grad=True), torch.tensor([0, 1, 3, 2])
    loss = term.loss(features, labels, term.targets(torch.empty(0), labels))
    # The old network knows b (its 0) and d (its 1): images of a and c count as zero.
    logits = features @ net.classifier.weight.T + net.classifier.bias
    expected = -(logits.log_softmax(1)[1, 0] + logits.log_softmax(1)[2, 1]) / 4
    assert torch.allclose(loss, expected)
    assert torch.autograd.grad(loss, features)[0][[0, 3]].abs().max() == 0


def test_asymmetric_mining_picks_the_hardest(old: Path) -> None:
    term = term_of("asymmetric", old)
    assert isinstance(term, Asymmetric)
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(6, 8, generator=generator).double()
    teacher = F.normalize(torch.randn(6, 8, generator=generator).double())
    labels = torch.tensor([0, 0, 1, 1, 2, 0])
    total = 0.0
    for anchor, label in zip(F.normalize(features), labels, strict=True):
        distances = (teacher - anchor).norm(dim=1)
        farthest, nearest = distances[labels == label].max(), distances[labels != label].min()
        total += max(0.0, float(farthest - nearest) + MARGIN)
    assert float(term.loss(features, labels, (teacher, labels))) == pytest.approx(total / 6, rel=1e-6)


def test_regression_is_two_minus_two_cosines(old: Path) -> None:
    term = term_of("regression", old)
    assert isinstance(term, Regression)
    features, teacher = torch.randn(5, 8).double(), F.normalize(torch.randn(5, 8).double())
    expected = (2 - 2 * F.cosine_similarity(features, teacher)).mean()
    assert torch.allclose(term.loss(features, torch.zeros(5, dtype=torch.long), (teacher,)), expected)


@pytest.mark.parametrize("case", ["asymmetric", "regression"])
def test_students_without_an_own_loss_leave_their_classifier_alone(case: str, old: Path) -> None:
    config = config_of(case, old, alone=0.3)
    net = net_for(config)
    found = gradients(objective_of(config, net), net, batch())
    assert float(found["classifier.weight"].abs().max()) == 0  # the trainer then leaves it alone: test_definitions
    assert float(found["neck.0.weight"].abs().max()) > 0


def test_a_single_network_trains_the_weights_that_its_mask_keeps(old: Path) -> None:
    config = TrainConfig(method="independent", alone=0.3, precision="fp32")
    net = net_for(config)
    found = gradients(objective_of(config, net), net, batch())
    masked = {name: m.weight * reference.mask(m.score.detach(), 0.3) for name, m in prunable.layers(net).items()}
    leaves = {f"{name}.weight": w.detach().requires_grad_() for name, w in masked.items()}
    loss = F.cross_entropy(torch.func.functional_call(net, leaves, (batch()[0],)), batch()[1])
    expected = torch.autograd.grad(loss, [*leaves.values(), net.classifier.weight])
    for (name, layer), gradient in zip(prunable.layers(net).items(), expected, strict=False):
        kept = gradient * reference.mask(layer.score.detach(), 0.3)
        assert torch.allclose(found[f"{name}.weight"], kept, atol=1e-12), name
        assert torch.allclose(found[f"{name}.score"], kept * layer.weight * layer.score.sign(), atol=1e-12), name
    assert torch.allclose(found["classifier.weight"], expected[-1], atol=1e-12)


# --- many capacities at once -------------------------------------------------------------------------------


def test_joint_is_the_sum_of_the_passes_gradients(old: Path) -> None:
    config = config_of("joint", old)
    net = net_for(config)
    found = gradients(objective_of(config, net), net, batch())
    sums = {name: torch.zeros_like(m.weight) for name, m in prunable.layers(net).items()}
    for capacity in (1.0, *config.capacities):
        kept = {n: reference.mask(m.score.detach(), capacity) for n, m in prunable.layers(net).items()}
        leaves = {
            f"{n}.weight": (m.weight * kept[n]).detach().requires_grad_() for n, m in prunable.layers(net).items()
        }
        loss = F.cross_entropy(torch.func.functional_call(net, leaves, (batch()[0],)), batch()[1])
        for name, gradient in zip(sums, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            sums[name] += gradient * kept[name]
    for name, expected in sums.items():
        assert torch.allclose(found[f"{name}.weight"], expected, atol=1e-12), name


def sub_model_losses(net, capacities, inputs: Tensor, labels: Tensor):  # type: ignore[no-untyped-def]
    """Losses of the full network and of every width, in plain extracted networks' numbers."""
    yield F.cross_entropy(net(inputs), labels)
    for index in range(len(capacities)):
        with net.narrowed(index):
            yield F.cross_entropy(torch.func.functional_call(net, net.sub_model(index), (inputs,)), labels)


def test_switchable_is_the_plain_sum_of_the_losses(old: Path) -> None:
    config = config_of("switchable", old)
    net = net_for(config)
    found = gradients(objective_of(config, net), net, batch())
    net.zero_grad()
    sum(sub_model_losses(net, config.capacities, *batch())).backward()  # type: ignore[union-attr]
    for name, parameter in net.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-12), name  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["sfsc", "sfsc, softplus, equal, mean", "sfsc, none", "sfsc_released"])
def test_sfsc_projects_the_whole_flattened_network(case: str, old: Path) -> None:
    """Issue 15, number 12: `sfsc_released` is cross-entropy, as every command of the release runs it."""
    config, step = config_of(case, old), 3
    net = net_for(config)
    objective = objective_of(config, net)
    assert isinstance(objective, Switchable)
    found = gradients(objective, net, batch(), step)
    inputs, labels = batch()
    released = config.method == "sfsc_released"
    shared = {n: p for n, p in net.named_parameters() if any(p is s for s in objective.shared)}
    body = {n: p for n, p in shared.items() if released or not n.startswith("classifier")}
    rows, doubts = [], []
    for index in range(3):
        logits, _ = objective._forward(inputs, index)
        annealed = min(1.0, 2 * step / 10)
        kind = config.evidential or ""
        loss = F.cross_entropy(logits, labels) if kind == "none" else evidential_loss(logits, labels, annealed, kind)
        grads = torch.autograd.grad(loss, list(body.values()), materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
        doubts.append(float(uncertainty(logits.detach(), kind).mean()))
    if config.priorities == "uncertainty":
        rows = [3 * d / sum(doubts) * row for d, row in zip(doubts, rows, strict=True)]
    order = torch.randperm(3, generator=torch.Generator().manual_seed(step_seed(config.seed, step))).tolist()
    combined = reference.integrate(torch.stack(rows)[:, None], "sequential", "tensor", "mean", 0.0, order)[0]
    if config.reduction == "mean":
        combined = combined / 3
    flat = torch.cat([found[name].flatten() for name in body])
    assert torch.allclose(flat, combined, rtol=1e-8, atol=1e-12)


def test_a_term_is_added_to_every_pass(old: Path) -> None:
    """With a weight of zero PrunNet + regression is PrunNet; the difference is linear in the weight of the term."""
    plain_config = config_of("prunnet", old, projection="none", weighting="mean")
    net = net_for(plain_config)
    found = {}
    plain = gradients(objective_of(plain_config, net), net, batch())
    for weight in (0.0, 1.0, 2.0):
        config = config_of("prunnet + bct", old, projection="none", weighting="mean", compatible_weight=weight)
        found[weight] = gradients(objective_of(config, net), net, batch())
    for name, gradient in plain.items():
        assert torch.allclose(found[0.0][name], gradient, atol=1e-12)
        assert torch.allclose(found[2.0][name] - gradient, 2 * (found[1.0][name] - gradient), atol=1e-9)
    changed = [n for n, g in plain.items() if not torch.allclose(found[1.0][n], g)]
    assert any(n.endswith(".score") for n in changed)


def test_learned_log_variances_settle_where_they_should(old: Path) -> None:
    config = config_of("none, uncertainty", old)
    net = net_for(config)
    objective = objective_of(config, net)
    assert isinstance(objective, PrunNet)
    with torch.no_grad():
        objective.log_variances.copy_(torch.tensor([0.5, 0.0, -0.5]))
    net.zero_grad()
    losses = torch.stack(list(objective.backward(*batch(), 0).values()))
    expected = 1 - torch.exp(-objective.log_variances) * losses
    assert torch.allclose(objective.log_variances.grad, expected.float())  # type: ignore[arg-type]
    with torch.no_grad():
        objective.log_variances.copy_(losses.log())
    objective.backward(*batch(), 0)
    assert torch.allclose(objective.log_variances.grad, torch.zeros(3), atol=1e-6)  # type: ignore[arg-type]


# --- capacities and scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["random", "sandwich"])
def test_drawn_capacities_are_as_many_within_the_range_and_change_every_step(sampling: str) -> None:
    config = TrainConfig(capacities=(0.8, 0.6, 0.4, 0.2), capacity_sampling=sampling)  # type: ignore[arg-type]
    draws = [drawn(config, step) for step in range(20)]
    assert all(len(d) == 4 and min(d) >= 0.2 and max(d) <= 0.8 for d in draws)
    assert len({tuple(d) for d in draws}) == 20
    assert drawn(config, 7) == draws[7]
    assert all(d[-1] == 0.2 for d in draws) == (sampling == "sandwich")


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    capacity=st.floats(0.02, 1.0),
    seed=st.integers(0, 99),
    tied=st.booleans(),
)
def test_global_allocation_keeps_the_best_of_all_layers(
    sizes: list[int], capacity: float, seed: int, tied: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(n, generator=generator) for n in sizes]
    scores = [(s * 2).round() for s in scores] if tied else scores
    floors = [max(1, math.floor(0.01 * n + 0.5)) for n in sizes]
    certain, rest = [], []
    for layer, score in enumerate(scores):
        ranked = sorted(range(len(score)), key=lambda i: (-abs(float(score[i])), i))
        certain += [(layer, i) for i in ranked[: floors[layer]]]
        rest += [(-abs(float(score[i])), layer, i) for i in ranked[floors[layer] :]]
    budget = max(keep_count(sum(sizes), capacity), len(certain))
    kept = [layer for layer, _ in certain] + [layer for _, layer, _ in sorted(rest)[: budget - len(certain)]]
    found = [counts[0] for counts in global_counts(scores, [capacity])]
    assert found == [kept.count(layer) for layer in range(len(sizes))]
    assert sum(found) == budget


def test_global_masks_nest_and_no_layer_dies() -> None:
    net = tiny_net(score_init="normal")
    cuts = [subnetwork(net, c, allocation="global") for c in (0.5, 0.2, 0.02)]
    for large, small in itertools.pairwise(cuts):
        assert all(not bool((small.masks[n] & ~large.masks[n]).any()) for n in small.masks)
    assert all(bool(mask.any()) for mask in cuts[-1].masks.values())
    kept = sum(int(m.sum()) for m in cuts[0].masks.values())
    assert kept == keep_count(prunable.total_weights(net), 0.5)
    shares = {round(float(m.float().mean()), 3) for m in cuts[0].masks.values()}
    assert len(shares) > 5  # not the same in every layer


def test_the_cases_hold_every_method_and_variant() -> None:
    from typing import get_args

    from prunnet.config.methods import METHODS, VARIANTS

    used = [config_of(case, Path("old")) for case in CASES]
    assert {config.method for config in used} == set(METHODS)
    for variant in (name for name in VARIANTS if name != "score_init"):
        annotation = TrainConfig.model_fields[variant].annotation
        names = {name for part in get_args(annotation) for name in get_args(part)}
        assert names <= {getattr(config, variant) for config in used}, variant


@pytest.mark.parametrize("case", [case for case in CASES if case not in COUPLED])
def test_a_batch_in_parts_gives_the_same_gradients(case: str, old: Path) -> None:
    found = []
    for parts in (1, 2):
        config = config_of(case, old, accumulate=parts)
        net = net_for(config)
        found.append(gradients(objective_of(config, net), net, batch()))
    whole, in_parts = found
    assert whole.keys() == in_parts.keys()
    for name, gradient in whole.items():
        assert torch.allclose(in_parts[name], gradient, atol=1e-10), name


def test_parts_that_do_not_divide_the_batch_are_refused() -> None:
    config = config_of("prunnet", Path("none"), accumulate=3)
    with pytest.raises(
        ConfigError, match=r"train.batch_size=8 cannot be shared evenly by 1 workers in train.accumulate=3"
    ):
        steps_per_epoch(100, config, 1)
