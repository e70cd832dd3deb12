"""The results table: schema, atomic idempotent writes, reads. pyarrow only; importing it loads no torch.

One row = one test: query features against gallery features under one protocol. Rows are keyed by what
determines them (`unit_key`), a part file by the keys it holds, so a retry or a second run changes nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunnet.errors import ConfigError, ResultsError, echo
from prunnet.redact import shown
from prunnet.results.columns import KINDS, OWN, Column, brought
from prunnet.storage import seal
from prunnet.storage.atomic import put_in_place
from prunnet.storage.hashing import METHOD_VERSION, of_json
from prunnet.storage.paths import place, read_file

SCHEMA_VERSION = 2

_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}
SCHEMA = pa.schema([(column.name, _TYPES[column.type]) for column in OWN])
"""prunnet's own columns; `schema` has those of installed packages, too."""
_LEFT_BY_DESKTOPS = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX", "Icon\r"})
ADDED = frozenset(column.name for column in OWN if column.added)
"""Columns that version 2 did not have from the start; null in older parts."""
MEASURED = frozenset(column.name for column in OWN if column.kind == "measured")
"""Measured and provenance columns: all others are deterministic, and "equal" means equal in those."""
METRICS = tuple(column.name for column in OWN if column.kind == "metric")
_KIND = b"prunnet.kind"
"""What a field says of a package's column beside its type: a part is read, and its columns are kept, where the package
is not installed."""
_KINDS = {kind.encode(): kind for kind in KINDS}


@functools.cache
def schema() -> pa.Schema:
    """The columns of a part: ours, then those of installed packages."""
    return pa.schema([*SCHEMA, *map(_field, brought())])


def _field(column: Column) -> pa.Field:
    return pa.field(column.name, _TYPES[column.type], metadata={_KIND: column.kind, "prunnet.meaning": column.meaning})


def _kind_brought(field: pa.Field) -> str | None:
    """The kind of a package's column; None: no package that prunnet knows of wrote it."""
    known = field.type in _TYPES.values() and field.name not in SCHEMA.names
    return _KINDS.get((field.metadata or {}).get(_KIND, b"")) if known else None


def ranked_by(protocol: str | None) -> Literal["map", "map_at_100"]:
    """The column that a protocol's benchmark ranks by: GLDv2's mAP@100, otherwise mAP."""
    return "map_at_100" if protocol == "gldv2" else "map"


def features_key(**determinants: Any) -> str:
    """Key of a features unit: weights, capacity, mask, calibration, data, split, preprocessing."""
    return of_json({"unit": "features", "method_version": METHOD_VERSION, **determinants})


def row_key(query: str, gallery: str, protocol: str, trial: str | None = None, rerank: str | None = None) -> str:
    """Key of a test unit. Trials that share a network, such as a teacher, have separate rows.

    Args:
        rerank: the column; None: without re-ranking.
    """
    parts = {"unit": "test", "method_version": METHOD_VERSION, "query": query, "gallery": gallery, "protocol": protocol}
    further = {"trial": trial, "rerank": rerank}
    return of_json({**parts, **{name: value for name, value in further.items() if value is not None}})


def plain(table: pa.Table) -> pa.Table:
    """The rows without those that were re-ranked, for whoever compares subnetworks and not rankings."""
    return table if "rerank" not in table.schema.names else table.filter(pc.is_null(table["rerank"]))


def write_part(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as one part: temporary name, sync, read back, rename. The same rows give the same file name,
    and a part that is there already is left alone.

    Raises ResultsError for a row without a `unit_key` or with an unknown column.
    """
    return _write_part(place(folder), as_table(rows))


def _write_part(folder: Path, table: pa.Table) -> Path:
    path = folder / f"part-{of_json(sorted(table['unit_key'].to_pylist()))[:32]}.parquet"
    if path.exists():
        return path
    with put_in_place(path) as temporary:
        _write(table, temporary)
        if not _read_part(temporary).equals(table):
            raise ResultsError(f"{str(path)!r}: what was read back is not what was written; is the disk whole?")
    return path


def as_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of the schema; absent values are null."""
    wanted = schema()
    for row in rows:
        if not row.get("unit_key"):
            raise ResultsError("a results row needs a unit_key")
        if foreign := set(row) - set(wanted.names):
            raise ResultsError(
                f"results row with unknown columns {sorted(foreign)}; the schema is in prunnet/results/columns.py"
            )
    complete = [{name: row.get(name) for name in wanted.names} | {"schema_version": SCHEMA_VERSION} for row in rows]
    return pa.Table.from_pylist(complete, schema=wanted)


def read(folder: str | Path, each: Callable[[pa.Table], pa.Table] | None = None) -> pa.Table:
    """All rows of a results folder, one a key, in the order of their keys' parts.

    `each` is applied to every part when it is read, to keep memory small. Columns of packages that are not installed
    are kept, behind those of the schema.

    Raises ResultsError that names a file which is torn, foreign, or of another schema. Hidden files, such as temporary
    ones of writers that died and what file managers leave (.DS_Store), are not read.
    """
    each = each or (lambda table: table)
    parts = [each(schema().empty_table()), *map(each, _parts(place(folder)))]
    try:
        return _one_row_a_key(pa.concat_tables(parts, promote_options="default"))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = shown(" ".join(str(error).split()))[:120]
        raise ResultsError(f"parts in {str(folder)!r} have a package's column in several types ({reason})") from None


def trial_folder(folder: str | Path, trial: str) -> Path:
    """Folder of the parts of one trial, which can be read without those of other trials."""
    return place(folder) / f"trial-{trial.replace('/', '-')}"


def _parts(folder: Path) -> Iterator[pa.Table]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or path.name in _LEFT_BY_DESKTOPS:
            continue
        if path.name.startswith("trial-") and path.is_dir():
            yield from _parts(path)
            continue
        if not (path.name.startswith("part-") and path.suffix == ".parquet"):
            raise ResultsError(f"foreign file {path.name!r} in results folder {str(folder)!r}; move it away")
        yield _read_part(path)


def _write(table: pa.Table, path: Path, compression: str = "snappy") -> None:
    """Parquet with a checksum a page, and a hash of the whole file in its metadata (`prunnet.storage.seal`)."""
    with pq.ParquetWriter(path, table.schema, compression=compression, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"prunnet": seal.BLANK})
    seal.close(path)


