"""Hashes inside files: a flipped bit, wherever it is, is found when the file is read.

A sealed file holds `prunnet-seal:` and 64 hex digits, the SHA-256 of all of its bytes with those digits as zeros. Each
format has a place for them: the metadata of Parquet and ONNX, the comment of a zip, the first line of YAML, a key of
JSON. A safetensors file holds two hashes at the start of its header, one of the header and one of the tensors: a header
can be checked without reading the tensors.

A seal tells damage, not malice: whoever can write the file can seal it. Files of before there were seals have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from prunnet.errors import ConfigError
from prunnet.storage.atomic import put_in_place
from prunnet.storage.paths import read_file

_DIGITS = 64
_ZEROS = b"0" * _DIGITS
_MARK = b"prunnet-seal:"
_COMMENT = "# "
_FIRST = _COMMENT.encode() + _MARK
"""How sealed YAML starts."""
BLANK = (_MARK + _ZEROS).decode()
"""What a writer puts into a file for `close` to fill in."""

_TENSORS = b'{"__metadata__":{"prunnet":"{\\"seal\\":\\"'
"""How the header of a sealed safetensors file starts, after the 8 bytes of its length."""
_LENGTH = 8


def close(path: Path) -> None:
    """Fills in the blank seal of a file that was just written: the first of YAML, the last of anything else."""
    content = path.read_bytes()
    at = (content.find if content.startswith(_FIRST) else content.rfind)(BLANK.encode())
    assert at >= 0, "the writer left a blank seal"
    with path.open("r+b") as file:
        file.seek(at + len(_MARK))
        file.write(hashlib.sha256(content).hexdigest().encode())


def whole(content: bytes) -> bool | None:
    """Whether a file's bytes have the hash that they carry; None where they carry none."""
    at = (content.find if content.startswith(_FIRST) else content.rfind)(_MARK)
    if at < 0:
        return None
    at += len(_MARK)
    digest = hashlib.sha256(content[:at] + _ZEROS + content[at + _DIGITS :])
    return digest.hexdigest().encode() == content[at : at + _DIGITS]


# --- text -------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A JSON object, sealed, there whole or not at all."""
    _write(path, json.dumps({**value, "seal": BLANK}, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; OSError or ValueError for a file that is not there, torn or damaged."""
    content = read_file(path)
    if whole(content) is False:
        raise ValueError("its bytes do not have the hash that it carries")
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    value.pop("seal", None)
    return value


def write_yaml(path: Path, text: str) -> None:
    """YAML text below its seal, there whole or not at all. The seal comes first: no part of the file passes for all of
    it."""
    _write(path, f"{_COMMENT}{BLANK}\n{text}")


def read_text(path: Path) -> str:
    """The text of a recipe without its seal; ConfigError where it has one (`write_yaml`) and was changed since."""
    content = read_file(path)
    if _FIRST.startswith(content) or (content.startswith(_FIRST) and not whole(content)):
        raise ConfigError(
            f"{str(path)!r} is empty, or not as prunnet wrote it: its first line is a hash of the others; if the "
            "change is yours, remove that line"
        )
    text = content.decode("utf-8")
    return text.partition("\n")[2] if content.startswith(_FIRST) else text


def _write(path: Path, text: str) -> None:
    with put_in_place(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        close(temporary)


# --- safetensors ------------------------------------------------------------------------------------------------


def tensors_metadata(header: dict[str, Any]) -> dict[str, str]:
    """The metadata of a safetensors file that carries our header, with room for its hashes in front."""
    said = json.dumps({**header, "sealed": True}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {"prunnet": f'{{"seal":"{2 * _ZEROS.decode()}",{said[1:]}'}


def close_tensors(path: Path) -> None:
    """Fills in both hashes of a safetensors file that was written with `tensors_metadata`."""
    at = _LENGTH + len(_TENSORS)
    with path.open("r+b") as file:
        header = bytearray(_header(file))
        assert header[_LENGTH:at] == _TENSORS, "safetensors writes its metadata first"
        header[at + _DIGITS : at + 2 * _DIGITS] = _rest(file)
        header[at : at + _DIGITS] = hashlib.sha256(header).hexdigest().encode()
        file.seek(0)
        file.write(header)


def tensors_header(path: Path, metadata: Mapping[str, str] | None, *, header_only: bool = False) -> dict[str, Any]:
    """Our header in the metadata of a safetensors file, whose hashes are looked at; {} where there is none.

    Args:
        header_only: the tensors are not read.

    Raises ValueError for a file that does not have the hashes that it carries, OSError where it cannot be read.
    """
    header = json.loads((metadata or {}).get("prunnet", "{}"))
    at = _LENGTH + len(_TENSORS)
    with path.open("rb") as file:
        raw = bytearray(_header(file))
        if raw[_LENGTH:at] == _TENSORS:
            digest = bytes(raw[at : at + _DIGITS])
            raw[at : at + _DIGITS] = _ZEROS
            if hashlib.sha256(raw).hexdigest().encode() != digest:
                raise ValueError("its header does not have the hash that it carries")
            if not header_only and _rest(file) != raw[at + _DIGITS : at + 2 * _DIGITS]:
                raise ValueError("its tensors do not have the hash that it carries")
        elif isinstance(header, dict) and "sealed" in header:
            raise ValueError("its hash is not where it belongs")
    return {key: value for key, value in header.items() if key not in ("seal", "sealed")} if header else {}


def _header(file: BinaryIO) -> bytes:
    """Length and header; no more than there is, whatever the length says."""
    length = file.read(_LENGTH)
    said = int.from_bytes(length, "little")
    here, end = file.tell(), file.seek(0, 2)
    file.seek(here)
    return length + file.read(min(said, end - here))


def _rest(file: BinaryIO) -> bytes:
    """SHA-256 of what follows, as hex digits."""
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest().encode()
