"""The report in a real browser: Debian's Chromium, headless, without a network."""

from __future__ import annotations

import base64
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import interactive, report, search, search_page
from analysis.frame import Frame
from analysis.pareto import Point, front
from analysis.quantities import Quantity
from prunnet.results.table import write_part

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
CAPACITIES = (1.0, 0.6, 0.3, 0.1)


def row(query: float, gallery: float, seed: int = 0, granularity: str = "weight") -> dict[str, Any]:
    worth = 0.6 + 0.1 * query + 0.05 * gallery - 0.01 * seed
    return {
        "method": "prunnet", "backbone": "resnet18", "dataset": "glyphs", "split": "test", "seed": seed, "queries": 10,
        "gallery_size": 10, "params_total": 1000, "train_capacities": "0.6,0.3", "gallery_source": "own",
        "protocol": None, "granularity": granularity, "query_capacity": query, "gallery_capacity": gallery,
        "macs": int(1e6 * query),
        "macs_dense": 1_000_000, "macs_dense_equivalent": int(1e6 * query**0.5), "params_kept": int(1000 * query),
        "map": worth, "recall_at_1": worth + 0.1, "latency_ms_b1": 1 + 3 * query, "bytes_on_disk": int(4000 * query),
    }  # fmt: skip


def page(rows: list[dict[str, Any]]) -> str:
    shares = {"backbone.conv1": 0.5, "backbone.layer1.0.conv1": 0.4}
    return report.render(
        Frame(rows),
        title="A sweep",
        command="run it",
        recipe="a: 1",
        kept={f"{c:g}": shares for c in CAPACITIES},
        history=[{"epoch": e, "loss_1": 1 / e, "loss_0.3": 2 / e} for e in (1, 2, 3)],
        conflicts=[shares, shares],
    )


def small() -> list[dict[str, Any]]:
    return [row(q, g, granularity=kind) for kind in ("weight", "channel") for q in CAPACITIES for g in CAPACITIES]


def test_columns_hold_what_some_row_has_and_no_more() -> None:
    columns = interactive.front_columns(Frame(small()))
    assert set(columns["costs"]) == {"macs", "macs_dense_equivalent", "params_kept", "bytes_on_disk", "latency_ms_b1"}
    assert set(columns["worths"]) == {"map", "recall_at_1"}
    tests = np.frombuffer(base64.b64decode(columns["test"]), dtype="<u1")
    assert [list(columns["tests"])[i] for i in tests].count("self") == 2 * len(CAPACITIES) == len(tests) / 2
    assert len(columns["recipes"]) == 2
    numbers = {name: np.frombuffer(base64.b64decode(text), dtype="<f4") for name, text in columns["columns"].items()}
    assert {len(values) for values in numbers.values()} == {len(tests)}
    assert numbers["map"].max() == pytest.approx(75)


def test_what_was_not_measured_is_told_apart_from_zero() -> None:
    first, *others = small()
    columns = interactive.front_columns(Frame([{**first, "latency_ms_b1": None}, *others]))
    latency = np.frombuffer(base64.b64decode(columns["columns"]["latency_ms_b1"]), dtype="<f4")
    assert np.isnan(latency).sum() == 2  # the dense one, in its self- and its cross-test


def test_a_script_cannot_be_ended_by_what_is_in_it() -> None:
    evil = [{**r, "method": "</script><script>alert(1)</script>"} for r in small()]
    assert "</script><script>alert" not in page(evil)


