"""A packed store: a data set's encoded images and lists in a few large files that are memory-mapped.

    shard-00000.arrow …     images as they were, with name, checksum and size; ROWS a shard
    part-NAME.arrow         rows, labels, cameras and boxes of a part       lists-SPLIT.arrow, classes.arrow
    manifest.json           what belongs together, with a hash of each file; written last: without it there is no store

Opening one costs the same for a thousand images as for a million. Every image is compared with its checksum when it is
read, and the head of a batch (names, checksums, offsets) before Arrow uses it; `verify` reads every byte.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, ValidationError

from prunnet.data.base import IntArray
from prunnet.data.listing import Groups, Listing, Part, Split
from prunnet.data.sources.decode import size_of
from prunnet.data.sources.names import packed_names, unpacked_name, unpacked_names
from prunnet.errors import DataError, echo, one_line
from prunnet.storage import hashing
from prunnet.storage.atomic import put_in_place
from prunnet.storage.hashing import of_file
from prunnet.storage.paths import lock_file

VERSION = 1
MANIFEST = "manifest.json"
ROWS, BATCH = 4096, 64
_MAGIC = 8
"""Bytes of an Arrow file before its schema."""
_SHARD = pa.schema(
    [
        ("name", pa.large_string()),
        ("crc32", pa.uint32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image", pa.large_binary()),
    ]
)


def is_store(root: str | Path) -> bool:
    """Whether a folder is a store, finished or begun."""
    return any((Path(root).expanduser() / name).is_file() for name in (MANIFEST, _Begun.FILE))


# --- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """The images of a store, by row. Pickled by its path: every process maps the files for itself, and all share the
    pages."""

    path: str
    shards: tuple[Mapping[str, Any], ...] = field(repr=False)
    """File, rows, sha256 and `heads` of each: start, length and CRC-32 of what stands before each batch's images."""

    @property
    def where(self) -> str:
        return self.path

    def __len__(self) -> int:
        return sum(shard["rows"] for shard in self.shards)

    def name(self, row: int) -> str:
        batch, place = self._at(row)
        return unpacked_name(batch.names[place])

    def read(self, row: int) -> memoryview:
        """The image's bytes, not copied; DataError where they are not those that were packed."""
        batch, place = self._at(row)
        data = batch.data[batch.bounds[place] : batch.bounds[place + 1]]
        if zlib.crc32(data) != batch.checksums[place]:
            file = self.shards[row // ROWS]["file"]
            raise DataError(f"image {batch.described(place)} in {file!r} of {self.path!r} is damaged")
        return data

    def stamp(self, rows: IntArray) -> str:
        return hashing.of_json([[shard["sha256"] for shard in self.shards], hashing.of_arrays({"rows": rows})])

    def _at(self, row: int) -> tuple[_Batch, int]:
        number, within = divmod(row, ROWS)
        shard, batch = self.shards[number], within // BATCH
        try:
            head = tuple(shard["heads"][batch]) if "heads" in shard else None
            return _batch(os.getpid(), self.path, shard["file"], batch, head), within % BATCH
        except (pa.ArrowException, OSError, IndexError, ValueError, MemoryError) as error:
            file = str(Path(self.path) / shard["file"])
            raise DataError(f"{file!r} cannot be read ({one_line(error)[:150]}); pack the data set again") from None


@dataclass(frozen=True)
class _Batch:
    """The images of one record batch, ready to be sliced: Arrow's own scalars cost more than the read."""

    names: pa.LargeStringArray
    data: memoryview
    bounds: list[int]
    checksums: list[int]

    def described(self, place: int) -> str:
        """An image for a message: its name, or its number where the name itself is damaged."""
        try:
            return repr(unpacked_name(self.names[place]))
        except (UnicodeDecodeError, pa.ArrowException):
            return f"number {place} of a batch"


@lru_cache(maxsize=512)
def _mapped(pid: int, path: str, file: str) -> pa.Buffer:
    return pa.memory_map(os.fsencode(Path(path) / file)).read_buffer()


@lru_cache(maxsize=256)
def _batch(pid: int, path: str, file: str, number: int, head: tuple[int, int, int] | None) -> _Batch:
    mapped = _mapped(pid, path, file)
    if head is None:  # an older store without checksums of heads: in a damaged one Arrow would read at any offset
        batch = pa.ipc.open_file(mapped).get_batch(number)
        batch.validate(full=True)
    else:
        start, length, checksum = head
        if zlib.crc32(memoryview(mapped)[start : start + length]) != checksum:
            raise ValueError(f"batch {number} does not have its checksum")
        message = pa.ipc.read_message(pa.BufferReader(mapped.slice(start)))
        batch = pa.ipc.read_record_batch(message, _SHARD)
    if batch.schema != _SHARD:
        raise ValueError("its columns are not those of a shard")
    _, bounds, data = batch["image"].buffers()
    starts = np.frombuffer(bounds, np.int64, len(batch) + 1)
    return _Batch(batch["name"], memoryview(data or b"").toreadonly(), starts.tolist(), batch["crc32"].to_pylist())


def _heads(file: Path) -> list[list[int]]:
    """Of each batch of a shard: where it starts, how far it is to its images, and the checksum of that."""
    found = []
    mapped = pa.memory_map(os.fsencode(file)).read_buffer()
    source = pa.BufferReader(mapped)
    source.seek(_MAGIC)
    schema = pa.ipc.read_schema(source)
    for _ in range(pa.ipc.open_file(mapped).num_record_batches):
        start = source.tell()
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)
        images = batch["image"].buffers()[2]
        end = images.address - mapped.address if images is not None and images.size else source.tell()
        length = end - start
        found.append([start, length, zlib.crc32(memoryview(mapped)[start : start + length])])
    return found


