"""Tables on a terminal of any width: columns are left out, and no digit is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.text import Text

from prunnet.errors import printable
from sweeps.printing import Console, Table

_GAP = 2
"""Blanks that Rich puts around each column."""
_NAME = 14
"""Cells that are left to a column of names, which are folded, before another column is left out."""


def print_table(
    console: Console,
    head: Sequence[str],
    lines: Iterable[Sequence[object]],
    *,
    drop: Sequence[str] = (),
    names: Sequence[str] = (),
    title: str | None = None,
) -> None:
    """Prints a table. Where a terminal is too narrow, columns are left out and named below; a file or a pipe gets all
    of them, a line a row, with tabs between the cells.

    Args:
        drop: titles of columns that may be left out, the least important first.
        names: titles of columns that hold names: they may be folded.
    """
    rows = [tuple(printable(str(cell)) for cell in line) for line in lines]
    needs = {
        title: max([cell_len(part) for part in [title, *(row[at] for row in rows)]]) + _GAP
        for at, title in enumerate(head)
    }
    needs |= {title: min(needs[title], _NAME + _GAP) for title in names}
    left_out: list[str] = []
    for candidate in drop if console.is_terminal else ():
        if sum(needs[title] for title in head if title not in left_out) <= console.width:
            break
        if candidate in head:
            left_out.append(candidate)
    kept = [at for at, name in enumerate(head) if name not in left_out]
    table = Table(title=title, box=None)
    for at in kept:
        table.add_column(Text(head[at]), no_wrap=head[at] not in names, overflow="fold")
    for row in rows:
        table.add_row(*(row[at] for at in kept))
    least = sum(needs[head[at]] for at in kept)
    if console.is_terminal and least > console.width:
        table.width = least  # the terminal itself breaks the lines
    console.print(table, soft_wrap=not console.is_terminal or table.width is not None)
    if left_out:
        shown = ", ".join(name for name in head if name in left_out)
        console.print(f"{console.width} columns are too few for: {shown}", style="dim")