def _read_part(path: Path) -> pa.Table:
    try:
        content = read_file(path)
        if seal.whole(content) is False:
            raise ValueError("its bytes do not have the hash that it carries")
        # Without Arrow's threads: one that starts while the interpreter ends aborts the process (apache/arrow#34314).
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        table.validate(full=True)
    # In a damaged file without a hash Arrow may trust wrong sizes, or find names that are not text.
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = shown(" ".join(str(error).split()))[:120]
        raise ResultsError(
            f"torn part {path.name!r} in {str(path.parent)!r}: {reason}; remove it and run again"
        ) from None
    found = _as_wanted(table)
    if found is None:
        raise ResultsError(
            f"part {path.name!r} in {str(path.parent)!r} has another schema than version {SCHEMA_VERSION}"
        )
    return found


def _as_wanted(table: pa.Table) -> pa.Table | None:
    """A part with the columns of the schema, nulls in those that came after it, and behind them those of packages that
    are not installed; None for a part of another schema."""
    wanted = schema()
    if table.schema == wanted:
        return table
    names, known = set(table.schema.names), set(wanted.names)
    if len(names) < table.num_columns or not known - names <= ADDED | {column.name for column in brought()}:
        return None
    further = sorted((field for field in table.schema if field.name not in known), key=lambda field: field.name)
    if not all(map(_kind_brought, further)):
        return None
    for field in wanted:
        if field.name not in names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    table = table.select([*wanted.names, *(field.name for field in further)])
    return table if table.schema == pa.schema([*wanted, *further]) else None


def check_tests(table: pa.Table, where: str | Path) -> None:
    """ResultsError for a row that is not a test: without a capacity, with an infinite number, or with training
    capacities that are not numbers."""
    for name in ("query_capacity", "gallery_capacity"):
        if table[name].null_count or pc.any(pc.is_nan(table[name])).as_py():
            raise ResultsError(f"{str(where)!r} has rows without {name}: they are of no test")
    for name in (field.name for field in table.schema if field.type == pa.float64()):
        if pc.any(pc.is_inf(table[name])).as_py():
            raise ResultsError(f"{str(where)!r} has rows in which {name} is infinite")
    for text in pc.unique(table["train_capacities"]).to_pylist():
        try:
            [float(part) for part in (text or "").split(",") if part]
        except ValueError:
            raise ResultsError(f"{str(where)!r} has rows in which train_capacities is {echo(text)}") from None


def _one_row_a_key(table: pa.Table) -> pa.Table:
    first: dict[str, int] = {}
    for index, key in enumerate(table["unit_key"].to_pylist()):
        first.setdefault(key, index)
    return table if len(first) == len(table) else table.take(pa.array(sorted(first.values())))


def pack(folder: str | Path, path: str | Path) -> int:
    """Writes all rows of a results folder to one Parquet file, sorted by trial and key, for keeping; returns how many.

    Atomic. `unpack` is the way back.
    """
    table, path = read(folder).sort_by([("trial_id", "ascending"), ("unit_key", "ascending")]), place(path)
    with put_in_place(path) as temporary:
        _write(table, temporary, compression="zstd")
    return len(table)


def unpack(path: str | Path, folder: str | Path) -> int:
    """Adds the rows of a packed file to a results folder, those that are not there yet; returns how many it added."""
    known, packed = finished_keys(folder), read_packed(path)
    new = [at for at, key in enumerate(packed["unit_key"].to_pylist()) if key not in known]
    if new:
        _write_part(place(folder), packed.take(pa.array(new)))
    return len(new)


def read_packed(path: str | Path) -> pa.Table:
    """All rows of a file that `pack` wrote; ResultsError where there is none, or it is torn, foreign or of another
    schema."""
    if not place(path).is_file():
        raise ResultsError(f"{str(path)!r} is no table of results: there is no such file")
    return _read_part(place(path))


