"""Re-ranked searches and averaged views: as slow versions say, what they promise for any features, and rows of their
own that nothing mixes with the plain ones."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import report, tables
from analysis.frame import Frame
from analysis.quantities import Quantity
from prunnet import best_under, data, results
from prunnet.config import parse_recipe
from prunnet.config.recipe import Recipe, load_recipe
from prunnet.config.rerankings import MEMORY, AlphaQE, KReciprocal, check_rerank, rerankings
from prunnet.config.trial import Trial
from prunnet.data.base import MemoryImages, RetrievalTest
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError, DataError
from prunnet.evaluation.compare import Side, compare
from prunnet.experiments.stages import make_net
from prunnet.experiments.trial import run_trial
from prunnet.experiments.work_units import plan_units
from prunnet.networks.files import save_network
from prunnet.retrieval.exact_search import search
from prunnet.retrieval.protocol import Truth
from prunnet.retrieval.reranking import RERANKINGS, alpha_qe, k_reciprocal
from prunnet.subnetworks import subnetwork
from prunnet.subnetworks.embed import embed, embed_test
from tests import reference
from tests.conftest import image_folder, striped_images, tiny_net
from tests.test_hashes import networks_of, recipe_of

KINDS = ("query_gallery", "self-test", "cross-test")
"""Queries that are not in the gallery; leave-one-out, by one network and by two."""


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embedded(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """(queries, gallery, whether the test is leave-one-out), around a few centres."""
    rng = np.random.default_rng(seed)
    size, dim = int(rng.integers(2, 45)), 5
    centres = rng.standard_normal((6, dim))
    gallery = unit(centres[rng.integers(0, 6, size)] + 0.6 * rng.standard_normal((size, dim)))
    if kind == "query_gallery":
        count = int(rng.integers(1, 12))
        return unit(centres[rng.integers(0, 6, count)] + 0.6 * rng.standard_normal((count, dim))), gallery, False
    return (gallery if kind == "self-test" else unit(gallery + 0.4 * rng.standard_normal((size, dim)))), gallery, True


def compared(found: np.ndarray, own: bool) -> np.ndarray:
    """Without a query's own image, which is in no ranking."""
    return np.where(np.eye(*found.shape, dtype=bool), 0.0, found) if own else found


@settings(max_examples=60)
@given(
    st.integers(0, 9999), st.sampled_from(KINDS), st.integers(1, 14), st.integers(1, 14), st.sampled_from([0, 0.3, 1.0])
)
def test_k_reciprocal_distances_are_those_of_whole_matrices(
    seed: int, kind: str, k1: int, k2: int, share: float
) -> None:
    queries, gallery, own = embedded(seed, kind)
    block = k_reciprocal(queries, gallery, own, k1=k1, k2=min(k1, k2), share=share)
    middle = len(queries) // 2
    found = -np.concatenate([block(slice(0, middle)), block(slice(middle, len(queries)))])
    expected = reference.k_reciprocal(queries, gallery, own, k1, min(k1, k2), share)
    np.testing.assert_allclose(compared(found, own), compared(expected, own), atol=2e-6)


@given(st.integers(0, 9999), st.sampled_from(KINDS), st.integers(0, 12), st.floats(0, 8))
def test_expanded_queries_are_the_weighted_means(seed: int, kind: str, n: int, alpha: float) -> None:
    queries, gallery, own = embedded(seed, kind)
    found = alpha_qe(queries, gallery, own, n=n, alpha=alpha)(slice(0, len(queries)))
    np.testing.assert_allclose(found, reference.alpha_qe(queries, gallery, own, n, alpha), atol=2e-6)


PLAIN = {
    "lambda=1": functools.partial(k_reciprocal, k1=5, k2=2, share=1.0),
    "n=0": functools.partial(alpha_qe, n=0, alpha=3.0),
    "alpha very large": functools.partial(alpha_qe, n=5, alpha=1e6),
}


