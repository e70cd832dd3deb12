"""The console script `prunnet`, one subcommand an action.

Exit codes: 0 done; 1 some capacity failed, the rest is there; 2 the request cannot be served, with the reason in one
line; 130 after Ctrl-C, 143 after SIGTERM: the same command resumes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunnet.errors import ConfigError
from prunnet.results.table import KEY, best_under
from prunnet.storage.atomic import check_output
from sweeps import ablation, capacity, cost, doctor, evaluate, export, layerwise, pack, search
from sweeps.printing import Console, print_json
from sweeps.run import Run, check_number, one_line_errors

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

app.command(
    "sweep", help="Train or load a network, sweep capacities, draw the front. Example: prunnet sweep --recipe R"
)(capacity.main)
app.command(
    "ablation", help="Train and test methods, variants and upgrades over seeds. Example: prunnet ablation --recipe R"
)(ablation.main)
app.command("search", help="Search for a recipe with Optuna. Example: prunnet search --recipe R")(search.main)
app.command("layerwise", help="Search per-layer densities. Example: prunnet layerwise --recipe R --budget 0.2")(
    layerwise.main
)
app.command("evaluate", help="Compare two networks. Example: prunnet evaluate --query NEW --gallery OLD")(evaluate.main)
app.command("pack", help="Pack a data set into a few large files. Example: prunnet pack inshop ROOT OUT --verify")(
    pack.main
)
app.command(
    "export", help="Write a subnetwork for a device. Example: prunnet export runs/demo --capacity 0.4 --to edge.onnx"
)(export.export)
app.command("embed", help="Embed a folder of images. Example: prunnet embed edge.onnx images/ --out emb/")(export.embed)
app.command(
    "query", help="Search a gallery of embeddings. Example: prunnet query emb_q emb_g --top 10 --sheet found.png"
)(export.query)
app.command("cost", help="Measure what capacities cost on this device. Example: prunnet cost runs/demo --threads 2")(
    cost.main
)
app.add_typer(doctor.app, name="doctor")


def existing(run: Path) -> Run:
    """A run's folder; ConfigError where there is none."""
    if not run.is_dir():
        raise ConfigError(f"{str(run)!r} is not a folder; valid: a run's, such as runs/demo")
    return Run(run)


@app.command(help="Draw tables, figures and page of a sweep or search again. Example: prunnet report runs/demo")
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    raw: Annotated[
        bool, typer.Option("--csv-raw", help="Write texts to rows.csv unchanged, even if a spreadsheet would run them.")
    ] = False,
) -> None:
    there = existing(run)
    if (run / "search.json").exists():
        check_output(run / "search.html", "RUN")
        search.draw(run, Console())
    else:
        there.manifest()
        check_output(run / "report.html", "RUN")
        capacity.draw(there, Console(), raw_csv=raw)


@app.command(help="Print the row to ship. Example: prunnet best runs/demo --macs 5e6 --min-recall 0.6")
def best(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    macs: Annotated[float | None, typer.Option(help="Upper limit of MACs an image.")] = None,
    max_bytes: Annotated[float | None, typer.Option("--bytes", help="Upper limit of bytes on disk (measured).")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Upper limit of milliseconds an image (measured).")] = None,
    min_recall: Annotated[float | None, typer.Option(help="Lower limit of recall_at_1, 0 to 1.")] = None,
    metric: Annotated[str, typer.Option(help="The metric to maximise.")] = "map",
    device: Annotated[str | None, typer.Option(help="Only rows measured on this device, such as cpu.")] = None,
    to: Annotated[Path | None, typer.Option("--export", help="Also export it: NAME.safetensors, .onnx, .pt2.")] = None,
) -> None:
    limits = {"--macs": macs, "--bytes": max_bytes, "--latency-ms": latency_ms}
    for option, limit in limits.items():
        check_number(option, limit, 0, 1e18)
    check_number("--min-recall", min_recall, 0, 1)
    row = best_under(
        existing(run).results,
        macs=macs,
        bytes_on_disk=max_bytes,
        latency_ms=latency_ms,
        min_recall=min_recall,
        metric=metric,
        device=device,
    )
    print_json({name: value for name, value in row.items() if value is not None})
    if to is not None:
        said = Console(stderr=True)  # standard output is the row's
        export.export_to(run, to, None, row["unit_key"], None, "fp32", None, [], said)
    elif row["query_capacity"] is not None:
        ship = f"prunnet export {run} --row {row['unit_key'][:KEY]} --to edge.onnx"
        Console(stderr=True).print(f"to ship it: {ship}")


def main() -> None:
    """Entry point: a user's mistake ends in one line and exit code 2."""
    with one_line_errors():
        app()


if __name__ == "__main__":
    main()
