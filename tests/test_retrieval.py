"""Metrics equal slow, obvious ones, hand-computed cases, and hold what they promise for any ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunnet.errors import ConfigError, DataError
from prunnet.retrieval import (
    average_precision,
    compatibility_matrix,
    from_features,
    from_ranks,
    map_at_k,
    recall_at_k,
    revisited,
    revisited_details,
    score,
)
from prunnet.retrieval.exact_search import search
from prunnet.retrieval.metrics import average_precision_of, map_at_k_of, recall_of
from tests import reference

Lists = list[np.ndarray]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, Lists, Lists]:
    """Permutations of a small gallery, cut at some depth, with positives and junk that may overlap."""
    gallery, queries = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    depth = draw(st.integers(1, gallery))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    ranks = np.stack([rng.permutation(gallery)[:depth] for _ in range(queries)])
    relevant = [np.flatnonzero(rng.random(gallery) < 0.4) for _ in range(queries)]
    junk = [np.flatnonzero(rng.random(gallery) < 0.2) for _ in range(queries)]
    return ranks, relevant, junk


@given(rankings(), st.integers(1, 14))
def test_metrics_equal_the_slow_versions(case: tuple[np.ndarray, Lists, Lists], k: int) -> None:
    ranks, relevant, junk = case
    rows = list(zip(ranks.tolist(), [r.tolist() for r in relevant], [j.tolist() for j in junk], strict=True))
    for how in ("trapezoid", "step"):
        expected = [reference.average_precision(r, good, bad, how) for r, good, bad in rows]
        np.testing.assert_allclose(average_precision(ranks, relevant, junk, how), expected, atol=1e-12)
    expected = reference.mean([reference.recall_at_k(r, good, k, bad) for r, good, bad in rows])
    np.testing.assert_allclose(recall_at_k(ranks, relevant, k, junk), expected)
    expected = reference.mean([reference.map_at_k(r, good, k, bad) for r, good, bad in rows])
    np.testing.assert_allclose(map_at_k(ranks, relevant, k, junk), expected)


@given(rankings())
def test_revisited_equals_three_separate_protocols(case: tuple[np.ndarray, Lists, Lists]) -> None:
    ranks, first, second = case
    third = [np.setdiff1d(np.arange(12), np.concatenate([a, b]))[:2] for a, b in zip(first, second, strict=True)]
    hard = [np.setdiff1d(b, a) for a, b in zip(first, second, strict=True)]
    gnd = [{"easy": e, "hard": h, "junk": j} for e, h, j in zip(first, hard, third, strict=True)]
    protocols = {
        "easy": [(g["easy"], np.concatenate([g["junk"], g["hard"]])) for g in gnd],
        "medium": [(np.concatenate([g["easy"], g["hard"]]), g["junk"]) for g in gnd],
        "hard": [(g["hard"], np.concatenate([g["junk"], g["easy"]])) for g in gnd],
    }
    found = revisited(ranks.T, gnd)
    for name, lists in protocols.items():
        aps = [
            reference.average_precision(row, good.tolist(), bad.tolist(), "trapezoid")
            for row, (good, bad) in zip(ranks.tolist(), lists, strict=True)
        ]
        np.testing.assert_allclose(found[name], reference.mean(aps), atol=1e-12)
        np.testing.assert_allclose(revisited_details(ranks.T, gnd)[name]["ap"], aps, atol=1e-12)


@given(rankings())
def test_a_perfect_ranking_scores_one_and_junk_changes_nothing(case: tuple[np.ndarray, Lists, Lists]) -> None:
    _, relevant, _ = case
    gallery = 15  # indices 12 to 14 are junk
    perfect = np.stack([np.r_[12, r, 13, np.setdiff1d(np.arange(12), r), 14] for r in relevant])
    assert perfect.shape[1] == gallery
    junk = [np.array([12, 13, 14])] * len(relevant)
    values = average_precision(perfect, relevant, junk)
    assert all(math.isnan(v) if len(r) == 0 else v == pytest.approx(1) for v, r in zip(values, relevant, strict=True))


def test_by_hand() -> None:
    ranks = np.array([[3, 0, 2, 1]])
    relevant = [np.array([0, 1])]
    assert average_precision(ranks, relevant, interpolation="step")[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision(ranks, relevant)[0] == pytest.approx(((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    # without image 3 the first positive leads
    assert average_precision(ranks, relevant, [np.array([3])], "step")[0] == pytest.approx((1 + 2 / 3) / 2)
    assert [recall_at_k(ranks, relevant, k) for k in (1, 2)] == [0.0, 1.0]
    assert map_at_k(ranks, relevant, 2) == pytest.approx((1 / 2) / 2)
    assert map_at_k(ranks, relevant, 1) == 0.0


def test_mean_precision_divides_by_the_last_positive_when_there_are_fewer_than_k() -> None:
    gnd = [{"easy": np.array([0, 1]), "hard": np.array([], dtype=int), "junk": np.array([], dtype=int)}]
    details = revisited_details(np.array([[0], [2], [1], [3]]), gnd, kappas=(1, 3, 10))
    assert details["easy"]["mp"] == pytest.approx([1.0, 2 / 3, 2 / 3])
    assert math.isnan(revisited(np.array([[0], [1]]), gnd)["hard"])


def test_truncated_rankings_of_a_large_gallery_may_name_any_image() -> None:
    none = np.array([], dtype=int)
    gnd = [{"easy": np.array([1]), "hard": none, "junk": np.array([7])}]
    assert revisited(np.array([[7], [900_000], [1]]), gnd)["easy"] == pytest.approx((0 + 1 / 2) / 2)


def test_positives_outside_truncated_ranks_are_missed() -> None:
    ranks, relevant = np.array([[0, 1, -1]]), [np.array([0, 5, 6, 7])]
    assert average_precision(ranks, relevant, interpolation="step")[0] == pytest.approx(1 / 4)


def test_queries_without_a_positive_are_left_out() -> None:
    ranks, none = np.array([[0, 1], [1, 0]]), np.array([], dtype=int)
    assert recall_at_k(ranks, [np.array([0]), none], 1) == 1.0
    assert math.isnan(map_at_k(ranks, [none, none], 5))
    assert np.isnan(average_precision(ranks, [none, none])).all()


@given(st.integers(0, 9999), st.booleans(), st.sampled_from([0.0001, 64]))
def test_hits_from_features_equal_hits_from_the_ranking(seed: int, with_junk: bool, budget: float) -> None:
    rng = np.random.default_rng(seed)
    gallery = rng.integers(-1, 2, (9, 3)).astype(np.float32)  # many ties
    queries = rng.integers(-1, 2, (4, 3)).astype(np.float32)
    relevant = [np.flatnonzero(rng.random(9) < 0.4) for _ in range(4)]
    junk = [np.flatnonzero(rng.random(9) < 0.3) for _ in range(4)] if with_junk else None
    ranks, _ = search(queries, gallery, 9)
    a, b = (
        from_ranks(ranks, relevant, junk),
        from_features(queries, gallery, relevant, junk, budget_mib=budget),
    )
    np.testing.assert_array_equal(a.position, b.position)
    np.testing.assert_array_equal(a.query, b.query)
    np.testing.assert_array_equal(a.positives, b.positives)


@given(st.integers(0, 9999), st.integers(1, 9))
def test_search_is_exact_and_breaks_ties_by_index(seed: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    gallery = rng.integers(-1, 2, (9, 3)).astype(np.float32)
    queries = rng.integers(-1, 2, (5, 3)).astype(np.float32)
    ranks, similarity = search(queries, gallery, depth)
    expected = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :depth]
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_allclose(similarity, np.take_along_axis(queries @ gallery.T, expected, axis=1))


@given(st.integers(0, 9999))
def test_permuting_the_gallery_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gallery, queries = rng.normal(size=(12, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    relevant = [np.flatnonzero(rng.random(12) < 0.4) for _ in range(3)]
    order = rng.permutation(12)
    moved = [np.flatnonzero(np.isin(order, r)) for r in relevant]
    before, after = (from_features(queries, g, r) for g, r in ((gallery, relevant), (gallery[order], moved)))
    np.testing.assert_array_equal(before.position, after.position)


def test_the_matrix_holds_every_pair_and_equal_features_give_the_self_test() -> None:
    rng = np.random.default_rng(0)
    dense, small = rng.normal(size=(2, 20, 4)).astype(np.float32)
    relevant = [np.flatnonzero((np.arange(20) % 4 == q % 4) & (np.arange(20) != q)) for q in range(20)]
    junk = [np.array([q]) for q in range(20)]
    matrix = compatibility_matrix({1.0: (dense, dense), 0.2: (small, small)}, relevant, junk)
    assert set(matrix) == {(1.0, 1.0), (1.0, 0.2), (0.2, 1.0), (0.2, 0.2)}
    assert matrix[0.2, 1.0] == score(small, dense, relevant, junk)
    hits = from_features(dense, dense, relevant, junk)
    assert matrix[1.0, 1.0]["recall_at_1"] == recall_of(hits, 1)
    assert matrix[1.0, 1.0]["map_at_100"] == map_at_k_of(hits, 100)
    assert matrix[1.0, 1.0]["map"] == pytest.approx(np.nanmean(average_precision_of(hits, "step")))


def test_plain_lists_and_empty_arrays_are_index_arrays() -> None:
    assert recall_at_k([[0, 1, 2]], [[1]], 1, [[0]]) == 1.0  # type: ignore[arg-type, list-item]
    assert recall_at_k(np.array([[0, 1]]), [np.array([0])], 1, [np.array([])]) == 1.0
    gnd = [{"easy": [0], "hard": [], "junk": np.array([])}]
    assert revisited(np.array([[0], [1]]), gnd)["easy"] == 1.0  # type: ignore[list-item]


def test_mistakes_are_named() -> None:
    features = np.zeros((2, 3), np.float32)
    with pytest.raises(ConfigError, match=r"valid: \[Q, d\] and \[G, d\]"):
        search(features, np.zeros((2, 4), np.float32), 1)
    with pytest.raises(DataError, match="not finite"):
        search(features, np.full((2, 3), np.nan, np.float32), 1)
    with pytest.raises(ConfigError, match="k=0; valid: 1 or more"):
        recall_at_k(np.array([[0]]), [np.array([0])], 0)
    with pytest.raises(ConfigError, match="1 index arrays for 2 queries"):
        recall_at_k(np.array([[0], [0]]), [np.array([0])], 1)
    with pytest.raises(ConfigError, match="has no hard"):
        revisited(np.array([[0]]), [{"easy": np.array([0]), "junk": np.array([0])}])
    with pytest.raises(ConfigError, match="valid: step, trapezoid"):
        average_precision(np.array([[0]]), [np.array([0])], None, "square")
