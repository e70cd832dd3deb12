"""Data sets by name, one file each; lists, hold-out, transforms, loading, packed stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.data.base import Dataset as Dataset
    from prunnet.data.base import ImageSet as ImageSet
    from prunnet.data.base import MemoryImages as MemoryImages
    from prunnet.data.base import RetrievalTest as RetrievalTest
    from prunnet.data.by_name import DATASETS as DATASETS
    from prunnet.data.by_name import load as load
    from prunnet.data.by_name import load_for as load_for
    from prunnet.data.by_name import read as read
    from prunnet.data.by_name import whole as whole
    from prunnet.data.description import Described as Described
    from prunnet.data.description import Reader as Reader
    from prunnet.data.description import Rendered as Rendered
    from prunnet.data.listing import Listing as Listing
    from prunnet.data.transforms import Augmentation as Augmentation
    from prunnet.data.transforms import Preprocessing as Preprocessing

__getattr__, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.data.base": ["Dataset", "ImageSet", "MemoryImages", "RetrievalTest"],
        "prunnet.data.by_name": ["DATASETS", "load", "load_for", "read", "whole"],
        "prunnet.data.description": ["Described", "Reader", "Rendered"],
        "prunnet.data.listing": ["Listing"],
        "prunnet.data.transforms": ["Augmentation", "Preprocessing"],
    },
)
