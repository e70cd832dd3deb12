"""`cub200`: Caltech-UCSD Birds 200-2011, trained on the first half of the species, tested on the second (its images
search among themselves).

    ROOT/images.txt  image_class_labels.txt  classes.txt   ROOT/images/001.Black_footed_Albatross/…
"""

from __future__ import annotations

import numpy as np

from prunnet.config.recipe import DataConfig
from prunnet.data.datasets.lists import Lists, whole_number
from prunnet.data.description import Reader
from prunnet.data.files import Files
from prunnet.data.listing import Listing, Part, Split
from prunnet.data.sources.names import below
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError

HOME = "vision.caltech.edu/datasets/cub_200_2011"
EXPECTED = {"train": 5_864, "train classes": 100, "query": 5_924, "query classes": 100}


def read(config: DataConfig) -> Listing:
    """The lists of a copy; DataError where one is missing or broken."""
    root = open_root(config.root, f"cub200 needs the folder with images.txt, from {HOME}", holds=("images.txt",))
    lists = Lists(root, HOME)
    classes = {whole_number(number, where): name for where, (number, name) in lists.columns("classes.txt", count=2)}
    listed = lists.columns("images.txt", count=2)
    paths = {whole_number(number, where): below(path, where) for where, (number, path) in listed}
    names, numbers = [], []
    for where, fields in lists.columns("image_class_labels.txt", count=2):
        image, label = (whole_number(number, where) for number in fields)
        if image not in paths or label not in classes:
            missing = (
                f"image {image} is not in images.txt" if image not in paths else f"class {label} not in classes.txt"
            )
            raise DataError(f"{where}: {missing}")
        names.append(f"images/{paths[image]}")
        numbers.append(label)
    order = sorted(classes)
    labels = np.searchsorted(order, numbers).astype(np.int64)
    everything = Part(np.arange(len(names)), labels)
    seen = labels < len(order) // 2
    split = Split(everything.some(~seen), None, "leave_one_out", recalls=(1, 2, 4, 8))
    named = [classes[number] for number in order]
    return Listing("cub200", Files.of(root, names), named, everything.some(seen), {"test": split}, expected=EXPECTED)


DATASET = Reader("Caltech-UCSD Birds 200-2011", read)
