"""A run's folder: what marks it, and what `--fresh` deletes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from prunnet import results
from prunnet.config.recipe import Recipe, load_recipe
from prunnet.errors import ConfigError
from prunnet.storage.paths import lock_file, place, private_folder
from sweeps.ablation import ablate
from sweeps.ablation_recipe import load_ablation
from sweeps.run import Run, open_run
from sweeps.run_folder import MADE, MARK, check_folder, clear
from tests.conftest import REPOSITORY
from tests.test_ablation import written

SAMPLES = [
    *("recipe.yaml", "manifest.json", "model.safetensors", "model-0.4.safetensors", "pareto.png", "report.html"),
    *("sheet.json", "sheet.png"),
    *("paper/rows.csv", "paper/matrix.svg", "training/train-ab12/checkpoint_1/state.safetensors"),
    *("features/ab12/queries.npy", "results/part-0a.parquet", "results/trial-s-1/part-0b.parquet"),
    *(
        "models/ab12.safetensors",
        "models/.ab12-cd34/state.safetensors",
        "models/.ab12-cd34/0/state.safetensors",
        "models/.ab12.safetensors.17-0af3.tmp",
    ),
    *("study.journal", "trials.json", "search.json", "search.svg", "best.yaml", "front/trial-0001.yaml"),
    *("trials/0001/error.txt", "tune/tuner.pkl", "layerwise/0.2.journal", "layerwise/0.2.safetensors"),
]
FOREIGN = ["thesis.docx", "results/notes.txt", "front/my-own.yaml", "photos/summer.png", "recipe.yaml.bak"]


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("something")
    return folder


def recipe_of(storage: object, name: str = "job") -> Recipe:
    return load_recipe(None, [f"cluster.storage={storage}", f"name={name}"])


def names_in(folder: Path) -> set[str]:
    return {str(path)[len(str(folder)) + 1 :] for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


@pytest.mark.parametrize("scheme", ["", "memory://fresh"])
def test_fresh_deletes_what_jobs_made_and_nothing_else(scheme: str, tmp_path: Path) -> None:
    """Issue 15, number 20: every file of somebody's stays, is named, and no link is followed."""
    storage = place(f"{scheme}{tmp_path}")
    outside = filled(tmp_path / "outside", "kept.npy")
    with open_run(recipe_of(storage)) as run:
        filled(run.folder, *SAMPLES, *FOREIGN)
        if not scheme:
            (run.folder / "paper" / "matrix.png").symlink_to(outside / "kept.npy")
            (run.folder / "layerwise" / "0.1.safetensors").symlink_to(outside)
            (run.folder / "mine").symlink_to(outside)
    said = Console(record=True, width=10_000, file=(tmp_path / "said").open("w"))
    with open_run(recipe_of(storage), fresh=True, console=said) as run:
        left = names_in(run.folder) - {MARK, ".lock"}
    assert left == {*FOREIGN, *([] if scheme else ["mine"])}
    assert names_in(outside) == {"kept.npy"}
    note = said.export_text()
    assert "no job made them: " in note
    assert "'front/my-own.yaml'" in note


def test_a_folder_that_is_linked_to_a_larger_disk_is_unlinked(tmp_path: Path) -> None:
    """Issue 15, number 20: links in the place of a run's own folders."""
    disk = filled(tmp_path / "disk", "features/ab/queries.npy", "results/part-0.parquet")
    with open_run(recipe_of(tmp_path)) as run:
        for name in ("features", "results"):
            (run.folder / name).symlink_to(disk / name)
    with open_run(recipe_of(tmp_path), fresh=True) as run:
        assert names_in(run.folder) == {MARK, ".lock"}
    assert len(names_in(disk)) == 2


def test_a_folder_that_is_no_runs_is_neither_emptied_nor_overwritten(tmp_path: Path) -> None:
    """Issue 15, number 20: what is not marked is not touched."""
    home = filled(tmp_path / "home", "thesis.docx", "photos/summer.png")
    with pytest.raises(ConfigError, match=r"is not the folder of a run, and holds 'photos', 'thesis.docx': --fresh"):
        open_run(recipe_of(tmp_path, "home"), fresh=True).__enter__()
    assert names_in(home) == {"thesis.docx", "photos/summer.png"}
    filled(home, "recipe.yaml", "results/mine.ods")
    with pytest.raises(ConfigError, match="holds 'recipe.yaml', 'results': the job would overwrite"):
        open_run(recipe_of(tmp_path, "home")).__enter__()
    filled(tmp_path, "file")
    with pytest.raises(ConfigError, match="is a file"):
        open_run(recipe_of(tmp_path, "file")).__enter__()


