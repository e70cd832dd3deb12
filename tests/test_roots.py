"""Folders and zips as they are found: links in circles, pipes, litter, back-slashes, names of any bytes, bombs."""

from __future__ import annotations

import os
import socket
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prunnet import data
from prunnet.config.recipe import DataConfig
from prunnet.data import packed
from prunnet.data.files import unreadable
from prunnet.data.sources import folders, names
from prunnet.data.sources.names import Walk, packed_names, unpacked_name, unpacked_names
from prunnet.data.sources.roots import open_root
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, DataError
from prunnet.export.embedding_sets import EmbeddingSet, contact_sheet, embed_folder, query, write_csv
from prunnet.export.formats import export, identity, open_export
from prunnet.subnetworks.subnet import subnetwork
from sweeps.cli import app
from tests.conftest import image_folder, tiny_net
from tests.layouts import LAYOUTS, image, put

pytestmark = [
    pytest.mark.filterwarnings("ignore::prunnet.errors.DataWarning"),
    pytest.mark.timeout(60),  # what these folders did was to be read for ever
]


def walked(root: Path) -> Walk:
    return open_root(str(root), "images").walk()


def config(root: Path, name: str = "imagefolder", **more: Any) -> DataConfig:
    return DataConfig(**{"name": name, "root": str(root), "image_size": 16, "channels": 3, **more})


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder of images and their names."""
    root = image_folder(tmp_path / "images", classes=4, per_class=3)
    return root, walked(root).images


# --- links -------------------------------------------------------------------------------------------------


def test_links_to_a_folder_above_multiply_nothing_and_end(plain: tuple[Path, list[str]]) -> None:
    """Issue 15, number 11: a link to a parent made 1,968 images of 48, and two of them never ended."""
    root, images = plain
    (root / "top0" / "class0" / "up").symlink_to(root)
    (root / "top0" / "class1" / "up").symlink_to("..")
    (root / "top0" / "round").symlink_to(root / "top0" / "round")
    (root / "all").symlink_to("/")
    found = walked(root)
    assert found.images == images
    assert found.notes() == (
        "1 link(s) that lead nowhere passed over",
        "2 link(s) to a folder above passed over",
        "1 link(s) to what is listed already passed over",
    )
    assert all(note in data.whole(config(root)).notes for note in found.notes())


def test_what_is_linked_twice_is_listed_once(plain: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Issue 15, number 11: an image is in one class, whatever links lead to it."""
    root, images = plain
    elsewhere = image_folder(tmp_path / "elsewhere", classes=2, per_class=2) / "top0"
    (root / "aunt").symlink_to(elsewhere / "class1")
    (root / "cousin").symlink_to(elsewhere)  # holds what aunt leads to, and more
    (root / "twin").symlink_to(root / "top0" / "class2")
    (root / "top0" / "class3" / "same.png").symlink_to(root / "top0" / "class3" / "9.png")
    (root / "top0" / "class3" / "other.png").symlink_to(elsewhere / "class1" / "2.png")
    found = walked(root)
    assert found.images == sorted([*images, "aunt/2.png", "aunt/3.png", "cousin/class0/0.png", "cousin/class0/1.png"])
    assert found.notes() == ("4 link(s) to what is listed already passed over",)
    assert len({os.path.realpath(root / name) for name in found.images}) == len(found.images)


def test_a_collection_of_links_into_a_store_keeps_its_names(tmp_path: Path) -> None:
    """As content-addressed stores make them: what the links lead to is hidden, or no image by its suffix."""
    for number in range(4):
        for store in (".cache", "objects"):
            (tmp_path / store).mkdir(exist_ok=True)
            (tmp_path / store / f"{number}").write_bytes(image(number, number))
            (tmp_path / f"class{number}").mkdir(exist_ok=True)
            (tmp_path / f"class{number}" / f"{store[1:]}.jpg").symlink_to(tmp_path / store / f"{number}")
    assert len(walked(tmp_path).images) == 8
    assert len(data.load(config(tmp_path, validation_fraction=0.0, test_fraction=0.5)).train) == 4


