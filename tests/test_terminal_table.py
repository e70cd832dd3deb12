"""Tables on terminals of any width."""

from __future__ import annotations

import io
import re

import pytest

from analysis import tables
from sweeps.printing import Console
from sweeps.terminal_table import print_table
from tests.test_analysis import frame


def printed(width: int, *arguments: object, terminal: bool = True, **more: object) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    print_table(console, *arguments, **more)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 200])
def test_a_narrow_terminal_shows_whole_numbers_of_the_columns_that_matter(width: int) -> None:
    """Issue 15, number 19: at 40 columns no number of a sweep's table could be read."""
    lines, head = tables.capacity_table(frame()), tables.head(frame())
    drop = [title for title in tables.less_important(frame()) if title in head]
    text = printed(width, head, lines, drop=drop, title="job: 9 tests")
    _, titles, *rows = text.splitlines()[:5]
    kept = [at for at, title in enumerate(head) if title in re.split(r" {2,}", titles.strip())]
    left_out = [title for at, title in enumerate(head) if at not in kept]
    assert [re.split(r" {2,}", row.strip()) for row in rows] == [[line[at] for at in kept] for line in lines]
    assert {"capacity", "cross mAP"}.isdisjoint(left_out)
    assert width == 20 or all(len(row) <= width for row in (titles, *rows))  # 20 are too few for those two
    assert set(left_out) == set(drop[: len(left_out)])
    said = f"{width} columns are too few for: {', '.join(left_out)}"
    assert (said in " ".join(text.split())) == bool(left_out)
    assert (width == 200) == (not left_out)


def test_names_are_folded_before_a_number_is_lost() -> None:
    """Issue 15, number 19: whatever is in a name, markup too."""
    lines = [("shoes/[blue]/a-very-long-name-of-an-image.png", 1, "0.9876"), ("b", 2, "0.1234")]
    text = printed(36, ("image", "rank", "similarity"), lines, drop=("rank",), names=("image",))
    assert "0.9876" in text
    assert "rank" in text
    assert "".join(line[1:17].strip() for line in text.splitlines()[1:-1]) == lines[0][0]


def test_a_pipe_gets_every_column_whole() -> None:
    """Issue 15, number 19: there is no width to keep to."""
    text = printed(40, tables.head(frame()), tables.capacity_table(frame()), drop=("trained",), terminal=False)
    assert text.splitlines()[0].split() == " ".join(tables.head(frame())).split()
    assert all(cell in text for line in tables.capacity_table(frame()) for cell in line)
