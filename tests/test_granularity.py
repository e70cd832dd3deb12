"""What a score stands for: channels that are tied, kernels, two of four; and plain networks cut out of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunnet import RetrievalNet
from prunnet.config.recipe import load_recipe
from prunnet.errors import ConfigError
from prunnet.export.sparse_kernels import fits, use_sparse_kernels
from prunnet.pruning import prunable
from prunnet.pruning.channel_graph import ChannelGraph, trace
from prunnet.pruning.granularities.by_name import select
from prunnet.pruning.macs import layer_macs
from prunnet.subnetworks.subnet import Subnetwork, subnetwork
from prunnet.training.objectives.masked import Masked
from tests import reference
from tests.conftest import tiny_net
from tests.methods import batch, config_of, gradients, net_for, objective_of

GREY = torch.zeros(1, 1, 16, 16)


def channel_net(multiple: int = 2, **arguments: object) -> RetrievalNet:
    """A ResNet-18 of 8 to 32 channels with one score a set of tied channels."""
    return tiny_net(granularity="channel", channel_multiple=multiple, image_size=16, **arguments)


def graph_of(body: nn.Module, image: Tensor = GREY) -> ChannelGraph:
    return trace(body, body, image)


def units(graph: ChannelGraph) -> dict[str, tuple[int, list[str]]]:
    """First layer of each group -> (units, the sites that are tied)."""
    return {g.name: (g.units, sorted(f"{layer} {side}" for layer, side in g.sites)) for g in graph.groups}


# --- which channels are tied --------------------------------------------------------------------------------


class Toy(nn.Module):
    """Layers by name, and how they are called."""

    def __init__(self, run: Callable[[Toy, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.run(self, images)


def conv(inner: int, out: int, **more: int) -> nn.Conv2d:
    return nn.Conv2d(inner, out, 3, padding=1, **more)


def test_a_chain_ties_a_layer_to_its_norm_and_its_reader() -> None:
    toy = Toy(lambda t, x: t.c(F.relu(t.norm(t.a(x)))), a=conv(1, 5), norm=nn.BatchNorm2d(5), c=conv(5, 3))
    assert units(graph_of(toy)) == {"a": (5, ["a out", "c in", "norm norm"])}
    assert graph_of(toy).kept == {"c": "they are what the network puts out"}


def test_a_residual_sum_ties_both_of_its_terms() -> None:
    def run(t: Toy, x: Tensor) -> Tensor:
        x = t.a(x)
        return t.c(F.relu(x + t.b(F.relu(x))))

    toy = Toy(run, a=conv(1, 6), b=conv(6, 6), c=conv(6, 2))
    assert units(graph_of(toy)) == {"a": (6, ["a out", "b in", "b out", "c in"])}


def test_a_concatenation_ties_nothing_but_finds_its_place() -> None:
    toy = Toy(lambda t, x: t.c(torch.cat([t.a(x), t.b(x)], dim=1)), a=conv(1, 3), b=conv(1, 4), c=conv(7, 2))
    graph = graph_of(toy)
    assert units(graph) == {"a": (3, ["a out", "c in"]), "b": (4, ["b out", "c in"])}
    second = graph.groups[1]
    assert second.sites["c", "in"].tolist() == [-1, -1, -1, 0, 1, 2, 3]


def test_a_depthwise_convolution_is_passed_through_and_a_grouped_one_goes_group_by_group() -> None:
    toy = Toy(lambda t, x: t.c(t.d(t.a(x))), a=conv(1, 6), d=conv(6, 6, groups=6), c=conv(6, 2))
    assert units(graph_of(toy)) == {"a": (6, ["a out", "c in", "d in", "d out"])}
    toy = Toy(lambda t, x: t.c(t.d(t.a(x))), a=conv(1, 6), d=conv(6, 12, groups=3), c=conv(12, 2))
    (group,) = graph_of(toy).groups
    assert (group.units, group.width) == (3, 2)
    assert group.sites["c", "in"].tolist() == [u for u in range(3) for _ in range(4)]


def test_a_gate_is_tied_to_what_it_gates() -> None:
    """Squeeze-and-excitation: the gate's channels multiply the features'."""
    toy = Toy(lambda t, x: t.c(t.a(x) * torch.sigmoid(t.g(x))), a=conv(1, 4), g=conv(1, 4), c=conv(4, 2))
    assert units(graph_of(toy)) == {"a": (4, ["a out", "c in", "g out"])}


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.GroupNorm(1, 4), "they pass through GroupNorm (between)"),
        (nn.Softmax(dim=1), "they are mixed with others before c"),
        (nn.PReLU(4), "they pass through PReLU (between)"),
    ],
)
def test_what_cannot_be_cut_is_kept_with_the_reason(between: nn.Module, reason: str) -> None:
    toy = Toy(lambda t, x: t.c(t.between(t.a(x))), a=conv(1, 4), between=between, c=conv(4, 2))
    graph = graph_of(toy)
    assert graph.groups == ()
    assert graph.kept["a"] == reason


def test_flattened_places_all_belong_to_their_channel() -> None:
    toy = Toy(lambda t, x: t.c(t.a(x)[:, :, :2, :2].flatten(1)), a=conv(1, 3), c=nn.Linear(12, 2))
    (group,) = graph_of(toy).groups
    assert group.sites["c", "in"].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_tracing_leaves_the_network_as_it_was() -> None:
    net = tiny_net().train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    trace(net, net.features, GREY)
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_network_without_free_channels_is_refused_with_the_reason() -> None:
    options = {"depth": 0, "embed_dim": 16, "num_heads": 1, "img_size": 32}
    with pytest.raises(ConfigError, match="no channel of vit_tiny_patch16_224 can be cut out: they"):
        RetrievalNet("vit_tiny_patch16_224", 4, granularity="channel", image_size=32, options=options)


# --- which a capacity keeps -----------------------------------------------------------------------------------

CHANNELS = channel_net()


@settings(max_examples=40)
@given(st.floats(0.02, 1.0), st.floats(0.02, 1.0), st.sampled_from(["layer", "global"]))
def test_subnetworks_nest_and_spend_about_what_they_may(one: float, other: float, allocation: str) -> None:
    small, large = (subnetwork(CHANNELS, c, allocation=allocation) for c in sorted((one, other)))
    assert not any(bool((small.masks[n] & ~large.masks[n]).any()) for n in small.masks)
    macs = layer_macs(CHANNELS, 16)
    whole = sum(macs[name] for name in prunable.layers(CHANNELS))
    for cut in (small, large):
        spent = sum(macs[n] * float(cut.masks[n].float().mean()) for n in prunable.layers(CHANNELS))
        assert spent / whole == pytest.approx(cut.capacity, abs=0.1)


@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("capacity", [0.7, 0.3])
def test_layers_keep_multiples_of_channels_and_the_best_of_them(multiple: int, capacity: float) -> None:
    net = channel_net(multiple)
    small = subnetwork(net, capacity).compact()
    widths = {name: m.out_channels for name, m in small.named_modules() if isinstance(m, nn.Conv2d)}
    assert all(width % multiple == 0 for width in widths.values())
    assert net.channels is not None
    for score, kept in zip(net.channels.scores, net.channels.keep(list(net.channels.scores), capacity), strict=True):
        magnitude = score.detach().abs()
        assert bool(kept.all()) or float(magnitude[kept].min()) >= float(magnitude[~kept].max())


def test_a_compact_network_costs_what_was_said() -> None:
    cut = subnetwork(CHANNELS, 0.4)
    small = cut.compact()
    small_net = tiny_net(scored=False)
    small_net.backbone, small_net.neck = small.backbone, small.neck
    assert sum(layer_macs(small_net, 16).values()) == cut.cost(16).macs


def test_random_channels_are_as_many_and_others() -> None:
    chosen, control = subnetwork(CHANNELS, 0.4), subnetwork(CHANNELS, 0.4, random_masks=1)
    assert chosen.cost(16).macs == control.cost(16).macs
    assert chosen.mask_sha != control.mask_sha


def test_channels_first_then_weights_inside_them() -> None:
    whole, thin = subnetwork(CHANNELS, 0.5), subnetwork(CHANNELS, 0.5, inside=0.4)
    for name in prunable.layers(CHANNELS):
        assert not bool((thin.masks[name] & ~whole.masks[name]).any())
        assert int(thin.masks[name].sum()) == max(1, int(0.4 * int(whole.masks[name].sum()) + 0.5)), name
    small = thin.compact()
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in whole.compact().parameters())
    with pytest.raises(ConfigError, match="is for granularity 'channel', not 'weight'"):
        subnetwork(tiny_net(), 0.5, inside=0.4)


def test_two_of_each_four_stay_and_other_densities_are_refused() -> None:
    net = tiny_net(granularity="nm")
    for name, mask in subnetwork(net, 0.5).masks.items():
        layer = net.get_submodule(name)
        assert mask.unflatten(1, (-1, 4)).sum(2).eq(2).all()
        score = layer.get_parameter("score").abs().unflatten(1, (-1, 4))
        left = torch.where(mask.unflatten(1, (-1, 4)), score, torch.inf).amin(2)
        out = torch.where(mask.unflatten(1, (-1, 4)), -1.0, score).amax(2)
        assert (left >= out).all()
    assert "score" not in net.get_submodule("backbone.conv1")._parameters  # one input channel
    with pytest.raises(ConfigError, match="'nm' keeps 2 of 4 weights"):
        subnetwork(net, 0.4)


def test_kernels_stay_or_go_whole() -> None:
    net = tiny_net(granularity="kernel")
    cut = subnetwork(net, 0.3)
    for name, mask in cut.masks.items():
        kernels = mask.flatten(2)
        assert (kernels.all(2) == kernels.any(2)).all()
        assert int(kernels.any(2).sum()) == max(1, int(0.3 * mask[:, :, 0, 0].numel() + 0.5)), name


@pytest.mark.parametrize("granularity", ["nm", "kernel", "channel"])
def test_a_saved_cut_of_any_granularity_round_trips(granularity: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    net = tiny_net(granularity=granularity, image_size=16, channel_multiple=2)
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    cut = subnetwork(net, 0.5).calibrate([images])
    cut.save(tmp_path / "cut.safetensors")
    loaded = Subnetwork.load(tmp_path / "cut.safetensors")
    assert torch.equal(loaded.embed(images), cut.embed(images))
    assert torch.allclose(loaded.compact()(images), cut.embed(images), atol=1e-5)


def test_sparse_kernels_take_linear_layers_of_two_in_four_whose_shape_they_know() -> None:
    weight = torch.ones(64, 128)
    assert not fits(weight)
    weight.unflatten(1, (-1, 4))[:, :, 1:3] = 0
    assert fits(weight)
    assert not fits(weight[:, :100])
    assert not fits(weight[:50])
    assert not fits(weight[:, :, None, None])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sparse_kernels_give_the_features_of_the_masked_network() -> None:
    options = {"depth": 2, "embed_dim": 128, "num_heads": 2}
    net = RetrievalNet("vit_small_patch16_224", 4, granularity="nm", options=options)
    images = torch.randn(8, 3, 224, 224).cuda().bfloat16()
    small = subnetwork(net, 0.5).compact(224).cuda().bfloat16()
    wanted = small(images)
    assert use_sparse_kernels(small) == 8  # fused projection, projection and two of the MLP, in two blocks
    assert torch.allclose(small(images), wanted, atol=2e-2)


# --- how scores are trained -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["kernel", "channel"])
def test_score_gradients_are_those_of_a_mask_that_is_a_tensor(case: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Obvious version: masks as float tensors in the graph, whose gradients autograd finds; each pass' rows, then the
    loop that integrates them."""
    config = config_of(case, tmp_path / "none")
    net = net_for(config)
    inputs, labels = batch()
    objective = objective_of(config, net)
    found = gradients(objective, net, (inputs, labels))
    assert isinstance(objective, Masked)
    chosen = select(net, config.capacities)
    rows = [_mask_gradients(net, objective, chosen, index, inputs, labels) for index in (None, 0, 1)]
    order = _drawn_order(config.seed, len(objective.weights), per_score=case == "channel")
    for number, (name, score) in enumerate(prunable.scores(net).items()):
        stacked = torch.stack([row[number] for row in rows]) * score.detach().sign()
        block = "kernel" if case == "kernel" else "tensor"
        wanted = reference.integrate(
            stacked[:, None] if score.dim() == 1 else stacked, "last", block, "cosine", 0.5, order
        )
        key = f"{name}.score" if case == "kernel" else f"channels.scores.{number}"
        assert torch.allclose(found[key], wanted.reshape(score.shape), atol=1e-10), name