@given(st.integers(0, 9999), st.sampled_from(KINDS), st.sampled_from(sorted(PLAIN)))
def test_what_changes_nothing_gives_the_plain_ranking(seed: int, kind: str, how: str) -> None:
    queries, gallery, own = embedded(seed, kind)
    block = PLAIN[how](queries, gallery, own)(slice(0, len(queries)))
    order = np.argsort(-block, axis=1, kind="stable")
    similarity = queries @ gallery.T
    if how == "n=0" or how == "lambda=1":
        assert np.array_equal(order, np.argsort(-similarity, axis=1, kind="stable"))
    # Expanded queries are normalised, which may swap what differs in the last bit.
    along = np.take_along_axis(similarity, order, axis=1)
    assert (np.diff(along, axis=1) <= 1e-6).all()


@given(st.integers(0, 9999), st.sampled_from(sorted(RERANKINGS)))
def test_a_leave_one_out_query_learns_nothing_from_its_own_image(seed: int, name: str) -> None:
    """Another embedding of its own image in the gallery changes no place of the others, if that image is far from the
    rest in both (a gallery image's distances are divided by the largest of them, the own image's among them)."""
    rng = np.random.default_rng(seed)
    queries, gallery, _ = embedded(seed, "cross-test")
    for own in (0, len(gallery) - 1):
        other = gallery.copy()
        other[own] = unit(rng.standard_normal((1, gallery.shape[1])))[0]
        parameters = {"alpha_qe": {"n": 4, "alpha": 3.0}, "k_reciprocal": {"k1": 5, "k2": 3, "share": 0.3}}[name]
        some = slice(own, own + 1)
        one, two = (RERANKINGS[name](queries, each, True, **parameters)(some)[0] for each in (gallery, other))
        if name == "k_reciprocal":  # the slow version, with the scales of the second gallery, says the same
            two = -reference.k_reciprocal(queries, other, True, 5, 3, 0.3)[own]
            largest = [(2 - 2 * each @ each.T).max(axis=1) for each in (gallery, other)]
            if not np.allclose(np.delete(largest[0], own), np.delete(largest[1], own)):
                continue
        np.testing.assert_allclose(np.delete(one, own), np.delete(two, own), atol=2e-6)


def test_duplicates_and_galleries_of_two_images_are_ranked() -> None:
    gallery = unit(np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0]], dtype=float))
    truth = Truth([np.array([1]), np.array([4])])
    own = Truth([np.array([1]), np.array([0])], [np.array([0]), np.array([1])], leave_one_out=True)
    for name, parameters in (("alpha_qe", {"n": 3, "alpha": 3.0}), ("k_reciprocal", {"k1": 20, "k2": 6, "share": 0.3})):
        changed = functools.partial(RERANKINGS[name], **parameters)
        assert truth.score(gallery[[0, 3]], gallery, changed)["recall_at_5"] == 1
        assert own.score(gallery[[0, 3]], gallery[[0, 3]], changed)["map"] == 1
        assert own.score(gallery[[1, 4]], gallery[[0, 3]][::-1].copy(), changed)["map"] == 1


def test_revisited_protocols_are_scored_from_one_re_ranking() -> None:
    queries, gallery, _ = embedded(3, "query_gallery")
    none = [np.zeros(0, np.int64)] * len(queries)
    truth = Truth([np.array([0])] * len(queries), none, [np.array([1])] * len(queries))
    found = truth.score(queries, gallery, functools.partial(k_reciprocal, k1=4, k2=2, share=0.3))
    order = np.argsort(reference.k_reciprocal(queries, gallery, False, 4, 2, 0.3), axis=1, kind="stable")
    aps = [reference.average_precision(row.tolist(), [0], [1], "trapezoid") for row in order]
    assert found["map_easy"] == pytest.approx(reference.mean(aps))


# --- recipes ---------------------------------------------------------------------------------------------------


