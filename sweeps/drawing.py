"""Table, front and report of a finished sweep, from its results table. No torch and no Ray."""

from __future__ import annotations

from analysis import tables
from analysis.frame import Frame
from prunnet.errors import ResultsError
from prunnet.redact import shown
from prunnet.results.sheet import Sheet
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
        sheet = _sheet(run)
        if sheet and sheet.left_out:
            console.print(f"note: no contact sheet: {sheet.left_out}", style="yellow")
        write_files(
            run.folder,
            frame,
            title=f"Capacity sweep {manifest['name']}",
            command=f"python sweeps/capacity.py --recipe {shown(run.recipe)}",
            recipe=shown(read_text(run.recipe)),
            raw_csv=raw_csv,
            failures=failures,
            sheet=sheet,
            **{name: manifest[name] for name in ("kept", "history", "conflicts") if name in manifest},
        )
        for what, path in (("results", run.results), ("front", run.folder / "pareto.png")):
            console.print(f"{what:<8}{path}")
        console.print(f"{'report':<8}{run.folder / 'report.html'}")
    for line in failures:
        console.print(line, style="red")


def _sheet(run: Run) -> Sheet | None:
    """What the job kept; None where it was to keep none. A torn file is a sheet that says so."""
    try:
        return Sheet.load(run.sheet)
    except ResultsError as error:
        return Sheet(left_out=str(error))
