"""`prunnet ablation`, `python sweeps/ablation.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sweeps.run import RECIPES, one_line_errors, recipe_option, script


def main(
    recipe: Annotated[Path, recipe_option("YAML recipe of an ablation", "methods_omniglot")] = RECIPES
    / "methods_omniglot.yaml",
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the base, e.g. train.epochs=3.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")] = False,
    device: Annotated[str, typer.Option(help="With --local: cpu or cuda.")] = "cpu",
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run and its table, and start over.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List what there is to do, and stop.")] = False,
) -> None:
    """Train and test methods, variants and upgrades over seeds."""
    with one_line_errors():
        from sweeps.ablation_recipe import load_ablation

        accepted = load_ablation(recipe, set_ or ())
        from sweeps import ablation

        if list_:
            ablation.show(accepted)
            return
        code = ablation.ablate(accepted, local=local, device=device, fresh=fresh)
    sys.exit(code)


if __name__ == "__main__":
    script(main)
