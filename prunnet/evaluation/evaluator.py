"""Cutting and testing capacities of a family of networks: what an evaluation actor does, and what a machine without
Ray does in a loop.

Two kinds of unit: *features* (cut a capacity, re-estimate BatchNorm, embed queries and gallery, one stored
file) and *tests* (one query capacity against some galleries, one Parquet part). Both are skipped when finished.
"""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunnet.data.base import RetrievalTest
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError
from prunnet.evaluation.stored_features import StoredFeatures, load_features, make_features
from prunnet.networks.files import CALIBRATED, network_sha
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import build
from prunnet.results.table import SCHEMA, write_part
from prunnet.retrieval.protocol import Truth
from prunnet.storage.hashing import canonical_json
from prunnet.storage.paths import place
from prunnet.subnetworks.batchnorm import calibration_batches
from prunnet.subnetworks.embed import embed
from prunnet.subnetworks.subnet import Subnetwork, subnetwork

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class FeaturesUnit:
    """Embeddings of one capacity. `key` is the hash of all that determines them."""

    key: str
    capacity: float
    member: float = 1.0
    """Which network of the family it is cut from."""
    keep: tuple[tuple[str, float], ...] | None = None
    """Layer-wise capacities; None: `capacity` for all layers."""
    stored: bool = False
    """Embedded with the BatchNorm statistics of the network's own file, as an old system's gallery was."""


@dataclass(frozen=True)
class TestUnit:
    """One query capacity against galleries whose rows are missing; `rows` hold the identity columns."""

    __test__ = False  # pytest: not a test
    capacity: float
    query: str
    galleries: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Plan:
    """Everything an actor needs to know beside weights and images."""

    specs: dict[float, dict[str, Any]]
    """Descriptions of the networks, by member."""
    preprocessing: Preprocessing
    calibrate: bool
    allocation: str
    inside: float
    random_masks: int | None
    """Seed of the control's masks; None: the learned scores decide."""
    batch_size: int
    features: str
    """Folder of feature files."""
    results: str
    """Folder of the results table."""
    git_commit: str | None
    sweep_id: str
    device: str
    stored_calibration: str | None = None
    """Hash of the images of the stored statistics, where there are any."""
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Key of features -> measured columns of its subnetwork, where there are any."""


class Evaluator:
    """Cuts, calibrates, embeds, tests. Runs inside an actor; in a test also without one."""

    def __init__(self, plan: Plan, weights: dict[float, Arrays], calibration: np.ndarray, test: RetrievalTest) -> None:
        self.plan = plan
        self._weights = weights
        self.calibration, self.test = calibration, test
        self._stored = functools.lru_cache(maxsize=16)(self._load)
        self._network = functools.lru_cache(maxsize=2)(self._build)

    def _build(self, member: float) -> tuple[RetrievalNet, str]:
        """A network of the family and its hash."""
        net = build(self.plan.specs[member])
        # Arrays in the object store are read-only and shared; the network gets its one copy of them here.
        own = {name: array for name, array in self._weights[member].items() if not name.startswith(CALIBRATED)}
        net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in own.items()})
        sha = network_sha(net)
        return net.to(self.plan.device), sha

    def features(self, unit: FeaturesUnit) -> dict[str, Any]:
        """Makes (or finds) the feature file of a unit; returns its header."""
        try:
            return load_features(self._path(unit.key), unit.key).identity
        except CheckpointError:
            pass  # not there yet, or torn: made now
        started = time.perf_counter()
        plan = self.plan
        cut = self._cut(unit)
        identity = {
            "key": unit.key,
            "capacity": unit.capacity,
            "weights_sha": cut.weights_sha,
            "mask_sha": cut.mask_sha,
            "calibration": cut.calibration,
            "preprocessing": self.test.queries.preprocessing.to_json(),
            "cost": asdict(cut.cost(plan.preprocessing.image_size)),
        }
        return make_features(self._path(unit.key), cut, self.test, plan.batch_size, identity, started)

    def _cut(self, unit: FeaturesUnit) -> Subnetwork:
        plan = self.plan
        net, sha = self._network(unit.member)
        cut = subnetwork(
            net,
            unit.capacity,
            allocation=plan.allocation,
            random_masks=plan.random_masks,
            inside=1.0 if unit.stored else plan.inside,
            keep=None if unit.keep is None else dict(unit.keep),
            weights_sha=sha,
        )
        if unit.stored:
            arrays = self._weights[unit.member]
            stored = {n.removeprefix(CALIBRATED): a for n, a in arrays.items() if n.startswith(CALIBRATED)}
            tensors = {name: torch.from_numpy(array.copy()) for name, array in stored.items()}
            cut.set_statistics(tensors, plan.stored_calibration)
        elif plan.calibrate:
            cut.calibrate(calibration_batches(self.calibration, plan.preprocessing, plan.batch_size))
        return cut

    def worth(self, unit: FeaturesUnit, gallery: FeaturesUnit, metric: str) -> float:
        """One metric of a cut's queries in a gallery whose features are kept; of the cut nothing is kept. For searches
        that look at many."""
        self.features(gallery)
        queries = embed(self._cut(unit), self.test.queries, self.plan.batch_size)
        return float(self._truth().score(queries, self._stored(gallery.key).gallery)[metric])

    def tests(self, unit: TestUnit) -> int:
        """Tests one query capacity against its galleries and writes one part; returns the rows written."""
        truth = self._truth()
        query = self._stored(unit.query)
        cost = query.identity["cost"]
        rows = []
        for gallery_key, identity in zip(unit.galleries, unit.rows, strict=True):
            started = time.perf_counter()
            measured = truth.score(query.queries, self._stored(gallery_key).gallery)
            known = {name: None if value != value else value for name, value in measured.items()}
            further = {name: known.pop(name) for name in [*known] if name not in SCHEMA.names}
            rows.append(
                {
                    **identity,
                    **known,
                    "further_json": canonical_json(further) if further else None,
                    **cost,
                    "embedding_dim": query.queries.shape[1],
                    "eval_seconds": query.identity["seconds"] + time.perf_counter() - started,
                    "threads": torch.get_num_threads(),
                    "device": self.plan.device,
                    "runtime": f"torch {torch.__version__}",
                    "git_commit": self.plan.git_commit,
                    "sweep_id": self.plan.sweep_id,
                    **self.plan.measured.get(unit.query, {}),
                    "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                }
            )
        write_part(self.plan.results, rows)
        return len(rows)

    @functools.cache  # noqa: B019 - an evaluator lives as long as its process
    def _truth(self) -> Truth:
        return self.test.truth()

    def _path(self, key: str) -> Path:
        return features_path(self.plan.features, key)

    def _load(self, key: str) -> StoredFeatures:
        return load_features(self._path(key), key)


def features_path(folder: str | Path, key: str) -> Path:
    """The folder that the features of a key are kept in."""
    return place(folder) / key[:32]


def evaluate_here(
    plan: Plan,
    weights: dict[float, Arrays],
    calibration: np.ndarray,
    test: RetrievalTest,
    features: Sequence[FeaturesUnit],
    tests: Sequence[TestUnit],
) -> None:
    """All units, one after the other, in this process."""
    evaluator = Evaluator(plan, weights, calibration, test)
    for unit in features:
        evaluator.features(unit)
    for unit_of_tests in tests:
        evaluator.tests(unit_of_tests)
