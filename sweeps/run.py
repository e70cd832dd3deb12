"""A run's folder: where the model, the features, the results and the report of one recipe live."""

from __future__ import annotations

import fcntl
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import AfterValidator, BaseModel

from cluster.ending import stoppable
from cluster.environment import in_submitted_job
from prunnet.config.recipe import Recipe, absolute
from prunnet.errors import ConfigError, DataWarning, echo
from prunnet.guard import guarded
from prunnet.redact import shown
from prunnet.storage.hashing import of_json
from prunnet.storage.paths import is_url, lock_file, place, private_folder
from prunnet.storage.seal import read_json, write_json, write_yaml
from sweeps.printing import Console
from sweeps.run_folder import LOCK, check_folder, clear, mark_folder, note_of

if TYPE_CHECKING:  # it imports torch, and a refused recipe needs none
    from prunnet.experiments.stages import Stage

RECIPES = Path(__file__).parent / "recipes"
"""Those that come with prunnet."""


@dataclass(frozen=True)
class Run:
    """Paths of one run. Everything in it can be deleted; the same command computes it again."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    def place(self, stage: Stage, recipe: Recipe) -> Path:
        """Where the network of a stage is saved."""
        return self.folder / stage.file

    @property
    def features(self) -> Path:
        return self.folder / "features"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def sheet(self) -> Path:
        """What the contact sheet shows (`prunnet.results.sheet`)."""
        return self.folder / "sheet.json"

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
    """What `manifest.json` holds; older files lack the last four."""

    name: str
    unit_keys: list[str]
    failures: list[tuple[float, str]]
    kept: dict[Annotated[str, AfterValidator(_number)], dict[str, float]] = {}
    history: list[Annotated[dict[str, float | None], AfterValidator(_epoch)]] = []
    conflicts: list[dict[str, float | None]] = []
    determined_by: str = ""
    """See `sweeps.finished.determinants`."""


def recipe_option(what: str, default: str | bool = True) -> Any:
    """--recipe: a file, or the name of a recipe that comes with prunnet. The help shows `default`."""
    return typer.Option(
        help=f"{what}: a file, or the name of a packaged one.", callback=_recipe_file, show_default=default
    )


def _recipe_file(given: Path | None) -> Path | None:
    """Ends the command where neither a file nor a packaged recipe is given, with the packaged names."""
    if given is None or given.is_file():
        return given
    packaged = {path.stem: path for path in RECIPES.glob("*.yaml")}
    with one_line_errors():  # the command's own begins when its arguments are accepted
        if str(given) not in packaged:
            names = ", ".join(sorted(packaged))
            raise ConfigError(f"recipe {echo(str(given))} is not a file; packaged recipes: {names}")
    return packaged[str(given)]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a command with one line (`prunnet.guard`), and leaves no process of its own behind. All commands run
    inside."""
    with guarded(stoppable()), _notes_as_lines():
        yield


def script(command: Callable[..., None]) -> None:
    """Runs one command as a script of its own, such as `python sweeps/capacity.py`."""
    with one_line_errors():  # a full disk or an odd encoding of the terminal meets --help, too
        typer.run(command)


@contextmanager
def _notes_as_lines() -> Iterator[None]:
    """Prints prunnet's own warnings as notes, without file name and line number."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DataWarning):
                Console(stderr=True).print(f"note: {message}", style="yellow")
            else:
                others(message, category, *where, **more)

        warnings.showwarning = show
        yield


def check_number(option: str, value: float | None, low: float, high: float) -> None:
    """ConfigError for a number out of the option's range, or nan."""
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{option} {value:g}; valid: {low:g} to {high:g}")


@contextmanager
def open_run(recipe: Recipe, *, fresh: bool = False, console: Console | None = None) -> Iterator[Run]:
    """The run folder of a recipe, locked for one driver. `fresh` deletes what earlier jobs made in it; what was left is
    printed.

    Raises ConfigError if another driver holds the folder, if it cannot be written, or if it is not a run's.
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
    """The folder of the lock file. An object store has no locks, so the lock is a local file, which excludes two
    drivers of one machine. Drivers of two machines would do the same work twice, with the same results."""
    where = private_folder("lock") / of_json(shown(str(folder)))[:32] if is_url(folder) else folder
    where.mkdir(parents=True, exist_ok=True)
    return where


def storage(recipe: Recipe) -> Path:
    """Folder of all runs, absolute. Ray deletes the working directory of a submitted job, so it is not used."""
    if recipe.cluster.storage:
        given = place(absolute(recipe.cluster.storage))
        return given if is_url(given) else given.resolve()
    return Path.home() / "prunnet-runs" if in_submitted_job() else Path("runs").resolve()


def git_commit() -> str | None:
    """The commit of the code that runs, where it is a checkout. An installed prunnet may lie in somebody's repository,
    such as one with a `.venv`, whose commit says nothing about it."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
