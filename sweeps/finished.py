"""Whether the last sweep of a run's folder is the one that is asked for, and complete: then its table, front and report
are drawn again, and no torch and no Ray is started."""

from __future__ import annotations

import warnings
from typing import Any

from safetensors import safe_open

from prunnet import data, results
from prunnet.config import Recipe
from prunnet.config.methods import METHODS
from prunnet.data.base import Dataset, check_images
from prunnet.errors import DataWarning, PrunnetError
from prunnet.redact import shown
from prunnet.results.sheet import Sheet
from prunnet.storage import hashing, is_url, seal
from prunnet.storage.hashing import METHOD_VERSION
from sweeps.drawing import draw
from sweeps.printing import Console
from sweeps.run import Run


def open_data(recipe: Recipe, console: Console) -> Dataset:
    """Training set and tests, with what a user should know of these copies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # said once, below, instead of by every worker
        dataset = data.load_for(recipe)
    for note in dataset.notes:
        console.print(f"note: {note}", style="yellow")
    return dataset


def drawn_again(recipe: Recipe, run: Run, console: Console) -> bool:
    """Draws a finished sweep; False where it is not sure that it is finished, and nothing was printed.

    Raises DataError where the network was trained on other images.
    """
    try:
        told = run.manifest()
    except PrunnetError:
        return False
    if not told.get("determined_by") or told["failures"] or not _single_file(recipe):
        return False
    header = _whole_header(run)
    if header is None or header.get("training_hash") != recipe.with_files_seen().training_hash():
        return False
    if recipe.sweep.sheet and not _has_sheet(run):
        return False
    if not results.finished_keys(run.results) >= set(told["unit_keys"]):
        return False
    quiet = Console(quiet=True)
    dataset = open_data(recipe, quiet)
    if told["determined_by"] != determinants(recipe, run, dataset):
        return False
    for note in dataset.notes:
        console.print(f"note: {note}", style="yellow")
    check_images(header.get("origin"), dataset, recipe.data.fingerprint, repr(str(run.model)))
    tests = len(told["unit_keys"])
    console.print(f"training: {run.model.name} finished before ({recipe.train.epochs} epochs), nothing to do")
    console.print(f"tests: {tests} of {tests} finished before")
    run.write_recipe(recipe)
    draw(run, console)
    return True


def determinants(recipe: Recipe, run: Run, dataset: Dataset) -> str:
    """Hash of all that decides which rows a sweep of one network has and what is in them; "" for several networks, and
    for a checkpoint that is given."""
    if not _single_file(recipe):
        return ""
    header = _whole_header(run)
    parts: list[Any] = [METHOD_VERSION, recipe.name, hashing.of_json(header)]
    swept = hashing.without_defaults(recipe.sweep.model_dump(mode="json"), {"flip": False, "rerank": []})
    parts += [swept, recipe.data.model_dump(mode="json")]
    parts += [dataset.split(recipe.sweep.split).fingerprint(), dataset.train.fingerprint()]
    parts += [dataset.split(recipe.sweep.split).queries.preprocessing.sha(), dataset.preprocessing.sha()]
    if recipe.train.old:
        parts += [hashing.weights_sha_of(recipe.train.old), hashing.calibrations_of(recipe.train.old)]
    return hashing.of_json(shown(parts))


def _single_file(recipe: Recipe) -> bool:
    """Whether a sweep is of one network that it trains, in a file of this machine."""
    return not (recipe.model.checkpoint or METHODS[recipe.train.method].single or is_url(str(recipe.cluster.storage)))


def _has_sheet(run: Run) -> bool:
    """Whether the run's contact sheet is there and whole; one that was left out is tried again."""
    try:
        sheet = Sheet.load(run.sheet)
    except PrunnetError:
        return False
    return sheet is not None and not sheet.left_out


def _whole_header(run: Run) -> dict[str, Any] | None:
    """The header of the trained network's file, if the file is whole."""
    try:
        with safe_open(str(run.model), framework="np") as file:
            return seal.tensors_header(run.model, file.metadata())
    except Exception:  # not there, or torn: the job itself says so
        return None
