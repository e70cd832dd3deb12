"""Which units of work a sweep consists of, and their keys: the bridge from a recipe to rows of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunnet.config.recipe import Recipe
from prunnet.config.rerankings import Reranking, rerankings
from prunnet.data.base import Dataset
from prunnet.data.pixel_values import data_seen
from prunnet.data.transforms import Preprocessing
from prunnet.evaluation.evaluator import FeaturesUnit, Plan, TestUnit
from prunnet.experiments.row_identity import identity_columns, layerwise_columns
from prunnet.experiments.trained_networks import Family
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.masks import keep_count
from prunnet.results.table import features_key, row_key
from prunnet.storage import hashing
from prunnet.subnetworks.batchnorm import calibration_indices
from prunnet.subnetworks.trained import OLD, Calibration, CalibrationImages, Cut, MemberId


@dataclass(frozen=True)
class Test:
    """A planned row: the keys of its features, and its identity columns."""

    __test__ = False  # pytest: not a test
    query: str
    gallery: str
    row: dict[str, Any]
    reranking: Reranking | None = None


@dataclass(frozen=True)
class Units:
    """All units of a sweep, by key."""

    features: dict[str, FeaturesUnit]
    tests: dict[str, Test]
    calibration: CalibrationImages | None
    """Of all subnetworks; None where none is calibrated."""

    def missing_tests(self, finished: Set[str], lost: Set[str] = frozenset()) -> list[TestUnit]:
        """Test units, one for each query features, whose rows are not in the table; `lost` feature keys left out."""
        wanted: dict[str, list[Test]] = {}
        for key, test in self.tests.items():
            if key not in finished and not {test.query, test.gallery} & lost:
                wanted.setdefault(test.query, []).append(test)
        return [
            TestUnit(
                self.features[query].capacity,
                query,
                tuple(t.gallery for t in tests),
                tuple(t.row for t in tests),
                tuple(t.reranking for t in tests),
            )
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

    `layerwise`: densities of all layers, each a further subnetwork of the dense network that searches its gallery.

    The dense network (the family's largest) always takes part: it is the gallery that cross-tests search. Where
    the networks were trained to match an old one, every capacity searches its gallery, too. Self-tests and tests in
    the dense or the old network's gallery are re-ranked, too, where the recipe asks for it.

    Raises ConfigError where a re-ranking of a test of this size may need too much memory.
    """
    sweep, split = recipe.sweep, dataset.split(recipe.sweep.split)
    asked = rerankings(sweep.rerank)
    for reranking in asked:
        reranking.check_size(len(split.queries), len(split.gallery), split.leave_one_out)
    networks, top = family.everyone(), MemberId(family.top)
    images, calibration = _calibration(recipe, dataset)
    shared = {
        "granularity": family.granularity,
        "masks": sweep.masks if sweep.masks == "scores" else [sweep.masks, sweep.seed],
        "split": [sweep.split, split.fingerprint()],
        "preprocessing": split.queries.preprocessing.sha(),
        **hashing.without_defaults({"inside": sweep.inside}, {"inside": 1.0}),
    }

    def unit(member: MemberId, cut: Cut, calibration: Any = calibration) -> FeaturesUnit:
        header, layers = networks[member].header, cut.layer_densities
        refit = None if cut.whole else cut.reconstruction
        key = features_key(
            capacity=cut.capacity,
            weights=header.weights_sha,
            allocation=header.allocation if layers is None else dict(layers),
            calibration=calibration,
            **({} if refit is None else {"reconstruction": asdict(refit)}),
            **shared,
        )
        return FeaturesUnit(key, member, cut)

    capacities = sorted({family.top, *(c for c in sweep.capacities if c <= family.top)}, reverse=True)
    own = {c: unit(family.serving(c), Cut.of_sweep(sweep, c)) for c in capacities}
    galleries = capacities if sweep.gallery == "matrix" else [family.top]
    pairs = [(own[q], own[g]) for q, g in sorted({(q, g) for q in own for g in (*galleries, q)}, reverse=True)]
    for densities in layerwise:
        share = kept_share(family.largest.net, densities)
        pairs.append((unit(top, Cut.of_sweep(sweep, share, densities)), own[family.top]))
    if family.old is not None:
        # Its gallery is there already, written with its own statistics, whether or not those of the new ones change.
        statistics = family.old.statistics
        written = "off" if statistics is None else ["stored", statistics.calibration]
        gallery = unit(OLD, Cut.of_sweep(sweep, 1.0), calibration=written)
        pairs += [(query, gallery) for query in own.values()]
    protocol = split.protocol_name
    common = identity_columns(recipe, family.members, dataset, trial)
    tests = {}
    for query, gallery in pairs:
        key, layers = row_key(query.key, gallery.key, protocol, trial), query.cut.layer_densities
        row: dict[str, Any] = {
            **common,
            "unit_key": key,
            "query_capacity": query.capacity,
            "gallery_capacity": gallery.capacity,
            "gallery_source": "old" if gallery.stored else "own",
            "query_weights_sha": networks[query.member].header.weights_sha,
            "gallery_weights_sha": networks[gallery.member].header.weights_sha,
            **({} if layers is None else layerwise_columns(common, dict(layers))),
        }
        tests[key] = Test(query.key, gallery.key, row)
        for reranking in asked if gallery.stored or gallery.capacity in (query.capacity, family.top) else ():
            key = row_key(query.key, gallery.key, protocol, trial, reranking.text)
            changed = {**row, "unit_key": key, "rerank": reranking.text}
            tests[key] = Test(query.key, gallery.key, changed, reranking)
    return Units({unit.key: unit for pair in pairs for unit in pair}, tests, images)


def kept_share(net: RetrievalNet, keep: Mapping[str, float]) -> float:
    """Share of all prunable weights that layer-wise capacities keep."""
    sizes = {name: layer.get_parameter("weight").numel() for name, layer in prunable.layers(net).items()}
    return round(sum(keep_count(n, keep[name]) for name, n in sizes.items()) / sum(sizes.values()), 6)


def _calibration(recipe: Recipe, dataset: Dataset) -> tuple[CalibrationImages | None, Any]:
    """(the images, what of them determines features); the hash is of the pixels before the crop."""
    chosen = Calibration.of_sweep(recipe.sweep)
    if chosen is None:
        return None, "off"
    train = dataset.train
    pixels = train.read(calibration_indices(len(train), chosen.images, chosen.seed))
    images = CalibrationImages(dataset.preprocessing.crop(pixels), dataset.preprocessing)
    return images, [chosen.batch_size, hashing.of_arrays({"images": pixels})]


def evaluation_plan(
    recipe: Recipe,
    family: Family,
    *,
    features: Path,
    results: Path,
    git_commit: str | None = None,
    device: str | None = None,
) -> Plan:
    """What whoever evaluates needs to know, beside weights and images.

    `device`: None: a GPU where the recipe gives each actor a share of one.
    """
    networks = family.everyone()
    return Plan(
        specs={member: network.net.spec for member, network in networks.items()},
        headers={member: network.header.without_history() for member, network in networks.items()},
        preprocessing=Preprocessing.from_config(data_seen(recipe)),
        batch_size=recipe.sweep.batch_size,
        features=str(features),
        results=str(results),
        git_commit=git_commit,
        sweep_id=recipe.name,
        device=device or ("cuda" if recipe.cluster.gpus_per_actor else "cpu"),
    )
