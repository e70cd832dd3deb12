"""Paths and URLs, atomic writes, hashes, sealed and tensor files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.storage.paths import is_url as is_url
    from prunnet.storage.paths import local as local
    from prunnet.storage.paths import place as place
    from prunnet.storage.paths import remove as remove
    from prunnet.storage.paths import upload as upload

__getattr__, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.storage.paths": ["is_url", "local", "place", "remove", "upload"],
    },
)
