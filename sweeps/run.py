"""A run's folder: where the model, the features, the results and the report of one recipe live."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import AfterValidator, BaseModel

from cluster.ending import Stopped, end, family, stoppable
from cluster.environment import in_submitted_job
from prunnet.config.recipe import Recipe
from prunnet.errors import ConfigError, DataWarning, from_outside, told
from prunnet.redact import shown
from prunnet.storage.hashing import of_json
from prunnet.storage.paths import is_url, lock_file, place, private_folder
from prunnet.storage.seal import read_json, write_json, write_yaml
from sweeps.printing import Console, any_encoding, silence
from sweeps.run_folder import LOCK, check_folder, clear, mark_folder, note_of

RECIPES = Path(__file__).parent / "recipes"
"""Those that come with prunnet."""


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
        """Keeps the recipe beside its results, without the credentials of its URLs."""
        write_yaml(self.recipe, yaml.safe_dump(shown(recipe.model_dump(mode="json")), sort_keys=False))

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Which unit keys the last sweep used, and what failed."""
        write_json(self.folder / "manifest.json", shown(manifest))

    def manifest(self) -> dict[str, Any]:
        """The last sweep's; ConfigError where the folder holds none."""
        path = self.folder / "manifest.json"
        try:
            return Manifest.model_validate(read_json(path)).model_dump(exclude_unset=True)
        except (OSError, ValueError):
            raise ConfigError(f"{str(path)!r} is not there or torn: no finished sweep in this folder") from None


def _number(text: str) -> str:
    float(text)
    return text


def _epoch(entry: dict[str, float | None]) -> dict[str, float | None]:
    if entry.get("epoch") is None:
        raise ValueError("an epoch without a number")
    return entry


class Manifest(BaseModel):
    """What `manifest.json` holds; the last four are absent from old ones."""

    name: str
    unit_keys: list[str]
    failures: list[tuple[float, str]]
    kept: dict[Annotated[str, AfterValidator(_number)], dict[str, float]] = {}
    history: list[Annotated[dict[str, float | None], AfterValidator(_epoch)]] = []
    conflicts: list[dict[str, float | None]] = []
    determined_by: str = ""
    """See `sweeps.finished.determinants`."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a command with one line: exit code 2 where what it is given or runs on cannot serve (see
    `prunnet.errors.from_outside`), 130 after Ctrl-C, 143 after SIGTERM. All commands run inside."""
    any_encoding()
    try:
        with stoppable(), _notes_as_lines(), _without_traceback():
            yield
    except Stopped as stopped:
        end({*stopped.family, *family()}, patience=1)
        Console(stderr=True).print(str(stopped), style="yellow")
        sys.exit(stopped.code)


def script(command: Callable[..., None]) -> None:
    """Runs one command as a script of its own, such as `python sweeps/capacity.py`."""
    with one_line_errors():  # a full disk or an odd encoding of the terminal meets --help, too
        typer.run(command)


@contextmanager
def _notes_as_lines() -> Iterator[None]:
    """What prunnet warns of is printed as notes are, without the place in the source."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DataWarning):
                Console(stderr=True).print(f"note: {message}", style="yellow")
            else:
                others(message, category, *where, **more)

        warnings.showwarning = show
        yield


@contextmanager
def _without_traceback() -> Iterator[None]:
    try:
        try:
            yield
        finally:
            _flush()  # a full disk is found here, and not when the interpreter ends
        return
    except BrokenPipeError:  # whoever read the output has enough of it
        silence(sys.stdout)
        sys.exit(0)
    except Exception as error:
        if not from_outside(error):
            raise
        said = told(error)
    try:
        _flush()
    except OSError:
        silence(sys.stdout)
    Console(stderr=True).print(f"error: {said}", style="red")
    sys.exit(2)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def check_number(option: str, value: float | None, low: float, high: float) -> None:
    """ConfigError where an option is given a number out of its range, or none, such as nan."""
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{option} {value:g}; valid: {low:g} to {high:g}")


@contextmanager
def open_run(recipe: Recipe, *, fresh: bool = False, console: Console | None = None) -> Iterator[Run]:
    """The folder of a recipe, held by one driver at a time; `fresh` deletes what earlier jobs made in it, and the
    console is told what was left.

    Raises ConfigError where another driver is at work in it, it cannot be written, or it is not a run's.
    """
    folder = storage(recipe) / recipe.name
    with ExitStack() as opened:
        try:
            check_folder(folder, fresh=fresh)
            lock = opened.enter_context(lock_file(_lock_place(folder) / LOCK))
        except OSError as error:
            raise ConfigError(
                f"run folder {str(folder)!r} cannot be written ({error.strerror}); set cluster.storage"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another job is at work in {str(folder)!r}; wait for it or set another name") from None
        mark_folder(folder)
        if fresh and (left := clear(folder)) and console is not None:
            console.print(f"note: {note_of(left)}", style="yellow")
        yield Run(folder)


def _lock_place(folder: Path) -> Path:
    """Where the file lies that the driver at work holds. An object store has no locks: there it is this machine's, and
    keeps two drivers of it apart; those of two machines would only do the same work twice."""
    where = private_folder("lock") / of_json(shown(str(folder)))[:32] if is_url(folder) else folder
    where.mkdir(parents=True, exist_ok=True)
    return where


def storage(recipe: Recipe) -> Path:
    """Folder of all runs, absolute. A submitted job's working directory is Ray's to delete, so it is not used."""
    if recipe.cluster.storage:
        given = place(_absolute(recipe.cluster.storage))
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
    """A path of this machine, or a URL with the variables of the environment in it, which may hold its credentials."""
    return (
        os.path.expandvars(path) if is_url(path) else os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    )
