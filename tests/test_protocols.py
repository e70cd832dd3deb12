"""Protocols equal slow, obvious versions on features: junk of one's own camera, Easy, Medium and Hard, lists."""

from __future__ import annotations

import importlib
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunnet.data.base import MemoryImages, RetrievalTest
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError
from prunnet.evaluation.stored_features import load_features, make_features
from prunnet.retrieval.exact_search import search
from prunnet.retrieval.protocol import Truth
from prunnet.subnetworks.subnet import subnetwork
from tests import reference
from tests.conftest import tiny_net

GREY = Preprocessing(8, 8, 1, False, (0.5,), (0.5,))


def of_labels(labels: list[int]) -> MemoryImages:
    return MemoryImages(np.zeros((len(labels), 1, 8, 8), np.uint8), np.array(labels, dtype=np.int64), GREY)


def features(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Few values, so that there are ties."""
    return rng.integers(-2, 3, (rows, 2)).astype(np.float32)


def ranking(queries: np.ndarray, gallery: np.ndarray) -> list[list[int]]:
    """By similarity, among equals by index."""
    similarity = queries @ gallery.T
    return [sorted(range(len(gallery)), key=lambda g: (-row[g], g)) for row in similarity]


@given(st.integers(0, 9999))
def test_own_identity_and_camera_is_removed_from_every_ranking(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids, cameras = rng.integers(0, 3, 4), rng.integers(0, 2, 4)
    gallery_ids, gallery_cameras = rng.integers(0, 4, 12), rng.integers(0, 2, 12)
    test = RetrievalTest(
        of_labels(ids.tolist()), of_labels(gallery_ids.tolist()), False, cameras=(cameras, gallery_cameras)
    )
    queries, gallery = features(rng, 4), features(rng, 12)
    found = test.truth().score(queries, gallery)
    aps, firsts = [], []
    for q, ranks in enumerate(ranking(queries, gallery)):
        right = [g for g in range(12) if gallery_ids[g] == ids[q] and gallery_cameras[g] != cameras[q]]
        junk = [g for g in range(12) if gallery_ids[g] == ids[q] and gallery_cameras[g] == cameras[q]]
        aps.append(reference.average_precision(ranks, right, junk, "step"))
        firsts.append(reference.recall_at_k(ranks, right, 1, junk))
    np.testing.assert_allclose(found["map"], reference.mean(aps))
    np.testing.assert_allclose(found["recall_at_1"], reference.mean(firsts))
    assert found["queries_without_positive"] == int(np.isnan(aps).sum())


@given(st.integers(0, 9999))
def test_easy_medium_and_hard_from_one_set_of_features(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 5, (3, 10))  # 0 easy, 1 hard, 2 junk, others nothing
    easy, hard, junk = ([np.flatnonzero(row == kind) for row in kinds] for kind in range(3))
    queries, gallery = features(rng, 3), features(rng, 10)
    found = Truth(easy, junk, hard).score(queries, gallery)
    for name, good, bad in (("easy", (0,), (2, 1)), ("medium", (0, 1), (2,)), ("hard", (1,), (2, 0))):
        aps = []
        for ranks, row in zip(ranking(queries, gallery), kinds, strict=True):
            right, wrong = (np.flatnonzero(np.isin(row, kind)).tolist() for kind in (good, bad))
            aps.append(reference.average_precision(ranks, right, wrong, "trapezoid"))
        np.testing.assert_allclose(found[f"map_{name}"], reference.mean(aps))
    np.testing.assert_equal(found["map"], found["map_medium"])


@given(st.integers(0, 9999))
def test_more_junk_and_another_order_of_the_gallery_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery = rng.standard_normal((3, 4), dtype=np.float32), rng.standard_normal((9, 4), dtype=np.float32)
    right = [np.flatnonzero(rng.random(9) < 0.4) for _ in range(3)]
    plain = Truth(right, [np.zeros(0, np.int64)] * 3).score(queries, gallery)
    more = np.concatenate([gallery, rng.standard_normal((5, 4), dtype=np.float32)])
    with_junk = Truth(right, [np.arange(9, 14)] * 3).score(queries, more)
    order = rng.permutation(9)
    place = np.argsort(order)
    permuted = Truth([place[r] for r in right]).score(queries, gallery[order])
    for other in (with_junk, permuted):
        for name in ("map", "map_at_100", "recall_at_1", "recall_at_5", "queries_without_positive"):
            np.testing.assert_allclose(other[name], plain[name], err_msg=name)


def test_a_perfect_ranking_scores_one_under_every_protocol() -> None:
    gallery = np.array([[1, 0], [0.9, 0.1], [0, 1], [-1, 0]], dtype=np.float32)
    query = np.array([[1, 0]], dtype=np.float32)
    found = Truth([np.array([0])], [np.array([2])], [np.array([1])]).score(query, gallery)
    assert all(found[f"map_{name}"] == 1 for name in ("easy", "medium", "hard"))
    assert Truth([np.array([0, 1])]).score(query, gallery)["map_at_100"] == 1


def test_by_hand_with_ties_duplicates_no_positive_and_fewer_than_k() -> None:
    gallery = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)  # 0 and 1 are duplicates: 0 comes first
    queries = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    right = [np.array([1]), np.array([2]), np.zeros(0, np.int64)]
    found = Truth(right, recalls=(1, 2, 100)).score(queries, gallery)
    assert found["map"] == pytest.approx((1 / 2 + 1) / 2)  # the third query does not count
    assert (found["recall_at_1"], found["recall_at_2"], found["recall_at_100"]) == (0.5, 1.0, 1.0)
    assert (found["queries"], found["queries_without_positive"], found["gallery_size"]) == (3, 1, 3)
    nothing = Truth([np.zeros(0, np.int64)] * 3).score(queries, gallery)
    assert np.isnan(nothing["map"])


@given(st.integers(0, 9999), st.integers(1, 12))
def test_searching_a_gallery_in_parts_changes_nothing(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery = features(rng, 4), features(rng, 15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("prunnet.retrieval.exact_search"), "_CHUNK", rows)
        ranks, similarity = search(queries, gallery, 6)
    assert ranks.tolist() == [order[:6] for order in ranking(queries, gallery)]
    assert np.array_equal(similarity, np.take_along_axis(queries @ gallery.T, ranks, axis=1))


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("prunnet.retrieval.exact_search")
    rng = np.random.default_rng(0)
    queries, gallery = (rng.standard_normal((n, 64), dtype=np.float32) for n in (20, 5000))
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        pytest.skip("no GPU")
    on_gpu = search(queries, gallery, 10)[0]
    monkeypatch.setattr(module, "_GPU_DEPTH", 0)
    assert (on_gpu == search(queries, gallery, 10)[0]).mean() > 0.99


def test_features_are_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (9, 1, 8, 8)).astype(np.uint8)
    images = MemoryImages(pixels, np.arange(9) % 3, GREY)
    cut = subnetwork(tiny_net(3), 0.5)
    for alone in (True, False):
        gallery = images if alone else MemoryImages(pixels[:4], np.arange(4) % 3, GREY)
        made = make_features(path, cut, RetrievalTest(images, gallery, alone), 4, {"key": "k"}, 0.0)
        stored = load_features(path, "k")
        assert isinstance(stored.queries, np.memmap)
        assert stored.queries.shape == (9, 16)
        assert len(stored.gallery) == (9 if alone else 4)
        assert stored.identity == made
        np.testing.assert_allclose(np.linalg.norm(stored.queries, axis=1), 1, atol=1e-5)
    assert [p.name for p in path.parent.iterdir()] == ["kept"]
    with pytest.raises(CheckpointError, match="another key"):
        load_features(path, "other")
    bytes_ = bytearray((path / "queries.npy").read_bytes())
    bytes_[-1] ^= 1
    (path / "queries.npy").write_bytes(bytes_)
    with pytest.raises(CheckpointError, match="damaged"):
        load_features(path)
    (path / "identity.json").write_text("{")
    with pytest.raises(CheckpointError, match="not there or torn"):
        load_features(path)
