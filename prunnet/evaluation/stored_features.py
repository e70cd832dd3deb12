"""Embeddings of image sets, and the folder they are kept in: memory-mapped arrays, stamped with what made them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunnet.data.base import RetrievalTest
from prunnet.errors import CheckpointError
from prunnet.retrieval.exact_search import Features
from prunnet.storage.hashing import of_file
from prunnet.storage.paths import is_url, local, upload
from prunnet.storage.seal import read_json, write_json
from prunnet.subnetworks.embed import Embedder, embed

FORMAT = "prunnet-features"
IDENTITY = "identity.json"


@dataclass(frozen=True)
class StoredFeatures:
    """Query and gallery embeddings of one subnetwork on one split; the same array where the test is leave-one-out."""

    queries: Features
    """[Q, d], L2-normalised."""
    gallery: Features
    """[G, d]."""
    identity: dict[str, Any]
    """What determines them (weights, capacity, mask, calibration, split, preprocessing), and `cost`."""


@contextmanager
def storing(path: Path) -> Iterator[Path]:
    """A temporary folder to write arrays and the identity into, put in place whole when the block ends."""
    if is_url(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            for file in sorted(Path(folder).iterdir(), key=lambda f: f.name == IDENTITY):  # without it nothing is there
                upload(file, path / file.name)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)  # torn, or made by another process in the meantime
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster: its own are as good
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_features(
    path: Path,
    subnetwork: Embedder,
    test: RetrievalTest,
    batch_size: int,
    identity: dict[str, Any],
    started: float,
) -> dict[str, Any]:
    """Embeds a test straight to disk; no array of a large gallery is held in memory. Returns the identity as kept, with
    the `seconds` since `started` (time.perf_counter)."""
    with storing(path) as folder:
        made = {"queries": embed(subnetwork, test.queries, batch_size, to=folder / "queries.npy")}
        if not test.leave_one_out:
            made["gallery"] = embed(subnetwork, test.gallery, batch_size, to=folder / "gallery.npy")
        for array in made.values():
            assert isinstance(array, np.memmap)
            array.flush()
        hashes = {name: of_file(folder / f"{name}.npy") for name in made}
        seconds = time.perf_counter() - started
        kept = {"format": FORMAT, **identity, "hashes": hashes, "seconds": seconds}
        write_json(folder / IDENTITY, kept)
    return kept


def load_features(path: str | Path, key: str | None = None) -> StoredFeatures:
    """The stored features, memory-mapped; CheckpointError where a file is torn or they were made for another key."""
    path = local(path)
    try:
        identity = read_json(path / IDENTITY)
        hashes = identity["hashes"]
        if identity.get("format") != FORMAT or any(
            of_file(path / f"{name}.npy") != sha for name, sha in hashes.items()
        ):
            raise CheckpointError(f"features {str(path)!r} are damaged; remove the folder")
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in hashes}
        queries = arrays["queries"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"features {str(path)!r} are not there or torn ({type(error).__name__}); remove the folder"
        ) from None
    if key is not None and identity.get("key") != key:
        raise CheckpointError(f"features {str(path)!r} were made for another key; remove the folder")
    return StoredFeatures(queries, arrays.get("gallery", queries), identity)
