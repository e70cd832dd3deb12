"""Which units of work a sweep consists of, and their keys: the bridge from a recipe to rows of the table."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.evaluation import FeaturesUnit, TestUnit
from prunnet import hashing
from prunnet.config import Recipe
from prunnet.data.base import Dataset, RetrievalTest
from prunnet.results import features_key, test_key
from prunnet.subnetworks import calibration_indices


@dataclass(frozen=True)
class Units:
    """All units of a sweep: feature keys by capacity, and one identity a test."""

    features: dict[float, str]
    tests: dict[str, dict[str, Any]]
    """Unit key -> the row's identity columns."""
    calibration: np.ndarray
    """Training pixels for BatchNorm re-estimation."""

    def missing_tests(self, finished: Set[str], lost: Set[str] = frozenset()) -> list[TestUnit]:
        """Test units, one a query capacity, whose rows are not in the table; `lost` feature keys left out."""
        units = []
        for capacity, query in self.features.items():
            wanted = [
                (self.features[row["gallery_capacity"]], row)
                for key, row in self.tests.items()
                if row["query_capacity"] == capacity and key not in finished
            ]
            wanted = [(gallery, row) for gallery, row in wanted if not {query, gallery} & lost]
            if wanted:
                galleries, rows = zip(*wanted, strict=True)
                units.append(TestUnit(capacity, query, galleries, rows))
        return units

    def needed_features(self, tests: list[TestUnit]) -> list[FeaturesUnit]:
        """The feature units that some tests read."""
        needed = {key for unit in tests for key in (unit.query, *unit.galleries)}
        return [FeaturesUnit(key, capacity) for capacity, key in self.features.items() if key in needed]


def plan_units(recipe: Recipe, header: dict[str, Any], dataset: Dataset) -> Units:
    """The units of a recipe for a trained network (its file's header) on a data set.

    The dense network always takes part: it is the gallery that cross-tests search.
    """
    sweep, split = recipe.sweep, dataset.split(recipe.sweep.split)
    indices = calibration_indices(len(dataset.train), sweep.calibration_images, sweep.seed)
    calibration = dataset.train.read(indices)
    determinants = {
        "weights": header["weights_sha"],
        "allocation": "layer",
        "granularity": "weight",
        "masks": sweep.masks if sweep.masks == "scores" else [sweep.masks, sweep.seed],
        "calibration": _calibration(recipe, calibration),
        "split": [sweep.split, split.fingerprint()],
        "preprocessing": dataset.preprocessing.sha(),
    }
    capacities = sorted({1.0, *sweep.capacities}, reverse=True)
    features = {c: features_key(capacity=c, **determinants) for c in capacities}
    galleries = capacities if sweep.gallery == "matrix" else [1.0]
    pairs = sorted({(q, g) for q in capacities for g in (*galleries, q)}, reverse=True)
    protocol = "leave_one_out" if split.leave_one_out else "query_gallery"
    common = identity_columns(recipe, header, dataset)
    tests = {}
    for query, gallery in pairs:
        key = test_key(features[query], features[gallery], protocol)
        tests[key] = {**common, "unit_key": key, "query_capacity": query, "gallery_capacity": gallery}
    return Units(features, tests, calibration)


def _calibration(recipe: Recipe, pixels: np.ndarray) -> Any:
    if not recipe.sweep.calibrate:
        return "off"
    return [recipe.sweep.batch_size, hashing.of_arrays({"images": pixels})]


def identity_columns(recipe: Recipe, header: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """The columns that all rows of a sweep share. They speak of the network as it was trained, from its file."""
    trained, sweep = header["recipe"], recipe.sweep
    train = trained["train"]
    config = {
        "trained": trained,
        "workers": header["workers"],
        "data": recipe.data.model_dump(mode="json"),
        "sweep": sweep.model_dump(mode="json", exclude={"capacities", "gallery"}),
    }
    return {
        "status": "complete",
        "query_weights_sha": header["weights_sha"],
        "gallery_weights_sha": header["weights_sha"],
        "method": train["method"],
        "backbone": header["net"]["backbone"],
        "dataset": dataset.name,
        "split": sweep.split,
        "seed": train["seed"],
        "epoch": header["epoch"],
        "images_seen": header["images_seen"],
        "config_json": hashing.canonical_json(config),
        "config_hash": hashing.of_json(config),
        "preprocessing_sha": dataset.preprocessing.sha(),
        "train_capacities": ",".join(f"{c:g}" for c in train["capacities"]),
        "capacity_sampling": "fixed",
        "capacity_unit": "weights",
        "score_init": train["score_init"],
        "allocation": train["allocation"],
        "granularity": "weight",
        "mask_source": sweep.masks,
        "projection": train["projection"],
        "projection_block": train["block"],
        "weighting": train["weighting"],
        "weighting_exponent": train["exponent"] if train["weighting"] == "cosine" else None,
        "bn_calibration": "on" if sweep.calibrate else "off",
        "train_seconds": header["train_seconds"],
    }


def evaluation_images(dataset: Dataset, split: RetrievalTest, units: Units) -> dict[str, np.ndarray]:
    """The arrays that reach every actor once through the object store."""
    images: dict[str, np.ndarray] = {
        "calibration": dataset.preprocessing.crop(units.calibration),
        "queries": split.queries.pixels,
        "query_labels": split.queries.labels,
    }
    if not split.leave_one_out:
        images |= {"gallery": split.gallery.pixels, "gallery_labels": split.gallery.labels}
    return images
