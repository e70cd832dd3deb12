"""The files that tell of a finished sweep: figures, tables, all rows, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis import plots, report, tables
from analysis.frame import Frame
from prunnet.storage.atomic import put_in_place, write_bytes, write_text


def write_files(folder: Path, frame: Frame, *, raw_csv: bool = False, **told: Any) -> None:
    """Writes `pareto.png`, `report.html` and `paper/` into a run's folder.

    Args:
        raw_csv: texts in paper/rows.csv as they are, also where a spreadsheet would run them.
        told: what `analysis.report.render` is told beside the rows.
    """
    paper = folder / "paper"
    drawn = plots.rendered(plots.pareto_figure(frame), "png", "svg")
    write_bytes(folder / "pareto.png", drawn["png"])
    write_bytes(paper / "pareto.svg", drawn["svg"])
    for name, content in plots.rendered(plots.matrix_figure(frame), "png", "svg").items():
        write_bytes(paper / f"matrix.{name}", content)
    for name, text in (("md", tables.markdown(frame)), ("tex", tables.latex(frame))):
        write_text(paper / f"capacities.{name}", text + "\n")
    with put_in_place(paper / "rows.csv") as temporary, temporary.open("wb") as file:
        file.writelines(tables.csv_parts(frame, raw=raw_csv))
    write_text(folder / "report.html", report.render(frame, **told))
