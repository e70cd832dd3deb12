"""`gldv2`: Google Landmarks v2, trained on its clean subset, tested by its retrieval challenge.

    ROOT/train_clean.csv  index.csv  test.csv  retrieval_solution_v2.1.csv     (or in ROOT/metadata/)
    ROOT/train/a/b/c/abc….jpg   ROOT/index/a/b/c/…   ROOT/test/a/b/c/…         (or all of them in ROOT/a/b/c/)

The solution's Public queries are the validation split, its Private ones the test; those that it ignores are left out.
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
from prunnet.errors import DataError

HOME = "github.com/cvdfoundation/google-landmark"
EXPECTED = {
    "train": 1_580_470,
    "train classes": 81_313,
    "gallery": 761_757,
    "query": 750,
    "validation query": 379,
    "rows of test.csv": 117_577,
}
SPLITS = {"Public": "validation", "Private": "test"}


def read(config: DataConfig) -> Listing:
    """The lists of a copy; DataError where one is missing or broken."""
    root = open_root(
        config.root, f"gldv2 needs the folder with train_clean.csv, from {HOME}", holds=_either("train_clean.csv")
    )
    lists = Lists(root, HOME)
    names: list[str] = []
    landmarks: list[str] = []
    folder = {part: f"{part}/" if root.has_folder(part) else "" for part in ("train", "index", "test")}
    for where, (landmark, images) in lists.table(*_either("train_clean.csv"), header=("landmark_id", "images")):
        found = [_path(folder["train"], image, where) for image in images.split()]
        names += found
        landmarks += [landmark] * len(found)
    labels, classes = label_ids(landmarks)
    train = Part(np.arange(len(names)), labels)

    index = [image for _, (image,) in lists.table(*_either("index.csv"), header=("id",))]
    place = {image: number for number, image in enumerate(index)}
    first = len(names)
    names += [_path(folder["index"], image, "index.csv") for image in index]
    gallery = Part(np.arange(first, len(names)), np.full(len(index), -1))
    known = {image for _, (image,) in lists.table(*_either("test.csv"), header=("id",))}

    asked: dict[str, list[tuple[str, np.ndarray]]] = {split: [] for split in SPLITS.values()}
    solution = _either("retrieval_solution_v2.1.csv")
    for where, (query, images, usage) in lists.table(*solution, header=("id", "images", "Usage")):
        if usage == "Ignored":
            continue
        if usage not in SPLITS:
            raise DataError(f"{where}: Usage {usage!r}; valid: Public, Private, Ignored")
        if query not in known:
            raise DataError(f"{where}: query {query!r} is not in test.csv")
        right = [place[image] for image in images.split() if image in place]
        asked[SPLITS[usage]].append((query, np.array(right, dtype=np.int64)))
    splits = {}
    for split, queries in asked.items():
        if queries:
            first = len(names)
            names += [_path(folder["test"], query, "test.csv") for query, _ in queries]
            part = Part(np.arange(first, len(names)), np.full(len(queries), -1))
            splits[split] = Split(part, gallery, "gldv2", {"relevant": [right for _, right in queries]})
    if "test" not in splits:
        raise DataError(f"{solution[0]}: no query with Usage Private")
    counted = {"rows of test.csv": len(known)}
    return Listing("gldv2", Files.of(root, names), classes, train, splits, expected=EXPECTED, more=counted)


def _either(name: str) -> tuple[str, str]:
    return name, f"metadata/{name}"


def _path(folder: str, image: str, where: str) -> str:
    image = below(image, where)
    if len(image) < 3 or "/" in image:
        raise DataError(f"{where}: {image[:40]!r} is no image id")
    return f"{folder}{image[0]}/{image[1]}/{image[2]}/{image}.jpg"


DATASET = Reader("Google Landmarks v2: clean training set and retrieval challenge", read)
