"""Every benchmark has a time limit, reports progress on stderr, and ends with one JSON object."""

from __future__ import annotations

import json
import re
import runpy
import sys
import time
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import Benchmark, precisions

FOLDER = Path(common.__file__).parent
pytestmark = pytest.mark.timeout(method="thread")
"""The other method uses the same signal as a benchmark's limit."""
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "common"))


def last(printed: str) -> dict[str, object]:
    return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_help_and_docstring_state_the_limit(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # some set it, and the tests after this one shall not see that
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    default = re.search(r"default: (\d+)", text[text.rindex("--minutes") :], re.IGNORECASE)
    assert default is not None
    documented = runpy.run_path(str(FOLDER / f"{name}.py"), run_name=f"benchmarks.{name}")["__doc__"]
    assert f"`--minutes {default[1]}`" in documented


def test_rounds_are_cut_near_the_limit_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with Benchmark(minutes=0.5 / 60) as benchmark, benchmark.stage("naps"):
        taken = benchmark.interleaved({"nap": lambda: time.sleep(0.1)}, rounds=100, warmup=0)
        benchmark.found(naps=len(taken["nap"]))
    out, err = capsys.readouterr()
    assert 1 <= len(taken["nap"]) < 6
    assert last(out)["rounds_cut"] == {"naps": f"{len(taken['nap'])} of 100"}
    assert last(out)["naps"] == len(taken["nap"])
    assert "naps: nap, round 1 of 100" in err
    assert f"{len(taken['nap'])} of 100 rounds" in err


def test_a_stage_that_does_not_end_is_named_and_what_was_found_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with Benchmark(minutes=0.5 / 60) as benchmark:
        with benchmark.stage("first"):
            benchmark.found(ratio=2.0)
        with benchmark.stage("endless"):
            time.sleep(60)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert last(out)["ratio"] == 2.0
    assert last(out)["left_out"] == ["endless and what follows it"]
    assert "left out: endless" in err.splitlines()[-1]


def test_whole_rounds_before_the_limit_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    naps = iter([0.1, 0.1, 60.0])
    with Benchmark(minutes=0.5 / 60) as benchmark, benchmark.stage("naps"):
        taken = benchmark.interleaved({"nap": lambda: time.sleep(next(naps))}, rounds=100, warmup=0)
        benchmark.found(naps=len(taken["nap"]))
        time.sleep(60)
    found = last(capsys.readouterr().out)
    assert (found["naps"], found["rounds_cut"]) == (2, {"naps": "2 of 100"})


def test_an_error_prints_no_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Benchmark(minutes=1):
        _ = 1 / 0
    assert capsys.readouterr().out == ""


def test_bf16_is_left_out_where_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "fast_bf16", lambda: False)
    assert precisions() == ("fp32",)
    out, err = capsys.readouterr()
    assert out == ""
    assert "bf16 is left out" in err
    assert precisions("cuda") == ("fp32", "bf16")
    monkeypatch.setattr(common, "fast_bf16", lambda: True)
    assert precisions() == ("fp32", "bf16")
