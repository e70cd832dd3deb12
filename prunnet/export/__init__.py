"""Files that leave: sparse safetensors, ONNX, torch.export, progressive; embedding sets; latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.export.formats import export as export
    from prunnet.export.formats import open_export as open_export

__getattr__, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.export.formats": ["export", "open_export"],
    },
)
