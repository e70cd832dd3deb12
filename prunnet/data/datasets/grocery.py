"""`grocery`: the Grocery Store Dataset (Klasson, Zhang, Kjellström, WACV 2019, arXiv 1901.00711): photographs of
products in shops, and one catalogue picture of each product.

    ROOT/train.txt   val.txt   test.txt   classes.csv   ROOT/train/Fruit/Apple/Golden-Delicious/…
    ROOT/iconic-images-and-descriptions/…

Its own parts share their classes, so they are put together, and whole coarse classes (Apple, Milk, …) are held out:
half of them for the test, so that training sees no sibling of a product that is searched for.

`data.protocol` says what is searched: `leave_one_out` (`photos` in the results table) the other photographs of unseen
classes; `catalogue` the catalogue pictures of unseen classes; `catalogue_all` those of all classes. Queries are the
photographs of unseen classes in each.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prunnet.config.recipe import DataConfig
from prunnet.data.base import IntArray, check_classes
from prunnet.data.datasets.lists import Lists, whole_number
from prunnet.data.description import Reader
from prunnet.data.files import Files
from prunnet.data.holdout import retrieval
from prunnet.data.listing import Listing, Part, Split
from prunnet.data.sources.names import below
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError

HOME = "github.com/marcusklasson/GroceryStoreDataset"
EXPECTED = {"images": 5_421, "images classes": 81, "coarse classes": 43, "catalogue gallery": 81}
"""The authors write of 42 coarse classes; their lists number 43, and all have photographs."""
PARTS = ("train.txt", "val.txt", "test.txt")
CLASSES = "classes.csv"
COLUMNS = (
    "Class Name (str)",
    "Class ID (int)",
    "Coarse Class Name (str)",
    "Coarse Class ID (int)",
    "Iconic Image Path (str)",
)
CATALOGUE = "catalogue"
"""Split of a listing before classes are held out: all photographs against all catalogue pictures."""


def read(config: DataConfig) -> Listing:
    """The lists of a copy, no class held out yet (`hold_out`); DataError where one is missing or broken.

    A class is called COARSE/PRODUCT, such as Apple/Golden-Delicious.
    """
    root = open_root(config.root, f"grocery needs the folder with {CLASSES}, from {HOME}", holds=(CLASSES,))
    lists = Lists(root, HOME)
    products, coarse, pictures = _classes(lists)
    numbers = sorted(products)
    names, fine = [], []
    for part in PARTS:
        for where, line in lists.lines(part):
            fields = [field.strip() for field in line.split(",")]
            if len(fields) != 3:
                raise DataError(f"{where}: {line[:80]!r} has {len(fields)} fields; valid: path, class, coarse class")
            label, above = whole_number(fields[1], where), whole_number(fields[2], where)
            if label not in products:
                raise DataError(f"{where}: class {label} is not in {CLASSES}")
            if above != coarse[label]:
                raise DataError(f"{where}: coarse class {above} of class {label}; {CLASSES} says {coarse[label]}")
            names.append(below(fields[0], where))
            fine.append(label)
    photographs = Part(np.arange(len(names)), np.searchsorted(numbers, fine).astype(np.int64))
    gallery = Part(np.arange(len(names), len(names) + len(numbers)), np.arange(len(numbers)))
    files = Files.of(root, [*names, *(pictures[number] for number in numbers)])
    return Listing(
        "grocery",
        files,
        [products[number] for number in numbers],
        None,
        {CATALOGUE: Split(photographs, gallery, CATALOGUE)},
        photographs,
        EXPECTED,
        more={"coarse classes": len(set(coarse.values()))},
    )


def _classes(lists: Lists) -> tuple[dict[int, str], dict[int, int], dict[int, str]]:
    """Class number -> its name, its coarse class' number, and its catalogue picture."""
    products: dict[int, str] = {}
    coarse: dict[int, int] = {}
    pictures: dict[int, str] = {}
    above: dict[int, str] = {}
    for where, (name, number, group, group_number, picture) in lists.table(CLASSES, header=COLUMNS):
        label, parent = whole_number(number, where), whole_number(group_number, where)
        if not name or not group or "/" in name or "/" in group:
            raise DataError(f"{where}: class {name!r} of coarse class {group!r}; valid: names without '/'")
        if label in products:
            raise DataError(f"{where}: class {label} is there twice")
        if above.setdefault(parent, group) != group:
            raise DataError(f"{where}: coarse class {parent} is {group!r} here and {above[parent]!r} before")
        products[label], coarse[label] = f"{group}/{name}", parent
        pictures[label] = below(picture.removeprefix("/"), where)
    return products, coarse, pictures


def hold_out(listing: Listing, config: DataConfig) -> Listing:
    """Half of the coarse classes for the test, drawn from the seed, and of the others the share
    `data.validation_fraction` for validation; DataError where fewer than two coarse classes are left to train on."""
    photographs, catalogue = listing.pool, listing.splits[CATALOGUE].gallery
    assert photographs is not None
    assert catalogue is not None
    group = np.array([name.partition("/")[0] for name in listing.classes])
    occurring = np.unique(group[np.unique(photographs.labels)])
    order = np.random.default_rng(config.seed).permutation(occurring)
    tested, left = order[: len(order) // 2], order[len(order) // 2 :]
    # Two at least, so that a split has two products whatever is drawn.
    count = max(2, round(config.validation_fraction * len(left))) if config.validation_fraction else 0
    if len(left) - count < 2:
        raise DataError(
            f"data.validation_fraction={config.validation_fraction or 0} leaves fewer than two of {len(left)} coarse "
            "classes to train on"
        )
    held = {"test": tested, "validation": left[:count]} if count else {"test": tested}
    splits = {
        name: _split(photographs.some(_of(photographs.labels, group, chosen)), catalogue, config)
        for name, chosen in held.items()
    }
    train = photographs.some(_of(photographs.labels, group, left[count:]))
    for name, part in {"train": train, **{name: split.queries for name, split in splits.items()}}.items():
        check_classes(part.labels, f"{name} part of {listing.files.where!r}")
    return replace(listing, train=train, splits=splits, pool=None)


def _of(labels: IntArray, group: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Which of some labels [n] are of the chosen coarse classes."""
    return np.isin(group[labels], chosen)


def _split(photographs: Part, catalogue: Part, config: DataConfig) -> Split:
    if config.protocol == "catalogue_all":
        return Split(photographs, catalogue, config.protocol)
    if config.protocol == "catalogue":
        unseen = np.isin(catalogue.labels, np.unique(photographs.labels))
        return Split(photographs, catalogue.some(unseen), config.protocol)
    split = retrieval(photographs, config)
    return replace(split, protocol="photos") if split.gallery is None else split


DATASET = Reader(
    "Grocery Store Dataset: photographs of products in shops, and a catalogue picture of each",
    read,
    hold_out=hold_out,
    options=("protocol", "queries_per_class"),
    protocols=("leave_one_out", "query_gallery", "catalogue", "catalogue_all"),
)
