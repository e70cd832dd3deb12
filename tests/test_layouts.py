"""Every data set loads from its exact layout, dirty as copies are, and is trained on and tested under its protocol."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prunnet import data, results
from prunnet.config.recipe import DataConfig, Recipe, parse_recipe
from prunnet.config.trial import Trial
from prunnet.data import packed
from prunnet.data.base import Dataset, RetrievalTest
from prunnet.data.datasets import gldv2, reid
from prunnet.data.datasets.lists import Lists, whole_number
from prunnet.data.files import unreadable
from prunnet.data.sources.names import below
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError
from prunnet.experiments.trial import run_trial
from tests.conftest import GROCERY, needs_grocery
from tests.layouts import LAYOUTS, SIDE, put, text

TEST_ONLY = ("roxford5k", "rparis6k")
TRAINABLE = sorted(set(LAYOUTS) - set(TEST_ONLY))
REID_NAMES = (
    "{:04d}_c{}s1_000451_03.jpg",
    "{}_c{:03d}_00016450_0.jpg",
    "{:05d}_c{:02d}.png",
    "{:04d}_c{}_f0046182.jpg.jpg",
)
TINY = {"backbone": "resnet18", "embedding_dim": 16, "stem": "released", "options": {"channels": [8, 8, 16, 16]}}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Every fixture's counts differ from a whole copy's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def config(name: str, root: Path, **more: Any) -> DataConfig:
    return DataConfig(**{"name": name, "root": str(root), "image_size": 16, "resize": 18, "channels": 3, **more})


def recipe(name: str, root: Path, **sections: Any) -> Recipe:
    """A few steps of PrunNet on a data set; Revisited ones are tested with a network of another."""
    trained = name
    sweep: dict[str, Any] = {"capacities": [1.0, 0.4], "gallery": "dense", "calibration_images": 16}
    if name in TEST_ONLY:
        trained, tested = "inshop", root / name
        tested = tested if tested.exists() else LAYOUTS[name](tested)
        sweep = {**sweep, "dataset": name, "root": str(tested)}
    folder = root / trained
    train = {"capacities": [0.5], "epochs": 1, "batch_size": 8, "precision": "fp32", "lr": 0.02}
    return parse_recipe(
        {
            "name": name,
            "data": config(trained, folder if folder.exists() else LAYOUTS[trained](folder)).model_dump(),
            "model": TINY,
            "train": {**train, **sections.get("train", {})},
            "sweep": {**sweep, **sections.get("sweep", {})},
            "cluster": {"workers": 2, "actors": 1, "storage": str(root / "runs"), **sections.get("cluster", {})},
        }
    )


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layouts")
    for name, make in LAYOUTS.items():
        make(root / name)
    return root


def retrieval_test(name: str, found: Path, **more: Any) -> RetrievalTest:
    listed = data.read(config(name, found, **more))
    return data.listing.tests(listed, data.Preprocessing.from_config(config(name, found)))["test"]


def everything(loaded: Dataset) -> list[np.ndarray]:
    """All pixels and labels of a data set."""
    sets = [loaded.train, loaded.test.queries, loaded.test.gallery]
    return [a for s in sets for a in (s.read(np.arange(len(s))), s.labels)]


# --- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train", "classes", "queries", "gallery", "protocol"),
    [
        ("cifar100", 24, 4, 16, 16, "leave_one_out"),
        ("cub200", 16, 4, 16, 16, "leave_one_out"),
        ("gldv2", 36, 6, 3, 12, "gldv2"),
        ("grocery", 24, 4, 18, 18, "photos"),
        ("imagefolder", 24, 6, 8, 8, "leave_one_out"),
        ("inshop", 30, 6, 6, 9, "inshop"),
        ("market1501", 20, 5, 3, 15, "camera"),
        ("omniglot", 24, 6, 12, 12, "leave_one_out"),
        ("sop", 20, 5, 12, 12, "leave_one_out"),
        ("veri776", 20, 5, 3, 12, "camera"),
    ],
)
def test_each_layout_is_read(
    roots: Path, name: str, train: int, classes: int, queries: int, gallery: int, protocol: str
) -> None:
    loaded = data.load(config(name, roots / name))
    test = loaded.test
    assert (len(loaded.train), len(loaded.class_names)) == (train, classes)
    assert (len(test.queries), len(test.gallery), test.protocol_name) == (queries, gallery, protocol)
    assert sorted(np.unique(loaded.train.labels)) == list(range(classes))
    assert loaded.train.read(np.arange(3)).shape == (3, 3, 18, 18)
    assert test.queries.read(np.arange(2)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("name", TEST_ONLY)
def test_revisited_sets_hold_queries_and_a_gallery_only(roots: Path, name: str) -> None:
    test = retrieval_test(name, roots / name)
    assert (len(test.queries), len(test.gallery), test.protocol_name) == (3, 9, "revisited")
    assert [g.tolist() for g in test.relevant()] == [[0], [1, 4], []]
    assert [g.tolist() for g in test.junk() or []] == [[6], [7], []]
    with pytest.raises(DataError, match=f"{name} has no training images.*sweep.dataset={name}"):
        data.load(config(name, roots / name))


def test_no_two_landmarks_share_a_name_and_the_solution_decides_what_is_right(roots: Path) -> None:
    loaded = data.load(config("gldv2", roots / "gldv2"))
    assert [r.tolist() for r in loaded.test.relevant()] == [[2, 5, 8, 11], [0, 3, 6, 9], []]
    assert loaded.validation is not None
    assert [r.tolist() for r in loaded.validation.relevant()] == [[0, 3, 6, 9], [1, 4, 7, 10]]
    assert "1 row(s) without a file left out: train/f/f/f/fffffffffffffff0.jpg" in " ".join(loaded.notes)


def test_a_share_of_the_landmarks_is_drawn_from_the_seed(roots: Path) -> None:
    half, again, other = (
        data.load(config("gldv2", roots / "gldv2", train_fraction=0.5, seed=seed)) for seed in (0, 0, 1)
    )
    assert (len(half.class_names), len(half.train)) == (3, 18)
    assert half.class_names == again.class_names != other.class_names


def test_the_papers_share_of_landmarks_is_the_papers_number() -> None:
    assert int(0.3 * gldv2.EXPECTED["train classes"] + 1e-9) == 24_393


def test_own_camera_is_junk_and_other_cameras_are_right(roots: Path) -> None:
    for name in ("market1501", "veri776"):
        test = retrieval_test(name, roots / name)
        assert test.cameras is not None
        truth = test.truth()
        assert truth.junk is not None
        for query, (right, junk) in enumerate(zip(truth.relevant, truth.junk, strict=True)):
            assert len(right) == 4
            assert [test.cameras[1][j] for j in junk] == [test.cameras[0][query]]
            assert set(junk) < set(right)  # what is in both is junk


def test_market_keeps_distractors_and_drops_junk(roots: Path) -> None:
    names = data.read(config("market1501", roots / "market1501"))
    gallery = names.splits["test"].gallery
    assert gallery is not None
    found = [names.files.name(int(row)) for row in gallery.rows]
    assert sum("/0000_" in name for name in found) == 3
    assert not any("/-1_" in name for name in found)


@given(st.lists(st.tuples(st.integers(-1, 10**12), st.integers(0, 10**6)), min_size=1), st.sampled_from(REID_NAMES))
def test_identity_and_camera_come_back_whatever_their_length(pairs: list[tuple[int, int]], form: str) -> None:
    """Issue 15, number 9: camera 10 was read as 1."""
    names = [f"folder_c9/{form.format(*pair)}" for pair in pairs]
    identities, cameras = reid.parsed(names, "example")
    assert list(zip(identities.tolist(), cameras.tolist(), strict=True)) == pairs


@pytest.mark.parametrize(
    "name", ["0001_c1a_1.jpg", "0001_1.jpg", "x0001_c1.jpg", "0001_c1x.jpg", "0001_c1s.jpg", "1_c\u0663_1.jpg"]
)
def test_names_of_another_form_are_refused(name: str) -> None:
    """Issue 15, number 9."""
    with pytest.raises(DataError, match="does not say identity and camera"):
        reid.parsed([name], "example")


def test_market_style_sets_of_more_cameras_and_longer_identities_are_told_apart(tmp_path: Path) -> None:
    """Issue 15, number 9: with camera 10 read as 1 every positive became junk; identity -10 was taken for -1."""
    for part in ("bounding_box_train", "bounding_box_test", "query"):
        for who in (1, 10, 100):
            for camera in (1, 10, 12) if part == "bounding_box_test" else (1,):
                put(tmp_path, f"{part}/{who:04d}_c{camera}s{camera}_000451_03.jpg", who, camera)
    for who in ("-1", "-10"):
        put(tmp_path, f"bounding_box_test/{who}_c1s1_000451_03.jpg", 3, 3)
    test = retrieval_test("market1501", tmp_path)
    truth = test.truth()
    assert truth.junk is not None
    for right, junk in zip(truth.relevant, truth.junk, strict=True):
        assert (len(right), len(junk)) == (3, 1)
    listed = data.whole(config("market1501", tmp_path))
    assert listed.counts()["gallery with the -1"] == 11
    assert len(test.gallery) == 10


def test_cameras_of_the_xml_are_compared_as_numbers(tmp_path: Path) -> None:
    """Issue 15, number 9: cameraID cam1 was a traceback, c0010 the same as c10."""
    root = LAYOUTS["veri776"](tmp_path)
    label = root / "train_label.xml"
    whole = label.read_bytes()
    label.write_bytes(whole.replace(b'cameraID="c001"', b'cameraID="c0010"'))
    assert "5 image(s) with another label" in " ".join(data.whole(config("veri776", root)).notes)
    label.write_bytes(whole.replace(b'cameraID="c001"', b'cameraID="cc1"'))
    with pytest.raises(
        DataError, match=r"train_label.xml is torn or has another form .*cameraID 'cc1'; valid: such as"
    ):
        data.whole(config("veri776", root))


def test_what_a_list_holds_comes_back_blank_by_blank(tmp_path: Path) -> None:
    """Issue 15, number 9: names were cut at every blank of Unicode and lines at form feeds and the like."""
    names = ["a\u3000b.jpg", "\u00a0c.jpg", "d\u2028e.jpg", "f\x85g.jpg", os.fsdecode(b"h\xe9.jpg"), "10.jpg", "1.jpg"]
    content = "".join(f"{number} {name}  \r\n" for number, name in enumerate(names)).encode("utf-8", "surrogateescape")
    (tmp_path / "list.txt").write_bytes(content)
    lists = Lists(open_root(str(tmp_path), ""), "")
    assert [below(name, where) for where, (_, name) in lists.columns("list.txt", count=2)] == names


def test_numbers_of_lists_are_whole_and_plain() -> None:
    """Issue 15, number 9: 1_0 was read as 10."""
    assert [whole_number(text, "x") for text in ("1", "10", "-1", "007")] == [1, 10, -1, 7]
    for wrong in ("1_0", "1.5", "\u0661", "", "1" * 19, "0x1", "1" * 5000):
        with pytest.raises(DataError, match="is not a whole number") as caught:
            whole_number(wrong, "x")
        assert len(str(caught.value)) < 120


def test_a_landmark_of_many_images_is_one_row(tmp_path: Path) -> None:
    """A field of 170 KB: more than Python's csv takes by itself."""
    root = LAYOUTS["gldv2"](tmp_path)
    with (root / "train_clean.csv").open("a") as file:
        file.write(f"7,{' '.join(f'{number:016x}' for number in range(10_000))}\n")
    assert any(note.startswith("10,001 row(s) without a file") for note in data.whole(config("gldv2", root)).notes)


