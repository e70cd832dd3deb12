"""What prunnet sees before anything is trained: `prunnet doctor backbone NAME`, `prunnet doctor data DATASET ROOT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.progress import bar
from prunnet import data as datasets
from prunnet.config.recipe import ModelConfig, apply_override, parse_recipe
from prunnet.data.files import unreadable
from prunnet.experiments.backbone_report import NAMED, inspect_backbone, inspect_channels, inspect_granularities
from sweeps.printing import Console
from sweeps.terminal_table import print_table

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
    console = Console()
    tree: dict[str, Any] = {"model": {"backbone": name}}
    for override in set_ or ():
        apply_override(tree, override)
    model = parse_recipe(tree).model
    facts = inspect_backbone(model, image_size, channels)
    kinds: dict[str, list[int]] = {}
    for layer in facts.layers:
        sums = kinds.setdefault(layer.kind, [0, 0, 0])
        sums[:] = [sums[0] + 1, sums[1] + layer.weights, sums[2] + layer.macs]
    total = [sum(column) for column in zip(*kinds.values(), strict=True)]
    lines = [
        (kind, count, f"{weights:,}", f"{macs / 1e6:.2f}")
        for kind, (count, weights, macs) in {**kinds, "in all": total}.items()
    ]
    print_table(console, ("prunable", "layers", "weights", "MMACs"), lines, drop=("layers",), names=("prunable",))
    if layers:
        detail = [(layer.name, layer.kind, f"{layer.weights:,}", f"{layer.macs / 1e6:.3f}") for layer in facts.layers]
        print_table(console, ("layer", "kind", "weights", "MMACs"), detail, drop=("kind", "weights"), names=("layer",))
    dense = ", ".join(f"{kind} {count:,}" for kind, count in facts.dense.items())
    console.print(f"stays dense: {dense}")
    share = total[2] / facts.macs_total
    console.print(f"{share:.1%} of {facts.macs_total / 1e6:.1f} MMACs at {image_size} px can be pruned")
    console.print(f"switchable widths: {facts.widths or 'yes'}")
    if ties:
        _ties(model, image_size, channels, console)
    if train:
        for granularity, reason in inspect_granularities(model, image_size, channels):
            console.print(f"granularity {granularity}: {reason or 'works'}")
    console.print("in the conformance suite" if name in NAMED else f"not in the conformance suite: {', '.join(NAMED)}")


def _ties(model: ModelConfig, image_size: int, channels: int, console: Console) -> None:
    """Groups of channels that are cut together, and those that are kept with the reason."""
    graph = inspect_channels(model, image_size, channels)
    head = ("channels that are cut together", "units", "in how many layers")
    groups = [(g.name.removeprefix("backbone."), g.units, len({at for at, _ in g.sites})) for g in graph.groups]
    print_table(console, head, groups, drop=("in how many layers",), names=head[:1])
    reasons: dict[str, list[str]] = {}
    for layer, reason in graph.kept.items():
        reasons.setdefault(reason.partition(" (")[0], []).append(layer.removeprefix("backbone."))
    for reason, kept in reasons.items():
        console.print(f"kept whole, {reason}: {', '.join(kept[:4])}{' …' if len(kept) > 4 else ''}")


@app.command(help="What a copy of a data set holds. Example: prunnet doctor data inshop ROOT --decode")
def data(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="A data set's name, see docs/DATA.md.")],
    root: Annotated[Path, typer.Argument(help="Its folder, .zip or packed store.")],
    decode: Annotated[bool, typer.Option("--decode", help="Open every image.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. data.boxes=true.")] = None,
) -> None:
    """Exit code 1 where an image cannot be decoded; another count than expected is only a note."""
    console = Console()
    tree: dict[str, object] = {}
    for override in set_ or ():
        apply_override(tree, override)
    config = parse_recipe(tree).data.model_copy(update={"name": name, "root": str(root)})
    listing = datasets.whole(config)
    lines = []
    for what, count in listing.counts().items():
        expected = listing.expected.get(what)
        lines.append((what, f"{count:,}", "-" if expected is None else f"{expected:,}"))
    print_table(console, ("part", "found", "expected"), lines, names=("part",))
    for split, test in listing.splits.items():
        console.print(f"{split}: protocol {test.protocol}")
    for note in listing.notes:
        console.print(f"note: {note}", style="yellow")
    if not decode:
        return
    rows = listing.used_rows()
    with bar(console) as progress:
        task = progress.add_task("decoded", total=len(rows), note="")
        lost = unreadable(listing.files, rows, lambda n: progress.advance(task, n))
    for reason in lost.values():
        console.print(reason, style="red")
    console.print(f"{len(rows) - len(lost):,} of {len(rows):,} images can be decoded")
    sys.exit(1 if lost else 0)
