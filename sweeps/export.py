"""Write subnetworks of a trained network for devices, embed images with them, query embeddings.

prunnet export runs/demo --capacity 0.4 --to edge.safetensors      (or edge.onnx, edge.pt2; --precision fp16, int8)
prunnet export runs/demo --progressive 0.2,0.4,0.6,0.8,1.0 --to all.prunnet
prunnet embed edge.onnx images/ --out emb/                        (edge.pt2: only with --trust-code)
prunnet query emb_q emb_g --top 10 --csv answers.csv --sheet answers.png
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from prunnet import data
from prunnet.config.choices import check_capacity
from prunnet.config.recipe import Recipe, apply_override, parse_recipe
from prunnet.data.base import Dataset
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError, echo
from prunnet.experiments.stages import Family
from prunnet.export.embedding_sets import FILE, EmbeddingSet, contact_sheet, embed_folder, write_csv
from prunnet.export.embedding_sets import query as answers_to
from prunnet.export.formats import PRECISIONS, Exported, check_format, identity, open_export
from prunnet.export.formats import export as write
from prunnet.export.progressive import MAGIC, Nested, ends
from prunnet.export.progressive import read_header as read_progressive
from prunnet.networks.files import allocation_of
from prunnet.storage.atomic import check_output, put_in_place
from prunnet.storage.paths import local
from prunnet.subnetworks.batchnorm import calibration_loader
from prunnet.subnetworks.embed import Embedder, embed_test
from prunnet.subnetworks.subnet import Subnetwork, subnetwork
from sweeps.printing import Console
from sweeps.run import absolute_paths
from sweeps.terminal_table import print_table

WIDEST = 200
"""Answers in a line of a contact sheet, at most."""


@dataclass(frozen=True)
class Source:
    """The networks of a run, and the images that they were made for."""

    family: Family
    recipe: Recipe
    dataset: Dataset

    @classmethod
    def of(cls, run: Path, overrides: Sequence[str]) -> Source:
        """A run's folder or one network's file. `overrides` may correct where the data are: data.root=DIR."""
        family = Family.of_run(run)
        trained = family.members[family.top][1].get("recipe", {}).get("data")
        if not trained:
            raise CheckpointError(f"{str(run)!r} does not say on which data it was trained; valid: a run of prunnet's")
        tree: dict[str, Any] = {"data": {**trained, "train_fraction": 1.0}}
        for override in overrides:
            apply_override(tree, override)
        recipe = absolute_paths(parse_recipe(tree))
        return cls(family, recipe, data.load_for(recipe))

    def cut(self, capacity: float) -> Subnetwork:
        """A capacity, its BatchNorm re-estimated on training images."""
        net, header = self.family.members[self.family.serving(check_capacity(capacity))]
        cut = subnetwork(net, capacity, allocation=allocation_of(header), weights_sha=header["weights_sha"])
        images = self.recipe.sweep.calibration_images
        return cut.calibrate(calibration_loader(self.dataset.train, count=images, seed=self.recipe.sweep.seed))

    def identity(self, cut: Subnetwork, precision: str = "fp32") -> dict[str, Any]:
        """The identity of a subnetwork's embeddings."""
        _, header = self.family.members[self.family.serving(cut.capacity)]
        return identity(cut, self.dataset.preprocessing, header, precision)


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a network's file.")],
    to: Annotated[Path, typer.Option(help="NAME.safetensors, NAME.onnx, NAME.pt2; --progressive: any name.")],
    capacity: Annotated[float | None, typer.Option(help="Capacity of the subnetwork, 0 to 1.")] = None,
    progressive: Annotated[str | None, typer.Option(help="Capacities in one file, such as 0.2,0.4,1.0.")] = None,
    precision: Annotated[str, typer.Option(help=f"{', '.join(PRECISIONS)}.")] = "fp32",
    measure: Annotated[
        bool | None, typer.Option(help="Test the file against the dense gallery; the default for fp16 and int8.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. data.root=DIR.")] = None,
) -> None:
    if (capacity is None) == (progressive is None):
        raise ConfigError("one of --capacity and --progressive is needed, such as --capacity 0.4")
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision!r}; valid: {', '.join(PRECISIONS)}")
    check_output(to, "--to")
    if progressive is None:
        check_format(to, precision)
    console, source = Console(), Source.of(run, set_ or [])
    if progressive is not None:
        _export_progressive(source, to, progressive, precision, console)
        return
    assert capacity is not None
    cut = source.cut(capacity)
    write(cut, to, source.identity(cut, precision))
    console.print(f"{to}: capacity {capacity:g}, {precision}, {to.stat().st_size:,} bytes")
    if measure or (measure is None and precision != "fp32"):
        _measure(source, cut, open_export(to, trust_code=True), console)  # trusted: written by this process just now


