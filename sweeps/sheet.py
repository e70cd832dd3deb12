"""The contact sheet of a finished sweep: made of stored features and the test's images, kept in the run's folder."""

from __future__ import annotations

from prunnet.config.recipe import Recipe
from prunnet.data.base import RetrievalTest
from prunnet.errors import CheckpointError, PrunnetError, ResultsError, one_line
from prunnet.evaluation.evaluator import features_path
from prunnet.evaluation.found_images import sheet_of
from prunnet.evaluation.stored_features import load_features
from prunnet.experiments.work_units import Units
from prunnet.results.sheet import Sheet
from prunnet.retrieval.exact_search import Features
from prunnet.storage import hashing
from prunnet.storage.paths import remove
from sweeps.run import Run

VERSION = 1
"""Raised where other sheets would be made of the same features."""
MOST = 10
"""Capacities on a sheet."""


def keep_sheet(recipe: Recipe, run: Run, test: RetrievalTest, units: Units) -> None:
    """Makes the contact sheet unless it is there; removes an older one where the recipe wants none.

    Where features or images are not there any more, the sheet says so and shows nothing.
    """
    if not recipe.sweep.sheet:
        remove(run.sheet)
        return
    features, gallery, dense = _cross_tests(units)
    made_of = hashing.of_json([VERSION, features, dense, test.protocol_name, recipe.sweep.sheet, recipe.sweep.seed])
    try:
        kept = Sheet.load(run.sheet)
    except ResultsError:
        kept = None
    if kept is None or kept.left_out or kept.made_of != made_of:
        made = _made(recipe, run, test, features, dense)
        made.model_copy(update={"made_of": made_of, "gallery": gallery}).save(run.sheet)


def _cross_tests(units: Units) -> tuple[list[tuple[float, str]], float, str]:
    """((capacity, key of its query features), largest first; capacity and key of the gallery that all search)."""
    own = [test for test in units.tests.values() if test.row["gallery_source"] == "own"]
    gallery = max(test.row["gallery_capacity"] for test in own)
    cross = {test.row["query_capacity"]: test for test in own if test.row["gallery_capacity"] == gallery}
    capacities = sorted(cross, reverse=True)
    if len(capacities) > MOST:  # the largest, the smallest, and others at even distances
        capacities = [capacities[round(k * (len(capacities) - 1) / (MOST - 1))] for k in range(MOST)]
    return [(c, cross[c].query) for c in capacities], gallery, cross[capacities[0]].gallery


def _made(recipe: Recipe, run: Run, test: RetrievalTest, features: list[tuple[float, str]], dense: str) -> Sheet:
    try:
        gallery = load_features(features_path(run.features, dense), dense).gallery
        queries: dict[float, Features] = {}
        for capacity, key in features:
            try:
                queries[capacity] = load_features(features_path(run.features, key), key).queries
            except CheckpointError:  # the capacity failed, which the report says
                continue
        return sheet_of(test, queries, gallery, shown=recipe.sweep.sheet, seed=recipe.sweep.seed)
    except (PrunnetError, OSError) as error:
        return Sheet(left_out=str(error) if isinstance(error, PrunnetError) else one_line(error))
