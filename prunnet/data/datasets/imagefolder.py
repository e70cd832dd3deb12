"""`imagefolder`: any folder (or .zip) of images, one folder a class at any depth.

Whole classes are held out: by class folder, by top folder (Omniglot's alphabets), or by a list in a file.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from prunnet.config.recipe import DataConfig
from prunnet.data.base import label_ids
from prunnet.data.description import Reader
from prunnet.data.files import Files
from prunnet.data.listing import Listing, Part
from prunnet.data.sources.decode import suffixes
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError

NEEDS = "imagefolder needs a folder (or .zip) with one folder of images a class"


def read(config: DataConfig) -> Listing:
    """All images in class folders, not yet held out.

    Raises:
        DataError: no folder, no images, no class folder.
    """
    root = open_root(config.root, NEEDS)
    found = root.walk()
    names = [name for name in found.images if "/" in name]
    if not names:
        raise DataError(
            f"data.root={config.root!r} holds {len(found.images)} images and none in a class folder; "
            f"wanted: ROOT/CLASS/image with one of {' '.join(sorted(suffixes()))}"
            + "".join(f"; {note}" for note in found.notes())
        )
    labels, classes = label_ids([str(PurePosixPath(name).parent) for name in names])
    pool = Part(np.arange(len(names)), labels)
    return Listing("imagefolder", Files.of(root, names), classes, None, {}, pool, notes=found.notes())


DATASET = Reader(
    "any folder of images, one folder a class",
    read,
    options=("holdout", "test", "validation", "test_fraction", "protocol", "queries_per_class"),
)
