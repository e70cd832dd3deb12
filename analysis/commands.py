"""`python -m analysis.devices` and its like: arguments by typer, and one line for what a user can mend."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer
from rich.console import Console


def run(function: Callable[..., None]) -> None:
    """`function` with the arguments of the command line; exit code 2 and one line where a file is missing, torn or not
    what it should be."""
    try:
        typer.run(function)
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(f"error: {said}", style="red", markup=False)
        sys.exit(2)
