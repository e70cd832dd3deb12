"""The command line reads well: every command says what it is for, with an example; exit codes are written down."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from analysis.quantities import Quantity
from analysis.search import Findings, Record
from prunnet import results
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ResultsError
from prunnet.experiments.stages import fitting
from prunnet.networks.files import save_network
from prunnet.storage.tensor_files import read_header
from sweeps.cli import app
from tests.conftest import tiny_net
from tests.malformed import ran

ROOT = get_command(app)


def commands(group: click.Command = ROOT, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Every command by its words; groups are looked into."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in getattr(group, "commands", {}).items():
        inside = commands(command, (*path, name))
        found |= inside or {(*path, name): command}
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_a_help_with_an_example_that_it_takes(words: tuple[str, ...]) -> None:
    said = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "400"})
    assert said.exit_code == 0
    (example,) = re.findall(r"Example: (prunnet [^│\n]*)", said.output)
    asked = shlex.split(example.strip())
    assert asked[1 : 1 + len(words)] == list(words)
    options = {option for parameter in commands()[words].params for option in parameter.opts}
    assert {word for word in asked if word.startswith("--")} <= options
    for parameter in commands()[words].params:
        assert getattr(parameter, "help", None) or parameter.name == "help", parameter.name


def test_best_prints_the_row_and_how_to_ship_it(tmp_path: Path) -> None:
    rows = [
        {
            "unit_key": f"{c:g}",
            "status": "complete",
            "query_capacity": c,
            "gallery_capacity": 1.0,
            "map": c,
            "macs": int(100 * c),
        }
        for c in (0.3, 0.6)
    ]
    results.write_part(tmp_path / "results", rows)
    said = CliRunner().invoke(app, ["best", str(tmp_path), "--macs", "50"])
    assert said.exit_code == 0
    assert json.loads(said.stdout)["query_capacity"] == 0.3
    assert f"prunnet export {tmp_path} --capacity 0.3 --to edge.onnx" in said.stderr


def test_the_top_says_what_exit_codes_mean_and_completes() -> None:
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "400"}).output
    assert "Exit codes: 0 done; 1 some capacity failed" in said
    assert "--install-completion" in said
    assert len(commands()) >= 13


def test_a_search_is_drawn_again_from_what_it_keeps(tmp_path: Path) -> None:
    objectives = [Quantity(name="mean_cross_map"), Quantity(name="macs_within")]
    trials = [
        Record(n, "complete", {"train.lr": 0.1}, {"mean_cross_map": 0.1 * n, "macs_within": 5.0 + n}, ended=f"{n}")
        for n in (1, 2)
    ]
    (tmp_path / "search.json").write_text(Findings("s", objectives, trials, {}, 9.0, None, "a: 1").to_json())
    found = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert found.exit_code == 0, found.output
    assert {"search.png", "search.svg", "search.html"} <= {path.name for path in tmp_path.iterdir()}
    (tmp_path / "search.json").write_text("{torn")
    again = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "not there or torn: no finished search in this folder" in str(again.exception)


def row_of(key: str, **more: object) -> dict[str, object]:
    return {"unit_key": key, "status": "complete", "query_capacity": 1.0, "gallery_capacity": 1.0, **more}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["best", "/nonexistent"], "'/nonexistent' is not a folder"),
        (["best", "FOLDER"], "is no folder of results"),
        (["best", "RUN", "--macs", "nan"], "--macs nan; valid: 0 to"),
        (["best", "RUN", "--min-recall", "2"], "--min-recall 2; valid: 0 to 1"),
        (["best", "RUN", "--macs", "0"], "no row of 1 fits"),
        (["report", "/nonexistent"], "'/nonexistent' is not a folder"),
        (["report", "FOLDER"], "no finished sweep in this folder"),
        (["cost", "RUN", "--seconds", "inf"], "--seconds inf; valid: 0.01 to 3600"),
        (["cost", "RUN", "--seconds", "nan"], "--seconds nan"),
        (["cost", "RUN", "--runtime", "abacus"], "--runtime 'abacus'; valid: eager"),
        (["cost", "RUN", "--threads", "1000000000"], "--threads"),
        (["query", "RUN", "RUN", "--top", "0"], "--top"),
        (["layerwise", "--sampler", "oracle"], "--sampler 'oracle'; valid: cmaes"),
        (["layerwise", "--seed", "9" * 30], "4294967295"),
        (["doctor", "backbone", "resnet18", "--image-size", "100000000"], "--image-size"),
    ],
)
def test_what_is_not_there_or_out_of_range_is_said(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15, number 18: `best /nonexistent` said that no row of 0 fits, `--seconds inf` never ended."""
    monkeypatch.setenv("COLUMNS", "400")
    results.write_part(tmp_path / "run" / "results", [row_of("a", map=0.5, macs=7)])
    names = {"FOLDER": tmp_path, "RUN": tmp_path / "run"}
    outcome = ran(["prunnet", *[str(names.get(word, word)) for word in words]])
    assert outcome.code == 2, outcome.said
    assert says in outcome.said


