"""`prunnet pack DATASET ROOT OUT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prunnet.config import parse_recipe
from prunnet.config.recipe import apply_override
from prunnet.storage.atomic import check_output
from sweeps.printing import Console


def main(
    dataset: Annotated[str, typer.Argument(help="A data set's name, see docs/DATA.md.")],
    root: Annotated[Path, typer.Argument(help="Its folder or .zip.")],
    out: Annotated[Path, typer.Argument(help="Folder of the store.")],
    verify: Annotated[bool, typer.Option("--verify", help="Afterwards read every byte back and compare.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. data.boxes=true.")] = None,
) -> None:
    """Pack, or go on packing; with --verify compare every byte of the store with its checksums."""
    tree: dict[str, object] = {}
    for override in set_ or ():
        apply_override(tree, override)
    check_output(out / "manifest.json", "OUT")
    config = parse_recipe(tree).data.model_copy(update={"name": dataset, "root": str(root)})
    from sweeps.pack import pack

    sys.exit(pack(config, out, Console(), verify=verify))
