"""What prunnet sees before anything is trained: `prunnet doctor backbone NAME`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from prunnet.backbones import NAMED, inspect_backbone
from prunnet.config import parse_recipe

app = typer.Typer(no_args_is_help=True, help="What prunnet sees of a backbone.")


@app.callback()
def _group() -> None: ...


@app.command(help="What of a timm model would be prunable. Example: prunnet doctor backbone convnext_tiny")
def backbone(
    name: Annotated[str, typer.Argument(help="Any timm name.")],
    image_size: Annotated[int, typer.Option(help="Pixels, for the MACs.")] = 224,
    channels: Annotated[int, typer.Option(help="1 or 3.")] = 3,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
) -> None:
    console = Console(soft_wrap=True)
    facts = inspect_backbone(parse_recipe({"model": {"backbone": name}}).model, image_size, channels)
    kinds: dict[str, list[int]] = {}
    for layer in facts.layers:
        sums = kinds.setdefault(layer.kind, [0, 0, 0])
        sums[:] = [sums[0] + 1, sums[1] + layer.weights, sums[2] + layer.macs]
    total = [sum(column) for column in zip(*kinds.values(), strict=True)]
    table = Table("prunable", "layers", "weights", "MMACs", box=None)
    for kind, (count, weights, macs) in {**kinds, "in all": total}.items():
        table.add_row(kind, str(count), f"{weights:,}", f"{macs / 1e6:.2f}")
    console.print(table)
    if layers:
        detail = Table("layer", "kind", "weights", "MMACs", box=None)
        for layer in facts.layers:
            detail.add_row(layer.name, layer.kind, f"{layer.weights:,}", f"{layer.macs / 1e6:.3f}")
        console.print(detail)
    dense = ", ".join(f"{kind} {count:,}" for kind, count in facts.dense.items())
    console.print(f"stays dense: {dense}", markup=False)
    share = total[2] / facts.macs_total
    console.print(f"{share:.1%} of {facts.macs_total / 1e6:.1f} MMACs at {image_size} px can be pruned")
    console.print(f"switchable widths: {facts.widths or 'yes'}", markup=False)
    console.print("in the conformance suite" if name in NAMED else f"not in the conformance suite: {', '.join(NAMED)}")