def finished_keys(folder: str | Path) -> set[str]:
    """Keys of all complete rows."""
    table = read(folder)
    return set(table.filter(pc.equal(table["status"], "complete"))["unit_key"].to_pylist())


def select(table: pa.Table, keys: Iterable[str]) -> pa.Table:
    """The rows of some keys, in that order."""
    position = {key: index for index, key in enumerate(table["unit_key"].to_pylist())}
    return table.take(pa.array([position[key] for key in keys if key in position], type=pa.int64()))


KEY = 16
"""Characters of a key by which commands name a row."""


def row_of(table: pa.Table, key: str) -> dict[str, Any]:
    """The row of a key, or of the only key that begins so; ConfigError, with valid ones, where there is none or there
    are several. Rows of what was seen during a training are of no subnetwork that is kept, and do not count."""
    complete = table.filter(pc.equal(table["status"], "complete"))
    keys = complete["unit_key"].to_pylist()
    found = [key] if key in keys else [known for known in keys if key and known.startswith(key)]
    if len(found) != 1:
        valid = found or keys
        names = ", ".join(known[:KEY] if len(found) < 2 else known for known in valid[:5])
        more = f" and {len(valid) - 5} more" if len(valid) > 5 else ""
        how_many = f"{len(found)} rows have" if found else "no row has"
        raise ConfigError(f"{how_many} a unit_key that begins with {echo(key)}; valid: {names}{more}")
    return select(complete, found).to_pylist()[0]


def deterministic(table: pa.Table) -> pa.Table:
    """The columns in which two runs of the same recipe agree, sorted by key."""
    kept = [field.name for field in table.schema if field.name not in MEASURED and _kind_brought(field) != "measured"]
    return table.select(kept).sort_by("unit_key")


def best_under(
    results: pa.Table | str | Path,
    *,
    macs: float | None = None,
    bytes_on_disk: float | None = None,
    latency_ms: float | None = None,
    min_recall: float | None = None,
    metric: str = "map",
    gallery_capacity: float | None = 1.0,
    device: str | None = None,
    rerank: str | None = None,
) -> dict[str, Any]:
    """The row to ship: the best `metric` among tests within the budget.

    Args:
        results: a table or a results folder.
        macs, bytes_on_disk, latency_ms: upper limits (None: none); rows where the value is unknown do not count.
        min_recall: lower limit on recall_at_1, in [0, 1].
        gallery_capacity: which gallery is searched; None: any.
        device: only rows that were measured there, such as `cpu`; None: any.
        rerank: only rows that were re-ranked so, as column `rerank` has it; None: only those that were not.

    Raises:
        ConfigError: an unknown metric, or no row within the budget (the message says what the cheapest costs).
    """
    if not isinstance(results, pa.Table) and not place(results).is_dir():
        raise ConfigError(f"{str(results)!r} is no folder of results; valid: such as runs/demo/results")
    table = results if isinstance(results, pa.Table) else read(results)
    metrics = (*METRICS, *(column.name for column in brought() if column.kind == "metric" and column.type is not str))
    if metric not in metrics:
        raise ConfigError(f"metric {metric!r}; valid: {', '.join(metrics)}")
    limits = {"macs": macs, "bytes_on_disk": bytes_on_disk, "latency_ms_b1": latency_ms}
    rows = [r for r in table.to_pylist() if r["status"] == "complete" and _number(r[metric])]
    rows = [r for r in rows if r["gallery_source"] != "old"]
    if rerank is not None and not any(r.get("rerank") == rerank for r in rows):
        known_texts = sorted({r["rerank"] for r in rows if r.get("rerank")})
        raise ConfigError(f"no row has rerank {echo(rerank)}; those in the table: {', '.join(known_texts) or 'none'}")
    rows = [r for r in rows if r.get("rerank") == rerank]
    if device is not None:
        devices = sorted({str(r["device"]) for r in rows})
        rows = [r for r in rows if r["device"] == device]
        if not rows:
            raise ConfigError(f"no row was measured on device {device!r}; those in the table: {', '.join(devices)}")
    if gallery_capacity is not None:
        rows = [r for r in rows if r["gallery_capacity"] == gallery_capacity]
    fitting = [
        r
        for r in rows
        if all(limit is None or (_number(r[c]) and r[c] <= limit) for c, limit in limits.items())
        and (min_recall is None or (_number(r["recall_at_1"]) and r["recall_at_1"] >= min_recall))
    ]
    if not fitting:
        asked = {c: limit for c, limit in limits.items() if limit is not None} | {"min_recall": min_recall}
        known = [r["macs"] for r in rows if _number(r["macs"])]
        cheapest = f"; the cheapest takes {min(known)} MACs" if known else ""
        raise ConfigError(f"no row of {len(rows)} fits {asked}{cheapest}")
    return max(fitting, key=lambda r: (r[metric], -(r["macs"] or math.inf), r["unit_key"]))


def _number(value: Any) -> bool:
    return value is not None and not math.isnan(value)
