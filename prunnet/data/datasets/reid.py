"""What `veri776` and `market1501` share: identity and camera are in the file's name, and gallery images of a query's
own identity and camera are junk."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from prunnet.data.files import Files
from prunnet.data.listing import Listing, Part, Split
from prunnet.data.sources.roots import Root
from prunnet.errors import DataError

RECALLS = (1, 5, 10, 20)
NAME = re.compile(r"(-?[0-9]{1,18})_c([0-9]{1,18})(?:s[0-9]+)?(?:_[^/]*)?\.[^./]+")
"""IDENTITY_cCAMERA, sSEQUENCE where there is one, and the rest after an underscore. The whole name has to match: of a
longer number no prefix is taken for it."""


def parsed(names: Iterable[str], example: str) -> tuple[np.ndarray, np.ndarray]:
    """(identities, cameras) of file names; DataError for one that does not say them."""
    found = []
    for name in names:
        match = NAME.fullmatch(name.rpartition("/")[2])
        if match is None:
            raise DataError(f"image name {name!r} does not say identity and camera; valid: {example}")
        found.append((int(match[1]), int(match[2])))
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def listing(
    name: str,
    root: Root,
    named: Mapping[str, list[str]],
    example: str,
    expected: Mapping[str, int],
    notes: tuple[str, ...] = (),
) -> Listing:
    """The listing of image names by part (train, query, gallery)."""
    names = [image for part in ("train", "query", "gallery") for image in named[part]]
    identities, cameras = parsed(names, example)
    occurring, labels = np.unique(identities, return_inverse=True)
    everything = Part(np.arange(len(names)), labels.astype(np.int64), cameras)
    ends = np.cumsum([len(named[part]) for part in ("train", "query", "gallery")])
    train, query, gallery = (everything.some(part) for part in np.split(np.arange(len(names)), ends[:2]))
    split = Split(query, gallery, "camera", recalls=RECALLS)
    classes = [f"{identity:04d}" for identity in occurring]
    return Listing(name, Files.of(root, names), classes, train, {"test": split}, expected=expected, notes=notes)
