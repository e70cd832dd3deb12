"""Whatever is wrong with what a user gives ends in one line that says what is valid, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from prunnet.config.recipe import DataConfig
from prunnet.data.transforms import Preprocessing
from prunnet.networks.files import save_network
from sweeps import cli
from sweeps.commands import sweep
from tests.conftest import image_folder, tiny_net

app = typer.Typer()
app.command()(sweep.main)


def complaint(*settings: str) -> str:
    """What the main job says on its error output, where it must not get as far as starting Ray."""
    sets = [part for setting in settings for part in ("--set", setting)]
    result = CliRunner().invoke(app, sets)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> tuple[str, ...]:
    root = image_folder(tmp_path / "images", side=16)
    return ("data.name=imagefolder", f"data.root={root}", "data.image_size=16", f"cluster.storage={tmp_path}")


@pytest.mark.parametrize("value", ["0", "1.2", ".nan", "-0.5", "half"])
def test_capacities_out_of_range(value: str) -> None:
    said = complaint(f"sweep.capacities=[{value}]")
    assert "sweep.capacities" in said
    assert "0 < capacity <= 1" in said or "valid number" in said or "finite number" in said


def test_unknown_names(folder: tuple[str, ...]) -> None:
    assert "unknown backbone 'resnet19'; did you mean" in complaint(*folder, "model.backbone=resnet19")
    assert "did you mean 'train.epochs'" in complaint("train.epoch=1")
    assert "unknown data.name 'glyph'; did you mean 'glyphs'" in complaint(*folder, "data.name=glyph")


def test_an_empty_folder(tmp_path: Path) -> None:
    said = complaint("data.name=imagefolder", f"data.root={tmp_path}", f"cluster.storage={tmp_path / 'runs'}")
    assert "holds 0 images" in said
    assert "ROOT/CLASS/image" in said


def test_one_class(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", classes=1)
    said = complaint("data.name=imagefolder", f"data.root={root}", f"cluster.storage={tmp_path}")
    assert "at least 2" in said or "leaves no" in said


def test_a_corrupt_image(folder: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "images" / "top0" / "class1" / "bad.png").write_bytes(b"no image")
    said = complaint(*folder)
    assert "class1/bad.png" in said
    assert "data.skip_unreadable=true" in said


def test_a_picture_of_many_gigapixels_is_refused(folder: tuple[str, ...], tmp_path: Path) -> None:
    bomb = tmp_path / "images" / "top0" / "class1" / "bomb.png"
    Image.new("1", (8, 8)).save(bomb)
    data = bytearray(bomb.read_bytes())
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    bomb.write_bytes(data)
    assert "class1/bomb.png" in complaint(*folder)


def test_a_wrong_checkpoint(folder: tuple[str, ...], tmp_path: Path) -> None:
    assert "is not a file" in complaint(*folder, f"model.checkpoint={tmp_path / 'absent'}")
    text = tmp_path / "notes.safetensors"
    text.write_text("hello")
    assert "not a whole safetensors file" in complaint(*folder, f"model.checkpoint={text}")
    other = tmp_path / "other.safetensors"
    save_network(other, tiny_net(), Preprocessing.from_config(DataConfig(image_size=24)), training_hash="x")
    said = complaint(*folder, f"model.checkpoint={other}")
    assert "other preprocessing: image_size 24 (recipe: 16)" in said


def test_batches_that_cannot_be_shared_or_filled(folder: tuple[str, ...]) -> None:
    assert "cannot be shared evenly by 2 workers" in complaint(*folder, "train.batch_size=9")
    assert "fewer than train.batch_size=640" in complaint(*folder, "train.batch_size=640")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in complaint(f"cluster.storage={tmp_path / 'file'}")


def test_the_console_script_complains_alike(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["prunnet", "report", "/no/such/run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: '/no/such/run' is not a folder")
