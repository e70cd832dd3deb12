"""What a trained network leaves the house as, and what is done with it elsewhere: export, embed, query.

prunnet export runs/demo --capacity 0.4 --to edge.safetensors      (or edge.onnx, edge.pt2; --precision fp16, int8)
prunnet export runs/demo --row KEY --to edge.onnx                 (what a row of the results table tested)
prunnet export runs/demo --progressive 0.2,0.4,0.6,0.8,1.0 --to all.prunnet
prunnet embed edge.onnx images/ --out emb/                        (edge.pt2: only with --trust-code)
prunnet query emb_q emb_g --top 10 --csv answers.csv --sheet answers.png
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunnet.data.base import RetrievalTest
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError, echo
from prunnet.experiments.trained_networks import Family, Source
from prunnet.export.embedding_sets import EmbeddingSet, contact_sheet, embed_folder, write_csv
from prunnet.export.embedding_sets import query as answers_to
from prunnet.export.formats import Exported, identity, open_export
from prunnet.export.formats import export as write
from prunnet.export.progressive import MAGIC, Nested, ends
from prunnet.networks.files import NETWORK
from prunnet.networks.headers import Identity
from prunnet.results.table import read, row_of
from prunnet.storage.atomic import put_in_place
from prunnet.storage.paths import local
from prunnet.storage.tensor_files import kind_of
from prunnet.subnetworks.embed import Embedder, embed_test
from prunnet.subnetworks.subnet import FORMAT as SAVED
from prunnet.subnetworks.subnet import Subnetwork
from prunnet.subnetworks.trained import Cut
from sweeps.printing import Console
from sweeps.terminal_table import print_table

WIDEST = 200
"""Answers in a line of a contact sheet, at most."""


@dataclass(frozen=True)
class Chosen:
    """The subnetwork that a command names, and what it is measured by."""

    subnetwork: Subnetwork
    preprocessing: Preprocessing
    matches: Sequence[str] = ()
    """Networks that it was trained to match."""
    reference: Callable[[], tuple[RetrievalTest, Subnetwork]] | None = None
    """The test of its sweep, and the subnetwork whose gallery is searched; None: a saved subnetwork, without its
    run."""

    def identity(self, precision: str = "fp32") -> Identity:
        """Of its embeddings."""
        return identity(self.subnetwork, self.preprocessing, self.matches, precision)


def chosen(model: Path, capacity: float | None, row: str | None, overrides: Sequence[str]) -> Chosen:
    """A capacity, or what a row tested, of a run's folder or a network's file; or a saved subnetwork."""
    if _kind(model) == SAVED:
        if capacity is not None or row is not None:
            raise ConfigError(f"{str(model)!r} is one subnetwork: it takes neither --capacity nor --row")
        saved, made = Subnetwork.load_with_preprocessing(model)
        if made is None:
            raise CheckpointError(f"{str(model)!r} does not say what preprocessing its images had")
        return Chosen(saved, Preprocessing.from_json(made))
    if (capacity is None) == (row is None):
        raise ConfigError("one of --capacity and --row is needed, such as --capacity 0.4")
    if row is not None:
        if not model.is_dir():
            raise ConfigError(f"--row {echo(row)}: {str(model)!r} is not a run's folder, which holds rows")
        tested = row_of(read(model / "results"), row)
        return _of_row(Source.of_row(model, tested, overrides), tested)
    assert capacity is not None
    source = Source.of(model, overrides)
    matches = source.family.network_for(capacity).header.matches
    made_for = source.trained_on.preprocessing
    return Chosen(source.at(capacity), made_for, matches, lambda: (_test(source), source.at(source.family.top)))


def _of_row(source: Source, row: Mapping[str, Any]) -> Chosen:
    network = source.network(row["query_weights_sha"])

    def reference() -> tuple[RetrievalTest, Subnetwork]:
        gallery = source.network(row["gallery_weights_sha"])
        return _test(source), source.subnetwork(gallery, Cut.of_row(row, "gallery"))

    cut = source.subnetwork(network, Cut.of_row(row))
    return Chosen(cut, source.trained_on.preprocessing, network.header.matches, reference)


def _test(source: Source) -> RetrievalTest:
    return source.dataset.split(source.recipe.sweep.split)


def _kind(file: Path) -> str | None:
    """What a .safetensors file says that it is; None for others, and for a damaged one: whoever opens it says why."""
    try:
        return kind_of(file) if file.suffix == ".safetensors" and file.is_file() else None
    except CheckpointError:
        return None


def export(
    run: Path,
    to: Path,
    *,
    capacity: float | None = None,
    row: str | None = None,
    progressive: Sequence[float] | None = None,
    precision: str = "fp32",
    measure: bool | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Writes what the command asks for, whose options say what each argument is; at most one of `capacity`, `row` and
    `progressive` is given."""
    console = console or Console()
    if progressive is not None:
        _export_progressive(Source.of(run, overrides), to, progressive, console)
        return
    found = chosen(run, capacity, row, overrides)
    if measure and found.reference is None:
        raise ConfigError(f"--measure: {str(run)!r} is one subnetwork, without the gallery that it is tested against")
    write(found.subnetwork, to, found.identity(precision))
    console.print(f"{to}: capacity {found.subnetwork.capacity:g}, {precision}, {to.stat().st_size:,} bytes")
    if found.reference is not None and (measure or (measure is None and precision != "fp32")):
        _measure(found.subnetwork, *found.reference(), open_export(to, trust_code=True), console)  # our own file


