"""Figures from fronts and matrices that were computed elsewhere. matplotlib, no window."""

from __future__ import annotations

import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from analysis.frame import Frame
from analysis.pareto import Point, front

FEW = 100
"""Points, or names along an axis, that can be told apart: of more, no names or not all are drawn."""
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # Okabe and Ito's, which colour-blind readers can distinguish


def pareto_figure(frame: Frame) -> Figure:
    """Retrieval accuracy against theoretical FLOPs (2 x MACs): self-tests, and cross-tests against the dense
    gallery, each with its front."""
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    series = (
        ("self-test", frame.tests(None), BLUE, "o"),
        ("cross-test, dense gallery", frame.tests(), ORANGE, "s"),
    )
    for name, tests, colour, marker in series:
        places, macs, values = frame.known(tests, "macs", frame.metric)
        if not len(places):
            continue
        costs, worths = 2 * macs / 1e6, 100 * values
        best = front([Point(cost, worth) for cost, worth in zip(costs.tolist(), worths.tolist(), strict=True)])
        axes.step([p.cost for p in best], [p.value for p in best], where="post", color=colour, lw=1, alpha=0.6)
        few = len(places) <= FEW
        axes.scatter(
            costs, worths, c=colour, marker=marker, label=name, zorder=3, s=None if few else 2, rasterized=not few
        )
        for capacity, at in zip(frame.numbers("query_capacity")[places], zip(costs, worths, strict=True), strict=True):
            if colour == ORANGE and few:
                axes.annotate(f"{capacity:g}", at, xytext=(5, -10), textcoords="offset points", size=8)
    axes.set_xlabel("theoretical MFLOPs an image (unstructured sparsity: MACs of kept weights x 2)")
    axes.set_ylabel(f"{frame.metric_name} (%)")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=GREY, alpha=0.25)
    axes.legend(loc="lower right")
    first = frame.row(0)
    axes.set_title(
        f"{first['method']} {first['backbone']} on {first['dataset']} ({first['split']}), seed {first['seed']}"
    )
    return figure


def matrix_figure(frame: Frame, limit: int = 1000) -> Figure:
    """The metric of every query capacity against every gallery capacity, of the `limit` largest."""
    capacities, galleries, found = frame.matrix(limit)
    values = 100 * found
    figure, axes = plt.subplots(figsize=(6.4, 5.4), layout="constrained")
    image = axes.imshow(values, cmap="cividis", aspect="auto")
    for set_ticks, names in ((axes.set_xticks, galleries), (axes.set_yticks, capacities)):
        shown = range(0, len(names), 1 + len(names) // FEW)
        set_ticks(shown, [f"{names[at]:g}" for at in shown])
    axes.set_xlabel("gallery capacity")
    axes.set_ylabel("query capacity")
    few = len(capacities) <= 12  # numbers that can be read
    for (i, j), value in np.ndenumerate(values) if few else ():
        colour = "white" if value < 50 else "black"
        axes.text(j, i, f"{value:.0f}", ha="center", va="center", size=7, color=colour)
    figure.colorbar(image, label=f"{frame.metric_name} (%)")
    return figure


def rendered(figure: Figure, *formats: str) -> dict[str, bytes]:
    """A figure in each of the formats (png, svg, pdf), as what a file of it holds; closes it."""
    files = {}
    for name in formats:
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150, format=name)
        files[name] = buffer.getvalue()
    plt.close(figure)
    return files