@pytest.mark.parametrize(("above", "name"), [("/", "{root}"), ("{home}/..", "{name}"), ("~/..", "{name}")])
def test_a_home_directory_is_no_runs_folder(
    above: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15, number 20: combinations of `cluster.storage` and `name` that lead to the home directory or above."""
    home = tmp_path / "me"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    names = {"root": home.parts[1], "home": home, "name": home.name}
    recipe = recipe_of(above.format(**names), name.format(**names))
    for fresh in (True, False):
        with pytest.raises(ConfigError, match="holds your home directory"):
            open_run(recipe, fresh=fresh).__enter__()
    assert names_in(home) == set()


@pytest.mark.parametrize(
    "traces",
    [
        {"manifest.json": '{"name": "a", "unit_keys": [], "failures": []}'},
        {"recipe.yaml": None},
        {"model.safetensors": "x", "results/part-0.parquet": "x"},
        {"models/a.safetensors": "x", "results/trial-a/part-0.parquet": "x"},
        {"training/train-ab12/checkpoint_0/x": "x"},
        {"study.journal": "x"},
    ],
    ids=lambda traces: next(iter(traces)),
)
def test_runs_of_before_there_was_a_mark_are_known(traces: dict[str, str | None], tmp_path: Path) -> None:
    """Issue 15, number 20."""
    folder = filled(tmp_path / "job", *traces, "notes.txt")
    for name, text in traces.items():
        if text is None:
            Run(folder).write_recipe(recipe_of(tmp_path))
        else:
            (folder / name).write_text(text)
    with open_run(recipe_of(tmp_path), fresh=True):
        assert names_in(folder) == {MARK, ".lock", "notes.txt"}


def test_a_recipe_of_the_users_own_is_not_taken_for_a_run(tmp_path: Path) -> None:
    """Issue 15, number 20: a project's folder may well hold a recipe.yaml."""
    (filled(tmp_path / "job", "recipe.yaml") / "recipe.yaml").write_text("train: {epochs: 3}\n")
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        check_folder(tmp_path / "job", fresh=True)


def test_an_ablation_deletes_its_table_and_no_other_file(tmp_path: Path) -> None:
    """Issue 15, number 20: `table` may point at anything."""
    page = tmp_path / "RESULTS.md"
    page.write_text("# Results")
    ablation = load_ablation(written(tmp_path, table=str(page)), [f"cluster.storage={tmp_path}"])
    with pytest.raises(results.ResultsError, match=r"RESULTS\.md"):
        ablate(ablation, local=True, fresh=True)
    assert page.read_text() == "# Results"


def test_every_name_that_a_job_writes_is_declared(tmp_path: Path) -> None:
    """A job's own docstring lists what it makes; all of it is known to `--fresh`."""
    filled(tmp_path, *SAMPLES)
    assert clear(tmp_path) == []
    assert names_in(tmp_path) == set()
    for job in ("capacity", "search", "layerwise"):
        text = (REPOSITORY / "sweeps" / f"{job}.py").read_text().split('"""')[1]
        for name in re.findall(r"[\w<>/-]+\.(?:safetensors|journal|json|yaml|png|html)\b", text):
            if "recipes/" not in name and "runs/" not in name:
                filled(tmp_path, name.replace("<budget>", "0.2"))
    assert clear(tmp_path) == []
    assert all("/" in pattern or "." in pattern for pattern in MADE)


def test_predictable_names_of_the_temporary_folder_follow_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15, number 22: somebody else puts a link where a lock or a cache will be."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    target = filled(tmp_path / "target", "precious")
    made = private_folder("cache")
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o777)
    assert private_folder("cache").stat().st_mode & 0o777 == 0o700
    made.rmdir()
    made.symlink_to(target)
    with pytest.raises(ConfigError, match="is not a folder of this user's"):
        private_folder("cache")
    (tmp_path / ".lock").symlink_to(tmp_path / "created-elsewhere")
    with pytest.raises(OSError, match="symbolic links"), lock_file(tmp_path / ".lock"):
        pass
    assert not (tmp_path / "created-elsewhere").exists()
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    (tmp_path / "prunnet-lock-4000000").mkdir()
    with pytest.raises(ConfigError, match="is not a folder of this user's"):
        private_folder("lock")
