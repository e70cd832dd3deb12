"""Pages that need no network and no other file: a template, Plotly figures, and the script that draws them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A figure on a page, under a heading."""

    name: str
    """Its id in the page."""
    heading: str
    note: str
    drawn: go.Figure
    lines: int = 0
    """Of text along its height, where it needs room for each; 0: the usual height."""


def render(template: str, *, figures: Sequence[Figure], **words: Any) -> str:
    """A template of this folder that extends page.html, filled in; figures are drawn where it has elements of their
    names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(
        figures=figures,
        drawn=[(figure.name, as_json(figure.drawn)) for figure in figures],
        plotly=Markup(get_plotlyjs()),
        script=script("page.js"),
        **words,
    )


def script(name: str) -> Markup:
    """A script of this folder, for a page."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


def as_json(value: Any) -> Markup:
    """JSON that is safe inside a script element."""
    text = value.to_json() if isinstance(value, go.Figure) else json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("</", "<\\/"))
