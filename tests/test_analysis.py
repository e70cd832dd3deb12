"""Fronts are data; plots, tables and the report draw what is there."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
from pathlib import Path

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from analysis import comparison, devices, plots, report, tables
from analysis.frame import Frame, deviation
from analysis.pareto import Point, front, hypervolume
from prunnet.errors import ResultsError
from prunnet.results import plain_cell
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("module", ["analysis.devices", "analysis.comparison"])
def test_commands_of_the_analysis_say_in_one_line_what_is_wrong(module: str, tmp_path: Path) -> None:
    (tmp_path / "foreign").write_text("not a table")
    for name, said in (("missing", "there is no such file"), ("foreign", "torn part 'foreign'")):
        command = [sys.executable, "-m", module, str(tmp_path / name), str(tmp_path / "out.png")]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_an_accuracy_that_is_not_finite_has_no_spread_and_ends_no_figure() -> None:
    assert deviation([0.1, 0.3]) == pytest.approx(0.1414, abs=1e-4)
    assert deviation([0.5]) == 0.0
    assert math.isnan(deviation([math.inf, 0.5]))
    assert "nan" in comparison.cell([math.nan, 0.5])


points = st.lists(st.builds(Point, st.integers(0, 8), st.integers(0, 8)), max_size=12)


@given(points)
def test_the_front_is_what_no_point_beats(points: list[Point]) -> None:
    def beaten(p: Point) -> bool:
        return any(q.cost <= p.cost and q.value >= p.value and (q.cost, q.value) != (p.cost, p.value) for q in points)

    expected = {(p.cost, p.value) for p in points if not beaten(p)}
    found = front(points)
    assert {(p.cost, p.value) for p in found} == expected
    assert len(found) == len(expected)
    assert [p.cost for p in found] == sorted(p.cost for p in found)


@given(points)
def test_hypervolume_counts_the_cells_below_the_front(points: list[Point]) -> None:
    cells = sum(any(p.cost <= x and p.value > y for p in points) for x in range(9) for y in range(9))
    assert hypervolume(points, reference=Point(9, 0)) == cells


@given(st.lists(st.builds(Point, st.floats(0, 8), st.floats(0, 8)), min_size=1, max_size=30))
def test_front_and_hypervolume_agree_with_a_known_library(points: list[Point]) -> None:
    both_low = np.array([(p.cost, -p.value) for p in points])
    expected = both_low[moocore.is_nondominated(both_low, keep_weakly=False)]
    found = np.array([(p.cost, -p.value) for p in front(points)])
    np.testing.assert_array_equal(found, expected[np.argsort(expected[:, 0])])
    area = moocore.hypervolume(both_low, ref=np.array([9.0, 0.0]))
    assert hypervolume(points, reference=Point(9, 0)) == pytest.approx(area)


def frame() -> Frame:
    common = {
        "method": "prunnet", "backbone": "resnet18", "dataset": "glyphs", "split": "test", "seed": 0, "queries": 10,
        "gallery_size": 10, "params_total": 100, "train_capacities": "0.5",
        "gallery_source": "own",
    }  # fmt: skip
    return Frame(
        [
            {
                **common,
                "query_capacity": q,
                "gallery_capacity": g,
                "macs": int(1e6 * q),
                "params_kept": int(100 * q),
                "map": 0.5 * q + 0.3 * g,
                "recall_at_1": None if (q, g) == (0.2, 0.2) else 0.9 * q,
            }
            for q in (1.0, 0.5, 0.2)
            for g in (1.0, 0.5, 0.2)
        ]
    )


def test_the_table_shows_self_and_cross_tests() -> None:
    lines = tables.capacity_table(frame())
    assert [line[:2] for line in lines] == [("1", "yes"), ("0.5", "yes"), ("0.2", "no")]
    assert lines[1][4:] == ("40.0", "45.0", "55.0", "45.0")
    assert lines[2][5] == "-"
    assert tables.markdown(frame()).count("\n") == 4


def test_tables_for_papers_and_spreadsheets() -> None:
    latex = tables.latex(frame())
    assert r"\toprule" in latex
    assert latex.count(r"\%") == 3  # the shares of weights: a bare % would comment the line out
    assert "55.0 & 45.0 \\\\" in " ".join(latex.split())
    lines = list(csv.DictReader(tables.rows_csv(frame()).splitlines()))
    assert len(lines) == 9
    assert [float(line["map"]) for line in lines] == pytest.approx([row["map"] for row in frame().rows])
    assert lines[-1]["recall_at_1"] == ""  # not measured
    wide = Frame([{**row, "protocol": None} for row in frame().rows])
    assert "protocol" not in tables.rows_csv(wide)  # no row has one


FORMULAS = ("=cmd|'/c calc'!A1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "'=1", "＝1")


def test_no_cell_of_a_spreadsheet_is_run() -> None:
    """Issue 15, number 23: a name that a spreadsheet takes for a formula is text there, and numbers stay numbers."""
    plain = [plain_cell(text) for text in FORMULAS]
    assert plain == ["'" + text for text in FORMULAS]
    assert len({*plain, *map(plain_cell, plain)}) == 2 * len(FORMULAS)  # two names never become one
    same = ("shoe [blue].png", "a=b", "-0.5", "+3", "1e-3", "", "'", "it's", "a-b", "…")
    assert [plain_cell(text) for text in same] == list(same)
    rows = [{**r, "method": name, "weighting_exponent": -0.5} for name in FORMULAS for r in frame().rows[:1]]
    for raw in (False, True):
        found = list(csv.DictReader(io.StringIO(tables.rows_csv(Frame(rows), raw=raw), newline="")))
        assert [line["method"] for line in found] == (list(FORMULAS) if raw else plain)
        assert {line["weighting_exponent"] for line in found} == {"-0.5"}


def test_figures_and_report() -> None:
    for draw in (plots.pareto_figure, plots.matrix_figure):
        files = plots.rendered(draw(frame()), "png", "svg")
        assert files["png"][:4] == b"\x89PNG"
        assert b"<svg" in files["svg"]
    text = report.render(frame(), title="A <sweep>", command="run it", recipe="a: 1", failures=["x"])
    assert "A &lt;sweep&gt;" in text
    page = text.replace(get_plotlyjs(), "")
    assert "http" not in page  # nothing is fetched
    assert all(f'id="{name}"' in page for name in ("front", "matrix", "kept"))


def test_the_gallery_of_an_old_network_has_columns_of_its_own() -> None:
    own = frame()
    assert not own.has_old_gallery
    old = [{**row, "gallery_source": "old", "map": 0.123} for row in own.rows if row["gallery_capacity"] == 1.0]
    both = Frame([*own.rows, *old])
    assert tables.capacity_table(both)[0][: len(tables.head(own))] == tables.capacity_table(own)[0]
    assert tables.head(both)[-2:] == ("old mAP", "old R@1")
    assert tables.capacity_table(both)[0][-2] == "12.3"
    assert both.self_tests() == own.self_tests()
    assert both.cross_tests() == own.cross_tests()


def test_a_missing_pair_is_none() -> None:
    assert frame().get(1.0, 0.3) is None
    assert [row["query_capacity"] for row in frame().cross_tests()] == [1.0, 0.5, 0.2]
    assert frame().points(frame().self_tests())[0] == Point(1_000_000, pytest.approx(0.8), "1")


def test_fronts_over_measured_latency_take_the_mean_over_seeds() -> None:
    measured = {"runtime": "eager", "threads": 2, "device": "cpu"}
    rows = [
        {**row, **measured, "granularity": kind, "seed": seed, "map": row["map"] + 0.02 * seed, "latency_ms_b1": 1.0}
        for row in frame().rows
        for kind in ("weight", "channel")
        for seed in (0, 1)
    ]
    left, right, *_ = devices.figure(rows).axes
    for axes in (left, right):
        assert [line.get_label() for line in axes.containers] == ["single weights, 2 seeds", "channels, 2 seeds"]
    heights = left.containers[0].lines[0].get_ydata()
    assert list(heights) == pytest.approx([100 * (0.5 * q + 0.3 + 0.01) for q in (0.2, 0.5, 1.0)])
    assert "ms an image (eager, threads: 2, cpu)" in right.get_xlabel()
    once = [{**row, "latency_ms_b1": row["latency_ms_b1"] if row["seed"] == 0 else None} for row in rows]
    seen = [axes.containers[0].lines[0].get_ydata() for axes in devices.figure(once).axes[:2]]
    assert list(seen[0]) == list(seen[1]) == list(heights)  # measured once, trained twice
    with pytest.raises(ResultsError, match="no row has latency_ms_b1"):
        devices.figure([{**row, "latency_ms_b1": None} for row in rows])
