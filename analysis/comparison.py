"""An ablation's table as docs/RESULTS.md: methods, variants and upgrades, mean and standard deviation over seeds; and
layer-wise cuts beside uniform ones.

    python -m analysis.comparison docs/evidence/methods_omniglot.parquet docs/RESULTS.md
    python -m analysis.comparison docs/evidence/found_omniglot.parquet docs/RESULTS.md found

Only the text between the two marks of the page (`tables`, or the third argument, which gets the short form) is written;
the rest of the page is written by hand. Re-ranked rows are left out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis import commands
from analysis.frame import deviation
from analysis.quantities import Quantity
from prunnet.results import (
    ResultsError,
    check_output,
    p_comp,
    p_up,
    plain,
    read,
    read_packed,
    update_gain,
    write_text,
)
from prunnet.results.table import check_tests

MARK = "tables"
Row = dict[str, Any]
Trials = dict[str, dict[int, list[Row]]]
"""Name of a method (or variant, or upgrade) -> seed -> rows."""
AREA = Quantity(name="hypervolume")


def marks(name: str = MARK) -> tuple[str, str]:
    """The marks before and after tables in a page."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def newest(rows: Iterable[Row]) -> list[Row]:
    """The rows without those of earlier definitions: of trials with one name and seed, which differ in the hash at the
    end of their id, the rows of the one that was tested last."""
    named = [((str(row["trial_id"]).rpartition("/")[0], row["seed"]), row) for row in rows]
    last: dict[tuple[str, int], Row] = {}
    for name, row in named:
        last[name] = max(last.get(name, row), row, key=lambda row: str(row["created_at"]))
    return [row for name, row in named if row["trial_id"] == last[name]["trial_id"]]


def grouped(rows: Iterable[Row], table: str) -> Trials:
    """The rows of one of the ablation's tables: `methods`, `variants`, `upgrade`."""
    found: Trials = {}
    for row in rows:
        kind, _, rest = str(row["trial_id"]).partition("/")
        name = rest.partition("/")[0]
        if kind == table:
            found.setdefault(name, {}).setdefault(row["seed"], []).append(row)
    return found


def value(rows: Sequence[Row], query: float, gallery: float, metric: str, source: str = "own") -> float | None:
    """One metric of one test, in percent."""
    for row in rows:
        if (row["query_capacity"], row["gallery_capacity"], row["gallery_source"]) == (query, gallery, source):
            return None if row[metric] is None else 100 * row[metric]
    return None


def cell(values: Iterable[float | None], digits: int = 1) -> str:
    """Mean ± standard deviation over the seeds that have a value."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    spread = f" ± {deviation(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [head, ["---", *("---:" for _ in head[1:])], *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def capacities_of(trials: Trials) -> tuple[list[float], list[float]]:
    """(trained, never trained) capacities, largest first."""
    rows = [row for seeds in trials.values() for trial in seeds.values() for row in trial]
    trained = {1.0, *(float(c) for row in rows for c in (row["train_capacities"] or "").split(",") if c)}
    every = {row["query_capacity"] for row in rows}
    return sorted(trained & every, reverse=True), sorted(every - trained, reverse=True)


def by_capacity(trials: Trials, metric: str, test: Callable[[float], float], mean_over: Sequence[float]) -> str:
    """One line a method: a column for every capacity, and the mean over the trained ones below the dense network."""
    trained, others = capacities_of(trials)
    columns = [*trained, *others]
    lines = []
    for name, seeds in trials.items():
        cells = [cell(value(rows, c, test(c), metric) for rows in seeds.values()) for c in columns]
        lines.append([name, *cells, cell(_mean(rows, mean_over, test, metric) for rows in seeds.values())])
    head = ["", *(f"{c:.0%}" for c in trained), *(f"*{c:.0%}*" for c in others), "mean"]
    return markdown(head, lines)


def _mean(
    rows: Sequence[Row], capacities: Sequence[float], test: Callable[[float], float], metric: str
) -> float | None:
    values = [value(rows, c, test(c), metric) for c in capacities]
    known = [v for v in values if v is not None]
    return statistics.mean(known) if len(known) == len(values) and known else None


def area_table(trials: Trials) -> str:
    """Accuracy and cost in one number: the area under the front of cross-tests."""
    lines = [[name, cell(map(_area, seeds.values()), 2)] for name, seeds in trials.items()]
    return markdown(["", "hypervolume"], lines)


def _area(rows: Sequence[Row]) -> float | None:
    try:
        return 100 * AREA.of([row for row in rows if row["gallery_source"] != "old"])
    except ResultsError:
        return None


def layerwise_table(rows: Sequence[Row]) -> str:
    """One line a budget: uniform and layer-wise cuts of the same networks at equal MACs, each network a sample."""
    crossed = [row for row in rows if row["gallery_capacity"] == 1.0 and row["query_capacity"] < 1.0]
    cuts = [row for row in crossed if row["allocation"] == "layerwise"]
    pairs: dict[float, list[tuple[Row, Row]]] = {}
    for cut in cuts:
        same = [
            r for r in crossed if r["allocation"] != "layerwise" and r["query_weights_sha"] == cut["query_weights_sha"]
        ]
        uniform = min(same, key=lambda row, cut=cut: abs(row["macs"] - cut["macs"]))  # type: ignore[misc]
        pairs.setdefault(uniform["query_capacity"], []).append((uniform, cut))
    lines = []
    for capacity, both in sorted(pairs.items(), reverse=True):
        before, after = ([100 * pair[side]["map"] for pair in both] for side in (0, 1))
        gains = [b - a for a, b in zip(before, after, strict=True)]
        macs = (f"{statistics.mean(pair[side]['macs'] for pair in both) / 1e6:.3f}" for side in (0, 1))
        lines.append([f"{capacity:.0%}", f"{len(both)}", *macs, cell(before), cell(after), cell(gains)])
    head = ["budget", "networks", "MMACs, uniform", "MMACs, layer-wise", "uniform", "layer-wise", "gain"]
    return markdown(head, lines)


def cost_table(trials: Trials) -> str:
    """What each method's training took."""
    lines = []
    for name, seeds in trials.items():
        first = next(iter(seeds.values()))[0]
        seconds = [rows[0]["train_seconds"] for rows in seeds.values()]
        seen = "-" if first["images_seen"] is None else f"{first['images_seen']:,}"
        lines.append([name, f"{len(seeds)}", _rate(first), seen, cell(seconds, 0)])
    return markdown(["", "seeds", "learning rate", "images seen, each capacity", "seconds of training"], lines)


