"""Train one network; cut a subnetwork of any capacity from it; every subnetwork's embeddings match every other's.

Names are loaded when they are first used: `import prunnet` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.networks.retrieval_net import RetrievalNet
    from prunnet.networks.switchable import SwitchableNet
    from prunnet.results.table import best_under
    from prunnet.subnetworks.subnet import Subnetwork, subnetwork
    from prunnet.training.trainer import fit

__all__ = ["RetrievalNet", "Subnetwork", "SwitchableNet", "best_under", "fit", "subnetwork"]

_name, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.networks.retrieval_net": ["RetrievalNet"],
        "prunnet.networks.switchable": ["SwitchableNet"],
        "prunnet.results.table": ["best_under"],
        "prunnet.subnetworks.subnet": ["Subnetwork", "subnetwork"],
        "prunnet.training.trainer": ["fit"],
    },
)


def __getattr__(name: str) -> Any:
    if name in {"config", "data", "results", "retrieval"}:  # packages that may be used without being imported
        return importlib.import_module(f"prunnet.{name}")
    return _name(name)
