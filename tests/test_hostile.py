"""What strangers may put into a data set: pickles that call, paths that climb, pictures that claim all memory."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunnet import data
from prunnet.config import DataConfig
from prunnet.data.decode import MAX_PIXELS, decoded
from prunnet.data.names import below
from prunnet.data.pickles import unpickled
from prunnet.errors import DataError
from tests.layouts import LAYOUTS


class Calls:
    """What unpickling would call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.what


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Calls(os.system, "touch /tmp/prunnet-was-here"), "system"),
        (Calls(eval, "1 + 1"), "eval"),
        (Calls(getattr, "text", "upper"), "getattr"),
        (Calls(Path, "/etc/passwd"), "Path"),
        (Calls(np.load, "/etc/passwd"), "load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_names_anything_but_data_is_refused_by_name(call: Calls, named: str, protocol: int) -> None:
    for found in (call, {"gnd": [call]}, np.array([call], dtype=object)):
        with pytest.raises(DataError, match=rf"refused: it names .*{named}; valid: containers, numbers") as caught:
            unpickled(pickle.dumps(found, protocol=protocol), "gnd.pkl")
        assert "\n" not in str(caught.value)
    assert not Path("/tmp/prunnet-was-here").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_data_is_read(protocol: int) -> None:
    found = {
        "list": [1, 2.5, None, True, "text", b"bytes", b""],
        "arrays": [np.arange(5), np.zeros((2, 3), np.float32), np.array(["a", "b"]), np.zeros(0, np.int64)],
        "scalar": np.float64(1.5),
        "set": {1, 2},
        "ordered": OrderedDict(a=1),
        "tuple": (1, (2, 3)),
        "complex": 1j,
    }
    read = unpickled(pickle.dumps(found, protocol=protocol), "x", encoding="ASCII" if protocol > 2 else "latin1")
    assert str(read) == str(found)
    assert all(np.array_equal(a, b) for a, b in zip(read["arrays"], found["arrays"], strict=True))  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_pickle_end_in_one_line(junk: bytes) -> None:
    assert "\n" not in complaint(lambda: unpickled(junk, "x"))


def complaint(action: Callable[[], object]) -> str:
    """What a DataError says; nothing else may be raised."""
    try:
        action()
    except DataError as error:
        return str(error)
    return ""


def test_a_hostile_ground_truth_stops_the_load(tmp_path: Path) -> None:
    root = LAYOUTS["roxford5k"](tmp_path)
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(Calls(os.system, "touch /tmp/prunnet-was-here")))
    with pytest.raises(DataError, match=r"gnd_roxford5k.pkl.* refused: it names posix.system"):
        data.read(DataConfig(name="roxford5k", root=str(root)))


@pytest.mark.parametrize(
    "change",
    [
        {"gnd": "nothing"},
        {"gnd": [{}] * 3},
        {"gnd": [{"bbx": [0, 0, 1, 1], "easy": [99], "hard": [], "junk": []}] * 3},
        {"gnd": [{"bbx": [5, 0, 1, 1], "easy": [], "hard": [], "junk": []}] * 3},
        {"gnd": [{"bbx": [0, 0, 1], "easy": [], "hard": [], "junk": []}] * 3},
        {"imlist": []},
        {"imlist": ["../../../etc/passwd"] * 9},
        {"qimlist": ["one"]},
        {"imlist": 5},
    ],
)
def test_a_ground_truth_of_another_form_ends_in_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    root = LAYOUTS["roxford5k"](tmp_path)
    path = root / "gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps({**unpickled(path.read_bytes(), "x"), **change}))
    with pytest.raises(DataError) as caught:
        data.read(DataConfig(name="roxford5k", root=str(root)))
    assert "\n" not in str(caught.value)


CLIMBING = ["../x", "a/../../x", "/etc/passwd", "..\\x", "C:\\x", "C:/x", "", "  ", "a\0b", "a/.."]


@pytest.mark.parametrize("name", CLIMBING)
def test_names_that_climb_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"list:3: path .* does not stay below"):
        below(name, "list:3")


@given(st.text(max_size=30))
def test_names_stay_below_whatever_they_are(name: str) -> None:
    try:
        plain = below(name, "list")
    except DataError:
        return
    assert os.path.normpath(os.path.join("/root/of/data", plain)).startswith("/root/of/data/")


def png(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("side", "claims"), [(50_000, "2,500,000,000"), (12_000, "144,000,000")])
def test_a_picture_that_claims_too_much_is_refused_unread(side: int, claims: str) -> None:
    with pytest.raises(
        DataError, match=rf"'bomb.png' is refused: it claims {claims} pixels; valid: up to {MAX_PIXELS:,}"
    ):
        decoded(png(side, side), "bomb.png")


@given(st.binary(max_size=60), st.integers(0, 99))
def test_torn_and_foreign_bytes_end_in_one_line(tail: bytes, cut: int) -> None:
    for junk in (tail, png(8, 8)[:cut], png(8, 8)[:cut] + tail):
        assert "\n" not in complaint(lambda: decoded(junk, "x"))  # noqa: B023
