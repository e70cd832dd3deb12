"""`prunnet doctor backbone NAME`, `prunnet doctor data DATASET ROOT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prunnet.config import parse_recipe
from prunnet.config.recipe import apply_override
from sweeps.printing import Console

app = typer.Typer(no_args_is_help=True, help="What prunnet sees of a backbone or a data set.")


@app.callback()
def _group() -> None: ...


@app.command(help="What of a timm model would be prunable. Example: prunnet doctor backbone convnext_tiny")
def backbone(
    name: Annotated[str, typer.Argument(help="Any timm name.")],
    image_size: Annotated[int, typer.Option(min=8, max=2048, help="Pixels, for the MACs.")] = 224,
    channels: Annotated[int, typer.Option(min=1, max=64, help="1 or 3.")] = 3,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    ties: Annotated[bool, typer.Option("--ties", help="Trace which channels are tied: seconds to a minute.")] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train a step with every granularity and cut the network: up to minutes.")
    ] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. model.options={depth: 2}.")] = None,
) -> None:
    tree: dict[str, Any] = {"model": {"backbone": name}}
    for override in set_ or ():
        apply_override(tree, override)
    model = parse_recipe(tree).model
    from sweeps.doctor import show_backbone

    show_backbone(model, image_size, channels, Console(), layers=layers, ties=ties, train=train)


@app.command(help="What a copy of a data set holds. Example: prunnet doctor data inshop ROOT --decode")
def data(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="A data set's name, see docs/DATA.md.")],
    root: Annotated[Path, typer.Argument(help="Its folder, .zip or packed store.")],
    decode: Annotated[bool, typer.Option("--decode", help="Open every image.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. data.boxes=true.")] = None,
) -> None:
    """Exit code 1 where an image cannot be decoded; another count than expected is only a note."""
    tree: dict[str, object] = {}
    for override in set_ or ():
        apply_override(tree, override)
    config = parse_recipe(tree).data.model_copy(update={"name": name, "root": str(root)})
    from sweeps.doctor import show_data

    sys.exit(show_data(config, Console(), decode=decode))
