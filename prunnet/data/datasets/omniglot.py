"""`omniglot`: handwritten characters in torchvision's layout, trained on the background alphabets, tested on the
evaluation alphabets (their images search among themselves).

    ROOT/omniglot-py/images_background/ALPHABET/CHARACTER/*.png   …/images_evaluation/…   (or without omniglot-py/)

data.download=true fetches them through torchvision. `imagefolder` reads either half alone and holds out what it is
told.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from prunnet.config.recipe import DataConfig
from prunnet.data.base import label_ids
from prunnet.data.datasets.download import fetched
from prunnet.data.description import Reader
from prunnet.data.files import Files
from prunnet.data.holdout import retrieval
from prunnet.data.listing import Listing, Part
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError

HOME = "github.com/brendenlake/omniglot"
EXPECTED = {"train": 19_280, "train classes": 964, "query": 13_180, "query classes": 659}
PARTS = ("images_background", "images_evaluation")


def read(config: DataConfig) -> Listing:
    """The images of a copy; DataError where a half is missing."""
    fetched(config, "Omniglot", "omniglot-py")
    root = open_root(
        config.root, f"omniglot needs the folder with {' and '.join(PARTS)}, from {HOME}", holds=("omniglot-py", *PARTS)
    )
    prefix = "omniglot-py/" if root.has_folder("omniglot-py") else ""
    found = root.walk()
    halves = [[name for name in found.images if name.startswith(f"{prefix}{part}/")] for part in PARTS]
    for part, half in zip(PARTS, halves, strict=True):
        if not half:
            raise DataError(f"{prefix + part!r} is not in {root.path!r} or holds no image; it can be had from {HOME}")
    names = [*halves[0], *halves[1]]
    labels, classes = label_ids([str(PurePosixPath(name.removeprefix(prefix)).parent) for name in names])
    everything, count = Part(np.arange(len(names)), labels), len(halves[0])
    train, test = everything.some(np.arange(count)), everything.some(np.arange(count, len(names)))
    splits, notes = {"test": retrieval(test, config)}, found.notes()
    return Listing("omniglot", Files.of(root, names), classes, train, splits, expected=EXPECTED, notes=notes)


DATASET = Reader(
    "Omniglot: handwritten characters of fifty alphabets", read, options=("download", "protocol", "queries_per_class")
)
