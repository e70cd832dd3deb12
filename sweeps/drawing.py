"""Table, front and report of a finished sweep, from its results table. No torch and no Ray."""

from __future__ import annotations

from analysis import tables
from analysis.frame import Frame
from prunnet.redact import shown
from prunnet.storage.seal import read_text
from sweeps.printing import Console
from sweeps.report_files import write_files
from sweeps.run import Run
from sweeps.terminal_table import print_table


def draw(run: Run, console: Console, *, raw_csv: bool = False) -> None:
    """Table, front and report of the last sweep in a run's folder; `raw_csv` leaves texts in rows.csv as they are."""
    manifest = run.manifest()
    frame = Frame.load(run.results, manifest["unit_keys"])
    failures = [f"capacity {capacity:g} failed: {error}" for capacity, error in manifest["failures"]]
    if len(frame):
        print_table(
            console,
            tables.head(frame),
            tables.capacity_table(frame, tables.LINES),
            drop=tables.less_important(frame),
            title=f"{manifest['name']}: {len(frame.whole)} tests",
        )
        if said := tables.shortened(frame):
            console.print(said)
        write_files(
            run.folder,
            frame,
            title=f"Capacity sweep {manifest['name']}",
            command=f"python sweeps/capacity.py --recipe {shown(run.recipe)}",
            recipe=shown(read_text(run.recipe)),
            raw_csv=raw_csv,
            failures=failures,
            **{name: manifest[name] for name in ("kept", "history", "conflicts") if name in manifest},
        )
        for what, path in (("results", run.results), ("front", run.folder / "pareto.png")):
            console.print(f"{what:<8}{path}")
        console.print(f"{'report':<8}{run.folder / 'report.html'}")
    for line in failures:
        console.print(line, style="red")
