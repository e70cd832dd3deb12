"""Which units of work a sweep consists of, and their keys: the bridge from a recipe to rows of the table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunnet.config.choices import UNITS
from prunnet.config.recipe import Recipe
from prunnet.data.base import Dataset
from prunnet.data.transforms import Preprocessing
from prunnet.evaluation.evaluator import FeaturesUnit, Plan, TestUnit
from prunnet.experiments.stages import OLD, Family
from prunnet.networks.files import CALIBRATED, allocation_of
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.masks import keep_count
from prunnet.redact import shown
from prunnet.results.table import features_key, row_key
from prunnet.storage import hashing
from prunnet.subnetworks.batchnorm import calibration_indices

Keep = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Test:
    """One row to be: the keys of its features, and its identity columns."""

    __test__ = False  # pytest: not a test
    query: str
    gallery: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Units:
    """All units of a sweep, by key."""

    features: dict[str, FeaturesUnit]
    tests: dict[str, Test]
    calibration: np.ndarray
    """Training pixels for BatchNorm re-estimation, as the evaluation transform crops them."""

    def missing_tests(self, finished: Set[str], lost: Set[str] = frozenset()) -> list[TestUnit]:
        """Test units, one for each query features, whose rows are not in the table; `lost` feature keys left out."""
        wanted: dict[str, list[Test]] = {}
        for key, test in self.tests.items():
            if key not in finished and not {test.query, test.gallery} & lost:
                wanted.setdefault(test.query, []).append(test)
        return [
            TestUnit(self.features[query].capacity, query, tuple(t.gallery for t in tests), tuple(t.row for t in tests))
            for query, tests in wanted.items()
        ]

    def needed_features(self, tests: list[TestUnit]) -> list[FeaturesUnit]:
        """The feature units that some tests read."""
        needed = {key for unit in tests for key in (unit.query, *unit.galleries)}
        return [unit for key, unit in self.features.items() if key in needed]


def plan_units(
    recipe: Recipe,
    family: Family,
    dataset: Dataset,
    trial: str | None = None,
    layerwise: Sequence[Mapping[str, float]] = (),
) -> Units:
    """The units of a recipe for trained networks on a data set.

    `layerwise`: keep fractions of all layers, each a further cut of the dense network that searches its gallery.

    The dense network (the family's largest) always takes part: it is the gallery that cross-tests search. Where
    the networks were trained to match an old one, every capacity searches its gallery, too.
    """
    sweep, split = recipe.sweep, dataset.split(recipe.sweep.split)
    calibration = dataset.train.read(calibration_indices(len(dataset.train), sweep.calibration_images, sweep.seed))
    determinants = {
        "granularity": family.granularity,
        "masks": sweep.masks if sweep.masks == "scores" else [sweep.masks, sweep.seed],
        "calibration": _calibration(recipe, calibration),
        "split": [sweep.split, split.fingerprint()],
        "preprocessing": split.queries.preprocessing.sha(),
        **({} if sweep.inside == 1.0 else {"inside": sweep.inside}),
    }

    def cut(capacity: float, member: float, header: dict[str, Any], keep: Keep | None = None) -> FeaturesUnit:
        allocation: Any = allocation_of(header) if keep is None else dict(keep)
        key = features_key(capacity=capacity, weights=header["weights_sha"], allocation=allocation, **determinants)
        return FeaturesUnit(key, capacity, member, keep)

    capacities = sorted({family.top, *(c for c in sweep.capacities if c <= family.top)}, reverse=True)
    headers = {c: family.members[family.serving(c)][1] for c in capacities}
    own = {c: cut(c, family.serving(c), header) for c, header in headers.items()}
    galleries = capacities if sweep.gallery == "matrix" else [family.top]
    pairs = [(own[q], own[g], "own") for q, g in sorted({(q, g) for q in own for g in (*galleries, q)}, reverse=True)]
    units = list(own.values())
    for vector in layerwise:
        share = kept_share(family.members[family.top][0], vector)
        headers.setdefault(share, headers[family.top])
        units.append(cut(share, family.top, headers[family.top], tuple(vector.items())))
        pairs.append((units[-1], own[family.top], "own"))
    if family.old is not None:
        # Its gallery is there already, written with its own statistics, whatever becomes of the cuts'.
        own_statistics = family.old_statistics
        determinants["calibration"] = "off" if own_statistics is None else ["stored", own_statistics.calibration]
        old = replace(cut(1.0, OLD, family.old[1]), stored=True)
        units.append(old)
        pairs += [(query, old, "old") for query in own.values()]
    protocol = split.protocol_name
    common = identity_columns(recipe, family, dataset, trial)
    tests = {}
    for query, gallery, source in pairs:
        key = row_key(query.key, gallery.key, protocol, trial)
        of_gallery = headers[gallery.capacity] if source == "own" else family.old[1]  # type: ignore[index]
        row = {
            **common,
            "unit_key": key,
            "query_capacity": query.capacity,
            "gallery_capacity": gallery.capacity,
            "gallery_source": source,
            "query_weights_sha": headers[query.capacity]["weights_sha"],
            "gallery_weights_sha": of_gallery["weights_sha"],
        }
        if query.keep is not None:
            config = {**json.loads(row["config_json"]), "keep": dict(query.keep)}
            row |= {"allocation": "layerwise", "config_json": hashing.canonical_json(config)}
            row["config_hash"] = hashing.of_json(config)
        tests[key] = Test(query.key, gallery.key, row)
    return Units({unit.key: unit for unit in units}, tests, dataset.preprocessing.crop(calibration))


def kept_share(net: RetrievalNet, keep: Mapping[str, float]) -> float:
    """Share of all prunable weights that layer-wise capacities keep."""
    sizes = {name: layer.get_parameter("weight").numel() for name, layer in prunable.layers(net).items()}
    return round(sum(keep_count(n, keep[name]) for name, n in sizes.items()) / sum(sizes.values()), 6)


def _calibration(recipe: Recipe, pixels: np.ndarray) -> Any:
    if not recipe.sweep.calibrate:
        return "off"
    return [recipe.sweep.batch_size, hashing.of_arrays({"images": pixels})]


def identity_columns(recipe: Recipe, family: Family, dataset: Dataset, trial: str | None = None) -> dict[str, Any]:
    """The columns that all rows of a sweep share. They speak of the networks as they were trained, from their files:
    method and variants are those of the smallest (of a family, the dense one is but the teacher)."""
    sweep = recipe.sweep
    headers = [header for _, header in family.members.values()]
    _, header = family.members[min(family.members)]
    trained = header["recipe"]
    train = trained["train"]
    capacities = train["capacities"] or sorted((c for c in family.members if c < family.top), reverse=True)
    config = {
        "trained": {**shown(trained), "data": portable(trained["data"])},
        "workers": header["workers"],
        "data": portable(recipe.data.model_dump(mode="json")),
        "sweep": portable(sweep.model_dump(mode="json", exclude=_unsaid(recipe))),
    }
    return {
        "status": "complete",
        "trial_id": trial,
        "method": method_name(train),
        "backbone": header["net"]["backbone"],
        "dataset": dataset.name,
        "split": sweep.split,
        "protocol": dataset.split(sweep.split).protocol_name,
        "seed": train["seed"],
        "epoch": header["epoch"],
        "images_seen": header["images_seen"],
        "config_json": hashing.canonical_json(config),
        "config_hash": hashing.of_json(config),
        "preprocessing_sha": dataset.split(sweep.split).queries.preprocessing.sha(),
        "train_capacities": ",".join(f"{c:g}" for c in capacities),
        "capacity_sampling": train.get("capacity_sampling", "fixed"),  # files of before it was a choice do not say
        "capacity_unit": UNITS[family.granularity],
        "score_init": train["score_init"],
        "allocation": train["allocation"],
        "granularity": family.granularity,
        "mask_source": sweep.masks,
        "projection": train["projection"],
        "projection_block": train["block"],
        "weighting": train["weighting"],
        "weighting_exponent": train["exponent"] if train["weighting"] == "cosine" else None,
        "bn_calibration": "on" if sweep.calibrate else "off",
        "train_seconds": sum(h["train_seconds"] for h in headers),
    }


def _unsaid(recipe: Recipe) -> set[str]:
    """Keys of the sweep that rows do not depend on, or that say nothing: files of before they were choices agree."""
    plain = {"inside"} if recipe.sweep.inside == 1.0 else set()
    return {"capacities", "gallery", "measure", "measure_threads"} | plain


def portable(data: dict[str, Any]) -> dict[str, Any]:
    """A data (or sweep) section that names its files without saying where they lie: rows of two machines are equal."""
    changed = {key: value for key, value in data.items() if key != "fingerprint"}
    if data.get("root"):
        changed["root"] = Path(shown(data["root"])).name
    if data.get("holdout") == "list":
        changed |= {key: [Path(shown(name)).name for name in data[key]] for key in ("test", "validation")}
    return changed


def method_name(train: dict[str, Any]) -> str:
    """`prunnet`, or `prunnet+odpp` where a term was added."""
    added = train.get("compatible")
    return f"{train['method']}+{added}" if added else train["method"]


def evaluation_plan(
    recipe: Recipe, family: Family, *, features: Path, results: Path, git_commit: str | None = None
) -> Plan:
    """What whoever evaluates needs to know, beside weights and images."""
    _, header = family.members[family.top]
    return Plan(
        specs={member: net.spec for member, (net, _) in family.everyone().items()},
        preprocessing=Preprocessing.from_config(recipe.data),
        calibrate=recipe.sweep.calibrate,
        allocation=allocation_of(header),
        inside=recipe.sweep.inside,
        random_masks=recipe.sweep.seed if recipe.sweep.masks == "random" else None,
        batch_size=recipe.sweep.batch_size,
        features=str(features),
        results=str(results),
        git_commit=git_commit,
        sweep_id=recipe.name,
        device="cuda" if recipe.cluster.gpus_per_actor else "cpu",
        stored_calibration=None if family.old_statistics is None else family.old_statistics.calibration,
    )


def network_arrays(family: Family) -> dict[float, dict[str, np.ndarray]]:
    """All networks' tensors as numpy arrays, which the object store shares without copies; the old one's with the
    statistics of its gallery."""
    arrays = {m: {n: t.numpy() for n, t in net.state_dict().items()} for m, (net, _) in family.everyone().items()}
    if family.old_statistics is not None:
        arrays[OLD] |= {CALIBRATED + name: t.numpy() for name, t in family.old_statistics.tensors.items()}
    return arrays