@pytest.mark.parametrize(("protocol", "gallery"), [("catalogue", 4), ("catalogue_all", 7)])
def test_photographs_search_the_catalogue(roots: Path, tmp_path: Path, protocol: str, gallery: int) -> None:
    """Also from a store, which is packed before classes are held out, and after a training under another protocol."""
    store = packed.pack(data.whole(config("grocery", roots / "grocery")), tmp_path / "store")
    for root in (roots / "grocery", store):
        loaded = data.load(config("grocery", root, protocol=protocol, seed=1))
        test = loaded.test
        assert (len(test.queries), len(test.gallery), test.protocol_name) == (24, gallery, protocol)
        assert len(loaded.class_names) == 3
        assert all(len(right) == 1 for right in test.relevant())
    plain = parse_recipe({"data": config("grocery", store, seed=1).model_dump()})
    swept = plain.model_copy(update={"sweep": plain.sweep.model_copy(update={"protocol": protocol})})
    assert data.load_for(swept).test.fingerprint() == test.held().fingerprint()
    assert swept.training_hash() == plain.training_hash()


def test_no_sibling_of_a_tested_product_is_trained_on(roots: Path) -> None:
    """Whole coarse classes are held out, by the seed, from all three lists alike."""
    tested = set()
    for seed in range(4):
        listed = data.read(config("grocery", roots / "grocery", seed=seed, validation_fraction=0.0))
        assert listed.train is not None
        seen, unseen = (
            {listed.classes[int(label)].partition("/")[0] for label in part.labels}
            for part in (listed.train, listed.splits["test"].queries)
        )
        assert not seen & unseen
        assert (len(seen), len(unseen)) == (3, 3)
        folders = {listed.files.name(int(row)).partition("/")[0] for row in listed.train.rows}
        assert folders == {"train", "val", "test"}
        tested.add(tuple(sorted(unseen)))
    assert len(tested) > 1


