"""Writes the files of a finished sweep: figures, tables, all rows, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis import plots, report, tables
from analysis.frame import Frame
from prunnet.errors import ResultsError
from prunnet.results.sheet import Sheet, as_png
from prunnet.storage.atomic import put_in_place, write_bytes, write_text
from prunnet.storage.paths import remove


def write_files(folder: Path, frame: Frame, *, raw_csv: bool = False, sheet: Sheet | None = None, **told: Any) -> None:
    """Writes `pareto.png`, `sheet.png`, `report.html` and `paper/` into a run's folder.

    Args:
        raw_csv: texts in paper/rows.csv as they are, also where a spreadsheet would run them.
        sheet: the contact sheet; where there is none, or nothing on it, an older `sheet.png` is removed.
        told: further arguments of `analysis.report.render`.
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
    try:
        picture = as_png(sheet) if sheet and sheet.queries else None
    except ResultsError as error:
        sheet, picture = Sheet(left_out=str(error)), None
    if picture:
        write_bytes(folder / "sheet.png", picture)
    else:
        remove(folder / "sheet.png")
    write_text(folder / "report.html", report.render(frame, sheet=sheet, **told))