def test_parameters_are_named_and_equal_recipes_are_kept_alike() -> None:
    given = ["alpha_qe", {"k_reciprocal": {"k1": 10, "k2": 6, "lambda": 0.3}}]
    assert check_rerank(given) == ({"alpha_qe": {}}, {"k_reciprocal": {"k1": 10}})
    assert [each.text for each in rerankings(check_rerank(given))] == [
        "alpha_qe(n=10,alpha=3)",
        "k_reciprocal(k1=10,k2=6,lambda=0.3)",
    ]
    again = load_recipe(None, ["sweep.rerank=[alpha_qe, {k_reciprocal: {k1: 10}}]", "sweep.flip=true"])
    assert parse_recipe(again.model_dump(mode="json")) == again


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("k_reciprocal", "sweep.rerank: .* is no list; valid: a list of names, or .* of k_reciprocal, alpha_qe"),
        ("[k_reciprocl]", "unknown re-ranking 'k_reciprocl'.*k_reciprocal"),
        ("[{k_reciprocal: {k3: 1}}]", "unknown parameter of k_reciprocal 'k3'.*k1.*lambda"),
        ("[{k_reciprocal: {share: 0.1}}]", "unknown parameter of k_reciprocal 'share'.*lambda"),
        ("[{k_reciprocal: {k1: 0}}]", r"k_reciprocal.k1: .*greater than or equal to 1 \(given: 0\)"),
        ("[{k_reciprocal: {k1: 5}}]", "k2=6 is above k1=5; valid: 1 <= k2 <= k1"),
        ("[{k_reciprocal: {lambda: 1.5}}]", r"k_reciprocal.lambda: .*less than or equal to 1 \(given: 1.5\)"),
        ("[{alpha_qe: {n: -1}}]", "alpha_qe.n: .*greater than or equal to 0"),
        ("[{alpha_qe: {alpha: .inf}}]", "alpha"),
        ("[{alpha_qe: 3}]", "alpha_qe: 3; valid: parameters n, alpha"),
        ("[alpha_qe, {alpha_qe: {n: 10}}]", r"rerank names alpha_qe\(n=10,alpha=3\) twice"),
        ("[[alpha_qe]]", "is no re-ranking"),
    ],
)
def test_what_is_no_re_ranking_is_refused_in_one_line(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(None, [f"sweep.rerank={given}"])
    assert "\n" not in str(caught.value)


def test_what_would_take_too_much_memory_is_refused_with_the_figure() -> None:
    assert KReciprocal().memory(6000, 6000, False) < 2**30
    assert AlphaQE().memory(10**6, 10**6, False) < MEMORY
    with pytest.raises(ConfigError, match=r"of 1,129 queries in 761,757 images may need \d+\.\d GiB; valid: at most 4"):
        KReciprocal().check_size(1129, 761_757, False)


def test_the_lists_of_k_reciprocal_keep_to_the_bound() -> None:
    queries, gallery, _ = embedded(7, "query_gallery")
    from prunnet.retrieval import reranking

    held: list[int] = []
    kept = reranking._sparse

    def watched(*arguments: Any) -> Any:
        made = kept(*arguments)
        held.append(sum(array.nbytes for array in made[1:]))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reranking, "_sparse", watched)
        k_reciprocal(queries, gallery, False, k1=20, k2=6, share=0.3)
    assert held[0] + 2 * held[1] <= KReciprocal().memory(len(queries), len(gallery), False)


# --- views -----------------------------------------------------------------------------------------------------

GREY = Preprocessing(16, 16, 1, False, (0.5,), (0.5,))


def seen(images: MemoryImages, **views: Any) -> MemoryImages:
    return MemoryImages(images.pixels, images.labels, Preprocessing(16, 16, 1, False, (0.5,), (0.5,), **views))


