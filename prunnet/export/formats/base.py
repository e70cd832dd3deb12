"""What an export format is. No torch is loaded here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command refuses a suffix or a precision without them
    from prunnet.export.formats.exported import Exported
    from prunnet.networks.headers import Identity
    from prunnet.subnetworks.subnet import Subnetwork


@dataclass(frozen=True)
class Format:
    """An export format, registered under the suffix of its files."""

    about: str
    """What its files are, in a line."""
    write: Callable[[Subnetwork, Path, Identity], None]
    """Writes the subnetwork, in the precision of its identity, with the identity in the file. There is a whole file at
    the path, or none (`prunnet.storage.atomic.put_in_place`)."""
    read: Callable[[Path], Exported]
    """What `write` wrote. It raises CheckpointError for a file that is damaged or foreign; any other error of it
    becomes one."""
    precisions: tuple[str, ...]
    trust_code: bool = False
    """Whether opening a file can run code of its maker: then it is opened only where that is allowed."""
