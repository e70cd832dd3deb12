"""Integration in Gram space equals the plain loop, and behaves at its edges."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunnet.errors import ConfigError
from prunnet.training.gradients.conflict import BLOCKS, PROJECTIONS, WEIGHTINGS, integrate, integrate_layers
from prunnet.training.gradients.rows import LayerRows
from tests import reference

variants = list(itertools.product(PROJECTIONS, ("kernel", "tensor"), ("mean", "cosine", "uncertainty")))
assert {v[0] for v in variants} == set(PROJECTIONS)
assert {*(v[1] for v in variants), "network"} == set(BLOCKS)  # for one tensor, network is tensor
assert {*(v[2] for v in variants), "mgda"} == set(WEIGHTINGS)  # mgda has a certificate of its own below


@st.composite
def gradient_rows(draw: st.DrawFn) -> torch.Tensor:
    """Rows that conflict, vanish, repeat or oppose each other."""
    count = draw(st.integers(1, 5))
    shape = draw(st.sampled_from([(3, 4), (2, 2, 3, 3), (5, 1), (4,)]))
    rows = torch.randn(count, *shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9999)))).double()
    for i in range(1, count):
        kind = draw(st.sampled_from(["free", "zero", "same", "opposite", "tiny", "zero block"]))
        if kind == "zero":
            rows[i] = 0
        elif kind in ("same", "opposite"):
            rows[i] = rows[0] if kind == "same" else -rows[0]
        elif kind == "tiny":
            rows[i] *= 1e-6
        elif kind == "zero block":
            rows[i, 0] = 0
    return rows


@pytest.mark.parametrize(("projection", "block", "weighting"), variants)
@settings(max_examples=40)
@given(rows=gradient_rows(), exponent=st.sampled_from([0.0, 0.5, 2.0]), data=st.data())
def test_parity_with_the_plain_loop(
    projection: str, block: str, weighting: str, rows: torch.Tensor, exponent: float, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    options = {
        "projection": projection,
        "block": block,
        "weighting": weighting,
        "exponent": exponent,
        "order": order,
    }
    if weighting == "uncertainty":
        options["weights"] = [1.0 + i for i in range(len(rows))]
    expected = reference.integrate(rows, **options)
    found = integrate(rows, **options)
    assert found.shape == rows.shape[1:]
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * float(rows.abs().max().clamp(min=1e-300)))


@settings(max_examples=150)
@given(rows=gradient_rows(), projection=st.sampled_from(PROJECTIONS))
def test_mgda_is_the_shortest_convex_combination(rows: torch.Tensor, projection: str) -> None:
    """Optimality certificate: z is the shortest point of the hull of the p_i exactly if <z, p_i> >= <z, z> for all i,
    and it lies in the hull, which is so if some convex combination reaches <z, z> with equality."""
    projected = reference.projected(rows, projection, "kernel", range(len(rows))).flatten(1)
    shortest = integrate(rows, projection=projection, weighting="mgda").flatten() / len(rows)
    along = projected @ shortest
    scale = float(rows.flatten(1).square().sum(1).max().clamp(min=1e-300))
    assert float((along - shortest @ shortest).min()) >= -1e-7 * scale
    assert float(along.min() - shortest @ shortest) <= 1e-7 * scale


def test_uncertainty_needs_one_positive_weight_a_row() -> None:
    rows = torch.randn(2, 3, 4)
    for weights in (None, [1.0], [1.0, 0.0]):
        with pytest.raises(ConfigError, match="needs 2 positive weights"):
            integrate(rows, weighting="uncertainty", weights=weights)
    with pytest.raises(ConfigError, match="at most 10"):
        integrate(torch.randn(11, 2, 2), weighting="mgda")


def test_a_network_wide_block_looks_at_all_layers_at_once() -> None:
    """Two layers as one long vector, for weights and scores each."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(3, 4, 5, generator=generator).double(), torch.randn(3, 2, 7, generator=generator).double()]
    values = [torch.randn(4, 5, generator=generator).double(), torch.randn(2, 7, generator=generator).double()]
    layers = [
        LayerRows(list(r), v, torch.empty_like(v), -v, torch.empty_like(v)) for r, v in zip(rows, values, strict=True)
    ]
    order = [2, 0, 1]
    integrate_layers(layers, [order, order], projection="sequential", block="network", weighting="cosine", exponent=0.5)
    for kind in ("weight_grad", "score_grad"):
        factors = [-v * v.sign() if kind == "score_grad" else torch.ones_like(v) for v in values]
        flat = torch.cat([(r * f).flatten(1) for r, f in zip(rows, factors, strict=True)], dim=1)
        expected = reference.integrate(flat[:, None], "sequential", "tensor", "cosine", 0.5, order)[0]
        found = torch.cat([getattr(layer, kind).flatten() for layer in layers])
        assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("projection", "block", "weighting"), variants)