def test_views_are_means_of_normalised_embeddings_normalised_again() -> None:
    cut, images = subnetwork(tiny_net(), 0.5), striped_images(GREY)
    batch = GREY.normalise(torch.from_numpy(images.pixels))
    views = [batch, batch.flip(3)]
    for scale in (1.25, 0.75):
        other = F.interpolate(batch, scale_factor=scale, mode="bilinear", align_corners=False)
        views += [other, other.flip(3)]
    one_by_one = torch.stack([cut.embed(view).double() for view in views])
    expected = one_by_one.mean(0) / one_by_one.mean(0).norm(dim=1, keepdim=True)
    found = embed(cut, seen(images, scales=(1.0, 1.25, 0.75), flip=True))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert not np.allclose(found, embed(cut, images), atol=1e-3)


def test_the_flip_of_a_symmetric_image_changes_nothing() -> None:
    cut, images = subnetwork(tiny_net(), 0.5), striped_images(GREY)
    half = images.pixels[..., :8]
    symmetric = MemoryImages(np.concatenate([half, half[..., ::-1]], axis=-1), images.labels, GREY)
    np.testing.assert_allclose(embed(cut, seen(symmetric, flip=True)), embed(cut, symmetric), atol=1e-6)
    mirrored = MemoryImages(images.pixels[..., ::-1].copy(), images.labels, GREY)
    one, other = (embed(cut, seen(each, flip=True)) for each in (images, mirrored))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_views_are_part_of_the_preprocessing_that_features_carry() -> None:
    assert "flip" not in GREY.to_json()
    flipped = seen(striped_images(GREY), flip=True).preprocessing
    assert flipped.to_json() == {**GREY.to_json(), "flip": True}
    assert Preprocessing.from_json(flipped.to_json()) == flipped
    with pytest.raises(CheckpointError, match="flip"):
        Preprocessing.from_json({**GREY.to_json(), "flip": "sideways"})


def test_rendered_images_are_seen_from_all_views_and_files_too(tmp_path: Path) -> None:
    letters = {"data": {"classes": 4, "images_per_class": 2}}
    plain = data.load_for(parse_recipe(letters))
    views = data.load_for(parse_recipe({**letters, "sweep": {"flip": True, "scales": [1.0, 1.25]}}))
    assert (views.test.queries.preprocessing.flip, views.test.queries.preprocessing.scales) == (True, (1.0, 1.25))
    assert views.test.leave_one_out
    assert views.test.gallery is views.test.queries
    assert views.test.fingerprint() == plain.test.fingerprint()
    assert views.preprocessing == plain.preprocessing  # of training and calibration
    with pytest.raises(DataError, match="sweep.long_side needs images that are files, not glyphs"):
        data.load_for(parse_recipe({**letters, "sweep": {"long_side": 20}}))
    of_files = recipe_of(image_folder(tmp_path / "images"))
    changed = parse_recipe({**of_files.model_dump(), "sweep": {"flip": True}})
    assert data.load_for(changed).test.gallery.preprocessing.flip


def test_scales_are_refused_for_backbones_of_one_size() -> None:
    tree = {"model": {"backbone": "vit_tiny_patch16_224"}, "sweep": {"scales": [1.0, 1.5]}}
    recipe = parse_recipe({"data": {"classes": 4, "images_per_class": 2}, **tree})
    with pytest.raises(ConfigError, match=r"sweep.scales=\[1.0, 1.5\]: vit_tiny_patch16_224 is made for images of one"):
        make_net(recipe, data.load_for(recipe))


# --- rows ------------------------------------------------------------------------------------------------------

