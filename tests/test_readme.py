"""The README's own commands work as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from prunnet import data, results
from prunnet.config.recipe import load_recipe
from sweeps.ablation_recipe import load_ablation
from sweeps.cli import app
from sweeps.search_recipe import SearchFile, load_search
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
    lines = [line for line in shell.splitlines() if "capacity.py" in line and "best.yaml" not in line]
    return [shlex.split(line.split("sweeps/capacity.py", 1)[1]) for line in lines]


@pytest.mark.parametrize("arguments", jobs(), ids=" ".join)
def test_every_job_is_a_valid_recipe(arguments: list[str]) -> None:
    options = list(zip(arguments[::2], arguments[1::2], strict=True))
    assert {name for name, _ in options} <= {"--recipe", "--set"}
    paths = [REPOSITORY / value for name, value in options if name == "--recipe"]
    recipe = load_recipe(paths[0] if paths else None, [value for name, value in options if name == "--set"])
    assert recipe.sweep.capacities


def test_every_prunnet_command_has_options_that_exist() -> None:
    shell = "\n".join(text for kind, text in BLOCKS if kind == "bash").replace("\\\n", " ")
    commands = [shlex.split(line.split("bin/prunnet", 1)[1]) for line in shell.splitlines() if "bin/prunnet" in line]
    assert len(commands) >= 2
    for command in commands:
        names = [word for word in command if not word.startswith("-")]
        verbs = names[:2] if names[0] == "doctor" else names[:1]
        said = CliRunner().invoke(app, [*verbs, "--help"], env={"COLUMNS": "300"}).stdout
        assert all(word in said for word in command if word.startswith("--")), (command, said)


def data_rows() -> list[tuple[str, str]]:
    """(names, recipe line) of every row of docs/DATA.md's table."""
    text = (REPOSITORY / "docs" / "DATA.md").read_text()
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return [(row[0], row[-1]) for row in cells]


def test_every_data_set_has_a_row_in_the_documents() -> None:
    named = re.findall(r"`(\w+)`", " ".join(names for names, _ in data_rows()))
    assert sorted(named) == sorted(data.DATASETS)


@pytest.mark.parametrize("line", [line for _, line in data_rows() if line.startswith("`")])
def test_every_recipe_line_of_the_data_sets_is_valid(line: str) -> None:
    words = shlex.split(line.strip("` "))
    assert set(words[::2]) == {"--set"}
    recipe = load_recipe(REPOSITORY / "sweeps/recipes/photographs.yaml", words[1::2])
    assert recipe.data.name in data.READERS
    assert recipe.sweep.dataset is None or recipe.sweep.dataset in data.READERS


def test_the_ablation_and_its_page_are_what_the_readme_says() -> None:
    table = load_ablation(REPOSITORY / "sweeps/recipes/methods_omniglot.yaml").file.table
    assert f"python -m analysis.comparison {table} docs/RESULTS.md" in README
    assert "sweeps/ablation.py --recipe sweeps/recipes/methods_omniglot.yaml" in README


def test_the_searches_and_their_page_are_what_the_readme_says() -> None:
    asked = load_search(REPOSITORY / "sweeps/recipes/search_demo.yaml")
    assert f"runs/{asked.file.name}/best.yaml" in README
    assert "sweeps/search.py --recipe sweeps/recipes/search_demo.yaml" in (REPOSITORY / "Makefile").read_text()
    page = (REPOSITORY / "docs" / "SEARCH.md").read_text()
    keys = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert [key for key in SearchFile.model_fields if key != "name"] == sorted(
        keys, key=list(SearchFile.model_fields).index
    )
    (line,) = (line for line in README.splitlines() if "sweeps/layerwise.py" in line)
    said = CliRunner().invoke(app, ["layerwise", "--help"], env={"COLUMNS": "300"}).stdout
    assert all(word in said for word in shlex.split(line) if word.startswith("--"))


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


@pytest.mark.skipif(not (REPOSITORY / "runs/demo/results").is_dir(), reason="`make demo` was not run here")
def test_the_demos_figures_are_those_of_the_readme_within_a_tolerance() -> None:
    """Issue 15, A2: processors sum in another order, or have no bf16; README.md says how far figures may be off."""
    capacities, accuracies = demo_table()
    rows = results.read(REPOSITORY / "runs/demo/results").to_pylist()
    tested = {(row["query_capacity"], row["gallery_capacity"]): row for row in rows if row["status"] == "complete"}
    for capacity, said in zip(capacities, accuracies, strict=True):
        own, cross = tested[capacity, capacity], tested[capacity, 1.0]
        found = [100 * row[key] for row in (own, cross) for key in ("map", "recall_at_1")]
        tolerance = 4.0 if capacity >= 0.2 else 8.0
        assert np.abs(np.subtract(found, said)).max() <= tolerance, (capacity, found, said)


def demo_table() -> tuple[list[float], list[list[float]]]:
    """Capacities of README.md's first table, and [self mAP, self R@1, cross mAP, cross R@1] of each."""
    lines = README.split("| capacity | trained |")[1].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    return [float(row[0]) for row in cells], [[float(cell) for cell in row[4:]] for row in cells]


def test_the_demos_table_is_read() -> None:
    capacities, accuracies = demo_table()
    assert capacities == list(load_recipe(REPOSITORY / "sweeps/recipes/demo.yaml", []).sweep.capacities)
    assert all(len(row) == 4 for row in accuracies)
