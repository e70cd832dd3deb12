"""Compares two networks or subnetworks on the same images, for `prunnet evaluate`.

Each side sees the images through its own preprocessing. A network is cut at a capacity and its BatchNorm
re-estimated on the data set's training images; a saved subnetwork is taken as it is. If the gallery's network is
another one and dense, it keeps the BatchNorm statistics that were saved with it, since its gallery exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prunnet import data
from prunnet.config.recipe import DataConfig, Recipe, parse_recipe
from prunnet.config.rerankings import rerankings
from prunnet.data.base import RetrievalTest
from prunnet.data.pixel_values import as_said
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError
from prunnet.evaluation.evaluator import reranked
from prunnet.evaluation.stored_features import StoredFeatures
from prunnet.networks.files import NETWORK
from prunnet.results.upgrade_metrics import p_comp, p_up, update_gain
from prunnet.retrieval.compatibility import negative_flips, right_at_one
from prunnet.storage.tensor_files import read_header
from prunnet.subnetworks.embed import embed_test
from prunnet.subnetworks.subnet import Subnetwork
from prunnet.subnetworks.trained import Calibration, CalibrationImages, Cut, TrainedNetwork


@dataclass(frozen=True)
class Side:
    """One network or subnetwork, and what made its images."""

    path: str
    cut: Subnetwork
    """Of a network, with its own statistics."""
    preprocessing: Preprocessing
    network: TrainedNetwork | None = None
    """Whose subnetwork it is; None: a saved one, which is taken as it is."""

    @classmethod
    def load(cls, path: str | Path, capacity: float | None = None) -> Side:
        """A network's file cut at `capacity` (None: dense), or a saved subnetwork, whose capacity is its own."""
        if read_header(path)["kind"] == NETWORK:
            network = TrainedNetwork.load(path)
            cut = network.masked(Cut(1.0 if capacity is None else capacity))
            return cls(str(path), cut, network.preprocessing, network)
        cut, made = Subnetwork.load_with_preprocessing(path)
        if capacity not in (None, cut.capacity):
            raise ConfigError(f"{str(path)!r} is a subnetwork of capacity {cut.capacity:g}, not {capacity:g}")
        if made is None:
            raise CheckpointError(f"{str(path)!r} does not say what preprocessing its images had")
        return cls(str(path), cut, Preprocessing.from_json(made))

    @property
    def dense(self) -> bool:
        """Whether it is a whole network."""
        return self.network is not None and self.cut.capacity == 1.0

    def features(
        self, recipe: Recipe, statistics: Literal["calibrated", "own", "deployed"], batch_size: int = 256
    ) -> Tested:
        """Embeddings of the split that a recipe tests, through this side's preprocessing. A network's BatchNorm is
        re-estimated on the data set's training images (`calibrated`), stands as it is (`own`), or is as in service
        (`deployed`); a saved subnetwork's stands as it is."""
        seen = seen_through(recipe.data, self.preprocessing)
        dataset = data.load_for(recipe.model_copy(update={"data": seen}))
        test = dataset.split(recipe.sweep.split)
        cut = self.cut
        if self.network is not None and statistics == "deployed":
            cut = self.network.deployed()
        elif self.network is not None and statistics == "calibrated":
            calibration = Calibration(batch_size=batch_size)
            images = CalibrationImages.chosen(dataset.train, calibration)
            cut = self.network.subnetwork(Cut(cut.capacity, calibration=calibration), images)
        queries, gallery = embed_test(cut, test, batch_size)
        return Tested(StoredFeatures(queries, gallery, {}), test)


@dataclass(frozen=True)
class Tested:
    """A side's embeddings of a test."""

    features: StoredFeatures
    test: RetrievalTest


@dataclass(frozen=True)
class Comparison:
    """The results for two sides, with upgrade metrics if there is a third network."""

    tests: dict[str, dict[str, float | int]]
    """`query` (self-test), `gallery` (self-test), `cross`, and `independent` where given -> metrics."""
    flips: dict[str, float]
    """Negative flips from the gallery's self-test to the cross-test and to the query's self-test."""
    upgrade: dict[str, float | None]
    """update_gain, p_up, p_comp by mAP; None where they are undefined."""
    reason: str | None
    """Why they are undefined."""
    reranked: dict[str, dict[str, dict[str, float | int]]] = field(default_factory=dict)
    """Re-ranking of the recipe's `sweep.rerank`, as column `rerank` has it -> `tests` of it."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know, such as preprocessing that differs."""