def _export_progressive(source: Source, to: Path, capacities: Sequence[float], console: Console) -> None:
    if len(source.family.members) > 1:
        raise ConfigError("--progressive: these are several networks, whose weights do not nest")
    cuts = [source.at(capacity) for capacity in capacities]
    largest = max(cuts, key=lambda cut: cut.capacity)
    matches = source.family.largest.header.matches
    Nested(cuts).save(to, identity(largest, source.trained_on.preprocessing, matches))
    lines = []
    before = 0
    for capacity, end in ends(to).items():
        lines.append((f"{capacity:g}", f"{end:,}", f"{end - before:,}"))
        before = end
    print_table(console, ("capacity", "its prefix, bytes", "further bytes"), lines, drop=("further bytes",))


def _measure(cut: Subnetwork, test: RetrievalTest, reference: Subnetwork, exported: Exported, console: Console) -> None:
    """The file's embeddings against the gallery that the run's network has embedded; so many points does it cost."""
    truth = test.truth()
    _, gallery = embed_test(reference, test)
    found, lines = {}, []
    for name, embedder in (("masked network, fp32", cut), ("the file", exported)):
        found[name] = truth.score(embed_test(embedder, test)[0], gallery)
        lines.append((name, *(f"{100 * found[name][key]:.2f}" for key in ("map", "recall_at_1"))))
    head = ("queries by", "cross mAP", "cross R@1")
    print_table(console, head, lines, drop=("cross R@1",), names=("queries by",))


def embed(
    model: Path,
    images: Path,
    out: Path,
    *,
    capacity: float | None,
    row: str | None,
    batch_size: int,
    skip_unreadable: bool,
    trust_code: bool,
    overrides: Sequence[str],
) -> None:
    """Embeds a folder of images."""
    console = Console()
    embedder, said = _opened(model, capacity, row, trust_code, overrides)
    preprocessing = Preprocessing.from_json(said.preprocessing)
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


def _opened(
    model: Path, capacity: float | None, row: str | None, trust_code: bool, overrides: Sequence[str]
) -> tuple[Embedder, Identity]:
    """Whatever can embed, and its identity."""
    if model.is_dir() or _kind(model) in (SAVED, NETWORK):
        if capacity is None and row is None and _kind(model) != SAVED:
            capacity = Family.of_run(model).top
        found = chosen(model, capacity, row, overrides)
        return found.subnetwork, found.identity()
    if row is not None:
        raise ConfigError(f"--row is for a run's folder; {str(model)!r} is not one")
    start = local(model).open("rb").read(len(MAGIC)) if model.is_file() else b""
    if start == MAGIC:
        content = local(model).read_bytes()
        nested, header = Nested.read(content, str(model))
        cut = nested.at(nested.capacities[-1] if capacity is None else capacity)
        own = {"capacity": cut.capacity, "mask_sha": cut.mask_sha, "calibration": cut.calibration}
        return cut, Identity.model_validate(header["identity"]).model_copy(update=own)
    if capacity is not None:
        raise ConfigError(f"--capacity is for progressive files, networks and runs; {str(model)!r} is an export")
    exported = open_export(model, trust_code=trust_code)
    return exported, exported.identity


def query(queries: Path, gallery: Path, *, top: int, to: Path | None, raw: bool, sheet: Path | None, rows: int) -> None:
    """Searches one set of embeddings in another: prints the answers, or writes them as CSV and as a contact sheet."""
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
