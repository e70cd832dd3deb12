"""Train one network; cut a subnetwork of any capacity from it; every cut's embeddings match every other's.

Names are loaded when they are first used, so that `import prunnet.results` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunnet.networks.retrieval_net import RetrievalNet
    from prunnet.networks.switchable import SwitchableNet
    from prunnet.results.table import best_under
    from prunnet.subnetworks.subnet import Subnetwork, subnetwork
    from prunnet.training.trainer import fit

_HOMES = {
    "RetrievalNet": "prunnet.networks.retrieval_net",
    "Subnetwork": "prunnet.subnetworks",
    "SwitchableNet": "prunnet.networks.switchable",
    "best_under": "prunnet.results",
    "fit": "prunnet.training",
    "subnetwork": "prunnet.subnetworks",
}
__all__ = ["RetrievalNet", "Subnetwork", "SwitchableNet", "best_under", "fit", "subnetwork"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in {"retrieval", "conflict", "config", "data", "results"}:
        return importlib.import_module(f"prunnet.{name}")
    raise AttributeError(f"module 'prunnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