def _rate(row: Row) -> str:
    try:
        return f"{json.loads(row['config_json'])['trained']['train']['lr']:g}"
    except (TypeError, ValueError, KeyError):
        return "-"


def upgrade_table(trials: Trials) -> str:
    """The dense new networks: self-test, search in the old gallery, and upgrade metrics, by mAP."""
    lines = []
    for name, seeds in trials.items():
        own = {seed: value(rows, 1.0, 1.0, "map") for seed, rows in seeds.items()}
        crossed = {seed: value(rows, 1.0, 1.0, "map", "old") for seed, rows in seeds.items()}
        gains = [_gains(trials, seed, own[seed], crossed[seed]) for seed in seeds]
        columns = ([g[key] for g in gains] for key in ("update_gain", "p_up", "p_comp"))
        lines.append([name, cell(own.values()), cell(crossed.values()), *(cell(c, 3) for c in columns)])
    return markdown(["", "self-test", "in the old gallery", "update gain", "P_up", "P_comp"], lines)


def _gains(trials: Trials, seed: int, own: float | None, crossed: float | None) -> dict[str, float | None]:
    nothing: dict[str, float | None] = {"update_gain": None, "p_up": None, "p_comp": None}
    old, best = (value(trials.get(n, {}).get(seed, []), 1.0, 1.0, "map") for n in ("old", "independent"))
    if own is None or old is None or best is None:
        return nothing
    nothing["p_up"] = p_up([own], [best])
    if crossed is None:
        return nothing
    return {**nothing, "update_gain": update_gain(crossed, old, best), "p_comp": p_comp([crossed], [old], [best])}


def old_gallery_table(trials: Trials) -> str:
    """New networks of many capacities: every one searches the old gallery."""
    several = {name: any("," in str(row["train_capacities"]) for row in _rows(seeds)) for name, seeds in trials.items()}
    many = {name: seeds for name, seeds in trials.items() if several[name]}
    columns = sorted({row["query_capacity"] for seeds in many.values() for row in _rows(seeds)}, reverse=True)
    lines = [
        [name, *(cell(value(rows, c, 1.0, "map", "old") for rows in seeds.values()) for c in columns)]
        for name, seeds in many.items()
    ]
    return markdown(["", *(f"{c:.0%}" for c in columns)], lines)


def _rows(seeds: dict[int, list[Row]]) -> list[Row]:
    return [row for rows in seeds.values() for row in rows]


def tuning_table(rows: Iterable[Row]) -> str:
    """Validation mAP of every method at every rate: mean over the trained capacities against the dense gallery (for
    independent networks: self-tests), the number that the rate is chosen by."""
    found: dict[str, dict[float, list[Row]]] = {}
    for row in rows:
        if str(row["trial_id"]).startswith("tuning/"):
            _, name, *rest = row["trial_id"].split("/")
            found.setdefault(name, {}).setdefault(float(rest[0].partition("=")[2]), []).append(row)
    rates = sorted({rate for by_rate in found.values() for rate in by_rate})
    lines = []
    for name, by_rate in found.items():
        trained, _ = capacities_of({name: {0: [r for rows in by_rate.values() for r in rows]}})
        test: Callable[[float], float] = (lambda c: c) if name == "independent" else (lambda c: 1.0)
        means = {rate: _mean(by_rate.get(rate, []), trained, test, "map") for rate in rates}
        best = max((m for m in means.values() if m is not None), default=None)
        marked = []
        for rate in rates:
            mean = means[rate]
            shown = "-" if mean is None else f"{mean:.1f}"
            marked.append(f"**{shown}**" if mean is not None and mean == best else shown)
        lines.append([name, *marked])
    return markdown(["", *(f"{rate:g}" for rate in rates)], lines)


