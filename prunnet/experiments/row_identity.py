"""The columns by which a row of the results table says what was trained, cut and tested."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunnet.config.granularities import GRANULARITIES
from prunnet.config.recipe import FIRST_KEYS, Recipe, later_defaults
from prunnet.data.base import Dataset
from prunnet.errors import ResultsError
from prunnet.redact import shown
from prunnet.storage import hashing
from prunnet.subnetworks.trained import TrainedNetwork

_SWEEP = "dataset root long_side scales split calibrate calibration_images masks batch_size seed"
_DATA_KEYS, _SWEEP_KEYS = FIRST_KEYS["data"] | {"background"}, frozenset(_SWEEP.split())
"""Keys that rows have said from the start; further ones only where they are not at their default."""
_NOT_OF_ROWS = {"capacities", "gallery", "measure", "measure_threads", "rerank", "sheet"}
"""Keys of the sweep that no single row depends on, or of which each says its own part in a column."""


def identity_columns(
    recipe: Recipe, members: Mapping[float, TrainedNetwork], dataset: Dataset, trial: str | None = None
) -> dict[str, Any]:
    """The columns that all rows of a sweep share. They speak of the networks as they were trained, from their files:
    method and variants are those of the smallest (of a family, the dense one is but the teacher)."""
    sweep, top = recipe.sweep, max(members)
    smallest = members[min(members)]
    header, trained = smallest.header, smallest.header.recipe
    train = trained["train"]
    capacities = train["capacities"] or sorted((c for c in members if c < top), reverse=True)
    granularity = members[top].net.granularity
    swept = sweep.model_dump(mode="json", exclude=_NOT_OF_ROWS)
    config = {
        "trained": {**shown(trained), "data": portable(trained["data"])},
        "workers": header.workers,
        "data": portable(
            hashing.without_defaults(recipe.data.model_dump(mode="json"), later_defaults(recipe.data, _DATA_KEYS))
        ),
        "sweep": portable(hashing.without_defaults(swept, later_defaults(sweep, _SWEEP_KEYS))),
    }
    return {
        "status": "complete",
        "trial_id": trial,
        "method": method_name(train),
        "backbone": smallest.net.spec["backbone"],
        "dataset": dataset.name,
        "split": sweep.split,
        "protocol": dataset.split(sweep.split).protocol_name,
        "seed": train["seed"],
        "epoch": header.epoch,
        "images_seen": header.images_seen,
        "config_json": hashing.canonical_json(config),
        "config_hash": hashing.of_json(config),
        "preprocessing_sha": dataset.split(sweep.split).queries.preprocessing.sha(),
        "train_capacities": ",".join(f"{c:g}" for c in capacities),
        "capacity_sampling": train.get("capacity_sampling", "fixed"),  # files of before it was a choice do not say
        "capacity_unit": GRANULARITIES[granularity].unit,
        "score_init": train["score_init"],
        "allocation": train["allocation"],
        "granularity": granularity,
        "mask_source": sweep.masks,
        "projection": train["projection"],
        "projection_block": train["block"],
        "weighting": train["weighting"],
        "weighting_exponent": train["exponent"] if train["weighting"] == "cosine" else None,
        "bn_calibration": "on" if sweep.calibrate else "off",
        "reconstruction": "on" if sweep.reconstruct else None,
        "train_seconds": sum(member.header.train_seconds for member in members.values()),
    }


def layerwise_columns(common: Mapping[str, Any], densities: Mapping[str, float]) -> dict[str, Any]:
    """What the row of a subnetwork with a density for every layer has instead."""
    config = {**json.loads(common["config_json"]), "keep": dict(densities)}
    return {
        "allocation": "layerwise",
        "config_json": hashing.canonical_json(config),
        "config_hash": hashing.of_json(config),
    }


def row_config(row: Mapping[str, Any]) -> dict[str, Any]:
    """The sections `data` and `sweep` (and more) that a row was made with; ResultsError where it does not say."""
    try:
        config = json.loads(row["config_json"])
        _ = config["data"]["name"], config["sweep"]["seed"]
        return config
    except (TypeError, ValueError, KeyError):
        raise ResultsError(f"row {row['unit_key'][:16]} does not say how its subnetwork was made") from None


def portable(data: Mapping[str, Any]) -> dict[str, Any]:
    """A data (or sweep) section that names its files without saying where they lie: rows of two machines are equal."""
    changed = {key: value for key, value in data.items() if key != "fingerprint"}
    if data.get("root"):
        changed["root"] = Path(shown(data["root"])).name
    if data.get("holdout") == "list":
        changed |= {key: [Path(shown(name)).name for name in data[key]] for key in ("test", "validation")}
    return changed


def method_name(train: Mapping[str, Any]) -> str:
    """`prunnet`, or `prunnet+odpp` where a term was added."""
    added = train.get("compatible")
    return f"{train['method']}+{added}" if added else train["method"]