def compare(
    query: Side, gallery: Side, independent: Side | None = None, *, recipe: Recipe, calibrate: bool
) -> Comparison:
    """Cross-test of query and gallery, self-tests of both, and upgrade metrics from gallery to query.

    Args:
        recipe: its `data`, or its `sweep.dataset`, are tested on its `sweep.split`, and re-ranked as its
            `sweep.rerank` says; flips and upgrade metrics are of the plain rankings.

    Raises ConfigError where the embeddings differ in length.
    """
    sides = {"query": query, "gallery": gallery, **({"independent": independent} if independent else {})}
    lengths = {name: side.cut.net.spec["embedding_dim"] for name, side in sides.items()}
    if lengths["query"] != lengths["gallery"]:
        raise ConfigError(
            f"query {query.path!r} has embeddings of length {lengths['query']}, gallery {gallery.path!r} of "
            f"{lengths['gallery']}: they do not compare"
        )
    another = gallery.network is not None and gallery.cut.weights_sha != query.cut.weights_sha
    written = another and gallery.dense
    usual: Literal["calibrated", "own"] = "calibrated" if calibrate else "own"
    seen = {
        name: side.features(recipe, "deployed" if written and side is gallery else usual)
        for name, side in sides.items()
    }
    test = seen["query"].test
    truth = test.truth()
    pairs = {"query": ("query", "query"), "gallery": ("gallery", "gallery"), "cross": ("query", "gallery")}
    if independent:
        pairs["independent"] = ("independent", "independent")
    arrays = {name: (seen[q].features.queries, seen[g].features.gallery) for name, (q, g) in pairs.items()}
    tests = {name: truth.score(q, g) for name, (q, g) in arrays.items()}
    changed: dict[str, dict[str, dict[str, float | int]]] = {}
    for reranking in rerankings(recipe.sweep.rerank):
        reranking.check_size(len(test.queries), len(test.gallery), test.leave_one_out)
        changed[reranking.text] = {name: truth.score(q, g, reranked(reranking)) for name, (q, g) in arrays.items()}
    right = {name: right_at_one(truth.hits(q, g)) for name, (q, g) in arrays.items()}
    flips = {name: negative_flips(right["gallery"], right[name]) for name in ("cross", "query")}
    upgrade, reason = upgrade_of({name: float(metrics["map"]) for name, metrics in tests.items()})
    notes = list(_notes(sides))
    if another and calibrate and not written:
        notes.append(
            f"gallery at capacity {gallery.cut.capacity:g}: BatchNorm re-estimated on the training images of the data "
            "tested; a saved subnetwork keeps its own"
        )
    if written and gallery.network is not None and gallery.network.statistics is None:
        notes.append(f"{gallery.path!r} holds no calibrated statistics, as older files: its running ones are used")
    return Comparison(tests, flips, upgrade, reason, changed, notes)


def upgrade_of(maps: dict[str, float]) -> tuple[dict[str, float | None], str | None]:
    """(update_gain, p_up, p_comp; the reason where they are None) of the mAP of query, gallery, cross, independent."""
    nothing: dict[str, float | None] = {"update_gain": None, "p_up": None, "p_comp": None}
    if "independent" not in maps:
        return nothing, "no third network: give --independent a new one that was trained without regard to the old"
    best, old = maps["independent"], maps["gallery"]
    if np.isnan([*maps.values()]).any() or best == 0:
        return nothing, "a test has no query that counts, or the independent network finds nothing"
    up = p_up([maps["query"]], [best])
    if best <= old:
        return (
            {**nothing, "p_up": up},
            f"the independent network (mAP {best:.3f}) is no better than the gallery's ({old:.3f})",
        )
    gain = update_gain(maps["cross"], old, best)
    return {"update_gain": gain, "p_up": up, "p_comp": p_comp([maps["cross"]], [old], [best])}, None


def data_of(side: Side, overrides: dict[str, Any] | None = None) -> DataConfig:
    """The data section that a network was trained with, changed by `overrides`; ConfigError where a file has none."""
    recipe = read_header(side.path).get("recipe")
    if recipe is None:
        raise ConfigError(f"{side.path!r} does not say what data it was trained on; give --recipe")
    return parse_recipe({"data": {**recipe["data"], "train_fraction": 1.0, **(overrides or {})}}).data


def seen_through(config: DataConfig, preprocessing: Preprocessing) -> DataConfig:
    """The same images, made by another preprocessing."""
    changes = {
        "image_size": preprocessing.image_size,
        "resize": preprocessing.resize,
        "channels": preprocessing.channels,
        "invert": preprocessing.invert,
        "mean": as_said(preprocessing.mean),
        "std": as_said(preprocessing.std),
        "background": "#{:02x}{:02x}{:02x}".format(*preprocessing.background),
    }
    return parse_recipe({"data": {**config.model_dump(), **changes}}).data


def _notes(sides: dict[str, Side]) -> Iterator[str]:
    reference = asdict(sides["query"].preprocessing)
    for name, side in sides.items():
        other = asdict(side.preprocessing)
        if differs := [key for key in reference if reference[key] != other[key]]:
            said = ", ".join(f"{key} {other[key]} (query: {reference[key]})" for key in differs)
            yield f"preprocessing of {name} differs: {said}; each side sees the images through its own"
