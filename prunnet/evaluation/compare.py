"""Any two networks or subnetworks against each other on the same images: what `prunnet evaluate` prints.

Each side sees the images through its own preprocessing. A network is cut at a capacity and its BatchNorm
re-estimated on the data set's training images; a saved subnetwork is taken as it is. A gallery that another network
wrote is there already: that network, if dense, keeps the statistics that were saved with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prunnet import data
from prunnet.config.recipe import DataConfig, Recipe, parse_recipe
from prunnet.data.base import RetrievalTest
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError
from prunnet.evaluation.stored_features import StoredFeatures
from prunnet.networks.files import NETWORK, Statistics, allocation_of, load_calibrated
from prunnet.results.upgrade_metrics import p_comp, p_up, update_gain
from prunnet.retrieval.compatibility import negative_flips, right_at_one
from prunnet.storage.tensor_files import read_header
from prunnet.subnetworks.batchnorm import calibration_loader
from prunnet.subnetworks.embed import embed_test
from prunnet.subnetworks.subnet import Subnetwork, subnetwork


@dataclass(frozen=True)
class Side:
    """One network or subnetwork, and what made its images."""

    path: str
    cut: Subnetwork
    preprocessing: Preprocessing
    is_network: bool
    statistics: Statistics | None = None
    """Saved with a network; of its dense cut."""

    @classmethod
    def load(cls, path: str | Path, capacity: float | None = None) -> Side:
        """A network's file cut at `capacity` (None: dense), or a saved subnetwork, whose capacity is its own."""
        header, statistics = read_header(path), None
        if header["kind"] != NETWORK:
            cut, made = Subnetwork.load_with_preprocessing(path)
            if capacity not in (None, cut.capacity):
                raise ConfigError(f"{str(path)!r} is a subnetwork of capacity {cut.capacity:g}, not {capacity:g}")
        else:
            net, header, statistics = load_calibrated(path)
            made = header["preprocessing"]
            dense = 1.0 if capacity is None else capacity
            cut = subnetwork(net, dense, allocation=allocation_of(header), weights_sha=header["weights_sha"])
        if made is None:
            raise CheckpointError(f"{str(path)!r} does not say what preprocessing its images had")
        return cls(str(path), cut, Preprocessing.from_json(made), header["kind"] == NETWORK, statistics)

    @property
    def dense(self) -> bool:
        """Whether it is a whole network."""
        return self.is_network and self.cut.capacity == 1.0

    def features(self, recipe: Recipe, calibrate: bool, batch_size: int = 256) -> Tested:
        """Embeddings of the split that a recipe tests, through this side's preprocessing. `calibrate`: with BatchNorm
        re-estimated on the data set's training images; else as the statistics stand."""
        seen = seen_through(recipe.data, self.preprocessing)
        dataset = data.load_for(recipe.model_copy(update={"data": seen}))
        test = dataset.split(recipe.sweep.split)
        if calibrate and self.is_network:
            self.cut.calibrate(calibration_loader(dataset.train, batch_size=batch_size))
        queries, gallery = embed_test(self.cut, test, batch_size)
        return Tested(StoredFeatures(queries, gallery, {}), test)


@dataclass(frozen=True)
class Tested:
    """A side's embeddings of a test."""

    features: StoredFeatures
    test: RetrievalTest


@dataclass(frozen=True)
class Comparison:
    """All that can be said of two sides, and with a third of an upgrade."""

    tests: dict[str, dict[str, float | int]]
    """`query` (self-test), `gallery` (self-test), `cross`, and `independent` where given -> metrics."""
    flips: dict[str, float]
    """Negative flips from the gallery's self-test to the cross-test and to the query's self-test."""
    upgrade: dict[str, float | None]
    """update_gain, p_up, p_comp by mAP; None where they cannot be said."""
    reason: str | None
    """Why they cannot."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know, such as preprocessing that differs."""


def compare(
    query: Side, gallery: Side, independent: Side | None = None, *, recipe: Recipe, calibrate: bool
) -> Comparison:
    """Tests query against gallery, each against itself, and what an upgrade from gallery to query is worth.

    Args:
        recipe: its `data`, or its `sweep.dataset`, are tested on its `sweep.split`.

    Raises ConfigError where the embeddings differ in length.
    """
    sides = {"query": query, "gallery": gallery, **({"independent": independent} if independent else {})}
    lengths = {name: side.cut.net.spec["embedding_dim"] for name, side in sides.items()}
    if lengths["query"] != lengths["gallery"]:
        raise ConfigError(
            f"query {query.path!r} has embeddings of length {lengths['query']}, gallery {gallery.path!r} of "
            f"{lengths['gallery']}: they do not compare"
        )
    another = gallery.is_network and gallery.cut.weights_sha != query.cut.weights_sha
    written = another and gallery.dense
    if written and gallery.statistics is not None:
        gallery.cut.set_statistics(gallery.statistics.tensors, gallery.statistics.calibration)
    seen = {
        name: side.features(recipe, calibrate and not (written and side is gallery)) for name, side in sides.items()
    }
    test = seen["query"].test
    truth = test.truth()
    pairs = {"query": ("query", "query"), "gallery": ("gallery", "gallery"), "cross": ("query", "gallery")}
    if independent:
        pairs["independent"] = ("independent", "independent")
    arrays = {name: (seen[q].features.queries, seen[g].features.gallery) for name, (q, g) in pairs.items()}
    tests = {name: truth.score(q, g) for name, (q, g) in arrays.items()}
    right = {name: right_at_one(truth.hits(q, g)) for name, (q, g) in arrays.items()}
    flips = {name: negative_flips(right["gallery"], right[name]) for name in ("cross", "query")}
    upgrade, reason = upgrade_of({name: float(metrics["map"]) for name, metrics in tests.items()})
    notes = list(_notes(sides))
    if another and calibrate and not written:
        notes.append(
            f"gallery at capacity {gallery.cut.capacity:g}: BatchNorm re-estimated on the training images of the data "
            "tested; a saved subnetwork keeps its own"
        )
    if written and gallery.statistics is None:
        notes.append(f"{gallery.path!r} holds no calibrated statistics, as older files: its running ones are used")
    return Comparison(tests, flips, upgrade, reason, notes)


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
    """The same images, made by another preprocessing; ConfigError for one that a recipe cannot say."""
    means, stds = set(preprocessing.mean), set(preprocessing.std)
    plain = Preprocessing.from_config(DataConfig(channels=1 if preprocessing.channels == 1 else 3))
    default = (preprocessing.mean, preprocessing.std) == (plain.mean, plain.std)
    if not default and (len(means) > 1 or len(stds) > 1):
        raise ConfigError(f"mean {preprocessing.mean} and std {preprocessing.std} cannot be said in a recipe")
    changes = {
        "image_size": preprocessing.image_size,
        "resize": preprocessing.resize,
        "channels": preprocessing.channels,
        "invert": preprocessing.invert,
        "mean": None if default else means.pop(),
        "std": None if default else stds.pop(),
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
