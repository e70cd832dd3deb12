"""Names that recipes and commands choose from, without what they stand for. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from prunnet.errors import ConfigError

RUNTIMES = ("eager", "compile", "onnxruntime")
"""What latency is measured in (`prunnet.latency`)."""
PRECISIONS = ("fp32", "fp16", "int8")
FORMATS = (".safetensors", ".onnx", ".pt2")
"""Suffixes of exports (`prunnet.export`)."""
EMBEDDINGS = "embeddings.safetensors"
"""File of a set of embeddings in its folder (`prunnet.embeddings`)."""


def check_format(path: str | Path, precision: str) -> None:
    """ConfigError where no format has the suffix of `path`, or the format does not have the precision."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"--to {str(path)!r}: valid: a name that ends in {', '.join(FORMATS)}")
    if precision not in PRECISIONS or (suffix == ".pt2" and precision == "int8"):
        valid = ", ".join(PRECISIONS[:2] if suffix == ".pt2" else PRECISIONS)
        raise ConfigError(f"--precision {precision!r} for {suffix}; valid: {valid}")