def test_all_layers_at_once_equal_each_tensor_alone(projection: str, block: str, weighting: str) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes, orders = [(6, 7), (300, 400), (1, 3)], [[3, 0, 4, 1, 2], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]
    rows = [torch.randn(5, *shape, generator=generator).double() for shape in shapes]
    weights, scores = ([torch.randn(*shape, generator=generator).double() for shape in shapes] for _ in range(2))
    layers = [
        LayerRows(list(r), w, torch.empty_like(w), s, torch.empty_like(w))
        for r, w, s in zip(rows, weights, scores, strict=True)
    ]
    options = {"projection": projection, "block": block, "weighting": weighting, "exponent": 0.5}
    given = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) if weighting == "uncertainty" else None
    integrate_layers(layers, orders, **options, given=given)
    options["weights"] = given
    for layer, r, order in zip(layers, rows, orders, strict=True):
        assert torch.allclose(layer.weight_grad, integrate(r, order=order, **options), atol=1e-12)
        assert torch.allclose(
            layer.score_grad, integrate(r * layer.weight * layer.score.sign(), order=order, **options), atol=1e-12
        )


def test_last_projects_from_the_original_and_the_order_decides() -> None:
    g0, g1, g2 = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, -1.0])
    rows = torch.stack([g0, g1, g2]).double()[:, None]  # one kernel
    p0_by_1, p0_by_2 = torch.tensor([0.5, 0.5]), torch.tensor([0.5, -0.5])
    first = integrate(rows, weighting="mean", order=[0, 2, 1])[0]
    second = integrate(rows, weighting="mean", order=[0, 1, 2])[0]
    others = torch.tensor([0.0, 1.0]) + torch.tensor([0.0, -1.0])  # g1 and g2 conflict only with g0
    assert torch.allclose(first, (p0_by_1 + others).double())
    assert torch.allclose(second, (p0_by_2 + others).double())


def test_rows_without_conflict_are_summed() -> None:
    rows = torch.rand(4, 3, 5).double()
    assert torch.allclose(integrate(rows), rows.sum(0))


def test_exactly_opposite_rows_cancel() -> None:
    row = torch.randn(3, 4).double()
    assert torch.equal(integrate(torch.stack([row, -row])), torch.zeros(3, 4).double())


def test_a_zero_row_conflicts_with_nobody() -> None:
    rows = torch.stack([torch.randn(3, 4), torch.zeros(3, 4)]).double()
    assert torch.allclose(integrate(rows, weighting="mean"), rows[0])


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_no_magnitude_gives_nan(size: float) -> None:
    rows = torch.stack([torch.tensor([[1.0, 2.0]]), torch.tensor([[-3.0, 1.0]]), torch.zeros(1, 2)])
    for projection, block, weighting in variants:
        weights = [1.0, 2.0, 3.0] if weighting == "uncertainty" else None
        small = integrate(rows, projection=projection, block=block, weighting=weighting, weights=weights)
        scaled = integrate(rows * size, projection=projection, block=block, weighting=weighting, weights=weights)
        assert torch.allclose(scaled / size, small, rtol=1e-4, atol=1e-6)


def test_all_rows_zero_give_zero() -> None:
    assert torch.equal(integrate(torch.zeros(5, 2, 3)), torch.zeros(2, 3))


def test_the_releases_epsilon_weakens_projection_of_small_kernels() -> None:
    rows = torch.tensor([[[1.0, 0.0]], [[-1.0, 1.0]]]).double() * 1e-4
    exact, released = integrate(rows, weighting="mean"), integrate(rows, weighting="mean", eps=1e-8)
    assert torch.allclose(released, reference.integrate(rows, "last", "kernel", "mean", 0.5, eps=1e-8), rtol=1e-10)
    assert not torch.allclose(exact, released, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"projection": "first"}, "valid: last, none, sequential"),
        ({"block": "layer"}, "valid: kernel, network, tensor"),
        ({"weighting": "median"}, "valid: cosine, mean"),
        ({"order": [0, 0, 1]}, "not a permutation"),
        ({"order": [0, 1]}, "not a permutation"),
    ],
)
def test_unknown_variants_are_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        integrate(torch.randn(3, 2, 2), **arguments)  # type: ignore[arg-type]


def test_it_says_how_often_gradients_conflict() -> None:
    """Two passes in full conflict on one layer, in none on the other."""
    up = torch.ones(3, 4, dtype=torch.float64)
    rows = [[up, -up], [up, 2 * up]]
    layers = [LayerRows(r, up.clone(), torch.empty_like(up), up.clone(), torch.empty_like(up)) for r in rows]
    options = {"projection": "last", "block": "kernel", "exponent": 0.5}
    shares = integrate_layers(layers, [[0, 1], [0, 1]], weighting="cosine", **options)
    assert shares is not None
    assert shares.tolist() == [1.0, 0.0]
    options["projection"] = "none"
    assert integrate_layers(layers, [[0, 1], [0, 1]], weighting="mean", **options) is None
