"""Exact inner-product search with faiss; ties go to the lower gallery index."""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from prunnet.errors import ConfigError, DataError

Features = npt.NDArray[np.float32]
_ROWS = 2**16
"""Rows that are looked at at once: a large gallery may be a file."""


def search(queries: Features, gallery: Features, depth: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The `depth` nearest gallery rows of each query.

    Args:
        queries: [Q, d] float32.
        gallery: [G, d] float32.
        depth: at most G are returned.

    Returns:
        (ranks [Q, depth] of gallery indices, similarities [Q, depth]), best first.

    Raises:
        ConfigError: shapes that do not fit, depth below 1. DataError: values that are not finite.
    """
    check_features(queries, gallery)
    if depth < 1:
        raise ConfigError(f"depth={depth}; valid: 1 or more")
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(np.ascontiguousarray(gallery, dtype=np.float32))
    depth = min(depth, len(gallery))
    return _search(index, np.ascontiguousarray(queries, dtype=np.float32), depth)


def _search(index: faiss.Index, queries: Features, depth: int):  # type: ignore[no-untyped-def]
    wanted = min(index.ntotal, depth + 1)  # one more shows whether a tie is cut in two
    similarity, found = index.search(queries, wanted)
    order = np.lexsort((found, -similarity), axis=-1)
    similarity = np.take_along_axis(similarity, order, axis=1)
    found = np.take_along_axis(found, order, axis=1)
    if wanted > depth:
        torn = np.flatnonzero(similarity[:, depth - 1] == similarity[:, depth])
        if len(torn):
            again = _search(index, queries[torn], min(index.ntotal, 2 * depth + 1))
            found[torn, :depth], similarity[torn, :depth] = again[0][:, :depth], again[1][:, :depth]
    return found[:, :depth], similarity[:, :depth]


def check_features(queries: Features, gallery: Features) -> None:
    """Two-dimensional, of one width, finite; else an error in one line."""
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ConfigError(
            f"query features {queries.shape} and gallery features {gallery.shape} do not compare; "
            "valid: [Q, d] and [G, d]"
        )
    if not len(queries) or not len(gallery):
        raise DataError(f"{len(queries)} queries and {len(gallery)} gallery images; at least one of each is needed")
    for name, array in (("query", queries), ("gallery", gallery)):
        if not all(np.isfinite(array[start : start + _ROWS]).all() for start in range(0, len(array), _ROWS)):
            raise DataError(f"{name} features hold values that are not finite")
