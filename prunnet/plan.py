"""Which units of work a sweep consists of, and their keys: the bridge from a recipe to rows of the table."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunnet import hashing
from prunnet.config import Recipe
from prunnet.data.base import Dataset, RetrievalTest
from prunnet.data.transforms import Preprocessing
from prunnet.evaluation import FeaturesUnit, Plan, TestUnit
from prunnet.families import Family
from prunnet.results import features_key, test_key
from prunnet.subnetworks import calibration_indices


@dataclass(frozen=True)
class Units:
    """All units of a sweep: feature keys by capacity, and one identity a test."""

    features: dict[float, str]
    members: dict[float, float]
    """Whose network each capacity is cut from."""
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
        return [FeaturesUnit(key, c, self.members[c]) for c, key in self.features.items() if key in needed]


def plan_units(recipe: Recipe, family: Family, dataset: Dataset) -> Units:
    """The units of a recipe for trained networks on a data set.

    The dense network (the family's largest) always takes part: it is the gallery that cross-tests search.
    """
    sweep, split = recipe.sweep, dataset.split(recipe.sweep.split)
    calibration = dataset.train.read(calibration_indices(len(dataset.train), sweep.calibration_images, sweep.seed))
    determinants = {
        "granularity": "weight",
        "masks": sweep.masks if sweep.masks == "scores" else [sweep.masks, sweep.seed],
        "calibration": _calibration(recipe, calibration),
        "split": [sweep.split, split.fingerprint()],
        "preprocessing": dataset.preprocessing.sha(),
    }
    capacities = sorted({family.top, *(c for c in sweep.capacities if c <= family.top)}, reverse=True)
    members = {c: family.serving(c) for c in capacities}
    headers = {c: family.members[member][1] for c, member in members.items()}
    features = {
        c: features_key(capacity=c, weights=header["weights_sha"], allocation=allocation_of(header), **determinants)
        for c, header in headers.items()
    }
    galleries = capacities if sweep.gallery == "matrix" else [family.top]
    pairs = sorted({(q, g) for q in capacities for g in (*galleries, q)}, reverse=True)
    protocol = "leave_one_out" if split.leave_one_out else "query_gallery"
    common = identity_columns(recipe, family, dataset)
    tests = {}
    for query, gallery in pairs:
        key = test_key(features[query], features[gallery], protocol)
        tests[key] = {
            **common,
            "unit_key": key,
            "query_capacity": query,
            "gallery_capacity": gallery,
            "query_weights_sha": headers[query]["weights_sha"],
            "gallery_weights_sha": headers[gallery]["weights_sha"],
        }
    return Units(features, members, tests, calibration)


def allocation_of(header: dict[str, Any]) -> str:
    """How a network's masks were allotted to its layers while it was trained."""
    return header["recipe"]["train"].get("allocation") or "layer"


def _calibration(recipe: Recipe, pixels: np.ndarray) -> Any:
    if not recipe.sweep.calibrate:
        return "off"
    return [recipe.sweep.batch_size, hashing.of_arrays({"images": pixels})]


def identity_columns(recipe: Recipe, family: Family, dataset: Dataset) -> dict[str, Any]:
    """The columns that all rows of a sweep share. They speak of the networks as they were trained, from their files:
    method and variants are those of the smallest (of a family, the dense one is but the teacher)."""
    sweep = recipe.sweep
    headers = [header for _, header in family.members.values()]
    _, header = family.members[min(family.members)]
    trained = header["recipe"]
    train = trained["train"]
    capacities = train["capacities"] or sorted((c for c in family.members if c < family.top), reverse=True)
    config = {
        "trained": trained,
        "workers": header["workers"],
        "data": recipe.data.model_dump(mode="json"),
        "sweep": sweep.model_dump(mode="json", exclude={"capacities", "gallery"}),
    }
    return {
        "status": "complete",
        "method": method_name(train),
        "backbone": header["net"]["backbone"],
        "dataset": dataset.name,
        "split": sweep.split,
        "seed": train["seed"],
        "epoch": header["epoch"],
        "images_seen": header["images_seen"],
        "config_json": hashing.canonical_json(config),
        "config_hash": hashing.of_json(config),
        "preprocessing_sha": dataset.preprocessing.sha(),
        "train_capacities": ",".join(f"{c:g}" for c in capacities),
        "capacity_sampling": train["capacity_sampling"],
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
        "train_seconds": sum(h["train_seconds"] for h in headers),
    }


def method_name(train: dict[str, Any]) -> str:
    """`prunnet`, or `prunnet+odpp` where a term was added."""
    added = train.get("compatible")
    return f"{train['method']}+{added}" if added else train["method"]


def evaluation_plan(
    recipe: Recipe, family: Family, leave_one_out: bool, *, features: Path, results: Path, git_commit: str | None = None
) -> Plan:
    """What whoever evaluates needs to know, beside weights and images."""
    _, header = family.members[family.top]
    return Plan(
        specs={member: net.spec for member, (net, _) in family.members.items()},
        preprocessing=Preprocessing.from_config(recipe.data),
        leave_one_out=leave_one_out,
        calibrate=recipe.sweep.calibrate,
        allocation=allocation_of(header),
        random_masks=recipe.sweep.seed if recipe.sweep.masks == "random" else None,
        batch_size=recipe.sweep.batch_size,
        features=str(features),
        results=str(results),
        threads=max(1, int(recipe.cluster.cpus_per_actor)),
        git_commit=git_commit,
        sweep_id=recipe.name,
        device="cuda" if recipe.cluster.gpus_per_actor else "cpu",
    )


def network_arrays(family: Family) -> dict[float, dict[str, np.ndarray]]:
    """All networks' tensors as numpy arrays, which the object store shares without copies."""
    return {m: {n: t.numpy() for n, t in net.state_dict().items()} for m, (net, _) in family.members.items()}


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
