"""`prunnet search`, `python sweeps/search.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sweeps.run import RECIPES, one_line_errors, recipe_option, script


def main(
    recipe: Annotated[Path, recipe_option("YAML recipe of a search", "search_demo")] = RECIPES / "search_demo.yaml",
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the base, e.g. train.epochs=3.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what the search has and start over.")] = False,
) -> None:
    """Search for the best recipe."""
    with one_line_errors():
        from sweeps.search_recipe import load_search

        accepted = load_search(recipe, set_ or ())
        from sweeps.search import search

        code = search(accepted, fresh=fresh)
    sys.exit(code)


if __name__ == "__main__":
    script(main)
