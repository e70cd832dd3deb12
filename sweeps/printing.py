"""What commands print: names and messages as they are, on any terminal and into any pipe.

A terminal gets tables in columns, with colours; a pipe gets whole lines with tabs between the cells. File names and
messages are shown letter by letter: no `[tag]` is markup, no `:name:` an emoji, and what would move a terminal's cursor
or end the line is written as an escape.
"""

from __future__ import annotations

import json
from typing import Any

import rich.console
import rich.table
from rich.segment import Segment, Segments
from rich.text import Text

from prunnet.errors import printable
from prunnet.guard import any_encoding, silence


class Table(rich.table.Table):
    """Rich's table, whose title and cells are shown as they are."""

    def __init__(self, *titles: str, title: str | None = None, **options: Any) -> None:
        super().__init__(*titles, title=None if title is None else Text(printable(title)), **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        safe = (Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*safe, **options)

    def lines(self) -> list[str]:
        """Title, head and rows, a line each, tabs between the cells."""
        columns = [[str(column.header), *map(str, column.cells)] for column in self.columns]
        rows = ["\t".join(cells) for cells in zip(*columns, strict=True)]
        return [str(self.title), *rows] if self.title else rows


class Console(rich.console.Console):
    """Rich's console, which prints strings as they are, a string a line, and tables as lines where it is no terminal.
    If the reader closes the pipe, the job continues and prints nothing more."""

    def __init__(self, **options: Any) -> None:
        any_encoding()
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, "soft_wrap": True, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        safe: list[Any] = []
        for each in objects:
            if isinstance(each, Table) and not self.is_terminal:  # a Text would turn tabs into blanks
                safe.append(Segments(Segment(f"{line}\n") for line in each.lines()))
            else:
                safe.append(Text(printable(each)) if isinstance(each, str) else each)
        super().print(*safe, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(self.file)


def print_json(value: Any, indent: int | None = 1) -> None:
    """Prints JSON for other programs: nothing else goes to standard output."""
    Console().print(Text(json.dumps(value, indent=indent)))