def _mask_gradients(
    net: RetrievalNet, objective: Masked, chosen, index: int | None, inputs: Tensor, labels: Tensor
) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """dL/dm of every score's mask m in one pass, and only where the mask is 1 (dense: everywhere)."""
    scores = list(prunable.scores(net).values())
    gates = [torch.ones_like(score).requires_grad_() for score in scores]
    tensors = {}
    for number, (name, masks) in enumerate(chosen.layers.items()):
        weight = net.get_submodule(name).get_parameter("weight").detach()
        by_channel = net.channels is not None
        gate = _product_of_gates(net, name, gates, weight) if by_channel else gates[number].expand_as(weight)
        mask = torch.ones_like(weight) if index is None else masks.mask(index).to(weight)
        tensors[f"net.{name}.weight"] = weight * mask * gate
    logits, _ = objective._both.run(inputs, tensors, torch.float32)
    return list(torch.autograd.grad(F.cross_entropy(logits, labels), gates))


def _product_of_gates(net: RetrievalNet, name: str, gates: list[Tensor], weight: Tensor) -> Tensor:
    assert net.channels is not None
    made, read = torch.ones(weight.shape[0]).double(), torch.ones(weight.shape[1]).double()
    for gate, group in zip(gates, net.channels.graph.groups, strict=True):
        for side, channels in (("out", made), ("in", read)):
            if (name, side) in group.sites and len(group.sites[name, side]) == len(channels):
                unit = torch.as_tensor(group.sites[name, side])
                gated = torch.where(unit >= 0, gate[unit.clamp(min=0)], 1.0)
                made, read = (made * gated, read) if side == "out" else (made, read * gated)
    return made.view(-1, *[1] * (weight.dim() - 1)) * read.view(1, -1, *[1] * (weight.dim() - 2))