def read(root: str | Path) -> Listing:
    """The listing of a finished store; DataError for one that was never finished, is damaged or of another version.
    Images are checked one by one as they are read."""
    path = Path(root).expanduser()
    # Files may have been replaced or cut short since this process mapped them; reading past their end would kill it.
    _batch.cache_clear()
    _mapped.cache_clear()
    manifest = _manifest(path)
    if wrong := _damaged_lists(path, manifest):
        raise DataError(f"{wrong[0]} in {str(path)!r}; pack the data set again")
    try:
        return _described(path, manifest)
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeError, pa.ArrowException) as error:
        raise DataError(
            f"{str(path / MANIFEST)!r} has another form ({one_line(error)[:100]}); pack the data set again"
        ) from None


def _described(path: Path, manifest: dict[str, Any]) -> Listing:
    splits = {}
    for name, split in manifest["splits"].items():
        queries, gallery = _part(path, split["queries"]), None
        if split["gallery"] is not None:
            gallery = _part(path, split["gallery"])
        lists = _lists(path / split["lists"]) if split["lists"] else None
        splits[name] = Split(queries, gallery, split["protocol"], lists, tuple(split["recalls"]))
    parts = {name: manifest[name] and _part(path, manifest[name]) for name in ("train", "pool")}
    classes = unpacked_names(_table(path / "classes.arrow")["name"].combine_chunks())
    store = Store(str(path), tuple(manifest["shards"]))
    if len(store) != manifest["images"]:
        raise DataError(f"{str(path / MANIFEST)!r}: shards of {len(store)} images, not {manifest['images']!r}")
    expected, notes = manifest["expected"], tuple(manifest["notes"])
    more = manifest["more"]
    return Listing(manifest["name"], store, classes, parts["train"], splits, parts["pool"], expected, notes, more)


def _damaged_lists(path: Path, manifest: dict[str, Any]) -> list[str]:
    files = manifest["files"].items()
    return [f"{f}: missing or damaged" for f, sha in files if not (path / f).is_file() or of_file(path / f) != sha]


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.exists():
        raise DataError(f"packed store {str(path)!r} was never finished; run the same `prunnet pack` again")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        own = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{str(file)!r} is damaged ({type(error).__name__}); pack the data set again") from None
    if own != hashing.of_json(manifest):
        raise DataError(f"{str(file)!r} is damaged: its checksum differs; pack the data set again")
    if manifest.get("version") != VERSION:
        raise DataError(f"{str(path)!r} is a store of version {echo(manifest.get('version'))}; valid: {VERSION}")
    try:
        _ToldStore.model_validate(manifest)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{str(file)!r} is not what `prunnet pack` writes ({where}); pack the data set again") from None
    return manifest


_Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]
"""Of a file of the store."""


class _ToldShard(BaseModel):
    file: _Name
    rows: Annotated[int, Field(ge=0, le=ROWS)]
    sha256: str


class _ToldSplit(BaseModel):
    queries: _Name
    gallery: _Name | None
    lists: _Name | None
    protocol: str
    recalls: list[int]