def test_a_share_of_the_coarse_classes_is_for_validation(tmp_path: Path) -> None:
    root = LAYOUTS["grocery"](tmp_path)
    with pytest.raises(DataError, match="validation_fraction=0.5 leaves fewer than two of 3 coarse classes"):
        data.read(config("grocery", root, validation_fraction=0.5))


def test_a_catalogue_is_refused_where_there_is_none(roots: Path) -> None:
    with pytest.raises(DataError, match="sop has no protocol 'catalogue'; valid: leave_one_out, query_gallery"):
        data.load(config("sop", roots / "sop", protocol="catalogue"))


@needs_grocery
def test_the_whole_grocery_store_is_there() -> None:
    asked = config("grocery", GROCERY, validation_fraction=0.2)
    whole = data.whole(asked)
    assert (whole.notes, len(whole.files)) == ((), 5421 + 81)
    listed = data.read(asked)
    assert listed.train is not None
    parts = {"train": listed.train, **{name: split.queries for name, split in listed.splits.items()}}
    coarse = {
        name: {listed.classes[int(label)].partition("/")[0] for label in part.labels} for name, part in parts.items()
    }
    assert {name: len(found) for name, found in coarse.items()} == {"train": 18, "test": 21, "validation": 4}
    assert len(set.union(*coarse.values())) == 43
    assert sum(len(part) for part in parts.values()) == 5421
    test = data.listing.tests(listed, data.Preprocessing.from_config(asked))["test"]
    assert test.queries.read(np.array([0])).shape == (1, 3, 16, 16)


