"""Rendered images are kept on the disk: the same come back, and whatever is wrong with a file, they are made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunnet.config.recipe import DataConfig
from prunnet.data import rendered
from prunnet.data.datasets import glyphs


class Renderer:
    """Gives some images, and counts how often."""

    def __init__(self, side: int = 1100) -> None:
        self.side, self.calls = side, 0

    def __call__(self) -> rendered.Arrays:
        self.calls += 1
        return {"pixels": np.arange(self.side**2, dtype=np.uint8).reshape(self.side, -1), "names": np.array(["a", "b"])}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNNET_CACHE", str(tmp_path))
    return tmp_path


def test_what_was_rendered_once_is_read_again(folder: Path) -> None:
    render = Renderer()
    first, second = (rendered.kept(["letters", 1], [glyphs.render], render) for _ in range(2))
    assert render.calls == 1
    assert len(list(folder.iterdir())) == 1
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        assert np.array_equal(array, second[name])
    rendered.kept(["letters", 2], [glyphs.render], render)
    rendered.kept(["letters", 1], [rendered.kept], render)  # other code
    assert render.calls == 3


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "other"])
def test_a_damaged_file_is_rendered_and_written_anew(damage: str, folder: Path) -> None:
    render = Renderer()
    wanted = rendered.kept(["letters"], [glyphs.render], render)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    bad = {"torn": content[:-1000], "flipped": content, "empty": b"", "other": b"no zip at all" * 100}[damage]
    path.write_bytes(bytes(bad))
    again = rendered.kept(["letters"], [glyphs.render], render)
    assert render.calls == 2
    assert np.array_equal(again["pixels"], wanted["pixels"])
    rendered.kept(["letters"], [glyphs.render], render)
    assert render.calls == 2


def test_few_images_and_older_files_are_not_kept(folder: Path) -> None:
    rendered.kept(["small"], [glyphs.render], Renderer(side=10))
    assert not list(folder.iterdir())
    for number in range(12):
        rendered.kept(["letters", number], [glyphs.render], Renderer())
    assert len(list(folder.iterdir())) == 8


def test_a_place_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNNET_CACHE", str(tmp_path / "file"))
    assert rendered.kept(["letters"], [glyphs.render], Renderer())["names"].tolist() == ["a", "b"]


def test_letters_are_the_same_kept_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(image_size=32, classes=6, images_per_class=4)
    monkeypatch.setattr(rendered, "_SMALL", 0)
    first, second = glyphs.load(config), glyphs.load(config)
    monkeypatch.setattr(glyphs, "kept", lambda determinants, code, render: render())
    third = glyphs.load(config)
    assert first.train.fingerprint() == second.train.fingerprint() == third.train.fingerprint()
    assert first.test.fingerprint() == second.test.fingerprint() == third.test.fingerprint()
    assert first.class_names == second.class_names == third.class_names