def test_the_memory_of_a_report_does_not_grow_with_the_texts_of_its_rows(tmp_path: Path) -> None:
    """Issue 15, number 24: rows share their configuration; 20,000 of them took 112 MB, and 200,000 took 5.6 GB. Seconds
    and the whole process's memory: `benchmarks.report --only-make`."""
    side = 141
    config = {"config_json": "x" * 1500, "config_hash": "y" * 64, "status": "complete"}
    for query in range(1, side + 1):
        tests = [{**row(query / side, g / side), **config, "unit_key": f"{query}-{g}"} for g in range(1, side + 1)]
        write_part(tmp_path, tests)
    tracemalloc.start()
    frame = Frame.load(tmp_path)
    text = report.render(frame, title="t", command="c", recipe="r")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{side**2} tests of" in text
    assert peak < 60e6  # plotly's script is in it several times
    assert "rows" not in vars(frame)  # nothing made a dict of every row
    assert frame.table.nbytes < 500 * side**2  # of 1,900 that a row has in the parts


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Opened:
    """A page in the browser, what it said on the console, and what it asked the network for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(offline=True, **context)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url[:60]))
        started = time.perf_counter()
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]")
        self.seconds = time.perf_counter() - started

    def points(self) -> list[Any]:
        return self.page.evaluate("document.getElementById('front').data.map(trace => [...trace.x])")


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    (tmp_path / "report.html").write_text(page(small()), encoding="utf-8")
    shown = Opened(browser, tmp_path / "report.html", viewport={"width": 1200, "height": 900})
    yield shown
    shown.context.close()


@needs_browser
def test_it_loads_without_errors_and_without_a_network(opened: Opened) -> None:
    assert opened.said == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in opened.asked)
    drawn = opened.page.evaluate(
        "[...document.querySelectorAll('.figure')].map(f => [f.id, f.querySelectorAll('svg').length])"
    )
    assert [name for name, _ in drawn] == [
        "front",
        "matrix",
        "methods",
        "layers",
        "training",
        "conflicts-mean",
        "conflicts",
    ]
    assert all(count > 0 for _, count in drawn)


@needs_browser
def test_a_search_has_a_page_too(browser: Any, tmp_path: Path) -> None:
    trials = [
        search.Record(
            n, "complete", {"train.lr": 0.1 * n}, {"mean_cross_map": 0.1 * n, "macs_within": 10.0 * n}, ended=f"{n}"
        )
        for n in range(6)
    ]
    objectives = [Quantity(name=name) for name in ("mean_cross_map", "macs_within")]
    shares = {q.label: {"train.lr": 0.7, "train.weighting": 0.3} for q in objectives}
    found = search.Findings("s", objectives, trials, shares, 60.0, trials[2].values, "train: {lr: 0.5}")
    (tmp_path / "search.html").write_text(search_page.render(found, command="run it"), encoding="utf-8")
    shown = Opened(browser, tmp_path / "search.html")
    drawn = shown.page.evaluate(
        "[...document.querySelectorAll('.figure')].map(f => [f.id, f.data.map(t => t.name ?? null)])"
    )
    assert drawn == [
        ["trials", ["front", "the base recipe"]],
        ["growth", [None]],
        ["importances", ["mean_cross_map", "macs_within"]],
    ]
    assert shown.said == []
    shown.context.close()


@needs_browser
def test_switching_an_axis_moves_the_points(opened: Opened) -> None:
    before = opened.points()
    opened.page.select_option("#cost", "latency_ms_b1")
    after = opened.points()
    assert sorted(after[0]) == pytest.approx(sorted(1 + 3 * q for q in CAPACITIES))
    assert before != after
    opened.page.select_option("#test", "self")
    heights = opened.page.evaluate("document.getElementById('front').data[0].y")
    assert max(heights) == pytest.approx(75)
    opened.page.select_option("#worth", "recall_at_1")
    assert max(opened.page.evaluate("document.getElementById('front').data[0].y")) == pytest.approx(85)
    assert opened.said == []


@needs_browser
def test_a_click_keeps_a_point(opened: Opened) -> None:
    assert opened.page.locator("#kept").is_hidden()
    point = opened.page.locator("#front .scatterlayer .point").first
    box = point.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.page.mouse.down()
    opened.page.mouse.up()
    opened.page.wait_for_selector("#kept tbody tr")
    text = opened.page.locator("#kept tbody tr").inner_text()
    assert "cross" in text
    assert "prunnet" in text
    opened.page.select_option("#cost", "bytes_on_disk")  # and it stays
    assert opened.page.locator("#kept tbody tr").count() == 1


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_nothing_sticks_out_at_two_widths(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    (tmp_path / "report.html").write_text(page(small()), encoding="utf-8")
    shown = Opened(browser, tmp_path / "report.html", viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    background, ink = shown.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, document.getElementById('front').layout.font.color]"
    )
    assert (background, ink) == (
        ("rgb(255, 255, 255)", "rgb(26, 26, 26)") if scheme == "light" else ("rgb(22, 24, 28)", "rgb(230, 230, 230)")
    )
    shown.page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    assert (tmp_path / f"{width}.png").stat().st_size > 20_000
    shown.context.close()


@needs_browser
def test_a_hundred_thousand_rows_open_and_say_how_long_it_took(
    browser: Any, tmp_path: Path, record_property: Any
) -> None:
    """No time limit here: seconds are a machine's. `benchmarks.report` has them."""
    rng = np.random.default_rng(0)
    drawn = zip(rng.random(100_000), rng.random(100_000), strict=True)
    rows = [{**row(float(c), 1.0), "map": float(v)} for c, v in drawn]
    (tmp_path / "report.html").write_text(page(rows), encoding="utf-8")
    shown = Opened(browser, tmp_path / "report.html")
    assert shown.said == []
    drawn_points, line = shown.points()
    assert 5_000 < len(drawn_points) <= 240 * 120  # one where many lie
    assert f"{len(drawn_points)} of 100000 points are drawn" in shown.page.locator("#hidden").inner_text()
    cost, worth = (np.array([r[name] for r in rows]) / unit for name, unit in (("macs", 1e6), ("map", 0.01)))
    best = front(
        [Point(c, w) for c, w in zip(np.float32(cost).tolist(), np.float32(worth).tolist(), strict=True) if c > 0]
    )
    assert line == pytest.approx([p.cost for p in best], rel=1e-6)
    inside = (cost > 0.5) & (cost < 0.52) & (worth > 50) & (worth < 51)
    shown.page.evaluate(
        f"Plotly.relayout('front', {{'xaxis.range': [{np.log10(0.5)}, {np.log10(0.52)}], 'yaxis.range': [50, 51]}})"
    )
    assert len(shown.points()[0]) == pytest.approx(inside.sum(), abs=1)  # but for two in one of the small cells
    assert shown.said == []
    assert shown.page.locator("tbody").nth(1).locator("tr").count() == 200
    record_property("seconds", shown.seconds)
    print(f"opened in {shown.seconds:.2f} s")
    shown.context.close()
