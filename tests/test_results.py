"""The table: parts are atomic and idempotent; torn and foreign files are named; one row a key."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunnet import best_under, results
from prunnet.errors import ConfigError, ResultsError
from prunnet.results import columns, table
from prunnet.storage.hashing import of_json
from tests.conftest import REPOSITORY


def row(key: str, **columns: object) -> dict[str, object]:
    return {"unit_key": key, "status": "complete", "query_capacity": 0.5, "gallery_capacity": 1.0, **columns}


def test_written_rows_are_read_back_and_absent_values_are_null(tmp_path: Path) -> None:
    results.write_part(tmp_path, [row("a", map=0.5), row("b", map=0.25)])
    table = results.read(tmp_path)
    assert table.schema == results.SCHEMA
    assert table["map"].to_pylist() == [0.5, 0.25]
    assert table["latency_ms_b1"].to_pylist() == [None, None]
    assert results.finished_keys(tmp_path) == {"a", "b"}


def test_writing_the_same_rows_twice_changes_nothing(tmp_path: Path) -> None:
    first = results.write_part(tmp_path, [row("a", map=0.5), row("b")])
    stamp = first.stat().st_mtime_ns
    second = results.write_part(tmp_path, [row("b"), row("a", map=0.5)])
    assert (first, first.stat().st_mtime_ns) == (second, stamp)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_key_in_two_parts_is_one_row(tmp_path: Path) -> None:
    results.write_part(tmp_path, [row("a"), row("b")])
    results.write_part(tmp_path, [row("b"), row("c")])
    assert sorted(results.read(tmp_path)["unit_key"].to_pylist()) == ["a", "b", "c"]


def test_partial_rows_are_not_finished(tmp_path: Path) -> None:
    results.write_part(tmp_path, [row("a", status="partial"), row("b")])
    assert results.finished_keys(tmp_path) == {"b"}


def test_torn_and_foreign_files_are_named(tmp_path: Path) -> None:
    part = results.write_part(tmp_path, [row("a")])
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ResultsError, match=f"torn part '{part.name}'"):
        results.read(tmp_path)
    part.unlink()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ResultsError, match=r"foreign file 'notes.txt'"):
        results.read(tmp_path)
    (tmp_path / "notes.txt").unlink()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "part-0.parquet")
    with pytest.raises(ResultsError, match="another schema"):
        results.read(tmp_path)


def test_what_a_dying_writer_leaves_is_not_read(tmp_path: Path) -> None:
    results.write_part(tmp_path, [row("a")])
    (tmp_path / ".part-123.parquet.99.tmp").write_bytes(b"half")
    assert results.finished_keys(tmp_path) == {"a"}


def test_a_killed_writer_leaves_whole_parts_only(tmp_path: Path) -> None:
    script = (
        "import sys; from prunnet import results\n"
        "for i in range(10**6): results.write_part(sys.argv[1], [{'unit_key': f'{i}', 'status': 'complete'}])"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    while len(list(tmp_path.glob("part-*"))) < 20:
        assert writer.poll() is None
    writer.kill()
    writer.wait()
    keys = results.finished_keys(tmp_path)
    assert len(keys) == len(list(tmp_path.glob("part-*"))) >= 20


def test_a_full_disk_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.write_part(tmp_path, [row("a")])
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="needs a unit_key"):
        results.write_part(tmp_path, [{"map": 0.5}])
    with pytest.raises(ResultsError, match="unknown columns"):
        results.write_part(tmp_path, [row("a", accuracy=1.0)])


def test_keys_hold_what_determines_a_unit() -> None:
    one = results.features_key(weights="w", capacity=0.5)
    assert one == results.features_key(capacity=0.5, weights="w")
    assert one != results.features_key(weights="w", capacity=0.4)
    assert results.row_key("q", "g", "p") != results.row_key("g", "q", "p")


def test_deterministic_columns_leave_measurements_out() -> None:
    a = results.as_table([row("a", eval_seconds=1.0, created_at="now"), row("b")])
    b = results.as_table([row("b"), row("a", eval_seconds=2.0, created_at="later")])
    assert results.deterministic(a).equals(results.deterministic(b))


def test_best_under_picks_the_row_to_ship() -> None:
    table = results.as_table(
        [
            row("small", macs=100, map=0.6, recall_at_1=0.7),
            row("large", macs=300, map=0.8, recall_at_1=0.9),
            row("worse", macs=200, map=0.5, recall_at_1=0.8),
            row("self", macs=50, map=0.9, gallery_capacity=0.5),
            row("unknown", macs=None, map=0.99),
            row("nan", macs=10, map=math.nan),
        ]
    )
    assert best_under(table, macs=250)["unit_key"] == "small"
    assert best_under(table, macs=300)["unit_key"] == "large"
    assert best_under(table, macs=250, min_recall=0.75)["unit_key"] == "worse"
    assert best_under(table, macs=60, gallery_capacity=None)["unit_key"] == "self"
    with pytest.raises(ConfigError, match="no row of 4 fits"):
        best_under(table, macs=5)
    with pytest.raises(ConfigError, match="valid: map"):
        best_under(table, metric="accuracy")


def test_best_under_looks_at_one_device_where_asked() -> None:
    table = results.as_table([row("phone", map=0.5, device="cpu"), row("server", map=0.9, device="an H200")])
    assert best_under(table)["unit_key"] == "server"
    assert best_under(table, device="cpu")["unit_key"] == "phone"
    with pytest.raises(ConfigError, match="no row was measured on device 'tpu'; those in the table: an H200, cpu"):
        best_under(table, device="tpu")


def test_parts_of_before_a_column_was_added_have_nulls_in_it(tmp_path: Path) -> None:
    results.write_part(tmp_path, [{"unit_key": "new", "map": 0.5, "protocol": "gldv2"}])
    older = results.as_table([{"unit_key": "old", "map": 0.25}]).drop_columns(sorted(results.ADDED))
    pq.write_table(older, tmp_path / "part-old.parquet")
    rows = {row["unit_key"]: row for row in results.read(tmp_path).to_pylist()}
    assert (rows["old"]["map"], rows["old"]["protocol"], rows["new"]["protocol"]) == (0.25, None, "gldv2")
    pq.write_table(older.drop_columns(["map"]), tmp_path / "part-foreign.parquet")
    with pytest.raises(ResultsError, match="another schema"):
        results.read(tmp_path)


# --- columns ------------------------------------------------------------------------------------------------------


def test_the_schema_is_the_one_that_parts_were_written_with() -> None:
    said = of_json([[field.name, str(field.type)] for field in results.SCHEMA])
    assert said == "c2179ce7d03693111d2ea305971118642283910a8cb0ac7a095c7514ffc8ce09"
    assert results.METRICS[:1] == ("map",)
    assert {"train_seconds", "device", "git_commit"} < results.MEASURED < set(results.SCHEMA.names)


def test_the_page_of_columns_is_what_the_list_of_columns_says() -> None:
    page = (REPOSITORY / "docs" / "COLUMNS.md").read_text(encoding="utf-8")
    assert columns.markdown() in page
    assert all(f"| {kind} | {meaning} |" in page for kind, meaning in columns.KINDS.items())


def part_of_a_package(folder: Path, key: str, kind: str | bytes | None, values: pa.Array, name: str = "margin") -> None:
    """A part with a column that no package of this environment brings; `kind`: what the package wrote beside it."""
    said = None if kind is None else {"prunnet.kind": kind}
    field = pa.field(name, values.type, metadata=said)
    folder.mkdir(exist_ok=True)
    table._write(results.as_table([row(key)]).append_column(field, values), folder / f"part-{key}.parquet")


def test_columns_of_packages_that_are_not_installed_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    results.write_part(folder, [row("plain", map=0.5)])
    part_of_a_package(folder, "theirs", "metric", pa.array([0.25]))
    part_of_a_package(folder, "timed", "measured", pa.array([3]), name="joules")
    found = results.read(folder)
    assert found.schema.names == [*results.SCHEMA.names, "margin", "joules"]
    assert dict(zip(found["unit_key"].to_pylist(), found["margin"].to_pylist(), strict=True)) == {
        "plain": None,
        "theirs": 0.25,
        "timed": None,
    }
    kept = results.deterministic(found).schema.names
    assert "margin" in kept
    assert "joules" not in kept
    results.pack(folder, tmp_path / "table.parquet")
    assert results.unpack(tmp_path / "table.parquet", tmp_path / "again") == 3
    again = results.read(tmp_path / "again").sort_by("unit_key").select(found.schema.names)
    assert again.equals(found.sort_by("unit_key"))


def test_columns_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    part_of_a_package(tmp_path / "unsaid", "a", None, pa.array([0.25]))
    part_of_a_package(tmp_path / "odd kind", "a", b"\xff", pa.array([1]))
    part_of_a_package(tmp_path / "odd type", "a", "metric", pa.array([[0.25]]))
    for name in ("unsaid", "odd kind", "odd type"):
        with pytest.raises(ResultsError, match="another schema"):
            results.read(tmp_path / name)
    part_of_a_package(tmp_path / "two types", "a", "metric", pa.array([0.25]))
    part_of_a_package(tmp_path / "two types", "b", "metric", pa.array(["x"]))
    with pytest.raises(ResultsError, match="a package's column in several types"):
        results.read(tmp_path / "two types")


def test_a_column_of_no_known_type_or_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="valid: str, int or float; identity, metric, result, cost, measured"):
        results.Column("margin", list, "metric", "of each query")
