"""How long does a report of 100,000 rows take to open? From the start of loading to the second frame after all is
drawn.

    python -m benchmarks.report

Chromium, headless, software rendering, a new browser with an empty profile each time; the page itself says how long it
took, by the browser's clock, so that no debugger is attached. Beside it a page of ten rows: what that takes is the
floor. Last line: JSON, `open_s`, `floor_s`, `page_mb`, `write_s`.
"""

from __future__ import annotations

import http.server
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from analysis import report
from analysis.frame import Frame
from benchmarks.common import median, show

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


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


class Ear:
    """Hears on the loopback how many milliseconds a page says that it took."""

    def __init__(self) -> None:
        heard: queue.Queue[float] = queue.Queue()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.put(float(self.path.partition("?")[2]))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.heard = heard

    def script(self) -> str:
        """For the end of a page's body."""
        tell = f"fetch('http://127.0.0.1:{self._server.server_port}/?' + performance.now(), {{mode: 'no-cors'}})"
        return f"<script>requestAnimationFrame(() => requestAnimationFrame(() => {tell}))</script></body>"


def opened(chromium: str, page: Path, ear: Ear) -> float:
    """Seconds that a fresh browser took to open a page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *FLAGS, f"--user-data-dir={profile}", page.as_uri()]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return ear.heard.get(timeout=60) / 1000
        finally:
            running.terminate()
            running.wait()


def main(
    count: Annotated[int, typer.Option(help="Rows.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="Times that each page is opened.")] = 7,
) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise typer.BadParameter("no chromium here: apt-get install chromium")
    ear, wrote = Ear(), 0.0
    taken: dict[str, list[float]] = {"floor": [], "full": []}
    with tempfile.TemporaryDirectory() as folder:
        pages = {name: Path(folder) / f"{name}.html" for name in taken}
        for name, size in (("floor", 10), ("full", count)):
            started = time.perf_counter()
            text = report.render(Frame(rows(size)), title=name, command="-", recipe="-")
            wrote = time.perf_counter() - started
            pages[name].write_text(text.replace("</body>", ear.script()), encoding="utf-8")
        for name, page in pages.items():
            opened(chromium, page, ear)  # the file and the program are read from the disk once
            print(f"{name}: {page.stat().st_size / 1e6:.1f} MB", flush=True)
        for _ in range(rounds):
            for name, page in pages.items():
                taken[name].append(opened(chromium, page, ear))
        megabytes = pages["full"].stat().st_size / 1e6
    show(open_s=median(taken["full"]), floor_s=median(taken["floor"]), page_mb=megabytes, write_s=wrote)


if __name__ == "__main__":
    typer.run(main)