def test_inshop_is_cut_to_its_boxes_when_asked(roots: Path) -> None:
    plain, boxed = (data.load(config("inshop", roots / "inshop", boxes=b)) for b in (False, True))
    assert not np.array_equal(plain.train.read(np.arange(4)), boxed.train.read(np.arange(4)))
    boxes = data.read(config("inshop", roots / "inshop", boxes=True)).train.boxes  # type: ignore[union-attr]
    assert boxes is not None
    assert boxes[0].tolist() == [3, 2, 20, 21]


def test_revisited_queries_are_cut_to_their_boxes_before_they_are_resized(roots: Path) -> None:
    root = roots / "roxford5k"
    test = retrieval_test("roxford5k", root)
    with Image.open(root / "jpg" / "query_000000.jpg") as image:
        cut = image.convert("RGB").crop((2, 2, 20, 21))
    assert np.array_equal(test.queries.read(np.array([0]))[0], test.queries.preprocessing.pixels(cut))


def test_a_short_veri_list_is_named_and_the_xml_compared(tmp_path: Path) -> None:
    root = LAYOUTS["veri776"](tmp_path)
    names = (root / "name_train.txt").read_text().split()
    text(root, "name_train.txt", names[:-2])
    notes = " ".join(data.whole(config("veri776", root)).notes)
    assert "name_train.txt has 18 rows, train_label.xml 20; 2 are in one only" in notes
    xml = (root / "train_label.xml").read_bytes().replace(b'vehicleID="0001"', b'vehicleID="0007"')
    (root / "train_label.xml").write_bytes(xml)
    assert "4 image(s) with another label" in " ".join(data.whole(config("veri776", root)).notes)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_other_counts_than_published_are_a_note(roots: Path, name: str) -> None:
    listed = data.whole(config(name, roots / name))
    for what, count in listed.expected.items():
        assert any(f"{what} " in note and f"{count:,} expected" in note for note in listed.notes), what


