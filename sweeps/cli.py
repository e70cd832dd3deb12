"""The console script `prunnet`, one subcommand an action.

Exit codes: 0 done; 1 some capacity failed, the rest is there; 2 the request cannot be served, with the reason in one
line; 130 after Ctrl-C, 143 after SIGTERM: the same command resumes.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from sweeps.commands import ablation, cost, doctor, evaluate, export, layerwise, pack, search, show, sweep
from sweeps.run import one_line_errors

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "sweep": (
        sweep.main,
        "Train or load a network, sweep capacities, draw the front. Example: prunnet sweep --recipe R",
    ),
    "ablation": (
        ablation.main,
        "Train and test methods, variants and upgrades over seeds. Example: prunnet ablation --recipe R",
    ),
    "search": (search.main, "Search for a recipe with Optuna. Example: prunnet search --recipe R"),
    "layerwise": (
        layerwise.main,
        "Search per-layer densities. Example: prunnet layerwise --recipe R --budget 0.2",
    ),
    "evaluate": (
        evaluate.main,
        "Compare two networks. Example: prunnet evaluate --query NEW --gallery OLD",
    ),
    "pack": (pack.main, "Pack a data set into a few large files. Example: prunnet pack inshop ROOT OUT --verify"),
    "export": (
        export.export,
        "Write a subnetwork for a device. Example: prunnet export runs/demo --capacity 0.4 --to edge.onnx",
    ),
    "embed": (export.embed, "Embed a folder of images. Example: prunnet embed edge.onnx images/ --out emb/"),
    "query": (
        export.query,
        "Search a gallery of embeddings. Example: prunnet query emb_q emb_g --top 10 --sheet found.png",
    ),
    "cost": (cost.main, "Measure what capacities cost on this device. Example: prunnet cost runs/demo --threads 2"),
    "report": (
        show.report,
        "Draw tables, figures and page of a sweep or search again. Example: prunnet report runs/demo",
    ),
    "best": (show.best, "Print the row to ship. Example: prunnet best runs/demo --macs 5e6 --min-recall 0.6"),
}

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
for name, (function, what) in COMMANDS.items():
    app.command(name, help=what)(function)
app.add_typer(doctor.app, name="doctor")


def main() -> None:
    """Entry point: a user's mistake ends in one line and exit code 2."""
    with one_line_errors():
        app()


if __name__ == "__main__":
    main()
