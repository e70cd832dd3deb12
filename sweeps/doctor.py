"""Checks before a training: `prunnet doctor backbone NAME`, `prunnet doctor data DATASET ROOT`."""

from __future__ import annotations

from cluster.progress import bar
from prunnet import data as datasets
from prunnet.config import DataConfig
from prunnet.config.recipe import ModelConfig
from prunnet.data.files import unreadable
from prunnet.experiments.backbone_report import NAMED, inspect_backbone, inspect_channels, inspect_granularities
from sweeps.printing import Console
from sweeps.terminal_table import print_table


def show_backbone(
    model: ModelConfig, image_size: int, channels: int, console: Console, *, layers: bool, ties: bool, train: bool
) -> None:
    """What of a timm model is prunable.

    Args:
        layers: with a line for every layer.
        ties: with the channels that are cut together.
        train: with what every granularity makes of it.
    """
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
    console.print(
        "in the conformance suite" if model.backbone in NAMED else f"not in the conformance suite: {', '.join(NAMED)}"
    )


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


def show_data(config: DataConfig, console: Console, *, decode: bool) -> int:
    """What a copy of a data set holds.

    Returns the exit code: 1 where `decode` finds an image that cannot be decoded.
    """
    listing = datasets.whole(config)
    described = datasets.DATASETS[config.name]
    keys = f"; keys of its own: {', '.join(f'data.{key}' for key in described.options)}" if described.options else ""
    console.print(f"{config.name}: {described.about}{keys}")
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
        return 0
    rows = listing.used_rows()
    with bar(console) as progress:
        task = progress.add_task("decoded", total=len(rows), note="")
        lost = unreadable(listing.files, rows, lambda n: progress.advance(task, n))
    for reason in lost.values():
        console.print(reason, style="red")
    console.print(f"{len(rows) - len(lost):,} of {len(rows):,} images can be decoded")
    return 1 if lost else 0