@pytest.mark.parametrize("name", ["grocery", "inshop", "sop", "veri776"])
def test_a_zip_reads_like_its_folder(roots: Path, tmp_path: Path, name: str) -> None:
    shutil.make_archive(str(tmp_path / name), "zip", roots / name)
    folder, zipped = (data.load(config(name, r)) for r in (roots / name, tmp_path / f"{name}.zip"))
    assert all(np.array_equal(a, b) for a, b in zip(everything(folder), everything(zipped), strict=True))


def test_classes_of_a_benchmark_are_held_out_for_validation_only_when_asked(roots: Path) -> None:
    assert data.load(config("sop", roots / "sop")).validation is None
    loaded = data.load(config("sop", roots / "sop", validation_fraction=0.4))
    assert loaded.validation is not None
    assert (len(loaded.class_names), len(loaded.validation.queries), len(loaded.test.queries)) == (3, 8, 12)


def test_every_kind_of_image_is_upright_and_of_eight_bits(tmp_path: Path) -> None:
    pixels = {}
    for number, kind in enumerate(("RGB", "L", "CMYK", "P", "I;16", "rotated")):
        put(tmp_path, f"class0/{kind.replace(';', '')}.jpg", 0, number)
    put(tmp_path, "class1/0.jpg", 1, 0)
    for name in data.whole(config("imagefolder", tmp_path)).files.names.to_pylist():  # type: ignore[attr-defined]
        one = data.files.decoded((tmp_path / name).read_bytes(), name)
        pixels[name] = np.asarray(one.convert("L"), dtype=float)
        assert one.mode in ("L", "RGB")
        assert one.size == (SIDE, SIDE)
    contrast = {name: values.std() for name, values in pixels.items()}
    assert min(contrast.values()) > 40, contrast  # sixteen bits cut off at 255 would be all white
    upright, turned = pixels["class0/RGB.jpg"], pixels["class0/rotated.jpg"]
    assert upright.std(axis=0).mean() < upright.std(axis=1).mean()  # stripes go down …
    assert turned.std(axis=0).mean() > turned.std(axis=1).mean()  # … and lie, once EXIF is heeded


# --- trained on and tested ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_each_data_set_is_trained_on_and_tested_under_its_protocol(roots: Path, tmp_path: Path, name: str) -> None:
    wanted = recipe(name, roots)
    run_trial(Trial(name, wanted), tmp_path)
    rows = results.read(tmp_path / "results").to_pylist()
    check_rows(name, rows)


def check_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """What the results table must say of a data set's tests."""
    assert len(rows) == 3  # 1.0 and 0.4 against the dense gallery, and 0.4 against itself
    further = {"inshop": "recall_at_50", "sop": "recall_at_1000", "cub200": "recall_at_8", "market1501": "recall_at_20"}
    for row in rows:
        assert row["dataset"] == name
        assert 0 <= row["map"] <= 1
        assert row["protocol"]
        if name in TEST_ONLY:
            assert row["map"] == row["map_medium"]
            assert None not in (row["map_easy"], row["map_hard"])
            assert "mp_at_10_hard" in row["further_json"]
        if name in further:
            assert further[name] in row["further_json"]
        if name == "gldv2":
            assert row["queries_without_positive"] == 1