def _same_recipe(one: dict[int, list[Row]], other: dict[int, list[Row]]) -> bool:
    """Whether two trials trained and tested the same: they differ by chance only, as bf16 sums of two machines do."""
    return {row["config_hash"] for row in _rows(one)} == {row["config_hash"] for row in _rows(other)}


def page(rows: Sequence[Row]) -> str:
    """All tables, with what each column is."""
    methods, variants, upgrade = (grouped(rows, table) for table in ("methods", "variants", "upgrade"))
    default = next(iter(methods), None)
    parts: list[str] = []
    if methods:
        trained, _ = capacities_of(methods)
        low = [c for c in trained if c < 1.0]
        kinds: tuple[tuple[str, Callable[[float], float]], ...] = (
            ("Cross-test: queries from this capacity, gallery from the dense network", lambda c: 1.0),
            ("Self-test: queries and gallery from this capacity", lambda c: c),
        )
        for title, test in kinds:
            for metric, said in (("map", "mAP"), ("recall_at_1", "Recall@1")):
                parts += [f"### {title}, {said} (%)", by_capacity(methods, metric, test, low)]
        parts += ["### Accuracy against cost: area under the front of cross-test mAP (%) over MACs saved"]
        parts += [area_table(methods | variants), "### What training took", cost_table(methods)]
        if variants and default is not None:
            again = {name: seeds for name, seeds in upgrade.items() if _same_recipe(seeds, methods[default])}
            compared = {f"{default} (default)": methods[default]}
            compared |= {f"{default} (default), trained again": seeds for seeds in again.values()} | variants
            parts += ["### One factor away from the default: cross-test mAP (%)"]
            parts += [by_capacity(compared, "map", lambda c: 1.0, low)]
    if upgrade:
        parts += ["### Upgrades, dense new network, mAP (%)", upgrade_table(upgrade)]
        parts += ["### Upgrades at every capacity: mAP (%) in the old gallery", old_gallery_table(upgrade)]
    if any(str(row["trial_id"]).startswith("tuning/") for row in rows):
        parts += ["### Learning rates, on validation alphabets: mean mAP (%)", tuning_table(rows)]
    return "\n\n".join(parts)


def short_page(rows: Sequence[Row]) -> str:
    """The short form for a few recipes: cross-tests, the area under them, training cost where passes differ, and
    layer-wise subnetworks; without headings."""
    methods = grouped(rows, "methods")
    parts: list[str] = []
    if methods:
        trained, _ = capacities_of(methods)
        parts = [by_capacity(methods, "map", lambda c: 1.0, [c for c in trained if c < 1.0]), area_table(methods)]
        if len({str(row["train_capacities"]).count(",") for trial in methods.values() for row in _rows(trial)}) > 1:
            parts += [cost_table(methods)]
    if any(row["allocation"] == "layerwise" for row in rows):
        parts += [layerwise_table(rows)]
    return "\n\n".join(parts)


def write(
    table: Annotated[Path, typer.Argument(help="Table of an ablation in one file, or a results folder.")],
    path: Annotated[Path, typer.Argument(help="Page to write to; made where there is none.")],
    mark: Annotated[str, typer.Argument(help="Name of the marks: the short form, unless it is 'tables'.")] = MARK,
) -> None:
    """Put the tables of an ablation between the marks of a page."""
    check_output(path, "PATH")
    found_rows = (read if table.is_dir() else read_packed)(table)
    check_tests(found_rows, table)
    rows = sorted(newest(plain(found_rows).to_pylist()), key=_order)
    begin, end = marks(mark)
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Results\n\n{begin}\n{end}\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ResultsError(f"{str(path)!r} has no marks {begin} and {end}, between which the tables go")
    text = page(rows) if mark == MARK else short_page(rows)
    write_text(path, f"{before}{begin}\n{text}\n{end}{after}")


FIRST = ("prunnet", "joint", "independent", "bct", "asymmetric", "regression", "switchable", "sfsc", "sfsc_released")


def _order(row: Row) -> tuple[int, str, int]:
    """Methods in the order of FIRST, everything else by name."""
    name = str(row["trial_id"]).partition("/")[2].partition("/")[0]
    return (FIRST.index(name) if name in FIRST else len(FIRST), name, row["seed"])


if __name__ == "__main__":
    commands.run(write)
