"""Export formats by the suffix of their files. No torch is loaded here."""

from __future__ import annotations

from pathlib import Path

from prunnet.errors import ConfigError
from prunnet.export.formats.base import Format
from prunnet.registry import Registry

FORMATS: Registry[Format] = Registry(
    "export format",
    "prunnet.export_formats",
    {
        ".safetensors": "prunnet.export.formats.sparse:FORMAT",
        ".onnx": "prunnet.export.formats.onnx:FORMAT",
        ".pt2": "prunnet.export.formats.torch_program:FORMAT",
    },
    Format,
)


def check_format(path: str | Path, precision: str) -> None:
    """ConfigError where no format has the suffix of `path`, or the format does not have the precision."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"--to {str(path)!r}: valid: a name that ends in {', '.join(FORMATS)}")
    if precision not in FORMATS[suffix].precisions:
        valid = ", ".join(FORMATS[suffix].precisions)
        raise ConfigError(f"--precision {precision!r} for {suffix}; valid: {valid}")
