"""Exact inner-product search with faiss, a part of the gallery at a time; ties go to the lower gallery index."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunnet.errors import ConfigError, DataError

Features = npt.NDArray[np.float32]
_ROWS, _CHUNK = 2**16, 2**18
"""Gallery rows that are checked, and searched, at once: a large gallery may be a memory-mapped file."""
_GPU_DEPTH = 2048


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
    return _search(np.ascontiguousarray(queries, dtype=np.float32), gallery, min(depth, len(gallery)))


def _search(queries: Features, gallery: Features, depth: int):  # type: ignore[no-untyped-def]
    wanted = min(len(gallery), depth + 1)  # one more shows whether a tie is cut in two
    found = np.empty((len(queries), 0), dtype=np.int64)
    similarity = np.empty((len(queries), 0), dtype=np.float32)
    for start in range(0, len(gallery), _CHUNK):
        chunk = np.ascontiguousarray(gallery[start : start + _CHUNK], dtype=np.float32)
        values, indices = _nearest(queries, chunk, min(wanted, len(chunk)))
        found = np.concatenate([found, indices + start], axis=1)
        similarity = np.concatenate([similarity, values], axis=1)
        order = np.lexsort((found, -similarity), axis=-1)[:, :wanted]
        found, similarity = np.take_along_axis(found, order, 1), np.take_along_axis(similarity, order, 1)
    if wanted > depth:
        torn = np.flatnonzero(similarity[:, depth - 1] == similarity[:, depth])
        if len(torn):
            again = _search(queries[torn], gallery, min(len(gallery), 2 * depth + 1))
            found[torn, :depth], similarity[torn, :depth] = again[0][:, :depth], again[1][:, :depth]
    return found[:, :depth], similarity[:, :depth]


def _nearest(queries: Features, gallery: Features, depth: int) -> tuple[Features, npt.NDArray[np.int64]]:
    """(similarities, indices) [Q, depth] by faiss, on a GPU where there is one that reaches so deep."""
    import faiss  # 0.3 s, which whoever only needs the protocols is spared

    if getattr(faiss, "get_num_gpus", lambda: 0)() and depth <= _GPU_DEPTH:
        resources = faiss.StandardGpuResources()
        return faiss.knn_gpu(resources, queries, gallery, depth, metric=faiss.METRIC_INNER_PRODUCT)
    return faiss.knn(queries, gallery, depth, metric=faiss.METRIC_INNER_PRODUCT)


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
