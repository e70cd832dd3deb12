"""Names that recipes and commands choose from, and values that they check alike. Nothing heavy is imported here."""

from __future__ import annotations

import math

from prunnet.errors import ConfigError, echo


def check_capacity(value: float) -> float:
    """`value` if 0 < value <= 1, else ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"capacity {echo(value)} is not a number; valid: 0 < capacity <= 1")
    if not 0.0 < value <= 1.0:
        raise ConfigError(f"capacity {echo(value)} is out of range; valid: 0 < capacity <= 1")
    return float(value)


RUNTIMES = ("eager", "compile", "onnxruntime")
"""What latency is measured in (`prunnet.export.latency`)."""
PRECISIONS = ("fp32", "fp16", "int8")
"""Those of prunnet's export formats; each says which of them it has (`prunnet.export.formats`)."""
EMBEDDINGS = "embeddings.safetensors"
"""File of a set of embeddings in its folder (`prunnet.export.embedding_sets`)."""
