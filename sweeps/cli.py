"""The console script `prunnet`: what can be done, one subcommand each.

Exit codes: 0 done; 1 some capacity failed, the rest is there; 2 what was asked cannot be served, said in one line;
130 after Ctrl-C, 143 after SIGTERM: the same command goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prunnet.errors import PrunnetError
from prunnet.results import best_under
from sweeps import ablation, capacity, cost, doctor, evaluate, export, layerwise, pack, search
from sweeps.run import Run

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

app.command(
    "sweep", help="Train or load a network, sweep capacities, draw the front. Example: prunnet sweep --recipe R"
)(capacity.main)
app.command("ablation", help="Methods, variants, upgrades over seeds. Example: prunnet ablation --recipe R")(
    ablation.main
)
app.command("search", help="Search for a recipe with Optuna. Example: prunnet search --recipe R")(search.main)
app.command("layerwise", help="Keep fractions layer by layer. Example: prunnet layerwise --recipe R --budget 0.2")(
    layerwise.main
)
app.command("evaluate", help="Two networks against each other. Example: prunnet evaluate --query NEW --gallery OLD")(
    evaluate.main
)
app.command("pack", help="A data set in a few large files. Example: prunnet pack inshop ROOT OUT --verify")(pack.main)
app.command(
    "export", help="A subnetwork for a device. Example: prunnet export runs/demo --capacity 0.4 --to edge.onnx"
)(export.export)
app.command("embed", help="Embed a folder of images. Example: prunnet embed edge.onnx images/ --out emb/")(export.embed)
app.command(
    "query", help="Retrieval between embeddings. Example: prunnet query emb_q emb_g --top 10 --sheet found.png"
)(export.query)
app.command("cost", help="What capacities cost on this device. Example: prunnet cost runs/demo --threads 2")(cost.main)
app.add_typer(doctor.app, name="doctor")


@app.command(help="Tables, figures and page of a sweep or search, drawn again. Example: prunnet report runs/demo")
def report(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    if (run / "search.json").exists():
        search.draw(run, Console())
    else:
        capacity.draw(Run(run), Console())


@app.command(help="The row to ship. Example: prunnet best runs/demo --macs 5e6 --min-recall 0.6")
def best(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    macs: Annotated[float | None, typer.Option(help="At most so many MACs an image.")] = None,
    max_bytes: Annotated[float | None, typer.Option("--bytes", help="At most so many on disk (measured).")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="At most so many milliseconds an image (measured).")] = None,
    min_recall: Annotated[float | None, typer.Option(help="At least this recall_at_1, 0 to 1.")] = None,
    metric: Annotated[str, typer.Option(help="What is to be best.")] = "map",
    device: Annotated[str | None, typer.Option(help="Where it was measured, such as cpu.")] = None,
) -> None:
    row = best_under(
        Run(run).results,
        macs=macs,
        bytes_on_disk=max_bytes,
        latency_ms=latency_ms,
        min_recall=min_recall,
        metric=metric,
        device=device,
    )
    typer.echo(json.dumps({name: value for name, value in row.items() if value is not None}, indent=1))
    ship = f"prunnet export {run} --capacity {row['query_capacity']:g} --to edge.onnx"
    Console(stderr=True, soft_wrap=True).print(f"to ship it: {ship}", markup=False, highlight=False)


def main() -> None:
    """Entry point: a user's mistake ends in one line and exit code 2."""
    try:
        app()
    except PrunnetError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
