"""A run's folder: where the model, the features, the results and the report of one recipe live."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.exceptions import RayError
from rich.console import Console

from cluster.session import in_submitted_job
from prunnet.config import Recipe
from prunnet.errors import ConfigError, PrunnetError, one_line
from prunnet.hashing import of_json
from prunnet.seal import read_json, write_json, write_yaml
from prunnet.storage import is_url, place, remove


@dataclass(frozen=True)
class Run:
    """Paths of one run. Everything in it can be deleted; the same command makes it again."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def features(self) -> Path:
        return self.folder / "features"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def training(self) -> Path:
        """Ray Train's own files: checkpoints."""
        return self.folder / "training"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def write_recipe(self, recipe: Recipe) -> None:
        """Keeps the recipe beside its results."""
        write_yaml(self.recipe, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Which unit keys the last sweep used, and what failed."""
        write_json(self.folder / "manifest.json", manifest)

    def manifest(self) -> dict[str, Any]:
        """The last sweep's; ConfigError where the folder holds none."""
        path = self.folder / "manifest.json"
        try:
            return read_json(path)
        except (OSError, ValueError):
            raise ConfigError(f"{str(path)!r} is not there or torn: no finished sweep in this folder") from None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a job with exit code 2 and one line, where the recipe, the data, the cluster or the disk cannot serve."""
    try:
        yield
    except (PrunnetError, RuntimeError, OSError) as error:
        said = " ".join(str(error).split())
    except RayError as error:  # what the job runs on gave way, as where the kernel of a small machine kills
        said = one_line(error)[:500]
    else:
        return
    Console(stderr=True, soft_wrap=True).print(f"error: {said}", style="red", markup=False)
    sys.exit(2)


@contextmanager
def open_run(recipe: Recipe, *, fresh: bool = False) -> Iterator[Run]:
    """The folder of a recipe, held by one driver at a time.

    Raises ConfigError where another driver is at work in it or it cannot be written.
    """
    folder = storage(recipe) / recipe.name
    try:
        lock = _lock_file(folder).open()
    except OSError as error:
        raise ConfigError(
            f"run folder {str(folder)!r} cannot be written ({error.strerror}); set cluster.storage"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another job is at work in {str(folder)!r}; wait for it or set another name") from None
        if fresh:
            for path in [*folder.iterdir()]:
                if path.name != ".lock":
                    remove(path)
        yield Run(folder)


def _lock_file(folder: Path) -> Path:
    """Held by the driver at work. An object store has no locks: there it is this machine's, and keeps two drivers of
    it apart; those of two machines would but do the same work twice."""
    where = folder
    if is_url(folder):
        where = Path(tempfile.gettempdir()) / f"prunnet-lock-{of_json(str(folder))[:32]}"
    where.mkdir(parents=True, exist_ok=True)
    (where / ".lock").touch()  # and opened for reading: a file system can become read-only under a job
    return where / ".lock"


def storage(recipe: Recipe) -> Path:
    """Folder of all runs, absolute. A submitted job's working directory is Ray's to delete, so it is not used."""
    if recipe.cluster.storage:
        given = place(recipe.cluster.storage)
        return given if is_url(given) else given.resolve()
    return Path.home() / "prunnet-runs" if in_submitted_job() else Path("runs").resolve()


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with the paths that workers open made absolute: they run in folders of their own."""
    changes: dict[str, Any] = {}
    data = recipe.data
    if data.root:
        update: dict[str, Any] = {"root": _absolute(data.root)}
        if data.holdout == "list":
            update |= {
                "test": tuple(map(_absolute, data.test)),
                "validation": tuple(map(_absolute, data.validation)),
            }
        changes["data"] = data.model_copy(update=update)
    model = {k: _absolute(v) for k in ("checkpoint", "weights") if (v := getattr(recipe.model, k))}
    if model:
        changes["model"] = recipe.model.model_copy(update=model)
    if recipe.sweep.root:
        changes["sweep"] = recipe.sweep.model_copy(update={"root": _absolute(recipe.sweep.root)})
    if recipe.train.old:
        changes["train"] = recipe.train.model_copy(update={"old": _absolute(recipe.train.old)})
    return recipe.model_copy(update=changes)


def git_commit() -> str | None:
    """The commit of the code that runs, where it is a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
