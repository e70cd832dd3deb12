"""timm, imported without torch's compiler (`prunnet.lazy`), of which timm and torchvision need two functions while they
are imported: `torchvision.ops.roi_align` imports one by name, and a class of timm is decorated with the other.
"""

from __future__ import annotations

import importlib
from typing import Any

from prunnet.lazy import imported

timm: Any = imported("timm")
builder: Any = importlib.import_module("timm.models._builder")
layers: Any = importlib.import_module("timm.layers")
