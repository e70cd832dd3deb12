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
from sweeps.cli import app

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
