"""`prunnet doctor data` prints what a copy holds, and of a broken one the reason in one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunnet import data
from prunnet.config.recipe import DataConfig
from prunnet.data import packed
from prunnet.errors import PrunnetError
from sweeps.cli import app
from tests.layouts import LAYOUTS, put


def doctor(name: str, root: Path, *more: str) -> tuple[int, str]:
    """Exit code and output."""
    result = CliRunner().invoke(app, ["doctor", "data", name, str(root), *more])
    if isinstance(result.exception, PrunnetError):  # the console script prints it as one line and exits with 2
        return 2, str(result.exception)
    return result.exit_code, result.output


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_it_prints_counts_protocol_and_differences_of_every_layout(tmp_path: Path, name: str) -> None:
    root = LAYOUTS[name](tmp_path)
    code, said = doctor(name, root)
    assert code == 0
    listing = data.whole(DataConfig(name=name, root=str(root)))
    for what, count in listing.counts().items():
        assert any(line.split()[:-1] == [*what.split(), f"{count:,}"] for line in said.splitlines()), what
    assert said.startswith(f"{name}: {data.DATASETS[name].about}")
    for split, test in listing.splits.items():
        assert f"{split}: protocol {test.protocol}" in said
    for note in listing.notes:
        assert f"note: {note}" in said


def test_what_data_sets_say_of_themselves_is_true_of_recipes() -> None:
    for name, described in data.DATASETS.items():
        assert described.about, name
        assert set(described.options) <= set(DataConfig.model_fields), name
    assert data.DATASETS["inshop"].options == ("boxes",)


def lose_list(root: Path) -> None:
    (root / "Eval" / "list_eval_partition.txt").unlink()


def lose_images(root: Path) -> None:
    (root / "Img").rename(root / "elsewhere")


def climb(root: Path) -> None:
    with (root / "Eval" / "list_eval_partition.txt").open("a") as file:
        file.write("../../secret.jpg id_1 train\n")


def empty_list(root: Path) -> None:
    (root / "Eval" / "list_eval_partition.txt").write_text("0\nimage_name item_id evaluation_status\n")


def binary_list(root: Path) -> None:
    (root / "Eval" / "list_eval_partition.txt").write_bytes(b"\xff\xfe\x00\x01" * 20)


def a_store_of_something_else(root: Path) -> None:
    packed.pack(data.whole(DataConfig(name="sop", root=str(LAYOUTS["sop"](root.parent / "sop")))), root / "store")
    for path in (root / "store").iterdir():
        path.rename(root / path.name)


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (lose_list, "'Eval/list_eval_partition.txt' is not in"),
        (lose_images, "none of the 31 train images is there"),
        (climb, "list_eval_partition.txt:49: path '../../secret.jpg' does not stay below the data set's root"),
        (empty_list, "inshop: the train part is empty"),
        (binary_list, "is not utf-8-sig text"),
        (a_store_of_something_else, "is a packed store of 'sop', not 'inshop'"),
    ],
)
def test_of_a_broken_copy_it_says_why(tmp_path: Path, breaks: Callable[[Path], None], says: str) -> None:
    root = LAYOUTS["inshop"](tmp_path / "inshop")
    breaks(root)
    code, said = doctor("inshop", root)
    assert code == 2, said
    assert says in said
    assert "\n" not in said.strip()


def test_a_hostile_pickle_is_a_reason_too(tmp_path: Path) -> None:
    root = LAYOUTS["roxford5k"](tmp_path)
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(print))
    code, said = doctor("roxford5k", root)
    assert (code, "refused: it names" in said) == (2, True)


def test_decode_opens_every_image_and_names_those_that_cannot_be_read(tmp_path: Path) -> None:
    root = LAYOUTS["cub200"](tmp_path)
    assert doctor("cub200", root, "--decode")[0] == 0
    victims = ["images/003.Bird_2/Bird_2_0001.jpg", "images/008.Bird_7/Bird_7_0003.jpg"]
    for victim in victims:
        (root / victim).write_bytes((root / victim).read_bytes()[:99])
    code, said = doctor("cub200", root, "--decode")
    assert code == 1
    assert all(f"image '{victim}' cannot be read" in said for victim in victims)
    assert "30 of 32 images can be decoded" in said


def test_an_unknown_name_and_a_rendered_set_are_named(tmp_path: Path) -> None:
    assert "unknown data.name 'inshopp'; did you mean 'inshop'" in doctor("inshopp", tmp_path)[1]
    put(tmp_path, "class0/a.jpg", 0, 0)
    assert "glyphs is rendered; it has no files" in doctor("glyphs", tmp_path)[1]
