"""The contact sheet: which queries it shows, what it says of them, and what happens where it cannot be made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import report
from analysis.frame import Frame
from prunnet.config.recipe import load_recipe
from prunnet.data.base import MemoryImages, RetrievalTest
from prunnet.errors import ResultsError
from prunnet.evaluation.found_images import sheet_of
from prunnet.results.sheet import Sheet, as_png
from sweeps.report_files import write_files
from tests.file_kinds import PREPROCESSING
from tests.test_report import small

CLASSES = ("ant", "<b>bee</b>", "cat", "dog")


def the_test(alone: bool = True) -> RetrievalTest:
    """Four classes of four images; without `alone` the same images are queries and, apart from them, gallery."""
    labels = np.repeat(np.arange(4), 4)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 1, 16, 16), dtype=np.uint8)
    images = MemoryImages(pixels, labels, PREPROCESSING)
    gallery = images if alone else MemoryImages(pixels.copy(), labels, PREPROCESSING)
    return RetrievalTest(images, gallery, alone, classes=CLASSES)


def right() -> np.ndarray:
    """Features that find every image's class."""
    return np.eye(4, dtype=np.float32)[np.repeat(np.arange(4), 4)]


def wrong_of(*queries: int) -> np.ndarray:
    """The same, but for some queries that look like the next class."""
    features = right()
    features[list(queries)] = np.roll(features[list(queries)], 1, axis=1)
    return features


def made(alone: bool = True, shown: int = 3, seed: int = 0) -> Sheet:
    return sheet_of(the_test(alone), {1.0: right(), 0.5: wrong_of(5, 9)}, right(), shown=shown, seed=seed)


@pytest.mark.parametrize("alone", [True, False])
def test_queries_that_capacities_disagree_on_come_first(alone: bool) -> None:
    sheet = made(alone)
    assert {asked.name for asked in sheet.queries[:2]} == {"<b>bee</b>", "cat"}
    assert sheet.capacities == (1.0, 0.5)
    for asked in sheet.queries[:2]:
        assert asked.found[0][0].hit
        assert not asked.found[1][0].hit
    assert all(row[0].hit for row in sheet.queries[2].found)


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_framed_as_a_hit_is_of_the_querys_class(alone: bool) -> None:
    for asked in made(alone, shown=16).queries:
        for found in (found for row in asked.found for found in row):
            assert found.hit == (found.name == asked.name)
            assert not alone or found.image != asked.image  # nothing finds itself


def test_the_seed_decides_which_queries_are_shown() -> None:
    assert made(seed=3) == made(seed=3)
    assert len({made(shown=8, seed=seed).queries for seed in range(3)}) > 1


def test_a_gallery_in_which_nothing_can_be_found_gives_no_sheet() -> None:
    test = the_test(alone=False)
    nothing = RetrievalTest(test.queries, test.gallery, False, lists={"relevant": [np.zeros(0, np.int64)] * 16})
    sheet = sheet_of(nothing, {1.0: right()}, right(), shown=3, seed=0)
    assert (sheet.queries, sheet.images) == ((), ())
    assert "has anything to find" in sheet.left_out


def page(sheet: Sheet | None) -> str:
    return report.render(Frame(small()), title="t", command="c", recipe="r", sheet=sheet)


def test_the_page_holds_each_thumbnail_once_and_no_markup_of_class_names() -> None:
    sheet = made()
    shown = page(sheet)
    assert shown.count("data:image/jpeg;base64,") == len(sheet.images)
    assert "<b>bee" not in shown
    assert "miss: " in shown
    assert "What each capacity finds" not in page(None)
    assert "No contact sheet: &lt;gone&gt;." in page(Sheet(left_out="<gone>"))


def test_a_file_that_is_torn_or_not_a_sheet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sheet.json"
    assert Sheet.load(path) is None
    made().save(path)
    assert Sheet.load(path) == made()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ResultsError, match="is torn; the job makes it anew"):
        Sheet.load(path)
    with pytest.raises(ValueError, match="pattern"):
        Sheet(images=('");}</style><script>',))
    with pytest.raises(ResultsError, match="an image that is none"):
        as_png(made().model_copy(update={"images": ("AAAA",) * len(made().images)}))


def test_the_picture_is_there_as_long_as_there_is_a_sheet(tmp_path: Path) -> None:
    told = {"title": "t", "command": "c", "recipe": "r"}
    write_files(tmp_path, Frame(small()), sheet=made(), **told)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    write_files(tmp_path, Frame(small()), **told)
    assert not (tmp_path / "sheet.png").exists()


def test_the_key_that_turns_it_off_changes_no_training() -> None:
    on, off = load_recipe(None), load_recipe(None, ["sweep.sheet=0"])
    assert on.training_hash() == off.training_hash()