class _ToldStore(BaseModel):
    """What a manifest holds."""

    name: str
    images: int
    made_of: str
    train: _Name | None
    pool: _Name | None
    splits: dict[str, _ToldSplit]
    expected: dict[str, int]
    more: dict[str, int]
    notes: list[str]
    shards: list[_ToldShard]
    files: dict[_Name, str]


def _table(file: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(os.fsencode(file))).read_all()
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{str(file)!r} cannot be read ({type(error).__name__}); pack the data set again") from None


def _part(path: Path, name: str) -> Part:
    table = _table(path / name)
    arrays: dict[str, Any] = {
        column: table[column].chunk(0).to_numpy() if len(table) else np.zeros(0, np.int64)
        for column in table.column_names
    }
    boxes = None
    if "box0" in arrays:
        boxes = np.stack([arrays[f"box{corner}"] for corner in range(4)], axis=1)
    return Part(arrays["row"], arrays["label"], arrays.get("camera"), boxes)


def _lists(file: Path) -> Groups:
    table = _table(file)
    groups = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
        groups[name] = [flat[a:b] for a, b in pairwise(offsets.tolist())]
    return groups


# --- writing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Begun:
    """What an unfinished store is being made of, so that only the same packing goes on with it."""

    FILE = "packing.json"
    path: Path
    identity: str

    def check(self) -> None:
        """DataError where the folder holds something else; otherwise marks it as begun."""
        file = self.path / self.FILE
        if file.exists():
            if file.read_bytes() != self.identity.encode():
                raise DataError(f"{str(self.path)!r} holds the beginning of another store; remove it or pack elsewhere")
            return
        if foreign := [entry.name for entry in self.path.iterdir() if entry.name != _LOCK]:
            raise DataError(f"{str(self.path)!r} is no packed store and not empty ({foreign[0]!r}); pack elsewhere")
        with put_in_place(file) as temporary:
            temporary.write_text(self.identity, encoding="utf-8")


_LOCK = ".lock"


