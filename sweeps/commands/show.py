"""`prunnet report`, `prunnet best`: from what a run's folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunnet.errors import ConfigError
from prunnet.export.formats import check_format
from prunnet.storage.atomic import check_output
from sweeps.printing import Console, print_json
from sweeps.run import Run, check_number


def existing(run: Path) -> Run:
    """A run's folder; ConfigError where there is none."""
    if not run.is_dir():
        raise ConfigError(f"{str(run)!r} is not a folder; valid: a run's, such as runs/demo")
    return Run(run)


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    raw: Annotated[
        bool, typer.Option("--csv-raw", help="Texts in rows.csv as they are, also where a spreadsheet would run them.")
    ] = False,
) -> None:
    there = existing(run)
    if (run / "search.json").exists():
        check_output(run / "search.html", "RUN")
        from sweeps import search

        search.draw(run, Console())
    else:
        there.manifest()
        check_output(run / "report.html", "RUN")
        from sweeps.drawing import draw

        draw(there, Console(), raw_csv=raw)


def best(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    macs: Annotated[float | None, typer.Option(help="Upper limit of MACs an image.")] = None,
    max_bytes: Annotated[float | None, typer.Option("--bytes", help="Upper limit of bytes on disk (measured).")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Upper limit of milliseconds an image (measured).")] = None,
    min_recall: Annotated[float | None, typer.Option(help="Lower limit of recall_at_1, 0 to 1.")] = None,
    metric: Annotated[str, typer.Option(help="The metric to maximise.")] = "map",
    device: Annotated[str | None, typer.Option(help="Only rows measured on this device, such as cpu.")] = None,
    rerank: Annotated[
        str | None, typer.Option(help="Only rows re-ranked so, as column rerank has it; without: those that are not.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--export", help="Also export it: NAME.safetensors, .onnx, .pt2.")] = None,
) -> None:
    limits = {"--macs": macs, "--bytes": max_bytes, "--latency-ms": latency_ms}
    for option, limit in limits.items():
        check_number(option, limit, 0, 1e18)
    check_number("--min-recall", min_recall, 0, 1)
    if to is not None:
        check_format(to, "fp32")
        check_output(to, "--export")
    folder = existing(run).results
    from prunnet.results.table import KEY, best_under

    row = best_under(
        folder,
        macs=macs,
        bytes_on_disk=max_bytes,
        latency_ms=latency_ms,
        min_recall=min_recall,
        metric=metric,
        device=device,
        rerank=rerank,
    )
    print_json({name: value for name, value in row.items() if value is not None})
    said = Console(stderr=True)  # standard output is the row's
    if to is not None:
        from sweeps import export as exporting

        exporting.export(run, to, row=row["unit_key"], console=said)
    elif row["query_capacity"] is not None:
        said.print(f"to ship it: prunnet export {run} --row {row['unit_key'][:KEY]} --to edge.onnx")
