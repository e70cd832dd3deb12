"""`prunnet pack DATASET ROOT OUT`: a data set's images and lists in a few large files (prunnet/data/packed.py)."""

from __future__ import annotations

from pathlib import Path

from cluster.progress import bar
from prunnet import data
from prunnet.config import DataConfig
from prunnet.data import packed
from sweeps.printing import Console


def pack(config: DataConfig, out: Path, console: Console, *, verify: bool) -> int:
    """Packs a data set, or goes on packing it; returns the exit code: 1 where `verify` finds a byte that is not as it
    was packed."""
    listing = data.whole(config)
    for note in listing.notes:
        console.print(f"note: {note}")
    with bar(console) as progress:
        task = progress.add_task("shards", total=None, note="")
        packed.pack(listing, out, lambda done, total: progress.update(task, completed=done, total=total))
    store = packed.read(out)
    console.print(f"packed {len(store.files):,} images of {config.name} in {out}")
    if not verify:
        return 0
    with bar(console) as progress:
        task = progress.add_task("verified", total=None, note="")
        wrong = packed.verify(out, lambda done, total: progress.update(task, completed=done, total=total))
    for line in wrong:
        console.print(line, style="red")
    console.print("damaged" if wrong else "verified: every byte is as it was packed")
    return 1 if wrong else 0