def pack(listing: Listing, out: str | Path, report: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Writes a data set's images and lists as a store; goes on where a killed packing stopped; a finished store is left
    as it is.

    Args:
        listing: of files that are there, before classes are held out.
        report: called with (shards done, shards in all).

    Raises:
        DataError: a folder that holds something else, another packing at work in it, a file that vanished, a full disk
            (what is finished is kept).
    """
    path = Path(out).expanduser()
    rows = listing.used_rows()
    identity = _identity(listing, rows)
    with _held(path):
        if (path / MANIFEST).exists():
            found = _manifest(path)
            if found["made_of"] != identity:
                held = f"{found['images']:,} images of {found['name']!r}"
                raise DataError(
                    f"{str(path)!r} is a finished store of {held}, which are not, or no longer, these {len(rows):,} of "
                    f"{listing.name!r}; remove it or pack elsewhere"
                )
            return path
        try:
            _Begun(path, identity).check()
            shards = []
            starts = range(0, len(rows), ROWS)
            for number, start in enumerate(starts):
                shards.append(_shard(path / f"shard-{number:05d}.arrow", listing, rows[start : start + ROWS]))
                report(number + 1, len(starts))
            _finish(path, listing, rows, shards, identity)
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise DataError(
                f"{str(path)!r} cannot be written ({why}); what is finished is kept, the same command goes on"
            ) from None
    return path


def _identity(listing: Listing, rows: IntArray) -> str:
    """Hash of what a store is made of: names and sizes of the images, and what the lists say of them."""
    said: dict[str, Any] = {}
    for name, part in listing.parts().items():
        arrays = {"rows": part.rows, "labels": part.labels, "cameras": part.cameras, "boxes": part.boxes}
        said[name] = hashing.of_arrays({key: array for key, array in arrays.items() if array is not None})
    lists = {
        f"{split}/{group}": hashing.of_arrays({str(q): one for q, one in enumerate(groups)})
        for split, test in listing.splits.items()
        for group, groups in (test.lists or {}).items()
    }
    return hashing.of_json([listing.name, listing.files.stamp(rows), said, lists])


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """One packing at a time."""
    with ExitStack() as opened:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = opened.enter_context(lock_file(path / _LOCK))
        except OSError as error:
            raise DataError(f"{str(path)!r} cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another packing is at work in {str(path)!r}") from None
        yield


@contextmanager
def _written(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchWriter]:
    """An Arrow file that is there whole or not at all."""
    # Arrow takes paths that are not UTF-8 as bytes only.
    with (
        put_in_place(path) as temporary,
        pa.OSFile(os.fsencode(temporary), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        yield writer


def _shard(file: Path, listing: Listing, rows: IntArray) -> dict[str, Any]:
    if not file.exists():
        with _written(file, _SHARD) as writer:
            for start in range(0, len(rows), BATCH):
                writer.write_batch(_packed_batch(listing, rows[start : start + BATCH]))
    return {"file": file.name, "rows": len(rows), "sha256": of_file(file), "heads": _heads(file)}


def _packed_batch(listing: Listing, rows: IntArray) -> pa.RecordBatch:
    names, data = [], []
    for row in rows.tolist():
        names.append(listing.files.name(row))
        try:
            data.append(bytes(listing.files.read(row)))
        except (OSError, KeyError) as error:
            raise DataError(
                f"image {names[-1]!r} in {listing.files.where!r} cannot be read ({type(error).__name__})"
            ) from None
    sizes = [size_of(image) for image in data]
    columns = [names, [zlib.crc32(image) for image in data], [w for w, _ in sizes], [h for _, h in sizes], data]
    arrays = [packed_names(names)]
    arrays += [pa.array(column, type=kind.type) for column, kind in zip(columns[1:], list(_SHARD)[1:], strict=True)]
    return pa.record_batch(arrays, schema=_SHARD)


def _finish(path: Path, listing: Listing, rows: IntArray, shards: list[dict[str, Any]], identity: str) -> None:
    """Lists, classes, and at last the manifest."""
    hashes: dict[str, str] = {}

    def keep(name: str, columns: Mapping[str, Any]) -> str:
        table = pa.table(dict(columns))

        with _written(path / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, len(table)))
        hashes[name] = of_file(path / name)
        return name

    def part(name: str, kept: Part | None) -> str | None:
        if kept is None:
            return None
        columns: dict[str, Any] = {"row": np.searchsorted(rows, kept.rows), "label": kept.labels.astype(np.int64)}
        if kept.cameras is not None:
            columns["camera"] = kept.cameras.astype(np.int64)
        if kept.boxes is not None:
            columns |= {f"box{corner}": kept.boxes[:, corner] for corner in range(4)}
        return keep(f"part-{name}.arrow", columns)

    splits = {}
    for name, split in listing.splits.items():
        groups = {} if split.lists is None else split.lists
        columns = {g: pa.array(list(lists), type=pa.large_list(pa.int64())) for g, lists in groups.items()}
        splits[name] = {
            "queries": part(f"{name}-queries", split.queries),
            "gallery": part(f"{name}-gallery", split.gallery),
            "lists": keep(f"lists-{name}.arrow", columns) if columns else None,
            "protocol": split.protocol,
            "recalls": list(split.recalls),
        }
    keep("classes.arrow", {"name": packed_names(listing.classes)})
    manifest = {
        "format": "prunnet-packed",
        "version": VERSION,
        "name": listing.name,
        "images": len(rows),
        "made_of": identity,
        "train": part("train", listing.train),
        "pool": part("pool", listing.pool),
        "splits": splits,
        "expected": dict(listing.expected),
        "more": dict(listing.more),
        "notes": list(listing.notes),
        "shards": shards,
        "files": hashes,
    }
    manifest = json.loads(json.dumps(manifest))
    text = json.dumps({**manifest, "sha256": hashing.of_json(manifest)}, indent=1)
    with put_in_place(path / MANIFEST) as temporary:
        temporary.write_text(text, encoding="utf-8")
    (path / _Begun.FILE).unlink(missing_ok=True)


def verify(root: str | Path, report: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """What is wrong with a finished store, a line for each damaged file that names the first damaged image; every byte
    is read. DataError where there is no finished store."""
    path = Path(root).expanduser()
    manifest = _manifest(path)
    wrong = _damaged_lists(path, manifest)
    store = Store(str(path), tuple(manifest["shards"]))
    for number, shard in enumerate(store.shards):
        if not (path / shard["file"]).exists():
            wrong.append(f"{shard['file']}: missing")
        elif of_file(path / shard["file"]) != shard["sha256"]:
            wrong.append(f"{shard['file']}: {_first_damaged(store, number * ROWS, shard['rows'])}")
        report(number + 1, len(store.shards))
    return wrong


def _first_damaged(store: Store, first: int, rows: int) -> str:
    for row in range(first, first + rows):
        try:
            store.read(row)
        except DataError as error:
            return str(error)
    return "damaged between its images"