@pytest.mark.parametrize("change", [{"long_side": 20}, {"long_side": 20, "scales": [1.0, 0.7071, 1.4142]}])
def test_whole_images_are_embedded_one_by_one(roots: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    plain, whole = recipe("roxford5k", roots), recipe("roxford5k", roots, sweep=change)
    test = data.load_for(whole).test
    assert max(test.gallery.read(np.array([0])).shape[-2:]) == 20
    for number, wanted in enumerate((plain, whole)):
        run_trial(Trial(f"t{number}", wanted), tmp_path)
    rows = results.read(tmp_path / "results").to_pylist()
    assert len({row["preprocessing_sha"] for row in rows}) == 2
    assert len({row["query_weights_sha"] for row in rows}) == 1  # one training serves both tests


# --- packed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_packed_store_reads_like_the_folder(roots: Path, tmp_path: Path, name: str) -> None:
    more = {"boxes": True} if name == "inshop" else {}
    packed.pack(data.whole(config(name, roots / name, **more)), tmp_path / "store")
    assert packed.verify(tmp_path / "store") == []
    if name in TEST_ONLY:
        folder, store = (retrieval_test(name, r) for r in (roots / name, tmp_path / "store"))
        for a, b in zip((folder.queries, folder.gallery), (store.queries, store.gallery), strict=True):
            assert np.array_equal(a.read(np.arange(len(a))), b.read(np.arange(len(b))))
        truths = (folder.truth(), store.truth())
    else:
        loads = [data.load(config(name, r, **more)) for r in (roots / name, tmp_path / "store")]
        for a, b in zip(*map(everything, loads), strict=True):
            assert np.array_equal(a, b)
        assert loads[0].class_names == loads[1].class_names
        truths = (loads[0].test.truth(), loads[1].test.truth())
    for one, other in zip(truths[0].relevant, truths[1].relevant, strict=True):
        assert np.array_equal(one, other)


# --- what is wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lost", "says"),
    [
        ("grocery", "val.txt", "'val.txt' is not in .*can be had from"),
        ("gldv2", "train_clean.csv", "'train_clean.csv' is not in .*can be had from"),
        ("roxford5k", "gnd_roxford5k.pkl", "'gnd_roxford5k.pkl' is not in"),
        ("inshop", "Eval/list_eval_partition.txt", "'Eval/list_eval_partition.txt' is not in"),
        ("veri776", "name_query.txt", "'name_query.txt' is not in"),
        ("market1501", "query", "'query' is not in .* or holds no image"),
        ("sop", "Ebay_test.txt", "'Ebay_test.txt' is not in"),
        ("cub200", "classes.txt", "'classes.txt' is not in"),
        ("cifar100", "cifar-100-python/meta", "'cifar-100-python/meta' is not in"),
        ("omniglot", "omniglot-py/images_evaluation", "images_evaluation' is not in"),
        ("inshop", "Img", "none of the 31 train images is there"),
    ],
)
def test_a_missing_list_is_named_with_where_to_get_it(tmp_path: Path, name: str, lost: str, says: str) -> None:
    root = LAYOUTS[name](tmp_path / name)
    path = root / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=says) as caught:
        data.read(config(name, root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "line", "says"),
    [
        ("inshop", "Eval/list_eval_partition.txt", "img/a.jpg id_1 training", ":49: evaluation_status 'training'"),
        ("inshop", "Eval/list_eval_partition.txt", "img/a.jpg id_1", ":49: .* has 2 fields; valid: 3"),
        ("sop", "Ebay_train.txt", "1 2 3", ":22: '1 2 3' has 3 fields; valid: 4"),
        ("cub200", "image_class_labels.txt", "99 1", ":33: image 99 is not in images.txt"),
        ("cub200", "image_class_labels.txt", "1 x", ":33: 'x' is not a whole number"),
        ("grocery", "val.txt", "val/a.jpg, 0", "val.txt:15: 'val/a.jpg, 0' has 2 fields; valid: path, class, coarse"),
        ("grocery", "val.txt", "val/a.jpg, x, 0", "val.txt:15: 'x' is not a whole number"),
        ("grocery", "test.txt", "test/a.jpg, 99, 0", "test.txt:15: class 99 is not in classes.csv"),
        ("grocery", "test.txt", "test/a.jpg, 0, 5", "test.txt:15: coarse class 5 of class 0; classes.csv says 0"),
        ("grocery", "train.txt", "/etc/passwd, 0, 0", "train.txt:15: .* does not stay below"),
        ("grocery", "classes.csv", "P0,0,Apple,0,/a.jpg,/a.txt", "classes.csv:9: class 0 is there twice"),
        ("grocery", "classes.csv", "P9,9,Pear,0,/a.jpg,/a.txt", "classes.csv:9: coarse class 0 is 'Pear' here"),
        ("grocery", "classes.csv", "P9,9,Pear,9,//etc/passwd,/a.txt", "classes.csv:9: .* does not stay below"),
        ("grocery", "classes.csv", "P9,9", "classes.csv:9: 2 fields; valid: 6"),
        ("veri776", "name_train.txt", "vehicle.jpg", "image name 'vehicle.jpg' does not say identity and camera"),
        ("gldv2", "retrieval_solution_v2.1.csv", "nobody,None,Private", "query 'nobody' is not in test.csv"),
        ("gldv2", "retrieval_solution_v2.1.csv", "q0d,None,Secret", "Usage 'Secret'; valid: Public, Private, Ignored"),
        ("gldv2", "train_clean.csv", "5", ": 1 fields; valid: 2"),
        ("inshop", "Eval/list_eval_partition.txt", "../../../etc/passwd id_1 train", "does not stay below"),
        ("sop", "Ebay_test.txt", "1 2 3 /etc/passwd", "does not stay below"),
        ("cub200", "images.txt", "1 ..\\..\\secret.jpg", "does not stay below"),
        ("veri776", "name_test.txt", "../0001_c001_x.jpg", "does not stay below"),
        ("gldv2", "index.csv", "../../../../secret", "does not stay below"),
    ],
)
def test_a_broken_row_is_named_with_its_line(tmp_path: Path, name: str, file: str, line: str, says: str) -> None:
    root = LAYOUTS[name](tmp_path / name)
    with (root / file).open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(DataError, match=says) as caught:
        data.read(config(name, root))
    assert "\n" not in str(caught.value)


