"""What a data set says of itself. The file that reads or renders a data set ends with one of the two kinds here, and
`prunnet.data.by_name.DATASETS` names it; another package names it by an entry point of the group `prunnet.datasets`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from prunnet.config.recipe import DataConfig
from prunnet.data import holdout
from prunnet.data.base import Dataset
from prunnet.data.listing import Listing


@dataclass(frozen=True)
class Described:
    """A data set; either a `Reader` or `Rendered`."""

    about: str
    """What it is, in a line; `prunnet doctor data` prints it."""
    _: KW_ONLY
    options: tuple[str, ...] = ()
    """Keys of the section `data` that it heeds and most others do not."""
    protocols: tuple[str, ...] = ("leave_one_out", "query_gallery")
    """Values of `data.protocol` that are not refused."""


@dataclass(frozen=True)
class Reader(Described):
    """A data set of files."""

    read: Callable[[DataConfig], Listing]
    """Its lists; opens no image. DataError where this copy cannot be understood."""
    _: KW_ONLY
    hold_out: Callable[[Listing, DataConfig], Listing] = holdout.held_out
    """What makes the parts of a listing that has a `pool`. DataError where a part is left without classes."""


@dataclass(frozen=True)
class Rendered(Described):
    """A data set without files: packed stores, missing files and tests on whole images do not concern it."""

    load: Callable[[DataConfig], Dataset]
    """DataError where it cannot be made as the recipe asks."""
