"""A packed store is whole or refused, goes on where it was killed, and names what is damaged."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from prunnet import data
from prunnet.config.recipe import DataConfig
from prunnet.data import files, packed
from prunnet.errors import DataError
from sweeps.cli import app
from tests.conftest import REPOSITORY
from tests.layouts import LAYOUTS

pytestmark = pytest.mark.filterwarnings("ignore::prunnet.errors.DataWarning")  # no fixture is a whole copy


def config(root: Path, name: str = "inshop") -> DataConfig:
    return DataConfig(name=name, root=str(root), image_size=16, channels=3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return LAYOUTS["inshop"](tmp_path / "inshop")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "ROWS", 8)
    monkeypatch.setattr(packed, "BATCH", 3)


@pytest.mark.usefixtures("small_shards")
def test_every_image_comes_back_as_it_was(root: Path, tmp_path: Path) -> None:
    listing = data.whole(config(root))
    packed.pack(listing, tmp_path / "store")
    store = packed.read(tmp_path / "store").files
    rows = listing.used_rows()
    assert len(store) == len(rows) == 45
    for place in np.random.default_rng(0).permutation(45).tolist():
        row = int(rows[place])
        assert store.name(place) == listing.files.name(row)
        assert bytes(store.read(place)) == listing.files.read(row)


@pytest.mark.usefixtures("small_shards")
def test_a_failed_packing_leaves_no_store_and_the_same_command_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, out = data.whole(config(root)), tmp_path / "store"
    real, made = packed._shard, []

    def full(file: Path, *arguments: object) -> dict[str, object]:
        if len(made) == 3:
            raise OSError(28, "No space left on device")
        made.append(file)
        return real(file, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packed, "_shard", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); what is finished is kept"):
        packed.pack(listing, out)
    assert packed.is_store(out)
    with pytest.raises(DataError, match="was never finished; run the same `prunnet pack` again"):
        data.load(config(out))
    monkeypatch.setattr(packed, "_shard", real)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert len(kept) == 3
    packed.pack(listing, out)
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert packed.verify(out) == []
    assert len(data.load(config(out)).train) == 30


def test_a_store_is_not_begun_over_something_else(root: Path, tmp_path: Path) -> None:
    listing = data.whole(config(root))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"no packed store and not empty \('thesis.tex'\)"):
        packed.pack(listing, foreign)
    packed.pack(listing, tmp_path / "store")
    packed.pack(listing, tmp_path / "store")  # finished: left as it is
    sop = LAYOUTS["sop"](tmp_path / "sop")
    with pytest.raises(DataError, match=r"finished store of 45 images of 'inshop', which are not.* 32 of 'sop'"):
        packed.pack(data.whole(config(sop, "sop")), tmp_path / "store")
    with pytest.raises(DataError, match=r"is a packed store of 'inshop', not 'sop'"):
        data.load(config(tmp_path / "store", "sop"))


@pytest.mark.usefixtures("small_shards")
def test_a_flipped_byte_is_found_and_named(root: Path, tmp_path: Path) -> None:
    listing, out = data.whole(config(root)), tmp_path / "store"
    packed.pack(listing, out)
    image = bytes(packed.read(out).files.read(10))
    name = packed.read(out).files.name(10)
    shard = out / "shard-00001.arrow"
    whole = shard.read_bytes()
    place = whole.index(image) + len(image) // 2
    flip(shard, place)
    (said,) = packed.verify(out)
    assert "shard-00001.arrow" in said
    assert repr(name) in said
    with pytest.raises(DataError, match=f"image '{name}' in 'shard-00001.arrow' .* is damaged"):
        packed.read(out).files.read(10)
    assert bytes(packed.read(out).files.read(11))  # the others can be read
    shard.write_bytes(whole)
    assert packed.verify(out) == []


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("seed", range(30))
def test_any_flipped_byte_of_any_file_is_found(root: Path, tmp_path: Path, seed: int) -> None:
    out = tmp_path / "store"
    packed.pack(data.whole(config(root)), out)
    rng = np.random.default_rng(seed)
    files = sorted(path for path in out.iterdir() if path.name != ".lock")
    victim = files[rng.integers(len(files))]
    flip(victim, int(rng.integers(victim.stat().st_size)))
    try:
        found = packed.verify(out)
    except DataError as error:
        found = [str(error)]
    assert len(found) == 1
    assert victim.name in found[0]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.unlink()  # a new file: pages that are mapped keep the old one
    path.write_bytes(content)
    packed._mapped.cache_clear()
    packed._batch.cache_clear()


def test_a_damaged_list_is_named_when_the_data_set_is_read(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    packed.pack(data.whole(config(root)), out)
    whole = (out / "part-train.arrow").read_bytes()
    flip(out / "part-train.arrow", len(whole) // 2)
    with pytest.raises(DataError, match=r"part-train.arrow: missing or damaged in .*; pack the data set again"):
        data.load(config(out))


def test_a_finished_store_of_an_older_copy_is_not_taken_for_this_one(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    packed.pack(data.whole(config(root)), out)
    with pytest.raises(DataError, match="are not, or no longer, these 45"):
        packed.pack(data.whole(config(root).model_copy(update={"boxes": True})), out)
    image = next((root / "Img").rglob("00_1_front.jpg"))
    image.write_bytes(image.read_bytes() + b"more")
    with pytest.raises(DataError, match="are not, or no longer, these 45"):
        packed.pack(data.whole(config(root)), out)


def test_a_lost_shard_is_named(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    packed.pack(data.whole(config(root)), out)
    (out / "shard-00000.arrow").unlink()
    assert packed.verify(out) == ["shard-00000.arrow: missing"]
    packed._mapped.cache_clear()
    packed._batch.cache_clear()
    with pytest.raises(DataError, match="shard-00000.arrow' cannot be read"):
        data.load(config(out))


def test_a_store_travels_by_its_path(root: Path, tmp_path: Path) -> None:
    packed.pack(data.whole(config(root)), tmp_path / "store")
    store = packed.read(tmp_path / "store").files
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert bytes(pickle.loads(sent).read(3)) == bytes(store.read(3))


def test_actors_are_sent_where_the_images_lie_and_not_the_images(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed.pack(data.whole(config(root)), tmp_path / "store")
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    test = data.load(config(tmp_path / "store")).test
    sent = pickle.dumps(test)
    assert b"JFIF" not in sent  # what every JPEG file holds
    assert b"JFIF" in bytes(test.gallery.files.read(0))  # type: ignore[attr-defined]
    arrived = pickle.loads(sent)
    assert np.array_equal(arrived.gallery.read(np.arange(9)), test.gallery.read(np.arange(9)))
    packed._batch.cache_clear()
    before = pa.total_allocated_bytes()
    images = [arrived.gallery.files.read(row) for row in range(9)]
    assert sum(map(len, images)) > pa.total_allocated_bytes() - before  # pages of the file, shared by all processes


def test_the_command_packs_and_verifies(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    first = CliRunner().invoke(app, ["pack", "inshop", str(root), str(out), "--verify"])
    assert first.exit_code == 0, first.output
    assert "packed 45 images of inshop" in first.output
    assert "1 row(s) without a file left out" in first.output
    assert "verified: every byte is as it was packed" in first.output
    shutil.rmtree(root / "Img")  # the store is all that is needed
    assert CliRunner().invoke(app, ["doctor", "data", "inshop", str(out), "--decode"]).exit_code == 0


@pytest.mark.slow
def test_a_killed_packing_goes_on(tmp_path: Path) -> None:
    root, out = tmp_path / "images", tmp_path / "store"
    one = LAYOUTS["imagefolder"](tmp_path / "few") / "class0" / "0.png"
    for label in range(40):
        (root / f"class{label}").mkdir(parents=True)
        for number in range(500):
            os.link(one, root / f"class{label}" / f"{number}.png")
    command = [sys.executable, "-m", "sweeps.cli", "pack", "imagefolder", str(root), str(out), "--verify"]
    packing = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob("shard-*"))) < 2:
        assert packing.poll() is None, "packed before it could be killed"
        time.sleep(0.005)
    packing.send_signal(signal.SIGKILL)
    packing.wait()
    with pytest.raises(DataError, match="was never finished"):
        data.load(config(out, "imagefolder"))
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert len(packed.read(out).files) == 20_000
