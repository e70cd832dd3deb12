"""Every kind of file that the project writes: how to write a small one, what reads it, and who writes it.

`tests/test_damage.py` damages each of them, and fails where a place in the source that writes a file is named by none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from analysis import search as found
from analysis.quantities import Quantity
from prunnet import data, results
from prunnet.config.recipe import DataConfig, load_recipe, parse_recipe
from prunnet.data import packed, rendered
from prunnet.data.base import MemoryImages, RetrievalTest
from prunnet.data.transforms import Preprocessing
from prunnet.errors import DataError
from prunnet.evaluation.stored_features import load_features, make_features
from prunnet.export.embedding_sets import EmbeddingSet
from prunnet.export.formats import export, identity, open_export
from prunnet.export.progressive import Nested
from prunnet.networks.files import load_network, load_training, save_network, save_training
from prunnet.networks.headers import Identity
from prunnet.results.sheet import Asked, Found, Sheet
from prunnet.storage.seal import write_yaml
from prunnet.storage.tensor_files import read_header
from prunnet.subnetworks.subnet import Subnetwork, subnetwork
from sweeps.run import Run
from sweeps.search import keep_findings, kept_findings
from sweeps.study import journal
from tests.conftest import image_folder, tiny_net

SIDE = 16
PREPROCESSING = Preprocessing(SIDE, SIDE, 1, False, (0.5,), (0.5,))


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    name: str
    write: Callable[[Path], Path]
    """Writes one into an empty folder; returns the file that is to be damaged."""
    read: Callable[[Path], Any]
    """The folder -> what is in the file, comparable by ==. PrunnetError, of one line, for a damaged one."""
    written_by: tuple[str, ...]
    """Functions of the source that write it."""
    flips: int = 300
    repaired: Callable[[Any, Any], bool] = lambda before, after: False
    """Whether what is read of a damaged file is less, but true: (before, after)."""


UNREAD = {
    "prunnet.export.embedding_sets:write_csv": "answers, for people",
    "sweeps.export:query": "contact sheet, for people",
    "sweeps.report_files:write_files": "figures, tables and page: made anew of results by `prunnet report`",
    "sweeps.search:draw": "figure and page: made anew of search.json by `prunnet report`",
    "sweeps.search:conclude": "trials.json, for other programs: made anew of the study by the same command",
    "sweeps.layerwise:conclude": "layerwise.json, for other programs: made anew by the same command",
    "cluster.search:note_error": "what a process died of, shown to people",
    "analysis.devices:main": "a figure",
    "analysis.plots:rendered": "figures, in memory",
    "analysis.comparison:write": "a document",
    "prunnet.export.latency:_peak": "a network for a process of this moment, in a folder of its own",
    "sweeps.run_folder:mark_folder": "a mark, whose name says all",
    "cluster.checkpoints:mend": "Ray Train's list of checkpoints: made anew of the intact ones",
}
"""Functions that write what no part of the project reads again: why damage to it changes no result."""
HELPERS = (
    "prunnet.storage.atomic:write_text",
    "prunnet.storage.atomic:write_bytes",
    "prunnet.storage.seal:_write",
    "prunnet.storage.seal:close",
    "prunnet.storage.seal:close_tensors",
    "prunnet.storage.tensor_files:save_tensors",
)
"""Functions through which others write."""


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (str(t.dtype), tuple(t.shape), t.contiguous().numpy().tobytes()) for name, t in tensors.items()}


@functools.cache
def net() -> Any:
    return tiny_net(image_size=SIDE).eval()


def cut(capacity: float = 0.4) -> Subnetwork:
    images = torch.randn(8, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return subnetwork(net(), capacity).calibrate([images])


# --- safetensors ------------------------------------------------------------------------------------------------


def write_training(folder: Path) -> Path:
    state = {"net.weight": torch.arange(12.0).view(3, 4), "optimizer.step": torch.tensor(7)}
    save_training(folder, state, {"step": 3, "training_hash": "0123", "history": [{"loss": 1.5}]})
    return folder / "state.safetensors"


def read_training(folder: Path) -> Any:
    tensors, header = load_training(folder)
    return plain(tensors), header


def write_network(folder: Path) -> Path:
    save_network(folder / "model.safetensors", net(), PREPROCESSING, training_hash="0123")
    return folder / "model.safetensors"


def read_network(folder: Path) -> Any:
    loaded, header = load_network(folder / "model.safetensors")
    return plain(loaded.state_dict()), header


def write_subnetwork(folder: Path) -> Path:
    cut().save(folder / "cut.safetensors", PREPROCESSING)
    return folder / "cut.safetensors"


def read_subnetwork(folder: Path) -> Any:
    loaded, made = Subnetwork.load_with_preprocessing(folder / "cut.safetensors")
    return plain(loaded.state()), loaded.mask_sha, loaded.capacity, made


def write_embeddings(folder: Path) -> Path:
    rows = np.eye(3, 4, dtype=np.float32)
    said = {"weights_sha": "w", "matches": [], "embedding_dim": 4, "preprocessing": PREPROCESSING.to_json()}
    return EmbeddingSet(rows, ("a/ä.png", "b.png", "c.png"), "images", Identity.model_validate(said)).save(folder)


def read_embeddings(folder: Path) -> Any:
    loaded = EmbeddingSet.load(folder)
    return np.asarray(loaded.embeddings).tobytes(), loaded.names, loaded.root, loaded.identity


# --- exports ----------------------------------------------------------------------------------------------------


def write_export(folder: Path, suffix: str) -> Path:
    export(cut(), folder / f"edge{suffix}", identity(cut(), PREPROCESSING))
    return folder / f"edge{suffix}"


def read_export(folder: Path, suffix: str) -> Any:
    opened = open_export(folder / f"edge{suffix}", trust_code=True)
    images = torch.linspace(-1, 1, 2 * SIDE * SIDE).view(2, 1, SIDE, SIDE)
    return opened.identity, opened.embed(images).numpy().tobytes()


def write_progressive(folder: Path) -> Path:
    cuts = [cut(capacity) for capacity in (0.2, 0.6, 1.0)]
    Nested(cuts).save(folder / "all.prunnet", identity(cuts[-1], PREPROCESSING))
    return folder / "all.prunnet"


def read_progressive(folder: Path) -> Any:
    nested = Nested.load(folder / "all.prunnet")
    cuts = [nested.at(capacity) for capacity in nested.capacities]
    return [(cut.capacity, cut.mask_sha, cut.calibration, plain(cut.statistics())) for cut in cuts]


# --- results and features ---------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    return [
        {"unit_key": f"key{n}", "status": "complete", "map": n / 7, "trial_id": "ä", "queries": n} for n in range(3)
    ]


def write_part(folder: Path) -> Path:
    return results.write_part(folder / "results", rows())


def write_packed_table(folder: Path) -> Path:
    results.write_part(folder / "results", rows())
    results.pack(folder / "results", folder / "table.parquet")
    return folder / "table.parquet"


def write_features(folder: Path, file: str) -> Path:
    pixels = np.arange(4 * SIDE * SIDE).astype(np.uint8).reshape(4, 1, SIDE, SIDE)
    queries, gallery = (MemoryImages(part, np.arange(2), PREPROCESSING) for part in (pixels[:2], pixels[2:]))
    make_features(folder / "kept", cut(), RetrievalTest(queries, gallery, False), 4, {"key": "k"}, 0.0)
    return folder / "kept" / file


def read_features(folder: Path) -> Any:
    stored = load_features(folder / "kept", "k")
    return np.asarray(stored.queries).tobytes(), np.asarray(stored.gallery).tobytes(), stored.identity


# --- packed data sets -------------------------------------------------------------------------------------------


PACKED = ("shard-00000.arrow", "classes.arrow", "part-*.arrow", "manifest.json")


def write_store(folder: Path, file: str) -> Path:
    """Twelve images in three batches of a shard."""
    images = image_folder(folder / "images", classes=4, per_class=3)
    packed.pack(data.whole(DataConfig(name="imagefolder", root=str(images))), folder / "store")
    return next((folder / "store").glob(file))


def read_store(folder: Path) -> Any:
    for cache in (packed._mapped, packed._batch):
        cache.cache_clear()
    listing = packed.read(folder / "store")
    parts = [
        (name, part.rows.tolist(), part.labels.tolist()) for name, part in listing.parts().items() if part is not None
    ]
    store = listing.files
    images = [(store.name(row), bytes(store.read(row))) for row in range(len(store))]
    return listing.name, list(listing.classes), parts, images, list(listing.notes), dict(listing.more)


def write_begun(folder: Path) -> Path:
    (folder / "store").mkdir()
    packed._Begun(folder / "store", "0123456789").check()
    return folder / "store" / "packing.json"


# --- runs -------------------------------------------------------------------------------------------------------


def write_sheet(folder: Path) -> Path:
    asked = Asked(image=0, name="a", found=((Found(image=1, name="b", hit=False),),))
    Sheet(capacities=(0.5,), queries=(asked,), images=("AAAA", "BBBB")).save(folder / "sheet.json")
    return folder / "sheet.json"


def write_manifest(folder: Path) -> Path:
    Run(folder).write_manifest(
        {"name": "r", "unit_keys": ["k1", "k2"], "failures": [[0.2, "ä"]], "kept": {"0.2": {"a": 0.5}}}
    )
    return folder / "manifest.json"


def write_recipe(folder: Path) -> Path:
    Run(folder).write_recipe(parse_recipe({"name": "r", "train": {"epochs": 3}}))
    return folder / "recipe.yaml"


def write_best(folder: Path) -> Path:
    write_yaml(folder / "best.yaml", "# Trial 3\nname: r\ntrain: {epochs: 3, lr: 0.25}\n")
    return folder / "best.yaml"


def write_search(folder: Path) -> Path:
    quantity = Quantity(name="mean_cross_map")
    record = found.Record(0, "complete", {"train.lr": 0.25}, {quantity.label: 0.5})
    keep_findings(found.Findings("s", [quantity], [record], {}, 9.0, None, "name: r\n"), folder)
    return folder / "search.json"


def write_journal(folder: Path) -> Path:
    study = optuna.create_study(storage=journal(folder / "study.journal"), study_name="s")
    for number in range(3):
        trial = study.ask()
        trial.set_user_attr("changes", {"train.lr": 0.25})
        study.tell(trial, number + trial.suggest_float("train.lr", 0, 1))
    return folder / "study.journal"


def read_journal(folder: Path) -> Any:
    """Of each trial as much as is told, in the order of telling."""
    storage = journal(folder / "study.journal")
    told: list[Any] = [study.study_name for study in storage.get_all_studies()]
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id):
            told += [trial.number, *trial.user_attrs.items(), *trial.params.items()]
            told += [trial.values] if trial.values else []
    return told


def begins(before: Any, after: Any) -> bool:
    """The rest was lost with the end of the file: a journal goes on from there, a progressive file has less in it."""
    return after == before[: len(after)]


def write_rendered(folder: Path) -> Path:
    path = folder / "rendered-0.npz"
    rendered._write(path, {"pixels": np.arange(12, dtype=np.uint8).reshape(3, 4)})
    return path


def read_rendered(folder: Path) -> list[list[int]]:
    found = rendered._read(folder / "rendered-0.npz")
    if found is None:
        raise DataError("these letters are damaged")  # a job renders them again, without a word
    return found["pixels"].tolist()


KINDS = (
    Kind("rendered images", write_rendered, read_rendered, ("prunnet.data.rendered:_write",), flips=20),
    Kind("training checkpoint", write_training, read_training, ("prunnet.networks.files:save_training",)),
    Kind("network", write_network, read_network, ("prunnet.networks.files:save_network",), flips=30),
    Kind("header of a network", write_network, lambda f: read_header(f / "model.safetensors"), (), flips=0),
    Kind("subnetwork", write_subnetwork, read_subnetwork, ("prunnet.subnetworks.subnet:save",), flips=30),
    Kind("embedding set", write_embeddings, read_embeddings, ("prunnet.export.embedding_sets:save",)),
    *(
        Kind(
            f"export {suffix}",
            functools.partial(write_export, suffix=suffix),
            functools.partial(read_export, suffix=suffix),
            (f"prunnet.export.formats.{module}:write",),
            flips=30,
        )
        for suffix, module in ((".safetensors", "sparse"), (".onnx", "onnx"), (".pt2", "torch_program"))
    ),
    Kind(
        "progressive",
        write_progressive,
        read_progressive,
        ("prunnet.export.progressive:save",),
        flips=20,
        repaired=begins,
    ),
    Kind(
        "results part",
        write_part,
        lambda f: results.read(f / "results").to_pylist(),
        ("prunnet.results.table:_write_part",),
    ),
    Kind(
        "packed results",
        write_packed_table,
        lambda f: results.read_packed(f / "table.parquet").to_pylist(),
        ("prunnet.results.table:pack", "prunnet.results.table:_write"),
    ),
    *(
        Kind(
            f"features: {file}",
            functools.partial(write_features, file=file),
            read_features,
            ("prunnet.evaluation.stored_features:make_features", "prunnet.subnetworks.embed:embed"),
        )
        for file in ("identity.json", "queries.npy", "gallery.npy")
    ),
    *(
        Kind(
            f"packed data set: {file}",
            functools.partial(write_store, file=file),
            read_store,
            ("prunnet.data.packed:_written", "prunnet.data.packed:_finish", "prunnet.data.packed:keep"),
        )
        for file in PACKED
    ),
    Kind(
        "packed data set, begun",
        write_begun,
        lambda f: packed._Begun(f / "store", "0123456789").check(),
        ("prunnet.data.packed:check",),
    ),
    Kind("manifest.json", write_manifest, lambda f: Run(f).manifest(), ("sweeps.run:write_manifest",)),
    Kind("sheet.json", write_sheet, lambda f: Sheet.load(f / "sheet.json"), ("prunnet.results.sheet:save",)),
    Kind("recipe.yaml", write_recipe, lambda f: load_recipe(f / "recipe.yaml"), ("sweeps.run:write_recipe",), flips=40),
    Kind("best.yaml", write_best, lambda f: load_recipe(f / "best.yaml"), ("sweeps.search:conclude",)),
    Kind("search.json", write_search, kept_findings, ("sweeps.search:keep_findings",)),
    Kind("journal of a study", write_journal, read_journal, ("sweeps.study:_check_lines",), repaired=begins),
)
