"""Tables on a terminal of any width: columns are left out, and no digit is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    """Prints a table. Where a terminal is too narrow, columns are left out and named below; where output goes to a file
    or a pipe, all are there, in lines as long as they need to be.

    Args:
        drop: titles of columns that may be left out, the least important first.
        names: titles of columns that hold names: they may be folded.
    """
    cells = [tuple(map(str, line)) for line in lines]
    widths = {
        title: max([cell_len(part) for part in [title, *(line[at] for line in cells)]]) for at, title in enumerate(head)
    }
    needs = {title: (min(width, _NAME) if title in names else width) + _GAP for title, width in widths.items()}
    left_out: list[str] = []
    for candidate in drop if console.is_terminal else ():
        if sum(needs[title] for title in head if title not in left_out) <= console.width:
            break
        if candidate in head:
            left_out.append(candidate)
    kept = [at for at, name in enumerate(head) if name not in left_out]
    least = sum(needs[head[at]] for at in kept)
    whole = sum(widths[head[at]] + _GAP for at in kept)
    table = Table(title=title and Text(title), box=None)
    for at in kept:
        table.add_column(Text(head[at]), no_wrap=head[at] not in names, overflow="fold")
    for line in cells:
        table.add_row(*(Text(line[at]) for at in kept))
    if not console.is_terminal or least > console.width:
        table.width = least if console.is_terminal else whole  # the terminal itself breaks the lines
    console.print(table, soft_wrap=table.width is not None)
    if left_out:
        shown = ", ".join(name for name in head if name in left_out)
        console.print(Text(f"{console.width} columns are too few for: {shown}", style="dim"))
