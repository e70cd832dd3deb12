"""The commands, links and names of the README and of docs/ work as they stand there."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from prunnet import data, results
from prunnet.config.recipe import load_recipe
from sweeps.ablation_recipe import load_ablation
from sweeps.cli import app
from sweeps.search_recipe import SearchFile, load_search
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LONGEST = 150
"""Lines of the README; what it has no room for is in docs/."""
PAGES = {
    path.relative_to(REPOSITORY): path.read_text(encoding="utf-8")
    for path in (*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md")))
}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"```(\w*)\n(.*?)```", page, flags=re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Words of every command of a page, of its fenced blocks and of those that are indented."""
    joined = page.replace("\\\n", " ")
    fenced = [text for kind, text in blocks(joined) if kind == "bash"]
    indented = re.findall(r"^ {4}(\S.*)$", re.sub(r"```.*?```", "", joined, flags=re.DOTALL), flags=re.MULTILINE)
    lines = "\n".join([*fenced, *indented]).splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.search(r"\bprunnet |sweeps/\w+\.py", line)]


def calls_of(script: str) -> list[list[str]]:
    """The arguments of every call of a job, over all pages."""
    found = [(words, at) for page in PAGES.values() for words in commands(page) for at in places_of(words, script)]
    return [words[at + 1 :] for words, at in found]


def places_of(words: list[str], script: str) -> list[int]:
    return [at for at, word in enumerate(words) if word.endswith(f"sweeps/{script}.py")]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= LONGEST


def test_the_first_two_code_blocks_are_the_whole_set_up() -> None:
    assert [text.strip() for _, text in blocks(README)[:2]] == ["make demo", "make test"]
    targets = (REPOSITORY / "Makefile").read_text()
    assert "\ndemo:" in targets
    assert "\ntest:" in targets


JOBS = [arguments for arguments in calls_of("capacity") if "runs/search_demo/best.yaml" not in arguments]


def test_the_main_job_is_called_on_many_pages() -> None:
    with_a_call = [
        name.name for name, page in PAGES.items() for words in commands(page) if places_of(words, "capacity")
    ]
    assert {"README.md", "OMNIGLOT.md", "DEVICES.md", "UPGRADES.md", "METHODS.md", "CLUSTER.md"} <= set(with_a_call)
    assert len(JOBS) >= 12


@pytest.mark.parametrize("arguments", JOBS, ids=" ".join)
def test_every_job_is_a_valid_recipe(arguments: list[str]) -> None:
    options = list(zip(arguments[::2], arguments[1::2], strict=True))
    assert {name for name, _ in options} <= {"--recipe", "--set"}
    paths = [REPOSITORY / value for name, value in options if name == "--recipe"]
    recipe = load_recipe(paths[0] if paths else None, [value for name, value in options if name == "--set"])
    assert recipe.sweep.capacities


def test_every_prunnet_command_has_options_that_exist() -> None:
    found = [words for page in PAGES.values() for words in commands(page)]
    asked = [words[1:] for words in found if words[0].removeprefix(".venv/bin/") == "prunnet"]
    asked += [[script, *call] for script in ("layerwise", "search", "ablation") for call in calls_of(script)]
    verbs = {words[0] for words in asked}
    assert verbs >= {"export", "embed", "query", "cost", "best", "evaluate", "doctor", "pack", "layerwise", "search"}
    for words in asked:
        command = words[:2] if words[0] == "doctor" else words[:1]
        said = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "300"}).stdout
        assert all(word in said for word in words if word.startswith("--")), (words, said)


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
    assert isinstance(data.DATASETS[recipe.data.name], data.Reader)
    assert recipe.sweep.dataset is None or isinstance(data.DATASETS[recipe.sweep.dataset], data.Reader)


def test_the_ablation_and_its_page_are_what_the_documents_say() -> None:
    table = load_ablation(REPOSITORY / "sweeps/recipes/methods_omniglot.yaml").file.table
    for name in ("METHODS.md", "RESULTS.md"):
        page = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
        assert f"python -m analysis.comparison {table} docs/RESULTS.md" in page
        assert "sweeps/ablation.py --recipe sweeps/recipes/methods_omniglot.yaml" in page


def test_the_searches_and_their_page_are_what_the_documents_say() -> None:
    asked = load_search(REPOSITORY / "sweeps/recipes/search_demo.yaml")
    page = (REPOSITORY / "docs" / "SEARCH.md").read_text(encoding="utf-8")
    assert f"runs/{asked.file.name}/best.yaml" in page
    assert "sweeps/search.py --recipe sweeps/recipes/search_demo.yaml" in (REPOSITORY / "Makefile").read_text()
    keys = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert [key for key in SearchFile.model_fields if key != "name"] == sorted(
        keys, key=list(SearchFile.model_fields).index
    )


def test_the_commit_hooks_run_what_make_lint_runs() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert recipe is not None
    wanted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    (local,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert local["repo"] == "local"  # nothing is fetched
    assert [hook["entry"] for hook in local["hooks"]] == wanted


def test_the_citation_is_whole() -> None:
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    named = {part["identifiers"][0]["value"] for part in (cited["preferred-citation"], *cited["references"])}
    methods = PAGES[Path("docs/METHODS.md")]
    assert {f"arXiv:{number}" for number in re.findall(r"arXiv (\d{4}\.\d{5})", methods)} <= named


def anchors(page: str) -> set[str]:
    """The names by which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES, ids=str)
def test_named_files_and_sections_exist(name: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, section = link.partition("#")
        target = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert target.exists(), link
        assert not section or section in anchors(target.read_text(encoding="utf-8")), link


def test_every_module_and_test_that_the_documents_name_exists() -> None:
    for name, page in PAGES.items():
        for path in re.findall(r"(?<![\w/.])((?:prunnet|cluster|sweeps|analysis|benchmarks|tests)/[\w/]+\.\w+)", page):
            assert (REPOSITORY / path).exists(), (name, path)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"unit_key": "a", "status": "complete", "macs": 1_000_000, "map": 0.5, "gallery_capacity": 1.0}
    results.write_part(tmp_path / "runs" / "demo" / "results", [row])
    (example,) = (text for kind, text in blocks(README) if kind == "python")
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
