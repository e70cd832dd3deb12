"""The README's own commands work as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from prunnet import results
from prunnet.config import load_recipe
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_two_code_blocks_are_the_whole_set_up() -> None:
    assert [text.strip() for _, text in BLOCKS[:2]] == ["make demo", "make test"]
    targets = (REPOSITORY / "Makefile").read_text()
    assert "\ndemo:" in targets
    assert "\ntest:" in targets


def jobs() -> list[list[str]]:
    """The arguments of every call of the main job."""
    shell = "\n".join(text for kind, text in BLOCKS if kind == "bash").replace("\\\n", " ")
    return [shlex.split(line.split("sweeps/capacity.py", 1)[1]) for line in shell.splitlines() if "capacity.py" in line]


@pytest.mark.parametrize("arguments", jobs(), ids=" ".join)
def test_every_job_is_a_valid_recipe(arguments: list[str]) -> None:
    options = list(zip(arguments[::2], arguments[1::2], strict=True))
    assert {name for name, _ in options} <= {"--recipe", "--set"}
    paths = [REPOSITORY / value for name, value in options if name == "--recipe"]
    recipe = load_recipe(paths[0] if paths else None, [value for name, value in options if name == "--set"])
    assert recipe.sweep.capacities


def test_named_files_exist() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / path).exists(), path


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"unit_key": "a", "status": "complete", "macs": 1_000_000, "map": 0.5, "gallery_capacity": 1.0}
    results.write_part(tmp_path / "runs" / "demo" / "results", [row])
    (example,) = (text for kind, text in BLOCKS if kind == "python")
    found: dict[str, object] = {}
    exec(example, found)
    assert found["row"]["unit_key"] == "a"  # type: ignore[index]
    assert (tmp_path / "edge.safetensors").stat().st_size > 0
