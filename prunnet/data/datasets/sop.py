"""`sop`: Stanford Online Products; the test images search among themselves.

ROOT/Ebay_train.txt   ROOT/Ebay_test.txt   ROOT/bicycle_final/111085122871_0.JPG
"""

from __future__ import annotations

import numpy as np

from prunnet.config.recipe import DataConfig
from prunnet.data.base import label_ids
from prunnet.data.datasets.lists import Lists
from prunnet.data.description import Reader
from prunnet.data.files import Files
from prunnet.data.listing import Listing, Part, Split
from prunnet.data.sources.names import below
from prunnet.data.sources.roots import open_root

HOME = "cvgl.stanford.edu/projects/lifted_struct"
EXPECTED = {"train": 59_551, "train classes": 11_318, "query": 60_502, "query classes": 11_316}


def read(config: DataConfig) -> Listing:
    """The lists of a copy; DataError where one is missing or broken."""
    root = open_root(config.root, f"sop needs the folder with Ebay_train.txt, from {HOME}", holds=("Ebay_train.txt",))
    lists = Lists(root, HOME)
    names, products, lengths = [], [], []
    for part in ("train", "test"):
        rows = list(lists.columns(f"Ebay_{part}.txt", count=4, skip=1))
        names += [below(path, where) for where, (_, _, _, path) in rows]
        products += [product for _, (_, product, _, _) in rows]
        lengths.append(len(rows))
    labels, classes = label_ids(products)
    everything = Part(np.arange(len(names)), labels)
    train, test = everything.some(np.arange(lengths[0])), everything.some(np.arange(lengths[0], len(names)))
    split = Split(test, None, "leave_one_out", recalls=(1, 10, 100, 1000))
    return Listing("sop", Files.of(root, names), classes, train, {"test": split}, expected=EXPECTED)


DATASET = Reader("Stanford Online Products", read)
