"""`prunnet sweep`, `python sweeps/capacity.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prunnet.config.recipe import Recipe, absolute_paths, load_recipe
from sweeps.printing import Console
from sweeps.run import RECIPES, one_line_errors, open_run, recipe_option, script, storage


def main(
    recipe: Annotated[Path, recipe_option("YAML recipe", "demo")] = RECIPES / "demo.yaml",
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, dotted, e.g. train.epochs=3.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what the run has and start over.")] = False,
) -> None:
    """Train or load, sweep capacities, write Parquet, draw the front."""
    with one_line_errors():
        code = sweep(load_recipe(recipe, set_ or ()), fresh=fresh)
    sys.exit(code)


def sweep(recipe: Recipe, *, fresh: bool) -> int:
    """The job, or only its report where all is finished; returns the exit code."""
    console, recipe = Console(), absolute_paths(recipe)
    if not fresh and (storage(recipe) / recipe.name / "manifest.json").is_file():
        from sweeps.finished import drawn_again

        with open_run(recipe, console=console) as run:
            if drawn_again(recipe, run, console):
                return 0
    from sweeps import capacity

    return capacity.sweep(recipe, fresh=fresh, console=console)


if __name__ == "__main__":
    script(main)
