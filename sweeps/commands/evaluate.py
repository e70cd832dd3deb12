"""`prunnet evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunnet.config import load_recipe
from prunnet.config.choices import check_capacity
from prunnet.errors import ConfigError
from sweeps.run import recipe_option


def main(
    query: Annotated[Path, typer.Option(help="Network or subnetwork that embeds the queries.")],
    gallery: Annotated[Path, typer.Option(help="Network or subnetwork that embeds the gallery.")],
    independent: Annotated[
        Path | None, typer.Option(help="A new network, trained without regard to the old: update gain, P_up, P_comp.")
    ] = None,
    query_capacity: Annotated[float | None, typer.Option(help="Capacity of the query network; default: 1.")] = None,
    gallery_capacity: Annotated[float | None, typer.Option(help="Capacity of the gallery network; default: 1.")] = None,
    recipe: Annotated[Path | None, recipe_option("Recipe whose data are tested")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. data.root=DIR.")] = None,
    split: Annotated[str, typer.Option(help="Split: test or validation.")] = "test",
    calibrate: Annotated[bool, typer.Option(help="Re-estimate the BatchNorm statistics of networks.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    if split not in ("test", "validation"):
        raise ConfigError(f"--split {split!r}; valid: test, validation")
    for capacity in (query_capacity, gallery_capacity):
        if capacity is not None:
            check_capacity(capacity)
    load_recipe(recipe, set_ or ())
    from sweeps.evaluate import evaluate

    evaluate(
        {"query": (query, query_capacity), "gallery": (gallery, gallery_capacity)},
        independent,
        recipe=recipe,
        overrides=set_ or [],
        split=split,
        calibrate=calibrate,
        as_json=as_json,
    )