def test_unreadable_images_are_left_out_of_lists_that_count_positions(tmp_path: Path) -> None:
    root = LAYOUTS["gldv2"](tmp_path)
    before = data.load(config("gldv2", root)).test
    victim = data.read(config("gldv2", root)).splits["test"].gallery.rows[2]  # type: ignore[union-attr]
    name = data.read(config("gldv2", root)).files.name(int(victim))
    (root / name).write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cannot be read.*skip_unreadable"):
        data.load(config("gldv2", root)).test.held()
    after = data.load(config("gldv2", root, skip_unreadable=True)).test.held()
    assert len(after.gallery) == len(before.gallery) - 1
    assert [r.tolist() for r in after.relevant()] == [[4, 7, 10], [0, 2, 5, 8], []]
    pixels = after.gallery.read(np.arange(11))
    assert np.array_equal(pixels, before.gallery.read(np.array([0, 1, *range(3, 12)])))


def test_each_image_is_opened_once_when_asked(roots: Path, tmp_path: Path) -> None:
    root = LAYOUTS["sop"](tmp_path)
    (root / "bicycle_final" / "111085121_2.JPG").write_bytes(b"torn")
    listed = data.whole(config("sop", root))
    opened: list[int] = []
    found = unreadable(listed.files, listed.used_rows(), opened.append)
    assert sum(opened) == 32
    assert [listed.files.name(row) for row in found] == ["bicycle_final/111085121_2.JPG"]


def test_held_out_classes_of_a_folder_are_the_same_from_a_store(roots: Path, tmp_path: Path) -> None:
    packed.pack(data.whole(config("imagefolder", roots / "imagefolder")), tmp_path / "store")
    for root in (roots / "imagefolder", tmp_path / "store"):
        listed = data.read(config("imagefolder", root, test=("class3", "class5")))
        labels = np.unique(listed.splits["test"].queries.labels)
        assert [listed.classes[int(label)] for label in labels] == ["class3", "class5"]