KEYS = {"plain": "b2b7d7ac6ae38e63", "random": "613b8f51ed285725", "inside": "ae277252bc3edca8"}
"""Hash of the keys of features and rows, computed before there were views and re-rankings."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "images")


def with_sweep(recipe: Recipe, **changes: Any) -> Recipe:
    tree = recipe.model_dump(mode="json")
    return parse_recipe({**tree, "sweep": {**tree["sweep"], **changes}})


@pytest.mark.parametrize("kind", KEYS)
def test_features_and_plain_rows_have_the_keys_that_they_had(kind: str, images: Path) -> None:
    recipe = recipe_of(images, kind)
    networks, dataset = networks_of(recipe), data.load_for(recipe)
    units = plan_units(recipe, networks, dataset)
    assert results.table.of_json([list(units.features), list(units.tests)])[:16] == KEYS[kind]
    more = plan_units(with_sweep(recipe, rerank=["alpha_qe", "k_reciprocal"]), networks, dataset)
    assert more.features == units.features
    plain = {key: test for key, test in more.tests.items() if test.reranking is None}
    assert plain == units.tests  # rows with all their columns, config_hash too
    changed = [test.row for test in more.tests.values() if test.reranking is not None]
    assert len(changed) == 2 * 5  # self-tests and cross-tests of three capacities
    for row in changed:
        assert row["gallery_capacity"] in (row["query_capacity"], 1.0)
        assert row["rerank"] in ("alpha_qe(n=10,alpha=3)", "k_reciprocal(k1=20,k2=6,lambda=0.3)")
    flipped = plan_units(with_sweep(recipe, flip=True), networks, data.load_for(with_sweep(recipe, flip=True)))
    assert not {*flipped.features} & {*units.features}
    assert not {*flipped.tests} & {*units.tests}
    row = next(iter(flipped.tests.values())).row
    assert json.loads(row["config_json"])["sweep"]["flip"] is True


def test_a_test_that_is_too_large_is_refused_when_it_is_planned(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = with_sweep(recipe_of(images), rerank=["k_reciprocal"])
    monkeypatch.setattr("prunnet.config.rerankings.MEMORY", 1000)
    with pytest.raises(ConfigError, match="sweep.rerank: k_reciprocal"):
        plan_units(recipe, networks_of(recipe), data.load_for(recipe))


@pytest.fixture(scope="module")
def swept(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A trial's folder, and its recipe."""
    folder = tmp_path_factory.mktemp("trial")
    recipe = with_sweep(recipe_of(images), flip=True, rerank=["alpha_qe", {"k_reciprocal": {"k1": 4, "k2": 2}}])
    run_trial(Trial("methods/a/s0", recipe), folder)
    return folder, recipe


def test_one_evaluation_gives_plain_and_re_ranked_rows(swept: tuple[Path, Recipe]) -> None:
    folder, _ = swept
    rows = results.read(folder / "results").to_pylist()
    assert len(rows) == 9 + 2 * 5
    plain = {(row["query_capacity"], row["gallery_capacity"]): row for row in rows if row["rerank"] is None}
    for row in rows:
        same = plain[row["query_capacity"], row["gallery_capacity"]]
        told = {"unit_key", "rerank", "eval_seconds", "created_at", *results.METRICS}
        assert {k: v for k, v in row.items() if k not in told} == {k: v for k, v in same.items() if k not in told}
    assert any(row["map"] != plain[row["query_capacity"], row["gallery_capacity"]]["map"] for row in rows)


def test_nothing_that_compares_subnetworks_takes_a_re_ranked_row(swept: tuple[Path, Recipe]) -> None:
    table = results.read(swept[0] / "results")
    better = [{**row, "map": 2.0} if row["rerank"] else row for row in table.to_pylist()]
    plain = [row for row in table.to_pylist() if row["rerank"] is None]
    assert results.plain(table).to_pylist() == plain
    both, alone = Frame(better), Frame(plain)
    assert both.rows == alone.rows
    assert both.self_tests() == alone.self_tests()
    for quantity in (Quantity(name="mean_cross_map"), Quantity(name="map", capacity=0.5)):
        assert quantity.of(better) == quantity.of(plain)
    worse = results.as_table(better)
    assert best_under(worse)["rerank"] is None
    text = "alpha_qe(n=10,alpha=3)"
    assert best_under(worse, rerank=text)["rerank"] == text
    with pytest.raises(
        ConfigError, match=r"no row has rerank 'k'; those in the table: alpha_qe\(n=10,alpha=3\), k_rec"
    ):
        best_under(worse, rerank="k")


