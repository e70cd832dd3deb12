"""One self-contained HTML file: what was run, the front, the tables, how to run it again."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from analysis import plots, tables
from analysis.frame import Frame


def render(frame: Frame, *, title: str, command: str, recipe: str, failures: Sequence[str] = ()) -> str:
    """The report as one HTML page that needs no network and no other file."""
    first = frame.rows[0]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    lead = (
        f"{first['method']} on {first['backbone']}: {len(frame.capacities)} capacities, {len(frame.rows)} tests of "
        f"{first['queries']} queries against {first['gallery_size']} images "
        f"({first['dataset']}, {first['split']} split, seed {first['seed']})."
    )
    return environment.get_template("report.html").render(
        title=title,
        lead=lead,
        head=tables.head(frame),
        table=tables.capacity_table(frame),
        pareto=embedded(plots.pareto_figure(frame)),
        matrix=embedded(plots.matrix_figure(frame)),
        command=command,
        recipe=recipe,
        failures=list(failures),
    )


def embedded(figure: Figure) -> str:
    """A figure as base64 PNG, for a page that needs no other file; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    plots.plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
