"""`prunnet sweep`, `python sweeps/capacity.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prunnet.config import load_recipe
from sweeps.run import RECIPES, one_line_errors


def main(
    recipe: Annotated[Path, typer.Option(help="YAML recipe.")] = RECIPES / "demo.yaml",
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, dotted, e.g. train.epochs=3.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what the run has and start over.")] = False,
) -> None:
    """Train or load, sweep capacities, write Parquet, draw the front."""
    with one_line_errors():
        accepted = load_recipe(recipe, set_ or ())
        from sweeps.capacity import sweep

        code = sweep(accepted, fresh=fresh)
    sys.exit(code)
