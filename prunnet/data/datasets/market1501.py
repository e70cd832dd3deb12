"""`market1501`: people seen by six cameras.

    ROOT/bounding_box_train/0002_c1s1_000451_03.jpg   ROOT/query/   ROOT/bounding_box_test/

Identity -1 is junk (left out of the gallery, which is the same as removing it from every ranking), 0 a distractor.
"""

from __future__ import annotations

from dataclasses import replace

from prunnet.config.recipe import DataConfig
from prunnet.data.datasets import reid
from prunnet.data.description import Reader
from prunnet.data.listing import Listing
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError

HOME = "zheng-lab.cecs.anu.edu.au/Project/project_reid.html"
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
EXPECTED = {
    "train": 12_936,
    "train classes": 751,
    "query": 3_368,
    "query classes": 750,
    "gallery": 15_913,
    "gallery with the -1": 19_732,
}
EXAMPLE = "0002_c1s1_000451_03.jpg"


def read(config: DataConfig) -> Listing:
    """The images of a copy; DataError where a folder is missing or a name cannot be parsed."""
    needs = f"market1501 needs the folder with {', '.join(FOLDERS.values())}, from {HOME}"
    root = open_root(config.root, needs, holds=tuple(FOLDERS.values()))
    found = root.walk()
    named = {part: [name for name in found.images if name.startswith(f"{folder}/")] for part, folder in FOLDERS.items()}
    for part, folder in FOLDERS.items():
        if not named[part]:
            raise DataError(f"{folder!r} is not in {root.path!r} or holds no image; it can be had from {HOME}")
    counted = {"gallery with the -1": len(named["gallery"])}
    identities, _ = reid.parsed(named["gallery"], EXAMPLE)
    named["gallery"] = [name for name, who in zip(named["gallery"], identities, strict=True) if who != -1]
    listed = reid.listing("market1501", root, named, EXAMPLE, EXPECTED, found.notes())
    return replace(listed, more=counted)


DATASET = Reader("Market-1501: people seen by six cameras", read)