def test_files_that_desktops_leave_among_results_are_ignored_and_others_refused(tmp_path: Path) -> None:
    """Issue 15, number 18: `.DS_Store` in results/ stopped every command."""
    folder = tmp_path / "results"
    results.write_part(folder, [row_of("a")])
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._part-1.parquet", ".nfs0001"):
        (folder / name).write_bytes(b"\0")
    (folder / "__MACOSX").mkdir()
    assert results.read(folder).num_rows == 1
    (folder / "notes.txt").write_text("")
    with pytest.raises(ResultsError, match=r"foreign file 'notes.txt'"):
        results.read(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", []),
        ("manifest.json", {"name": "x"}),
        ("manifest.json", {"name": "x", "unit_keys": {"a": 1}, "failures": []}),
        ("manifest.json", {"name": "x", "unit_keys": ["a"], "failures": [["half", "it died"]]}),
        ("manifest.json", {"name": "x", "unit_keys": ["a"], "failures": [], "history": [{"loss_1": 0.5}]}),
        ("manifest.json", {"name": "x", "unit_keys": ["a"], "failures": [], "kept": {"half": {}}}),
        ("search.json", []),
        ("search.json", {"name": "x", "objectives": [], "records": []}),
        ("search.json", {"objectives": {"a": 1}}),
    ],
)
def test_manifests_and_search_files_of_other_shapes_are_refused(name: str, content: object, tmp_path: Path) -> None:
    """Issue 15, number 18: lists for mappings, missing keys and other types were tracebacks."""
    (tmp_path / name).write_text(json.dumps(content))
    outcome = ran(["prunnet", "report", str(tmp_path)])
    assert outcome.code == 2
    assert "is not there or torn: no finished" in outcome.said
    assert len(outcome.said.splitlines()) == 1


def test_a_network_that_no_recipe_made_is_not_exported_or_swept(tmp_path: Path) -> None:
    """Issue 15, number 18: what `prunnet.fit` saved has no recipe, which was a KeyError."""
    save_network(tmp_path / "m.safetensors", tiny_net(), Preprocessing(16, 16, 1, False, (0.5,), (0.5,)))
    words = ["export", str(tmp_path / "m.safetensors"), "--capacity", "0.5", "--to", str(tmp_path / "x.onnx")]
    assert "does not say on which data it was trained" in ran(["prunnet", *words]).said
    with pytest.raises(CheckpointError, match=r"header is not what prunnet writes \(recipe"):
        fitting(*loaded(tmp_path / "m.safetensors"))


def loaded(path: Path) -> tuple[dict[str, object], str, Preprocessing]:
    header = read_header(path)
    return header, str(path), Preprocessing.from_json(header["preprocessing"])
