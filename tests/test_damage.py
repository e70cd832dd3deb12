"""Issue 15, number 6, and "Done when" 2: a flipped bit or a lost end is refused by name or repaired, and never used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from prunnet.errors import PrunnetError
from sweeps.study import quiet_optuna
from tests.conftest import REPOSITORY
from tests.file_kinds import HELPERS, KINDS, UNREAD, Kind

PACKAGES = ("prunnet", "cluster", "sweeps", "analysis")
WRITES = {
    "put_in_place", "write_text", "write_bytes", "write_json", "write_yaml", "save_tensors", "write_table",
    "ParquetWriter", "new_file", "open_memmap", "savefig",
}  # fmt: skip


def damaged(whole: bytes, flips: int) -> Iterator[tuple[str, bytes]]:
    """The file with one bit flipped, at many places of its start, middle and end, and cut off at some lengths."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 8 * len(whole), flips)
    edges = rng.integers(0, 8 * min(len(whole), 400), flips // 4)
    for bit in [*bits, *edges, *(8 * len(whole) - 1 - edges)]:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(content)
    for length in {0, 1, len(whole) - 1, *rng.integers(0, len(whole), 3 + flips // 8).tolist()}:
        yield f"cut to {length}", whole[:length]


@pytest.mark.filterwarnings("ignore::prunnet.errors.DataWarning")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.flips], ids=lambda kind: kind.name)
def test_a_damaged_file_is_refused_in_one_line_or_repaired(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15, numbers 4, 5 and 6: 5 in 5 damaged embedding sets, 23 of 400 parts of results, 60 of 60 checkpoints
    were used, 167 of 250 journals ended in a traceback, and two packed shards in an abort."""
    quiet_optuna()
    monkeypatch.setattr("prunnet.data.packed.ROWS", 8)
    monkeypatch.setattr("prunnet.data.packed.BATCH", 4)
    file = kind.write(tmp_path)
    whole, before = file.read_bytes(), kind.read(tmp_path)
    file.write_bytes(whole)
    for what, content in damaged(whole, kind.flips):
        file.write_bytes(content)
        try:
            after = kind.read(tmp_path)
        except PrunnetError as error:
            refused = str(error)
        else:
            assert after == before or kind.repaired(before, after), what
            continue
        assert "\n" not in refused, what


def test_every_place_that_writes_a_file_belongs_to_a_kind() -> None:
    """A new kind of file is named in tests/file_kinds.py, and is damaged above or said to be read by nobody."""
    known = {*UNREAD, *HELPERS, *(place for kind in KINDS for place in kind.written_by)}
    found = {place for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py") for place in writers(path)}
    assert sorted(found - known) == []
    assert sorted(known - found - set(HELPERS)) == []


def writers(path: Path) -> Iterator[str]:
    """`module:function` of each function that writes a file."""
    module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef) and any(writes(call) for call in own_calls(function)):
            yield f"{module}:{function.name}"


def own_calls(function: ast.FunctionDef) -> Iterator[ast.Call]:
    """Calls of a function, without those of functions in it."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Call):
            yield node
        if not isinstance(node, ast.FunctionDef):
            todo += ast.iter_child_nodes(node)


def writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    said = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    opens = name == "open" and any(isinstance(mode, str) and mode[:1] in ("w", "a", "x") for mode in said)
    saves = (
        name == "save" and isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("torch", "onnx")
    )
    return name in WRITES or opens or saves or (name == "open" and "r+b" in said)
