"""Data sets hold out whole classes, are the same for the same seed, and name what is wrong with them."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunnet import data
from prunnet.config.recipe import DataConfig
from prunnet.data import files
from prunnet.data.base import Dataset, split_queries
from prunnet.data.datasets import glyphs
from prunnet.errors import DataError
from prunnet.storage import hashing
from tests.conftest import OMNIGLOT, image_folder, needs_omniglot

SMALL = DataConfig(classes=20, images_per_class=2, image_size=16)
STANDING_SPLIT = DataConfig(
    name="imagefolder",
    root=str(OMNIGLOT),
    holdout="top_folder",
    test=("Burmese_(Myanmar)", "Grantha", "Gujarati", "Korean", "N_Ko", "Tifinagh"),
    validation=("Armenian", "Balinese", "Futurama", "Sanskrit"),
    image_size=16,
    invert=True,
)


def folder_config(root: Path, **more: object) -> DataConfig:
    return DataConfig(**{"name": "imagefolder", "root": str(root), "image_size": 16, **more})  # type: ignore[arg-type]


# --- glyphs ------------------------------------------------------------------------------------------------


def test_glyph_scripts_are_disjoint_and_hundreds_of_classes_remain() -> None:
    by_split = glyphs.classes_by_split()
    assert len(by_split["train"]) > 500
    assert len(by_split["test"]) > 250
    assert len(by_split["validation"]) > 100
    scripts = {split: {name.partition("/")[0] for name in names} for split, names in by_split.items()}
    assert not scripts["train"] & scripts["test"]
    assert not scripts["train"] & scripts["validation"]
    assert not scripts["test"] & scripts["validation"]


def test_held_out_scripts_keep_no_outline_that_training_has() -> None:
    def outlines(wanted: tuple[str, ...]) -> set[bytes]:
        return {glyphs._outline(master) for glyph in glyphs.glyphs(wanted) for master in glyph.masters}

    trained = outlines(glyphs.TRAIN_SCRIPTS)
    assert not trained & outlines(glyphs.TEST_SCRIPTS)
    assert not trained & outlines(glyphs.VALIDATION_SCRIPTS)


def test_code_points_that_share_an_outline_are_one_class() -> None:
    names = set(glyphs.classes_by_split()["train"])
    assert "Latn/000041" in names  # Latin A stands for Greek Alpha and Cyrillic A too
    assert not names & {"Grek/000391", "Cyrl/000410"}


def test_no_outline_belongs_to_two_classes() -> None:
    scripts = (*glyphs.TRAIN_SCRIPTS, *glyphs.VALIDATION_SCRIPTS, *glyphs.TEST_SCRIPTS)
    owner: dict[bytes, int] = {}
    for glyph in glyphs.glyphs(scripts):
        for master in glyph.masters:
            assert owner.setdefault(glyphs._outline(master), glyph.code) == glyph.code
    assert len(owner) > 5000


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again, other = (data.load(config) for config in (SMALL, SMALL, SMALL.model_copy(update={"seed": 1})))
    assert first.test.fingerprint() == again.test.fingerprint()
    assert np.array_equal(pixels(first), pixels(again))
    assert first.test.fingerprint() != other.test.fingerprint()


def test_the_bytes_are_those_of_the_pinned_fonts_and_rasteriser() -> None:
    found = hashing.of_arrays({"train": pixels(data.load(SMALL))})
    assert found.startswith(GOLDEN), f"pixels changed: {found[:16]}; raise METHOD_VERSION if that is meant"


GOLDEN = "c78bf5490a780f78"


def pixels(dataset: Dataset) -> np.ndarray:
    return dataset.train.read(np.arange(len(dataset.train)))


def test_another_font_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(glyphs.FONTS, "DejaVuSans.ttf", "0" * 64)
    with pytest.raises(DataError, match=r"font DejaVuSans.ttf .* is not the one"):
        glyphs._font_files()


# --- image folders -----------------------------------------------------------------------------------------


def test_classes_are_held_out_whole(tmp_path: Path) -> None:
    loaded = data.load(folder_config(image_folder(tmp_path, classes=10), test_fraction=0.3, validation_fraction=0.2))
    assert (len(loaded.class_names), len(np.unique(loaded.test.queries.labels))) == (5, 3)
    assert loaded.validation is not None
    assert len(np.unique(loaded.validation.queries.labels)) == 2
    assert len(loaded.train) == 30


def test_top_folders_are_held_out_by_name(tmp_path: Path) -> None:
    loaded = data.load(folder_config(image_folder(tmp_path, classes=6, top=3), holdout="top_folder", test=("top1",)))
    assert set(loaded.class_names).isdisjoint({"top1/class1", "top1/class4"})
    assert len(loaded.test.queries) == 12


def test_classes_are_held_out_by_a_list(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", classes=6)
    listed = tmp_path / "test.txt"
    listed.write_text("\ufefftop0/class1\r\nclass3 \n\n", encoding="utf-8")
    loaded = data.load(folder_config(root, holdout="list", test=(str(listed),), validation_fraction=0))
    assert loaded.class_names == ("top0/class0", "top0/class2", "top0/class4", "top0/class5")
    assert loaded.validation is None
    with pytest.raises(DataError, match="has no validation classes"):
        loaded.split("validation")


def test_leave_one_out_and_query_gallery_name_the_relevant(tmp_path: Path) -> None:
    root = image_folder(tmp_path, classes=6, per_class=4)
    alone = data.load(folder_config(root)).test
    assert all(len(r) == 3 and q not in r for q, r in enumerate(alone.relevant()))
    assert [j.tolist() for j in alone.junk() or []] == [[q] for q in range(len(alone.queries))]
    parted = data.load(folder_config(root, protocol="query_gallery", queries_per_class=1)).test
    assert parted.junk() is None
    for query, relevant in zip(parted.queries.labels, parted.relevant(), strict=True):
        assert len(relevant) == 3
        assert (parted.gallery.labels[relevant] == query).all()


def test_queries_are_drawn_from_every_class() -> None:
    labels = np.repeat(np.arange(5), 4)
    queries, gallery = split_queries(labels, 2, seed=0)
    assert np.bincount(labels[queries]).tolist() == [2] * 5
    assert sorted([*queries, *gallery]) == list(range(20))


def test_a_zip_reads_like_the_folder(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
    folder, zipped = (data.load(folder_config(r)) for r in (root, tmp_path / "images.zip"))
    assert np.array_equal(pixels(folder), pixels(zipped))
    assert folder.test.fingerprint() == zipped.test.fingerprint()


@pytest.mark.parametrize("zipped", [False, True])
def test_sets_too_large_for_memory_are_read_as_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    root = image_folder(tmp_path / "images")
    if zipped:
        shutil.make_archive(str(tmp_path / "images"), "zip", root)
        root = tmp_path / "images.zip"
    held = data.load(folder_config(root))
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    lazy = data.load(folder_config(root))
    assert isinstance(lazy.train, files.ImageFiles)
    assert np.array_equal(pixels(lazy), pixels(held))
    assert np.array_equal(lazy.train.labels, held.train.labels)


def test_images_of_any_kind_become_one_size_and_mode(tmp_path: Path) -> None:
    root = image_folder(tmp_path, classes=4)
    for index, mode in enumerate(("RGB", "CMYK", "P", "1", "LA", "I;16")):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (40, 11 + index)).save(root / "top0" / "class0" / f"odd{index}.{suffix}")
    loaded = data.load(folder_config(root, channels=3, test=("class1", "class2"), validation_fraction=0))
    assert pixels(loaded).shape == (18, 3, 16, 16)


def test_unreadable_images_stop_the_load_or_are_left_out_when_asked(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    victim = root / "top0" / "class0" / "0.png"
    victim.write_bytes(victim.read_bytes()[:30])
    with pytest.raises(DataError, match=r"class0/0.png.*cannot be read.*skip_unreadable"):
        data.load(folder_config(root))
    with pytest.warns(UserWarning, match=r"1 unreadable image\(s\) left out: top0/class0/0.png"):
        loaded = data.load(folder_config(root, skip_unreadable=True))
    assert loaded.validation is None  # a tenth of six classes is too few for a test
    assert len(loaded.train) + len(loaded.test.queries) == 35


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"root": None}, "data.root is not set"),
        ({"root": "/nowhere/at/all"}, "neither a folder nor a .zip"),
        ({"name": "imagenet"}, "unknown data.name 'imagenet'"),
        ({"test": ("class9",)}, "unknown hold-out class 'class9'"),
        ({"test": ("class1",), "validation": ("class1",)}, "at once"),
        ({"test": ("class1",)}, r"test part .* 1 class\(es\)"),
        ({"test_fraction": 0.0, "validation_fraction": 0.0}, "leaves no test classes"),
        ({"holdout": "list", "test": ("absent.txt",)}, "list 'absent.txt' cannot be read"),
        ({"protocol": "query_gallery", "queries_per_class": 6}, "leaves no gallery"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict[str, object], says: str) -> None:
    root = image_folder(tmp_path)
    with pytest.raises(DataError, match=says) as caught:
        data.load(folder_config(root).model_copy(update=change))
    assert "\n" not in str(caught.value)


def test_folders_without_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 0 images"):
        data.load(folder_config(tmp_path))
    Image.new("L", (8, 8)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match="holds 1 images and none in a class folder"):
        data.load(folder_config(tmp_path))
    image_folder(tmp_path, classes=1)
    with pytest.raises(DataError, match="at least 2"):
        data.load(folder_config(tmp_path))


@needs_omniglot
def test_omniglots_standing_split() -> None:
    loaded = data.load(STANDING_SPLIT)
    assert (len(loaded.class_names), len(loaded.train)) == (578, 11560)
    assert (len(np.unique(loaded.test.queries.labels)), len(loaded.test.queries)) == (253, 5060)
    assert loaded.validation is not None
    assert len(np.unique(loaded.validation.queries.labels)) == 133


def test_colour_glyphs_are_in_colour_over_textures_and_seeded() -> None:
    config = DataConfig(name="colour_glyphs", channels=3, image_size=48, classes=5, images_per_class=4)
    first, second = data.load(config), data.load(config)
    other = data.load(config.model_copy(update={"seed": 1}))
    pixels = first.train.read(np.arange(20))
    assert pixels.shape == (20, 3, 48, 48)
    assert np.array_equal(pixels, second.train.read(np.arange(20)))
    assert first.test.fingerprint() == second.test.fingerprint() != other.test.fingerprint()
    spread = pixels.astype(float).std(axis=1).mean()  # over the channels: grey images have none
    assert spread > 10
    backgrounds = {tuple(image[:, 0, 0] // 32) for image in pixels}
    assert len(backgrounds) > 5
    with pytest.raises(DataError, match="valid: 3"):
        data.load(config.model_copy(update={"channels": 1}))