def _drawn_order(seed: int, layers: int, *, per_score: bool) -> list[int]:
    """The permutation that the step draws for the scores: the one after the layers'."""
    from prunnet.training.objectives.masked import step_seed

    generator = torch.Generator().manual_seed(step_seed(seed, 3))
    return [torch.randperm(3, generator=generator).tolist() for _ in range(layers + 1)][-1]


def test_a_filters_own_gradient_says_nothing_of_a_channel_behind_batchnorm() -> None:
    """Why what reads a channel must count: the loss does not feel the length of a filter before a BatchNorm."""
    torch.manual_seed(0)
    net = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2)).double()
    loss = net(torch.randn(8, 1, 8, 8).double()).square().mean()
    (made, read) = torch.autograd.grad(loss, [net[0].weight, net[3].weight])
    made_sums = (made * net[0].weight).flatten(1).sum(1)
    read_sums = (read * net[3].weight).sum((0, 2, 3))
    assert float(made_sums.detach().abs().max()) < 1e-3 * float(read_sums.detach().abs().max())


def test_magnitude_scores_of_channels_are_the_norms_of_their_filters() -> None:
    net = channel_net(score_init="magnitude")
    conv1 = net.get_submodule("backbone.conv1").get_parameter("weight")
    assert torch.allclose(prunable.scores(net)["backbone.conv1"], conv1.detach().flatten(1).norm(dim=1))


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["train.granularity=filter"], "unknown train.granularity 'filter'; valid: channel, kernel, nm, weight"),
        (["train.granularity=channel", "train.method=sfsc"], "a switchable network has widths, and no scores"),
        (["train.granularity=nm"], r"keeps 2 of 4 weights, so it has 0.5 \(and 1.0\) only"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_recipe(None, overrides)


def test_a_network_of_another_granularity_is_refused() -> None:
    from tests.methods import CASES

    config = config_of("channel", None)  # type: ignore[arg-type]
    assert CASES["channel"]["granularity"] == "channel"
    with pytest.raises(
        ConfigError, match="train.granularity='channel' does not fit a network made with granularity='weight'"
    ):
        objective_of(config, tiny_net())


def test_older_recipes_keep_their_hashes() -> None:
    part = load_recipe(None).trained_part()["train"]
    assert "granularity" not in part
    assert "channel_multiple" not in part
    other = [f"train.granularity={name}" for name in ("kernel", "channel")]
    hashes = {load_recipe(None, [override]).training_hash() for override in other}
    assert len({load_recipe(None).training_hash(), *hashes}) == 3
