"""Export formats of a subnetwork, and how they are opened: one file a format.

    edge.safetensors   kept weights and a bit mask: small on disk, opened with prunnet, fp32, fp16 or int8 weights
    edge.onnx          the compact network for onnxruntime, any batch size, fp32, fp16 or int8
    edge.pt2           the compact network as a torch.export program, fp32 or fp16; opened only from a trusted maker

Each carries its identity (weights, capacity, mask, calibration, preprocessing, embedding size) and a hash of the whole
file (`storage.seal`), so that a flipped bit is refused like a foreign file. Embeddings are stamped with the identity,
and galleries of another space are refused (`prunnet.export.embedding_sets`).

Another package adds a format by one file that holds a `Format`, and an entry point of the group
`prunnet.export_formats` whose name is the suffix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.export.formats.base import Format as Format
    from prunnet.export.formats.by_suffix import FORMATS as FORMATS
    from prunnet.export.formats.by_suffix import check_format as check_format
    from prunnet.export.formats.exported import Exported as Exported
    from prunnet.export.formats.exporting import export as export
    from prunnet.export.formats.exporting import identity as identity
    from prunnet.export.formats.exporting import open_export as open_export
    from prunnet.export.formats.programs import quiet as quiet
    from prunnet.export.formats.sparse import load_sparse as load_sparse

__getattr__, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.export.formats.base": ["Format"],
        "prunnet.export.formats.by_suffix": ["FORMATS", "check_format"],
        "prunnet.export.formats.exported": ["Exported"],
        "prunnet.export.formats.exporting": ["export", "identity", "open_export"],
        "prunnet.export.formats.programs": ["quiet"],
        "prunnet.export.formats.sparse": ["load_sparse"],
    },
)
