"""`python -m analysis.devices` and its like: arguments by typer, and the jobs' way to end (`prunnet.guard`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import typer

from prunnet.results import guarded


def run(function: Callable[..., None]) -> None:
    """`function` with the arguments of the command line; exit code 2 and one line where a file is missing, torn or not
    what it should be, or cannot be written; 130 after Ctrl-C, 143 after SIGTERM."""

    @functools.wraps(function)
    def inside(*values: Any, **named: Any) -> None:
        with guarded():  # inside typer, too, which has exit codes of its own for signals and closed pipes
            function(*values, **named)

    with guarded():
        typer.run(inside)
