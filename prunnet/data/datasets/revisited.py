"""`roxford5k`, `rparis6k`: Revisited Oxford and Paris. They have no training images; a network trained on another data
set (gldv2) is tested with sweep.dataset.

    ROOT/gnd_roxford5k.pkl   ROOT/jpg/NAME.jpg

The pickle is read as data (`prunnet.data.datasets.pickles`). Queries are cut to their boxes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from prunnet.config.recipe import DataConfig
from prunnet.data.datasets.lists import Lists
from prunnet.data.datasets.pickles import unpickled
from prunnet.data.description import Reader
from prunnet.data.files import Files
from prunnet.data.listing import Listing, Part, Split
from prunnet.data.sources.names import below
from prunnet.data.sources.roots import open_root
from prunnet.errors import DataError

HOME = "github.com/filipradenovic/revisitop"
EXPECTED = {"roxford5k": {"gallery": 4993, "query": 70}, "rparis6k": {"gallery": 6322, "query": 70}}
GROUPS = ("easy", "hard", "junk")


def read(name: str, config: DataConfig) -> Listing:
    """The lists of a copy; DataError where the pickle is missing, not mere data, or of another form."""
    pickle = f"gnd_{name}.pkl"
    root = open_root(config.root, f"{name} needs the folder with {pickle}, from {HOME}", holds=(pickle,))
    found = unpickled(Lists(root, HOME).bytes(pickle), pickle)
    gallery, asked, truth = _checked(found, pickle)
    names = [f"jpg/{below(image, pickle)}.jpg" for image in (*gallery, *asked)]
    lists = {
        group: [_indices(gnd, group, len(gallery), f"{pickle}: gnd[{q}]") for q, gnd in enumerate(truth)]
        for group in GROUPS
    }
    boxes = np.array([_box(gnd, f"{pickle}: gnd[{q}]") for q, gnd in enumerate(truth)], dtype=np.float32)
    nobody = np.full(len(names), -1)
    split = Split(
        Part(np.arange(len(gallery), len(names)), nobody[: len(asked)], boxes=boxes),
        Part(np.arange(len(gallery)), nobody[: len(gallery)]),
        "revisited",
        lists,
    )
    return Listing(name, Files.of(root, names), (), None, {"test": split}, expected=EXPECTED[name])


def _checked(found: Any, pickle: str) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    if not isinstance(found, dict) or (missing := {"gnd", "imlist", "qimlist"} - set(found)):
        raise DataError(f"{pickle} holds no {', '.join(sorted(missing)) if isinstance(found, dict) else 'dictionary'}")
    for key in ("imlist", "qimlist", "gnd"):
        if not isinstance(found[key], (list, tuple, np.ndarray)) or getattr(found[key], "ndim", 1) != 1:
            raise DataError(f"{pickle}: {key!r} is a {type(found[key]).__name__}; valid: a list")
    gallery, asked, truth = (list(found[key]) for key in ("imlist", "qimlist", "gnd"))
    if len(asked) != len(truth):
        raise DataError(f"{pickle}: {len(asked)} queries in qimlist and {len(truth)} in gnd")
    if not gallery or not asked:
        raise DataError(f"{pickle}: {len(gallery)} gallery images and {len(asked)} queries")
    return [_name(name, pickle) for name in gallery], [_name(name, pickle) for name in asked], truth


def _name(given: Any, pickle: str) -> str:
    if isinstance(given, bytes):
        return given.decode("utf-8", "surrogateescape")
    if not isinstance(given, str):
        raise DataError(f"{pickle}: an image name is a {type(given).__name__}; valid: text")
    return str(given)


def _indices(gnd: Any, group: str, gallery: int, where: str) -> np.ndarray:
    try:
        indices = np.asarray(gnd[group]).reshape(-1)
        if len(indices) and indices.dtype.kind not in "iu":
            raise TypeError(indices.dtype)
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(f"{where} has no list of numbers {group!r}; valid: bbx, easy, hard, junk") from None
    if len(indices) and not 0 <= indices.min() <= indices.max() < gallery:
        raise DataError(f"{where}[{group!r}] names image {indices.max()} of a gallery of {gallery}")
    return indices.astype(np.int64)


def _box(gnd: Any, where: str) -> np.ndarray:
    try:
        box = np.asarray(gnd["bbx"], dtype=np.float64).reshape(4)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise DataError(f"{where} has no box 'bbx' of four numbers") from None
    if not np.isfinite(box).all() or box[0] >= box[2] or box[1] >= box[3]:
        raise DataError(f"{where}: box {box.tolist()} is empty; valid: left < right, top < bottom")
    return box


ROXFORD5K = Reader("Revisited Oxford: tests only, Easy, Medium and Hard", partial(read, "roxford5k"))
RPARIS6K = Reader("Revisited Paris: tests only, Easy, Medium and Hard", partial(read, "rparis6k"))