def test_tables_show_both_figures_and_the_csv_has_all_rows(swept: tuple[Path, Recipe]) -> None:
    table = results.read(swept[0] / "results")
    frame = Frame(table)
    head, first = tables.head(frame), tables.capacity_table(frame)[1]
    assert head[-4:] == tuple(
        f"{test} mAP, {name}" for name in ("alpha_qe", "k_reciprocal") for test in ("self", "cross")
    )
    rows = [row for row in table.to_pylist() if row["query_capacity"] == 0.5 and row["gallery_capacity"] == 1.0]
    (crossed,) = (row for row in rows if (row["rerank"] or "").startswith("k_rec"))
    assert first[-1] == f"{100 * crossed['map']:.1f}"
    assert len(first) == len(head)
    assert set(tables.less_important(frame)) >= set(head[-4:])
    assert tables.rows_csv(frame).count("\n") == 1 + len(table)
    assert "cross mAP, alpha_qe" in report.render(frame, title="t", command="c", recipe="r")
    both = [*table.to_pylist(), {**crossed, "unit_key": "x", "rerank": "k_reciprocal(k1=5,k2=2,lambda=0.3)"}]
    assert tables.head(Frame(both))[-1] == "cross mAP, k_reciprocal(k1=5,k2=2,lambda=0.3)"


def test_tables_of_before_are_read_as_plain(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    row = {"unit_key": "a", "status": "complete", "query_capacity": 0.5, "gallery_capacity": 1.0, "map": 0.5}
    part = results.write_part(tmp_path, [row])
    older = pq.read_table(part).drop_columns(["rerank"])
    part.unlink()
    pq.write_table(older, part)
    assert results.read(tmp_path)["rerank"].to_pylist() == [None]
    assert best_under(tmp_path)["unit_key"] == "a"
    assert len(Frame.load(tmp_path)) == 1


def test_two_networks_are_compared_with_re_ranking_too(images: Path, tmp_path: Path) -> None:
    recipe = with_sweep(recipe_of(images), rerank=["alpha_qe", {"k_reciprocal": {"k1": 4, "k2": 2}}])
    dataset = data.load_for(recipe)
    paths = [tmp_path / "new.safetensors", tmp_path / "old.safetensors"]
    for seed, path in enumerate(paths):
        net = make_net(with_seed(recipe, seed), dataset)
        save_network(path, net, dataset.preprocessing, recipe=recipe.trained_part())
    new, old = map(Side.load, paths)
    found = compare(new, old, recipe=recipe, calibrate=True)
    assert list(found.reranked) == ["alpha_qe(n=10,alpha=3)", "k_reciprocal(k1=4,k2=2,lambda=0.3)"]
    assert all(tests.keys() == found.tests.keys() for tests in found.reranked.values())
    assert compare(new, old, recipe=recipe_of(images), calibrate=True).tests == found.tests


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    tree = recipe.model_dump(mode="json")
    return parse_recipe({**tree, "train": {**tree["train"], "seed": seed}})


def test_queries_by_a_subnetwork_are_re_ranked_as_by_hand(images: Path) -> None:
    recipe = recipe_of(images)
    dataset = data.load_for(recipe)
    net = make_net(recipe, dataset)
    test: RetrievalTest = dataset.test
    gallery = embed_test(subnetwork(net, 1.0), test)[1]
    queries = embed_test(subnetwork(net, 0.3), test)[0]
    truth = test.truth()
    assert truth.leave_one_out
    found = truth.score(queries, gallery, functools.partial(k_reciprocal, k1=4, k2=2, share=0.3))
    distances = reference.k_reciprocal(queries, gallery, True, 4, 2, 0.3)
    aps = []
    for q, row in enumerate(distances):
        order = sorted(range(len(gallery)), key=lambda g, row=row: (row[g], g))  # type: ignore[misc]
        aps.append(reference.average_precision(order, truth.relevant[q].tolist(), [q], "step"))
    assert found["map"] == pytest.approx(reference.mean(aps), abs=1e-6)
    assert search(queries, gallery, 1)[0].shape == (len(queries), 1)
