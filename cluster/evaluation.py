"""Actors that cut and evaluate capacities. Weights, scores and images reach them once, through the object store.

Two kinds of unit: *features* (cut a capacity, re-estimate BatchNorm, embed queries and gallery, one stored
file) and *tests* (one query capacity against some galleries, one Parquet part). Both are skipped when finished.
"""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from cluster.pool import Outcome, Pool
from prunnet.checkpoint import network_sha
from prunnet.config import ClusterConfig
from prunnet.data.base import MemoryImages, RetrievalTest
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError
from prunnet.memory import keep_freed_memory
from prunnet.nets import RetrievalNet
from prunnet.results import write_part
from prunnet.retrieval.features import StoredFeatures, embed, load_features, save_features
from prunnet.retrieval.matrix import score
from prunnet.subnetworks import calibration_batches, subnetwork


@dataclass(frozen=True)
class FeaturesUnit:
    """Embeddings of one capacity. `key` is the hash of all that determines them."""

    key: str
    capacity: float


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

    spec: dict[str, Any]
    """Arguments of the network."""
    preprocessing: Preprocessing
    leave_one_out: bool
    calibrate: bool
    random_masks: int | None
    """Seed of the control's masks; None: the learned scores decide."""
    batch_size: int
    features: str
    """Folder of feature files."""
    results: str
    """Folder of the results table."""
    threads: int
    git_commit: str | None
    sweep_id: str
    device: str


class Evaluator:
    """Cuts, calibrates, embeds, tests. Runs inside an actor; in a test also without one."""

    def __init__(self, plan: Plan, weights: dict[str, np.ndarray], images: dict[str, np.ndarray]) -> None:
        torch.set_num_threads(plan.threads)
        keep_freed_memory()
        self.plan = plan
        self.net = RetrievalNet(**plan.spec)
        # Arrays in the object store are read-only and shared; the network gets its one copy of them here.
        self.net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
        self.weights_sha = network_sha(self.net)
        self.net.to(plan.device)
        self.calibration = images["calibration"]
        queries = MemoryImages(images["queries"], images["query_labels"], plan.preprocessing)
        gallery = queries
        if not plan.leave_one_out:
            gallery = MemoryImages(images["gallery"], images["gallery_labels"], plan.preprocessing)
        self.test = RetrievalTest(queries, gallery, plan.leave_one_out)
        self._stored = functools.lru_cache(maxsize=16)(self._load)

    def features(self, unit: FeaturesUnit) -> dict[str, Any]:
        """Makes (or finds) the feature file of a unit; returns its header."""
        try:
            return load_features(self._path(unit.key), unit.key).identity
        except CheckpointError:
            pass  # not there yet, or torn: made now
        started = time.perf_counter()
        plan = self.plan
        cut = subnetwork(self.net, unit.capacity, random_masks=plan.random_masks, weights_sha=self.weights_sha)
        if plan.calibrate:
            cut.calibrate(calibration_batches(self.calibration, plan.preprocessing, plan.batch_size))
        queries = embed(cut, self.test.queries.pixels, plan.preprocessing, plan.batch_size)
        gallery = queries
        if not plan.leave_one_out:
            gallery = embed(cut, self.test.gallery.pixels, plan.preprocessing, plan.batch_size)
        identity = {
            "key": unit.key,
            "capacity": unit.capacity,
            "weights_sha": cut.weights_sha,
            "mask_sha": cut.mask_sha,
            "calibration": cut.calibration,
            "preprocessing": plan.preprocessing.to_json(),
            "cost": asdict(cut.cost(plan.preprocessing.image_size)),
            "seconds": time.perf_counter() - started,
        }
        save_features(self._path(unit.key), StoredFeatures(queries, gallery, identity))
        return identity

    def tests(self, unit: TestUnit) -> int:
        """Tests one query capacity against its galleries and writes one part; returns the rows written."""
        relevant, junk = self._truth()
        query = self._stored(unit.query)
        cost = query.identity["cost"]
        rows = []
        for gallery_key, identity in zip(unit.galleries, unit.rows, strict=True):
            started = time.perf_counter()
            measured = score(query.queries, self._stored(gallery_key).gallery, relevant, junk)
            rows.append(
                {
                    **identity,
                    **{name: None if value != value else value for name, value in measured.items()},
                    **cost,
                    "embedding_dim": query.queries.shape[1],
                    "eval_seconds": query.identity["seconds"] + time.perf_counter() - started,
                    "threads": self.plan.threads,
                    "device": self.plan.device,
                    "runtime": f"torch {torch.__version__}",
                    "git_commit": self.plan.git_commit,
                    "sweep_id": self.plan.sweep_id,
                    "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                }
            )
        write_part(self.plan.results, rows)
        return len(rows)

    @functools.cache  # noqa: B019 - an evaluator lives as long as its process
    def _truth(self) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        return self.test.relevant(), self.test.junk()

    def _path(self, key: str) -> Path:
        return features_path(self.plan.features, key)

    def _load(self, key: str) -> StoredFeatures:
        return load_features(self._path(key), key)


def features_path(folder: str | Path, key: str) -> Path:
    """Where the features of a key are kept."""
    return Path(folder) / f"{key[:32]}.safetensors"


def evaluate(
    plan: Plan,
    weights: dict[str, np.ndarray],
    images: dict[str, np.ndarray],
    features: Sequence[FeaturesUnit],
    tests: Callable[[set[str]], Sequence[TestUnit]],
    cluster: ClusterConfig,
    report: Callable[[str, int, str | None], None],
) -> list[tuple[float, str]]:
    """Runs both kinds of unit on `cluster.actors` actors.

    Args:
        tests: the test units, given the keys of the features that failed.
        report: called with (stage, units done, message or None) after every unit and every retry.

    Returns:
        (capacity, error) of each unit that failed `cluster.attempts` times; the others are finished.
    """
    actor_class = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor)(Evaluator)
    stored = (ray.put(weights), ray.put(images))
    pool: Pool[Any] = Pool(lambda: actor_class.remote(plan, *stored), cluster.actors, cluster.attempts)
    try:
        first = _stage("features", pool, features, lambda a, u: a.features.remote(u), report)
        lost = {unit.key for unit, _ in first.failed}
        second = _stage("tests", pool, tests(lost), lambda a, u: a.tests.remote(u), report)
    finally:
        pool.close()
    return [(unit.capacity, error) for unit, error in (*first.failed, *second.failed)]


def _stage(
    name: str,
    pool: Pool[Any],
    units: Sequence[Any],
    call: Callable[[Any, Any], ray.ObjectRef],
    report: Callable[[str, int, str | None], None],
) -> Outcome[Any]:
    return pool.run(
        units,
        call,
        on_done=lambda unit, _: report(name, 1, None),
        on_retry=lambda unit, why: report(name, 0, f"capacity {unit.capacity:g} is tried again: {why}"),
    )
