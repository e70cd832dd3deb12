"""What commands print: names and messages as they are, on any terminal and into any pipe.

A terminal gets tables in columns, with colours; a pipe gets whole lines with tabs between the cells. File names and
messages are shown letter by letter: no `[tag]` is markup, no `:name:` an emoji, and what would move a terminal's cursor
or end the line is written as an escape.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import rich.console
import rich.table
from rich.segment import Segment, Segments
from rich.text import Text

from prunnet.redact import shown

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, changes of the writing direction, and bytes of names that are not UTF-8."""


def printable(text: str) -> str:
    """The text on one line: what a terminal would act on, instead of showing it, becomes an escape such as `\\x1b`, and
    credentials of URLs are masked."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), shown(text))


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


def any_encoding() -> None:
    """Lets standard output and error write every string: a character that their encoding lacks becomes an escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def silence(stream: Any) -> None:
    """Redirects a stream to the null device, so that a closed pipe or a full disk raises no second error when the
    interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
