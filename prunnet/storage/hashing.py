"""Hashes of what determines a result: tensors, arrays and plain JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from prunnet.errors import CheckpointError
from prunnet.storage.paths import local, place
from prunnet.storage.seal import tensors_header

if TYPE_CHECKING:
    import numpy.typing as npt

METHOD_VERSION = 1
"""Part of every key and of every training's hash; raised by hand when a change makes earlier results wrong or
incomparable."""


def of_json(value: Any) -> str:
    """SHA-256 (hex) of a JSON value; key order does not matter."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spare blanks, the form in which configurations are stored and hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def without_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without the keys of `defaults` that are at their default: a key that came after the first results were
    kept changes no hash until somebody sets it. For everything that is hashed."""
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


def of_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes, in the order of the names."""
    import numpy as np  # 0.2 s, which a refused recipe is spared

    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()


def of_bytes(data: bytes) -> str:
    """SHA-256 (hex) of some bytes."""
    return hashlib.sha256(data).hexdigest()


def weights_sha_of(path: str | Path) -> str:
    """What identifies the network of a saved file: the weights' hash in its header, for a subnetwork with mask and
    calibration. CheckpointError where there is none."""
    header = _header_of(path)
    parts = [header[key] for key in ("weights_sha", "mask_sha", "calibration") if key in header]
    return str(parts[0]) if "mask_sha" not in header else of_json(parts)


def calibrations_of(path: str | Path | None) -> list[str]:
    """The hash of the images that a saved file's BatchNorm statistics were estimated on, where there are any."""
    calibration = _header_of(path).get("calibration") if path else None
    return [calibration] if calibration else []


def _header_of(path: str | Path) -> dict[str, Any]:
    file = Path(local(path))
    try:
        if not file.is_file():  # a pipe would be waited for
            raise FileNotFoundError(file)
        with safe_open(str(file), framework="np") as opened:
            header = tensors_header(file, opened.metadata(), header_only=True)
        return {"weights_sha": header["weights_sha"], **header}
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {str(path)!r} is not a file") from None
    except (SafetensorError, OSError, LookupError, AttributeError, TypeError, ValueError):
        raise CheckpointError(f"{str(path)!r} is not a whole network file (model.safetensors of a run)") from None


def of_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes; CheckpointError where it cannot be read."""
    try:
        if not place(path).is_file():  # a pipe would be waited for
            raise CheckpointError(f"{str(path)!r} is not a file")
        with local(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}") from None
