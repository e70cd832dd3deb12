"""`prunnet pack DATASET ROOT OUT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prunnet.config import load_recipe
from prunnet.storage.atomic import check_output
from sweeps.printing import Console


def main(
    dataset: Annotated[str, typer.Argument(help="A data set's name, see docs/DATA.md.")],
    root: Annotated[Path, typer.Argument(help="Its folder or .zip.")],
    out: Annotated[Path, typer.Argument(help="Folder of the store.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare the store with its checksums.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. data.boxes=true.")] = None,
) -> None:
    """Pack, or go on packing; with --verify compare every byte of the store with its checksums."""
    check_output(out / "manifest.json", "OUT")
    config = load_recipe(None, set_ or ()).data.model_copy(update={"name": dataset, "root": str(root)})
    from sweeps.pack import pack

    sys.exit(pack(config, out, Console(), verify=verify))
