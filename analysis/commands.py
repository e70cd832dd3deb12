"""`python -m analysis.devices` and its like: arguments by typer, and one line for what a user can mend."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer
from rich.console import Console

from prunnet.results import from_outside, told


def run(function: Callable[..., None]) -> None:
    """`function` with the arguments of the command line; exit code 2 and one line where a file is missing, torn or not
    what it should be, or cannot be written."""
    try:
        typer.run(function)
    except Exception as error:
        if not from_outside(error):
            raise
        console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
        console.print(f"error: {told(error)}", style="red")
        sys.exit(2)
