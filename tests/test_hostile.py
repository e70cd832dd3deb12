"""What strangers may put into a data set: pickles that call, paths that climb, pictures that claim all memory."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunnet import data
from prunnet.config.recipe import DataConfig
from prunnet.data import packed
from prunnet.data.datasets.pickles import unpickled
from prunnet.data.sources.decode import MAX_PIXELS, decoded
from prunnet.data.sources.names import below
from prunnet.errors import DataError
from prunnet.storage import hashing
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


LISTS = {
    "gldv2": ("train_clean.csv", "index.csv", "test.csv", "retrieval_solution_v2.1.csv"),
    "inshop": ("Eval/list_eval_partition.txt", "Anno/list_bbox_inshop.txt"),
    "veri776": ("name_train.txt", "name_query.txt", "name_test.txt", "train_label.xml"),
    "sop": ("Ebay_train.txt", "Ebay_test.txt"),
    "cub200": ("images.txt", "image_class_labels.txt", "classes.txt"),
}
PICKLES = {
    "roxford5k": ("gnd_roxford5k.pkl",),
    "cifar100": ("cifar-100-python/train", "cifar-100-python/meta", "cifar-100-python/test"),
}
BYTES = [b"\xff", b"\0", b"9" * 30, b"-1", b"\r", b",", b'"', b"..", b"/", b"\\", b"\xe2\x80\xa8", b"<", b"&x;", b"1e5"]
VALUES = [None, True, -1, 10**30, 1.5, float("nan"), "\ud800", b"x", [], [[1], [1, 2]], {"x": 1}, set(), 1j, [10**30]]
VALUES += [np.array(5), np.zeros((2, 2)), np.array(["a"]), np.array([1.5]), np.array([10**18])]


def scribbled(content: bytes, rng: random.Random) -> bytes:
    """A list with some bytes replaced, its lines shuffled, or its end cut off."""
    kind, changed = rng.randrange(4), bytearray(content)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(changed) + 1)
        changed[at : at + rng.randrange(4)] = rng.choice(BYTES)
    lines = bytes(changed).split(b"\n")
    if kind == 1:
        rng.shuffle(lines)
    return b"\n".join(lines)


def replaced(tree: Any, rng: random.Random) -> Any:
    """Nested containers with one value, anywhere, become another one."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        return {**tree, key: replaced(tree[key], rng)}
    if isinstance(tree, (list, tuple)) and tree and rng.random() < 0.6:
        at = rng.randrange(len(tree))
        return [*tree[:at], replaced(tree[at], rng), *tree[at + 1 :]]
    return rng.choice(VALUES)


@pytest.mark.filterwarnings("ignore::prunnet.errors.DataWarning")
@pytest.mark.parametrize("name", sorted({**LISTS, **PICKLES}))
def test_lists_of_any_other_shape_are_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """Issue 15, number 18: lists of other shapes inside data sets were IndexError, OverflowError, TypeError and so
    on."""
    root, rng = LAYOUTS[name](tmp_path), random.Random(0)
    config = DataConfig(name=name, root=str(root), image_size=16, channels=3, boxes=name == "inshop")

    def used() -> None:
        listing = data.read(config)
        for test in data.listing.tests(listing, data.Preprocessing.from_config(config)).values():
            test.held().truth()

    refused = 0
    for _ in range(100):
        file = root / rng.choice({**LISTS, **PICKLES}[name])
        content = file.read_bytes()
        if name in LISTS:
            file.write_bytes(scribbled(content, rng))
        else:
            file.write_bytes(pickle.dumps(replaced(unpickled(content, "x"), rng)))
        said = complaint(used)
        assert said.encode().count(b"\n") == 0
        refused += bool(said)
        file.write_bytes(content)
    assert 10 < refused < 100


@pytest.mark.filterwarnings("ignore::prunnet.errors.DataWarning")
@pytest.mark.parametrize("keyed", [True, False])
def test_a_manifest_of_another_shape_is_refused_in_one_line(tmp_path: Path, keyed: bool) -> None:
    """Issue 15, number 18: manifests of other shapes, with the right checksum too."""
    packed.pack(data.whole(DataConfig(name="sop", root=str(LAYOUTS["sop"](tmp_path / "sop")))), tmp_path / "store")
    file, rng = tmp_path / "store" / packed.MANIFEST, random.Random(0)
    whole = json.loads(file.read_text())
    del whole["sha256"]
    plain = [value for value in VALUES if isinstance(value, (int, str, list, dict, type(None)))]
    for number in range(60):
        key = rng.choice(list(whole))
        changed: Any = {**whole, key: rng.choice(plain)} if keyed else plain[number % len(plain)]
        if isinstance(changed, dict):
            changed = {**changed, "sha256": hashing.of_json(changed)}
        file.write_text(json.dumps(changed))
        said = complaint(lambda: data.whole(DataConfig(name="sop", root=str(tmp_path / "store"))))
        assert "\n" not in said
        assert said or key in ("expected", "more", "notes", "made_of", "format", "pool", "train")


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
