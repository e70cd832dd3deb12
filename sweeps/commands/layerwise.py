"""`prunnet layerwise`, `python sweeps/layerwise.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prunnet.config import load_recipe
from prunnet.config.choices import check_capacity
from prunnet.errors import ConfigError, echo
from sweeps.run import RECIPES, one_line_errors, recipe_option, script

GROUPINGS = ("layer", "block")
SAMPLERS = ("cmaes", "tpe", "random")


def main(
    recipe: Annotated[Path, recipe_option("YAML recipe of a capacity sweep", "demo")] = RECIPES / "demo.yaml",
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. train.epochs=3.")] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(help="MACs of the uniform subnetwork of this capacity."),
    ] = None,
    evaluations: Annotated[int, typer.Option(min=1, max=10**6, help="Evaluated density vectors a budget.")] = 200,
    grouping: Annotated[str, typer.Option(help="One density a layer or a block: layer, block.")] = "layer",
    sampler: Annotated[str, typer.Option(help="Sampler of Optuna: cmaes, tpe, random.")] = "cmaes",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the sampler.")] = 0,
) -> None:
    """Search per-layer densities under a budget of MACs, without training."""
    with one_line_errors():
        if grouping not in GROUPINGS:
            raise ConfigError(f"--grouping {echo(grouping)}; valid: {', '.join(GROUPINGS)}")
        if sampler not in SAMPLERS:
            raise ConfigError(f"--sampler {echo(sampler)}; valid: {', '.join(SAMPLERS)}")
        budgets = tuple(check_capacity(value) for value in budget or ())
        accepted = load_recipe(recipe, set_ or ())
        from sweeps.layerwise import Asked, search_layers

        asked = Asked(budgets or Asked.budgets, evaluations, grouping, sampler, seed)  # type: ignore[arg-type]
        code = search_layers(accepted, asked)
    sys.exit(code)


if __name__ == "__main__":
    script(main)