# --- what is no file ---------------------------------------------------------------------------------------


def test_pipes_and_sockets_are_never_opened(plain: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Issue 15, number 11: a FIFO blocked for ever."""
    root, images = plain
    os.mkfifo(root / "top0" / "class0" / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (root / "top0" / "class0" / "linked.png").symlink_to(tmp_path / "pipe")
    (root / "null.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "s.png"))
        found = walked(root)
    assert found.images == images
    assert found.notes() == ("4 pipe(s), socket(s) and device(s) passed over",)
    with pytest.raises(OSError, match="is no file"):
        folders.Folder(str(tmp_path)).read("pipe")
    with pytest.raises(DataError, match="hold-out list .* cannot be read"):
        data.read(config(root, holdout="list", test=(str(tmp_path / "pipe"),)))


def test_lists_and_their_images_that_are_pipes_count_as_missing(tmp_path: Path) -> None:
    """Issue 15, number 11."""
    root = LAYOUTS["veri776"](tmp_path)
    victim = next((root / "image_train").iterdir())
    victim.unlink()
    os.mkfifo(victim)
    assert f"1 row(s) without a file left out: image_train/{victim.name}" in data.whole(config(root, "veri776")).notes
    (root / "name_query.txt").unlink()
    os.mkfifo(root / "name_query.txt")
    with pytest.raises(DataError, match="'name_query.txt' is not in"):
        data.whole(config(root, "veri776"))


def test_folders_that_cannot_be_listed_are_named(
    plain: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15, number 11: folders that cannot be listed vanished without a note."""
    root, images = plain
    veri = LAYOUTS["veri776"](tmp_path / "veri")
    scandir = os.scandir

    def refused(path: str) -> Any:
        if str(path).rstrip("/").endswith(("class1", "image_train")):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    found = walked(root)
    assert found.images == [name for name in images if "/class1/" not in name]
    assert found.notes() == ("1 folder(s) cannot be listed, so their images are missing: top0/class1",)
    with pytest.raises(DataError, match=r"'.*class1' cannot be listed \(Permission denied\)"):
        walked(root / "top0" / "class1")
    with pytest.raises(DataError, match=r"folder 'image_train' in .* cannot be listed \(Permission denied\)"):
        data.whole(config(veri, "veri776"))


# --- suffixes and litter -----------------------------------------------------------------------------------


def test_all_that_pillow_opens_is_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    """Issue 15, number 11: .jfif, .jpe, .pnm and others were skipped without a count."""
    for label in range(3):
        for suffix in ("jfif", "JPE", "pnm", "Jpeg", "webp", "TIF", "bmp", "j2k"):
            put(tmp_path, f"class{label}/a.{suffix}", label, 0)
        for number in range(2):
            put(tmp_path, f"class{label}/{number}.txt", label, number)
        put(tmp_path, f"class{label}/vector.eps", label, 0)
    put(tmp_path, "README", 0, 0)
    assert len(walked(tmp_path).images) == 24
    said = "10 file(s) that are no images by their suffix passed over: .txt 6, .eps 3, no suffix 1"
    assert said in data.whole(config(tmp_path)).notes
    result = CliRunner().invoke(app, ["doctor", "data", "imagefolder", str(tmp_path)])
    assert f"note: {said}" in result.output


LITTER = ["._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/class0/._0.png", "@eaDir/0.png/thumb.jpg"]


@pytest.mark.parametrize("name", ["imagefolder", "market1501", "omniglot"])
@pytest.mark.parametrize("zipped", [False, True])
def test_what_systems_leave_behind_is_passed_over(tmp_path: Path, name: str, zipped: bool) -> None:
    """Issue 15, number 11: `._NAME` and `__MACOSX/` stopped a whole data set."""
    root = LAYOUTS[name](tmp_path / name)
    (root / "bounding_box_test" / "Thumbs.db").unlink(missing_ok=True)
    before = data.whole(config(root, name))
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for litter in LITTER:
            path = folder / litter
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0\5\x16\7junk")
    where = zipped_folder(root, tmp_path / "images.zip") if zipped else root
    after = data.whole(config(where, name))
    assert (after.counts(), after.notes) == (before.counts(), before.notes)
    assert not unreadable(after.files, after.used_rows())


# --- zips --------------------------------------------------------------------------------------------------


def zipped_folder(root: Path, path: Path, *, top: str = "", slash: str = "/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                info = zipfile.ZipInfo(top + slash.join(file.relative_to(root).parts))
                info.filename = top + slash.join(file.relative_to(root).parts)  # which ZipInfo makes plain
                archive.writestr(info, file.read_bytes())
    return path


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_zips_with_back_slashes_or_one_top_folder_are_understood(tmp_path: Path, name: str) -> None:
    """Issue 15, number 11; a folder around the data set is understood as well, and a suffix in capitals."""
    root = LAYOUTS[name](tmp_path / "parent" / name)
    wanted = data.whole(config(root, name))
    roots = {
        "slashes": zipped_folder(root, tmp_path / "a.ZIP", slash="\\"),
        "top": zipped_folder(root, tmp_path / "b.zip", top="release/v1/"),
        "folder": root.parent,
    }
    for case, where in roots.items():
        if name == "imagefolder" and case != "slashes":
            continue  # has no top of its own: a folder more is a part of the classes' names
        found = data.whole(config(where, name))
        assert found.counts() == wanted.counts(), case
        rows = found.used_rows()
        assert [found.files.name(int(row)) for row in rows] == [wanted.files.name(int(row)) for row in rows]
        assert [bytes(found.files.read(int(row))) for row in rows] == [
            bytes(wanted.files.read(int(row))) for row in rows
        ]


def broken_zip(tmp_path: Path, kind: str) -> Path:
    """A zip whose member top0/class1/6.png is broken in some way."""
    root = image_folder(tmp_path / "images", classes=6, per_class=6)
    path, victim = tmp_path / "images.zip", "top0/class1/6.png"
    pack = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.get(kind, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            name = str(file.relative_to(root))
            content = b"\0" * 2**26 if name == victim and kind in ("bomb", "bzip2", "lzma") else file.read_bytes()
            archive.writestr(name, content, pack if name == victim else zipfile.ZIP_STORED)
        info = archive.getinfo(victim)
    raw = bytearray(path.read_bytes())
    central, local = raw.rindex(victim.encode()) - 46, info.header_offset
    start = local + 30 + len(victim)
    for flags, method, crc in ((local + 6, local + 8, local + 14), (central + 8, central + 10, central + 16)):
        if kind == "encrypted":
            raw[flags] |= 1
        elif kind == "method":
            raw[method] = 77
        elif kind == "checksum":
            raw[crc] ^= 1
        elif kind == "claims":
            struct.pack_into("<I", raw, crc + 8, 2**30 + 1)
        elif kind in ("bomb", "bzip2", "lzma"):
            struct.pack_into("<I", raw, crc + 8, 1000)  # 64 MB become a thousand bytes
    if kind == "deflate":
        raw[start] = 7  # a block of an unknown type: zlib.error
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("encrypted", "encrypted"),
        ("checksum", "Bad CRC-32"),
        ("deflate", "error: Error -3 while decompressing"),
        ("method", "packed by a method other than deflate"),
        ("claims", "it claims 1,073,741,825 bytes; valid: up to 1,073,741,824"),
        ("bomb", "Bad CRC-32"),
        ("bzip2", "packed by a method other than deflate"),
        ("lzma", "packed by a method other than deflate"),
    ],
)
def test_a_broken_member_of_a_zip_is_named(tmp_path: Path, kind: str, says: str) -> None:
    """Issue 15, numbers 11 and 18: zlib.error, wrong checksums, encryption and bombs in a zip."""
    path = broken_zip(tmp_path, kind)
    with pytest.raises(DataError, match=rf"top0/class1/6.png.*{says}") as caught:
        data.load(config(path, validation_fraction=0.0, test=("class0", "class2")))
    assert "\n" not in str(caught.value)
    kept = data.load(config(path, skip_unreadable=True, validation_fraction=0.0, test=("class0", "class2")))
    assert len(kept.train) == 23


def test_a_member_that_becomes_more_than_it_claims_takes_no_more_memory(tmp_path: Path) -> None:
    """Issue 15, number 11: bombs are bounded by what their header claims."""
    for kind in ("bomb", "bzip2", "lzma"):
        root = open_root(str(broken_zip(tmp_path / kind, kind)), "")
        tracemalloc.start()
        with pytest.raises(DataError):
            root.read("top0/class1/6.png")
        assert tracemalloc.get_traced_memory()[1] < 2**23, kind
        tracemalloc.stop()


def test_odd_members_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "odd.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of duplicate names
        for label in range(4):
            for name in (f"class{label}/a.jpg", f"./class{label}//b.jpg", f"class{label}/a.jpg"):
                archive.writestr(name, image(label, 0))
        archive.writestr("../../out.jpg", image(0, 0))
        link = zipfile.ZipInfo("class0/link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    found = walked(path)
    assert found.images == [f"class{label}/{name}.jpg" for label in range(4) for name in "ab"]
    assert found.notes() == (
        "1 link(s) and special file(s) passed over",
        "4 member(s) of a name that comes again passed over",
        "1 member(s) with a path that climbs passed over",
    )
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"is not a zip file that can be read \(BadZipFile"):
        walked(path)


# --- bounds ------------------------------------------------------------------------------------------------


def test_no_walk_goes_on_for_ever(plain: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 11."""
    monkeypatch.setattr(names, "MOST", 5)
    with pytest.raises(DataError, match="holds more than 5 files: a link or a mount may lead back"):
        walked(plain[0])


def test_a_file_too_large_to_be_an_image_is_refused_unread(plain: tuple[Path, list[str]]) -> None:
    root, images = plain
    with (root / images[0]).open("r+b") as file:
        file.truncate(2**40)  # holes: takes no room
    with pytest.raises(DataError, match=rf"'{images[0]}' is refused: it is of 1,099,511,627,776 bytes; valid: up to"):
        data.load(config(root, test=("class2", "class3"), validation_fraction=0.0))


# --- names -------------------------------------------------------------------------------------------------

ODD = [
    b"caf\xe9.png",
    b"\xff\xfe.png",
    "\u8f66.png".encode(),
    b"a\nb.png",
    b"[red]x[b].png",
    b" blank .png",
    b"b\\s.png",
]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Images and class folders whose names are any bytes."""
    root = tmp_path / "odd"
    for label in range(6):
        for number, name in enumerate(ODD):
            folder = os.path.join(os.fsencode(root), b"class\xe9%d" % label)
            os.makedirs(folder, exist_ok=True)
            Path(os.fsdecode(os.path.join(folder, name))).write_bytes(image(label, number))
    return root


def test_names_that_are_not_utf8_survive(odd: Path, tmp_path: Path) -> None:
    """Issue 15, number 18: such names ended in a traceback."""
    wanted = sorted(os.fsdecode(b"class\xe9%d/" % label + name) for label in range(6) for name in ODD)
    listing = data.whole(config(odd))
    assert [listing.files.name(row) for row in range(42)] == wanted
    assert not unreadable(listing.files, listing.used_rows())
    loaded = data.load(config(odd, validation_fraction=0.0))
    assert sum(name.isprintable() for name in loaded.class_names) == 0
    place = tmp_path / os.fsdecode(b"st\xf6re")
    packed.pack(listing, place)
    store = data.whole(config(place))
    assert [store.files.name(row) for row in range(42)] == wanted
    assert list(store.classes) == list(listing.classes)
    again = data.load(config(place, validation_fraction=0.0))
    assert np.array_equal(again.train.read(np.arange(9)), loaded.train.read(np.arange(9)))
    assert packed.verify(place) == []


def test_errors_and_notes_of_such_names_can_be_printed(odd: Path) -> None:
    """Issue 15, number 18."""
    victim = os.fsencode(odd) + b"/class\xe90/\xff\xfe.png"
    Path(os.fsdecode(victim)).write_bytes(b"torn")
    result = CliRunner().invoke(app, ["doctor", "data", "imagefolder", str(odd), "--decode"])
    assert result.exit_code == 1, result.exception
    assert r"class\udce90/\udcff\udcfe.png' cannot be read" in result.output
    listing = data.read(config(odd, skip_unreadable=True))
    (note,) = [note for note in listing.notes if "unreadable" in note]
    assert note.encode()
    assert r"class\udce90/\udcff\udcfe.png" in note
    with pytest.raises(DataError, match="unknown hold-out class 'nobody'; valid: ") as caught:
        data.load(config(odd, test=("nobody",)))
    assert str(caught.value).encode()
    assert "\n" not in str(caught.value)


def test_embeddings_keep_such_names(odd: Path, tmp_path: Path) -> None:
    """Issue 15, number 18: the names of an embedding set, its answers, CSV and sheet."""
    cut = subnetwork(tiny_net().eval(), 1.0).calibrate([torch.randn(8, 1, 16, 16)])
    seen = Preprocessing(16, 16, 1, False, (0.5,), (0.5,))
    made, left_out = embed_folder(cut, odd, seen, identity(cut, seen, (), "fp32"))
    assert not left_out
    made.save(tmp_path / "emb")
    read = EmbeddingSet.load(tmp_path / "emb")
    assert read.names == made.names == tuple(walked(odd).images)
    answers = query(read, read, 3)
    assert {answer.gallery for answer in answers} <= set(read.names)
    write_csv(answers, tmp_path / "answers.csv")
    assert r"class\udce90/\udcff\udcfe.png" in (tmp_path / "answers.csv").read_text(encoding="utf-8")
    assert contact_sheet(read, read, answers, rows=len(read.names)).height > 100
    climbing = EmbeddingSet(read.embeddings, ("../" + read.names[0], *read.names[1:]), read.root, read.identity)
    with pytest.raises(DataError, match="no longer in"):
        contact_sheet(climbing, climbing, query(climbing, climbing, 1))


def test_names_are_packed_whatever_they_are() -> None:
    kept = ["plain", "", "\udcff", "\ud800", "a\nb", "\u8f66" * 300]
    array = packed_names(kept)
    assert unpacked_names(array) == kept
    assert [unpacked_name(one) for one in array] == kept
    assert array[0].as_py() == "plain"  # as stores of before are read


def test_suffixes_of_exports_may_be_in_capitals(tmp_path: Path) -> None:
    """Issue 15, number 11."""
    cut = subnetwork(tiny_net(image_size=16).eval(), 0.4).calibrate([torch.randn(8, 1, 16, 16)])
    path = tmp_path / "edge.SafeTensors"
    export(cut, path, identity(cut, Preprocessing(16, 16, 1, False, (0.5,), (0.5,)), ()))
    shown = torch.randn(2, 1, 16, 16)
    assert torch.allclose(open_export(path).embed(shown), cut.embed(shown), atol=1e-4)
    path.rename(tmp_path / "edge.ONNX")
    with pytest.raises(CheckpointError, match="edge.ONNX' (?!is no export)"):  # but a damaged one
        open_export(tmp_path / "edge.ONNX")