def _export_progressive(source: Source, to: Path, said: str, precision: str, console: Console) -> None:
    if precision != "fp32":
        raise ConfigError(f"--precision {precision!r}: a progressive file is exact, fp32")
    try:
        capacities = [float(part) for part in said.split(",")]
    except ValueError:
        raise ConfigError(f"--progressive {said!r}; valid: capacities with commas, such as 0.2,0.4,1.0") from None
    if len(source.family.members) > 1:
        raise ConfigError("--progressive: these are several networks, whose weights do not nest")
    cuts = [source.cut(capacity) for capacity in capacities]
    Nested(cuts).save(to, source.identity(max(cuts, key=lambda cut: cut.capacity)))
    lines = []
    before = 0
    for capacity, end in ends(to).items():
        lines.append((f"{capacity:g}", f"{end:,}", f"{end - before:,}"))
        before = end
    print_table(console, ("capacity", "its prefix, bytes", "further bytes"), lines, drop=("further bytes",))


def _measure(source: Source, cut: Subnetwork, exported: Exported, console: Console) -> None:
    """Prints the metrics of the file's queries in the dense network's gallery, beside those of the masked network."""
    test = source.dataset.split("test")
    truth = test.truth()
    _, gallery = embed_test(source.cut(source.family.top), test)
    found, lines = {}, []
    for name, embedder in (("masked network, fp32", cut), ("the file", exported)):
        found[name] = truth.score(embed_test(embedder, test)[0], gallery)
        lines.append((name, *(f"{100 * found[name][key]:.2f}" for key in ("map", "recall_at_1"))))
    head = ("queries by", "cross mAP", "cross R@1")
    print_table(console, head, lines, drop=("cross R@1",), names=("queries by",))


def embed(
    model: Annotated[Path, typer.Argument(help="An export, a progressive file, a saved subnetwork or a network.")],
    images: Annotated[Path, typer.Argument(help="A folder of images at any depth, or a .zip.")],
    out: Annotated[Path, typer.Option(help="Folder for the embeddings.")],
    capacity: Annotated[
        float | None, typer.Option(help="Capacity of a progressive file; default: its largest.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=10**6, help="Images at a time.")] = 64,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave unreadable images out, and name them.")
    ] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Open a .pt2, which can run any code that its maker put into it.")
    ] = False,
) -> None:
    console = Console()
    check_output(out / FILE, "--out")
    embedder, said = _opened(model, capacity, trust_code)
    preprocessing = Preprocessing.from_json(said["preprocessing"])
    made, left_out = embed_folder(
        embedder,
        images,
        preprocessing,
        said,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        note=lambda passed: console.print(f"note: {passed}", style="yellow"),
    )
    path = made.save(out)
    for name, reason in left_out.items():
        console.print(f"left out: {name}: {reason}", style="yellow")
    console.print(f"{path}: {len(made.names)} embeddings of length {made.embeddings.shape[1]}")


def _opened(model: Path, capacity: float | None, trust_code: bool) -> tuple[Embedder, dict[str, Any]]:
    """The opened file, which can embed, and its identity."""
    start = local(model).open("rb").read(len(MAGIC)) if model.is_file() else b""
    if start == MAGIC:
        content = local(model).read_bytes()
        nested = Nested.read(content, str(model))[0]
        header, _ = read_progressive(content, str(model))
        cut = nested.at(nested.capacities[-1] if capacity is None else capacity)
        own = {"capacity": cut.capacity, "mask_sha": cut.mask_sha, "calibration": cut.calibration}
        return cut, {**header["identity"], **own}
    if capacity is not None:
        raise ConfigError(f"--capacity is for progressive files; {str(model)!r} is not one")
    exported = open_export(model, trust_code=trust_code)
    return exported, exported.identity


def query(
    queries: Annotated[Path, typer.Argument(metavar="EMB_Q", help="Embeddings of the queries (prunnet embed).")],
    gallery: Annotated[Path, typer.Argument(metavar="EMB_G", help="Embeddings of the gallery.")],
    top: Annotated[int, typer.Option(min=1, max=10**6, help="Answers for each query.")] = 10,
    to: Annotated[Path | None, typer.Option("--csv", help="Write all answers to this CSV file.")] = None,
    raw: Annotated[
        bool, typer.Option("--csv-raw", help="Write names unchanged, even if a spreadsheet would run them.")
    ] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet to this PNG file.")] = None,
    rows: Annotated[int, typer.Option(min=1, max=10_000, help="Queries on the sheet.")] = 20,
) -> None:
    for path, option in ((to, "--csv"), (sheet, "--sheet")):
        if path is not None:
            check_output(path, option)
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ConfigError(f"--sheet {echo(str(sheet))}; valid: a name that ends in .png")
    asked, known = EmbeddingSet.load(queries), EmbeddingSet.load(gallery)
    if sheet is not None and min(top, len(known.names)) > WIDEST:
        raise ConfigError(f"--top {top}: a contact sheet shows up to {WIDEST} answers a query")
    answers = answers_to(asked, known, top)
    console = Console()
    if to is not None:
        write_csv(answers, to, raw=raw)
        console.print(f"{to}: {len(answers)} answers")
    if sheet is not None:
        picture = contact_sheet(asked, known, answers, rows=rows)
        with put_in_place(sheet) as temporary:
            picture.save(temporary, format="PNG")
        console.print(f"{sheet}: {min(rows, len(asked.names))} queries")
    if to is None and sheet is None:
        lines = [(answer.query, answer.rank, answer.gallery, f"{answer.similarity:.4f}") for answer in answers]
        print_table(console, ("query", "rank", "gallery", "similarity"), lines, names=("query", "gallery"))
