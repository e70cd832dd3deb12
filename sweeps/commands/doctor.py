"""`prunnet doctor backbone NAME`, `prunnet doctor data DATASET ROOT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from prunnet.config import load_recipe
from sweeps.printing import Console

app = typer.Typer(no_args_is_help=True, help="Check a backbone or a copy of a data set.")


@app.callback()
def _group() -> None: ...


@app.command(help="Show what of a timm model is prunable. Example: prunnet doctor backbone convnext_tiny")
def backbone(
    name: Annotated[str, typer.Argument(help="Name of a timm model.")],
    image_size: Annotated[int, typer.Option(min=8, max=2048, help="Pixels, for the MACs.")] = 224,
    channels: Annotated[int, typer.Option(min=1, max=64, help="Input channels, 1 or 3.")] = 3,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    ties: Annotated[bool, typer.Option("--ties", help="Trace which channels are tied: seconds to a minute.")] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train a step with every granularity and cut the network: up to minutes.")
    ] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. model.options={depth: 2}.")] = None,
) -> None:
    model = load_recipe(None, (f"model.backbone={json.dumps(name)}", *(set_ or ()))).model
    from sweeps.doctor import show_backbone

    show_backbone(model, image_size, channels, Console(), layers=layers, ties=ties, train=train)


@app.command(help="Check a copy of a data set. Example: prunnet doctor data inshop ROOT --decode")
def data(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="A data set's name, see docs/DATA.md.")],
    root: Annotated[Path, typer.Argument(help="Its folder, .zip or packed store.")],
    decode: Annotated[bool, typer.Option("--decode", help="Open every image.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. data.boxes=true.")] = None,
) -> None:
    """Exit code 1 where an image cannot be decoded; another count than expected is only a note."""
    config = load_recipe(None, set_ or ()).data.model_copy(update={"name": name, "root": str(root)})
    from sweeps.doctor import show_data

    sys.exit(show_data(config, Console(), decode=decode))
