"""How long does a report of 100,000 rows take to open? From the browser's start of loading to all figures drawn.

    python -m benchmarks.report

Chromium, headless, without a network; the page is written once and opened in a fresh context each round, beside one
of ten rows: what that takes is the floor. Last line: JSON, `open_s`, `floor_s`, `page_mb`, `write_s`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from analysis import report
from analysis.frame import Frame
from benchmarks.common import interleaved, median, show


def rows(count: int) -> list[dict[str, Any]]:
    """Cross-tests of so many made-up capacities."""
    rng = np.random.default_rng(0)
    common = {
        "method": "prunnet", "backbone": "resnet18", "dataset": "glyphs", "split": "test", "seed": 0, "queries": 10,
        "gallery_size": 10, "params_total": 1000, "train_capacities": "0.5", "gallery_source": "own", "protocol": None,
        "granularity": "weight", "gallery_capacity": 1.0, "macs_dense": 1_000_000,
    }  # fmt: skip
    drawn = zip(rng.random(count).tolist(), rng.random(count).tolist(), strict=True)
    return [
        {
            **common,
            "query_capacity": c,
            "macs": int(1e6 * c) + 1,
            "params_kept": int(1000 * c),
            "map": v,
            "recall_at_1": v,
        }
        for c, v in drawn
    ]


def main(
    count: Annotated[int, typer.Option(help="Rows.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="Times that each page is opened.")] = 7,
) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise typer.BadParameter("no chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        pages, wrote = {}, 0.0
        for name, size in (("floor", 10), ("full", count)):
            started = time.perf_counter()
            text = report.render(Frame(rows(size)), title=name, command="-", recipe="-")
            pages[name], wrote = Path(folder) / f"{name}.html", time.perf_counter() - started
            pages[name].write_text(text, encoding="utf-8")
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])

        def opened(path: Path) -> None:
            context = browser.new_context(offline=True)
            page = context.new_page()
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready=yes]")
            context.close()

        taken = interleaved({n: lambda p=p: opened(p) for n, p in pages.items()}, rounds, warmup=1)  # type: ignore[misc]
        megabytes = pages["full"].stat().st_size / 1e6
        browser.close()
    show(open_s=median(taken["full"]), floor_s=median(taken["floor"]), page_mb=megabytes, write_s=wrote)


if __name__ == "__main__":
    typer.run(main)
