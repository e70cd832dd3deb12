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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunnet.config.rerankings import Reranking
from prunnet.data.base import RetrievalTest
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError
from prunnet.evaluation.stored_features import StoredFeatures, load_features, make_features
from prunnet.networks.files import CALIBRATED, Statistics, network_sha
from prunnet.networks.switchable import build
from prunnet.results.columns import FinishedTest, computed
from prunnet.results.table import SCHEMA, write_part
from prunnet.retrieval.protocol import Reranked, Truth
from prunnet.retrieval.reranking import RERANKINGS
from prunnet.storage.hashing import canonical_json
from prunnet.storage.paths import place
from prunnet.subnetworks.embed import embed
from prunnet.subnetworks.subnet import Subnetwork
from prunnet.subnetworks.trained import CalibrationImages, Cut, MemberId, TrainedHeader, TrainedNetwork, as_tensors

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class FeaturesUnit:
    """Embeddings of one subnetwork. `key` is the hash of all that determines them."""

    key: str
    member: MemberId
    """Which network it is cut from."""
    cut: Cut

    @property
    def capacity(self) -> float:
        return self.cut.capacity

    @property
    def stored(self) -> bool:
        """Whether it is an old system's gallery, embedded with the BatchNorm statistics of the network's own file."""
        return self.member.old


@dataclass(frozen=True)
class TestUnit:
    """One query capacity against galleries whose rows are missing; `rows` hold the identity columns."""

    __test__ = False  # pytest: not a test
    capacity: float
    query: str
    galleries: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    rerankings: tuple[Reranking | None, ...]
    """One a row; None: the row is of the plain search."""


@dataclass(frozen=True)
class Plan:
    """Everything an actor needs to know beside weights and images."""

    specs: Mapping[MemberId, dict[str, Any]]
    """Descriptions of the networks."""
    headers: Mapping[MemberId, TrainedHeader]
    preprocessing: Preprocessing
    batch_size: int
    features: str
    """Folder of feature files."""
    results: str
    """Folder of the results table."""
    git_commit: str | None
    sweep_id: str
    device: str
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Key of features -> measured columns of its subnetwork, where there are any."""


class Evaluator:
    """Cuts, calibrates, embeds, tests. Runs inside an actor; in a test also without one."""

    def __init__(
        self, plan: Plan, weights: Mapping[MemberId, Arrays], calibration: CalibrationImages | None, test: RetrievalTest
    ) -> None:
        self.plan = plan
        self._weights = weights
        self.calibration, self.test = calibration, test
        self._stored = functools.lru_cache(maxsize=16)(self._load)
        self._network = functools.lru_cache(maxsize=2)(self._build)

    def _build(self, member: MemberId) -> TrainedNetwork:
        """A network from its arrays, with the hash of what arrived."""
        net, tensors = build(self.plan.specs[member]), as_tensors(self._weights[member])
        saved = {name.removeprefix(CALIBRATED): tensors.pop(name) for name in [*tensors] if name.startswith(CALIBRATED)}
        net.load_state_dict(tensors)
        header = replace(self.plan.headers[member], weights_sha=network_sha(net))
        statistics = Statistics(saved, header.calibration) if saved and header.calibration else None
        return TrainedNetwork(net.to(self.plan.device), header, statistics)

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
        network = self._network(unit.member)
        return network.deployed() if unit.stored else network.subnetwork(unit.cut, self.calibration)

    def worth(self, unit: FeaturesUnit, gallery: FeaturesUnit, metric: str) -> float:
        """One metric of a subnetwork's queries in a gallery whose features are stored; nothing of the subnetwork is
        stored. For searches that test many."""
        self.features(gallery)
        queries = embed(self._cut(unit), self.test.queries, self.plan.batch_size)
        return float(self._truth().score(queries, self._stored(gallery.key).gallery)[metric])

    def tests(self, unit: TestUnit) -> int:
        """Tests one query capacity against its galleries and writes one part; returns the rows written."""
        truth = self._truth()
        query = self._stored(unit.query)
        cost = query.identity["cost"]
        rows = []
        for gallery_key, identity, reranking in zip(unit.galleries, unit.rows, unit.rerankings, strict=True):
            started = time.perf_counter()
            gallery = self._stored(gallery_key).gallery
            measured = truth.score(query.queries, gallery, None if reranking is None else reranked(reranking))
            known = {name: None if value != value else value for name, value in measured.items()}
            further = {name: known.pop(name) for name in [*known] if name not in SCHEMA.names}
            row = {
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
            # Packages compute from features, which say nothing of a ranking that was changed.
            brought = {} if reranking else computed(FinishedTest(row, query.queries, gallery, truth))
            rows.append({**row, **brought})
        write_part(self.plan.results, rows)
        return len(rows)

    @functools.cache  # noqa: B019 - an evaluator lives as long as its process
    def _truth(self) -> Truth:
        return self.test.truth()

    def _path(self, key: str) -> Path:
        return features_path(self.plan.features, key)

    def _load(self, key: str) -> StoredFeatures:
        return load_features(self._path(key), key)


def reranked(reranking: Reranking) -> Reranked:
    """What changes the rankings of a test."""
    return functools.partial(RERANKINGS[reranking.name], **reranking.model_dump())


def features_path(folder: str | Path, key: str) -> Path:
    """The folder that the features of a key are kept in."""
    return place(folder) / key[:32]


def evaluate_here(
    plan: Plan,
    weights: Mapping[MemberId, Arrays],
    calibration: CalibrationImages | None,
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
