"""Tensor files with a sealed JSON header (safetensors)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunnet.errors import CheckpointError, one_line
from prunnet.storage import seal
from prunnet.storage.atomic import put_in_place
from prunnet.storage.paths import local, place


def save_tensors(path: str | Path, tensors: dict[str, Tensor], kind: str, header: dict[str, Any]) -> None:
    """Writes tensors and header under a temporary name, syncs, renames: a reader sees all of it or nothing."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with put_in_place(place(path)) as temporary:
        save_file(plain, temporary, metadata=seal.tensors_metadata({"kind": kind, **header}))
        seal.close_tensors(temporary)


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a file of this kind; CheckpointError, in one line, for anything else: a file that is torn,
    damaged, foreign or of another kind. A file of before there were seals has no hash to be held against."""
    with _opened(path, "pt", f"; wanted a {kind} file") as file:
        header = seal.tensors_header(Path(local(path)), file.metadata())
        if header.get("kind") != kind:
            raise CheckpointError(f"{str(path)!r} is not a {kind} file (it says {header.get('kind')!r})")
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def kind_of(path: str | Path) -> str:
    """What a saved file says that it is (`NETWORK`, `prunnet-subnetwork`, …); CheckpointError where it says nothing."""
    return read_header(path).get("kind", "")


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of any file of ours, without its tensors."""
    with _opened(path, "np") as file:
        header = seal.tensors_header(Path(local(path)), file.metadata(), header_only=True)
    if "kind" not in header:
        raise CheckpointError(f"{str(path)!r} is not a file of prunnet's")
    return header


@contextmanager
def _opened(path: str | Path, framework: str, wanted: str = "") -> Iterator[Any]:
    """An open safetensors file; whatever it or the block says of its content is a CheckpointError of one line."""
    if not place(path).is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} is not a file")
    try:
        with safe_open(str(local(path)), framework=framework) as file:
            yield file
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, TypeError, AttributeError, OSError, RuntimeError, MemoryError) as error:
        reason = f"{one_line(error)[:200]}{wanted}"
        raise CheckpointError(f"{str(path)!r} is not a whole safetensors file ({reason})") from None
