"""How long does a report of 100,000 rows take to open, and how long and how much memory one of 200,000 to make?

    python -m benchmarks.report
    python -m benchmarks.report --only-make     # without a browser

To open: from the start of loading to the second frame after all is drawn. Chromium, headless, software rendering, a new
browser with an empty profile each time; the page itself says how long it took, by the browser's clock, so that no
debugger is attached. Beside it a page of ten rows: what that takes is the floor. To make: all files of `prunnet report`
from a results folder in a process of its own, without the imports; the peak is that of its resident memory, imports
included. Last line: JSON, `open_s`, `floor_s`, `page_mb`, `write_s`, `make_s`, `make_mb`, and `import_mb`, what the
process held before it began. Ends after `--minutes 15`.
"""

from __future__ import annotations

import http.server
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from analysis import report
from analysis.frame import Frame
from benchmarks.common import MINUTES_HELP, Benchmark, median
from prunnet.results.table import write_part

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


def matrix(count: int) -> list[list[dict[str, Any]]]:
    """Tests of every capacity against every capacity, about so many, as a sweep writes them: a part a query."""
    side = round(count**0.5)
    capacities = np.linspace(0.05, 1.0, side)
    template = rows(1)[0] | {"status": "complete", "config_json": json.dumps({"recipe": "x" * 1500}), "sweep_id": "s"}
    template |= {"query_weights_sha": "a" * 64, "config_hash": "b" * 64, "git_commit": "c" * 40}
    parts = []
    for query in capacities.tolist():
        own = {"query_capacity": query, "macs": int(1e6 * query) + 1, "params_kept": int(1000 * query)}
        parts.append(
            [
                template
                | own
                | {
                    "gallery_capacity": gallery,
                    "unit_key": f"{query:.9f}-{gallery:.9f}".ljust(64, "0"),
                    "map": 0.5 * query**0.3 + 0.2 * gallery,
                }
                for gallery in capacities.tolist()
            ]
        )
    return parts


MAKE = """
import json, sys, time
from pathlib import Path
from analysis.frame import Frame
from sweeps.report_files import write_files
def peak():  # ru_maxrss would hold the peak of the process that started this one, too
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

before, started, folder = peak(), time.perf_counter(), Path(sys.argv[1])
keys = json.loads((folder / "manifest.json").read_text())["unit_keys"]
write_files(folder, Frame.load(folder / "results", keys), title="large", command="-", recipe="-")
print(json.dumps([time.perf_counter() - started, peak(), before]))
"""


def made(folder: Path, count: int) -> tuple[float, float, float]:
    """(seconds, peak MB, MB before it began) of a report of so many rows, in a process of its own."""
    keys = []
    for part in matrix(count):
        write_part(folder / "results", part)
        keys += [row["unit_key"] for row in part]
    (folder / "manifest.json").write_text(json.dumps({"unit_keys": keys}), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", MAKE, str(folder)], capture_output=True, text=True, check=True)
    seconds, peak, before = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, before


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
    made_of: Annotated[int, typer.Option(help="Rows of the report that is made.")] = 200_000,
    only_make: Annotated[bool, typer.Option("--only-make", help="Open no page.")] = False,
    minutes: Annotated[float, typer.Option(help=MINUTES_HELP)] = 15.0,
) -> None:
    with Benchmark(minutes) as benchmark:
        measure(benchmark, count, rounds, made_of, only_make)


def measure(benchmark: Benchmark, count: int, rounds: int, made_of: int, only_make: bool) -> None:
    with benchmark.stage(f"making a report of {made_of:,} rows"), tempfile.TemporaryDirectory() as folder:
        make_s, make_mb, import_mb = made(Path(folder), made_of)
    print(f"made of {made_of:,} rows: {make_s:.1f} s, {make_mb:,.0f} MB, {import_mb:,.0f} before", flush=True)
    benchmark.found(make_s=make_s, make_mb=make_mb, import_mb=import_mb)
    if only_make:
        return
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise typer.BadParameter("no chromium here: apt-get install chromium")
    ear, wrote = Ear(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        pages = {name: Path(folder) / f"{name}.html" for name in ("floor", "full")}
        benchmark.stage(f"writing a page of {count:,} rows")
        for name, size in (("floor", 10), ("full", count)):
            started = time.perf_counter()
            text = report.render(Frame(rows(size)), title=name, command="-", recipe="-")
            wrote = time.perf_counter() - started
            pages[name].write_text(text.replace("</body>", ear.script()), encoding="utf-8")
        for name, page in pages.items():
            opened(chromium, page, ear)  # the file and the program are read from the disk once
            print(f"{name}: {page.stat().st_size / 1e6:.1f} MB", flush=True)
        benchmark.found(write_s=wrote, page_mb=pages["full"].stat().st_size / 1e6)
        taken: dict[str, list[float]] = {name: [] for name in pages}
        with benchmark.stage("opening pages"):
            # Not the seconds of the browser's process but what the page itself says.
            benchmark.interleaved(
                {n: lambda n=n, page=page: taken[n].append(opened(chromium, page, ear)) for n, page in pages.items()},  # type: ignore[misc]
                rounds,
                warmup=0,
            )
        benchmark.found(open_s=median(taken["full"]), floor_s=median(taken["floor"]))


if __name__ == "__main__":
    typer.run(main)
