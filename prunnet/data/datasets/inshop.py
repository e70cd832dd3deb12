"""`inshop`: DeepFashion In-shop Clothes Retrieval.

ROOT/Eval/list_eval_partition.txt   ROOT/img/WOMEN/… (or ROOT/Img/img/…)   ROOT/Anno/list_bbox_inshop.txt (data.boxes)
"""

from __future__ import annotations

import numpy as np

from prunnet.config.recipe import DataConfig
from prunnet.data.base import label_ids
from prunnet.data.datasets.lists import Lists, whole_number
from prunnet.data.description import Reader
from prunnet.data.files import Boxes, Files
from prunnet.data.listing import Listing, Part, Split
from prunnet.data.sources.names import below
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError

HOME = "mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
PARTITION = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
BOXES = ("Anno/list_bbox_inshop.txt", "list_bbox_inshop.txt")
EXPECTED = {"train": 25_882, "train classes": 3_997, "query": 14_218, "gallery": 12_612}
STATUS = ("train", "query", "gallery")


def read(config: DataConfig) -> Listing:
    """The lists of a copy; DataError where one is missing or broken."""
    root = open_root(config.root, f"inshop needs the folder with {PARTITION[0]}, from {HOME}", holds=PARTITION)
    lists = Lists(root, HOME)
    prefix = "Img/" if root.has_folder("Img") else ""
    names, items, status = [], [], []
    for where, (image, item, part) in lists.columns(*PARTITION, count=3, skip=2):
        if part not in STATUS:
            raise DataError(f"{where}: evaluation_status {part!r}; valid: {', '.join(STATUS)}")
        names.append(prefix + below(image, where))
        items.append(item)
        status.append(part)
    labels, classes = label_ids(items)
    boxes = _boxes(lists, prefix, names) if config.boxes else None
    everything, of = Part(np.arange(len(names)), labels, boxes=boxes), np.array(status)
    train, query, gallery = (everything.some(of == part) for part in STATUS)
    split = Split(query, gallery, "inshop", recalls=(1, 10, 20, 30, 40, 50))
    return Listing("inshop", Files.of(root, names), classes, train, {"test": split}, expected=EXPECTED)


def _boxes(lists: Lists, prefix: str, names: list[str]) -> Boxes:
    known = {}
    for where, (image, _, _, *corners) in lists.columns(*BOXES, count=7, skip=2):
        known[prefix + below(image, where)] = [float(whole_number(corner, where)) for corner in corners]
    return np.array([known.get(name, [np.nan] * 4) for name in names], dtype=np.float32)


DATASET = Reader("DeepFashion In-shop Clothes Retrieval", read, options=("boxes",))
