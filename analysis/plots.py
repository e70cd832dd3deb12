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

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # Okabe and Ito's, told apart by colour-blind readers


def pareto_figure(frame: Frame) -> Figure:
    """Retrieval accuracy against theoretical FLOPs (2 x MACs): self-tests, and cross-tests against the dense
    gallery, each with its front."""
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    series = (
        ("self-test", frame.self_tests(), BLUE, "o"),
        ("cross-test, dense gallery", frame.cross_tests(), ORANGE, "s"),
    )
    for name, rows, colour, marker in series:
        points = [Point(2 * p.cost / 1e6, 100 * p.value, p.label) for p in frame.points(rows)]
        if not points:
            continue
        best = front(points)
        axes.step([p.cost for p in best], [p.value for p in best], where="post", color=colour, lw=1, alpha=0.6)
        axes.scatter([p.cost for p in points], [p.value for p in points], c=colour, marker=marker, label=name, zorder=3)
        if colour == ORANGE or len(series) == 1:
            for p in points:
                axes.annotate(p.label, (p.cost, p.value), xytext=(5, -10), textcoords="offset points", size=8)
    axes.set_xlabel("theoretical MFLOPs an image (unstructured sparsity: MACs of kept weights x 2)")
    axes.set_ylabel(f"{frame.metric_name} (%)")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=GREY, alpha=0.25)
    axes.legend(loc="lower right")
    first = frame.rows[0]
    axes.set_title(
        f"{first['method']} {first['backbone']} on {first['dataset']} ({first['split']}), seed {first['seed']}"
    )
    return figure


def matrix_figure(frame: Frame) -> Figure:
    """The metric of every query capacity against every gallery capacity."""
    capacities, metric = frame.capacities, frame.metric
    galleries = [g for g in capacities if any(frame.get(q, g) for q in capacities)]
    values = [
        [100 * row[metric] if (row := frame.get(q, g)) and row[metric] is not None else float("nan") for g in galleries]
        for q in capacities
    ]
    figure, axes = plt.subplots(figsize=(6.4, 5.4), layout="constrained")
    image = axes.imshow(values, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(galleries)), [f"{g:g}" for g in galleries])
    axes.set_yticks(range(len(capacities)), [f"{q:g}" for q in capacities])
    axes.set_xlabel("gallery capacity")
    axes.set_ylabel("query capacity")
    few = len(capacities) <= 12  # numbers that can be read
    for (i, j), value in np.ndenumerate(np.array(values)) if few else ():
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
