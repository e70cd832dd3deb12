"""`prunnet pack DATASET ROOT OUT`: a data set's images and lists in a few large files (prunnet/data/packed.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.progress import bar
from prunnet import data
from prunnet.config.recipe import apply_override, parse_recipe
from prunnet.data import packed
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
    console = Console()
    tree: dict[str, object] = {}
    for override in set_ or ():
        apply_override(tree, override)
    check_output(out / packed.MANIFEST, "OUT")
    config = parse_recipe(tree).data.model_copy(update={"name": dataset, "root": str(root)})
    listing = data.whole(config)
    for note in listing.notes:
        console.print(f"note: {note}")
    with bar(console) as progress:
        task = progress.add_task("shards", total=None, note="")
        packed.pack(listing, out, lambda done, total: progress.update(task, completed=done, total=total))
    store = packed.read(out)
    console.print(f"packed {len(store.files):,} images of {dataset} in {out}")
    if verify:
        with bar(console) as progress:
            task = progress.add_task("verified", total=None, note="")
            wrong = packed.verify(out, lambda done, total: progress.update(task, completed=done, total=total))
        for line in wrong:
            console.print(line, style="red")
        console.print("damaged" if wrong else "verified: every byte is as it was packed")
        sys.exit(1 if wrong else 0)
