"""`prunnet export`, `prunnet embed`, `prunnet query`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunnet.config import load_recipe
from prunnet.config.choices import EMBEDDINGS, PRECISIONS, check_capacity
from prunnet.errors import ConfigError, echo
from prunnet.export.formats import check_format
from prunnet.storage.atomic import check_output


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, a network's file, or a saved subnetwork's.")],
    to: Annotated[Path, typer.Option(help="NAME.safetensors, NAME.onnx, NAME.pt2; --progressive: any name.")],
    capacity: Annotated[
        float | None, typer.Option(help="Capacity of the subnetwork, 0 to 1, cut as the run's sweep does.")
    ] = None,
    row: Annotated[
        str | None, typer.Option(help="The subnetwork of a row of the table: its unit_key, or the start of it.")
    ] = None,
    progressive: Annotated[str | None, typer.Option(help="Capacities in one file, such as 0.2,0.4,1.0.")] = None,
    precision: Annotated[str, typer.Option(help=f"Precision of the weights: {', '.join(PRECISIONS)}.")] = "fp32",
    measure: Annotated[
        bool | None, typer.Option(help="Test the file against the dense gallery; the default where precision is lost.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. data.root=DIR.")] = None,
) -> None:
    asked = sum(value is not None for value in (capacity, row, progressive))
    if asked > 1 or (asked == 0 and run.suffix != ".safetensors"):  # such a file may be one saved subnetwork
        raise ConfigError("one of --capacity, --row and --progressive is needed, such as --capacity 0.4")
    check_output(to, "--to")
    capacities = None if progressive is None else _capacities(progressive, precision)
    if progressive is None:
        check_format(to, precision)
    if capacity is not None:
        check_capacity(capacity)
    load_recipe(None, set_ or ())
    from sweeps import export as exporting

    exporting.export(
        run,
        to,
        capacity=capacity,
        row=row,
        progressive=capacities,
        precision=precision,
        measure=measure,
        overrides=set_ or [],
    )


def _capacities(said: str, precision: str) -> list[float]:
    if precision != "fp32":
        raise ConfigError(f"--precision {precision!r}: a progressive file is exact, fp32")
    try:
        return [float(part) for part in said.split(",")]
    except ValueError:
        raise ConfigError(f"--progressive {said!r}; valid: capacities with commas, such as 0.2,0.4,1.0") from None


def embed(
    model: Annotated[
        Path,
        typer.Argument(help="An export, a progressive file, a saved subnetwork, a network's file or a run's folder."),
    ],
    images: Annotated[Path, typer.Argument(help="A folder of images at any depth, or a .zip.")],
    out: Annotated[Path, typer.Option(help="Folder for the embeddings.")],
    capacity: Annotated[
        float | None, typer.Option(help="Capacity of a progressive file, a network or a run; default: the largest.")
    ] = None,
    row: Annotated[str | None, typer.Option(help="Of a run: a row of its table, by its unit_key.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=10**6, help="Images at a time.")] = 64,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="Skip such images, by name.")] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Open a .pt2, which can run any code that its maker put into it.")
    ] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Of a run: KEY=VALUE, e.g. data.root=DIR.")] = None,
) -> None:
    check_output(out / EMBEDDINGS, "--out")
    from sweeps import export as exporting

    exporting.embed(
        model,
        images,
        out,
        capacity=capacity,
        row=row,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        trust_code=trust_code,
        overrides=set_ or [],
    )


def query(
    queries: Annotated[Path, typer.Argument(metavar="EMB_Q", help="Embeddings of the queries (prunnet embed).")],
    gallery: Annotated[Path, typer.Argument(metavar="EMB_G", help="Embeddings of the gallery.")],
    top: Annotated[int, typer.Option(min=1, max=10**6, help="Number of answers a query.")] = 10,
    to: Annotated[Path | None, typer.Option("--csv", help="CSV file for all answers.")] = None,
    raw: Annotated[bool, typer.Option("--csv-raw", help="Do not quote names that a spreadsheet would run.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="PNG file for a contact sheet.")] = None,
    rows: Annotated[int, typer.Option(min=1, max=10_000, help="Queries on the sheet.")] = 20,
) -> None:
    for path, option in ((to, "--csv"), (sheet, "--sheet")):
        if path is not None:
            check_output(path, option)
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ConfigError(f"--sheet {echo(str(sheet))}; valid: a name that ends in .png")
    from sweeps import export as exporting

    exporting.query(queries, gallery, top=top, to=to, raw=raw, sheet=sheet, rows=rows)
