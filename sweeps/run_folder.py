"""The files that jobs write into a run's folder, the marker file of a run, and the deletion by --fresh."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from prunnet.config.recipe import Recipe
from prunnet.errors import ConfigError
from prunnet.storage.atomic import write_text
from prunnet.storage.paths import is_url, remove
from prunnet.storage.yaml_reader import read_yaml

MARK = ".prunnet-run"
LOCK = ".lock"
MADE = (
    # capacity sweeps
    "recipe.yaml", "manifest.json", "pareto.png", "report.html", "sheet.json", "sheet.png",
    "model.safetensors", "model-*.safetensors",
    "paper/pareto.svg", "paper/matrix.*", "paper/capacities.*", "paper/rows.csv",
    "training/**", "features/**",
    "results/part-*.parquet", "results/trial-*/part-*.parquet",
    # ablations and searches
    "models/*.safetensors", "models/.*/**",
    "study.journal", "study.journal.lock", "trials.json", "search.*", "best.yaml",
    "front/trial-*.yaml", "trials/**", "tune/**",
    # layer-wise capacities
    "layerwise/*.journal", "layerwise/*.journal.lock", "layerwise/*.safetensors", "layerwise/layerwise.json",
)  # fmt: skip
"""Patterns of all files that jobs make in a run's folder; `**` is a whole tree. A job that writes a new file adds
it."""
FRONT = ("front/trial-*.yaml",)
_TEMPORARY = ".*.[0-9]*.tmp"
"""Temporary files of killed writers, in any of the folders."""
_OURS = (MARK, LOCK)
_IGNORED = (*_OURS, ".DS_Store", "Thumbs.db", "desktop.ini")
Pattern = tuple[str, ...]


def check_folder(folder: Path, *, fresh: bool) -> None:
    """ConfigError if a job must not write into a folder or empty it: the user's home, a folder above it, or a folder
    that holds other files and is not a run's."""
    home = Path(os.path.realpath(os.path.expanduser("~")))
    if not is_url(folder) and folder in (home, *home.parents):
        raise ConfigError(f"run folder {str(folder)!r} holds your home directory; set another name or cluster.storage")
    if not is_url(folder) and folder.exists() and not folder.is_dir():
        raise ConfigError(f"run folder {str(folder)!r} is a file; set another name or cluster.storage")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if name not in _IGNORED]
    if not foreign or MARK in names or _is_older_run(folder, names):
        return
    taken = [name for name in foreign if any(fnmatchcase(name, pattern[0]) for pattern in _parsed(MADE))]
    if fresh or taken:
        does = "empties only a run's folder" if fresh else "would overwrite what no run made"
        what = "--fresh" if fresh else "the job"
        raise ConfigError(
            f"{str(folder)!r} is not the folder of a run, and holds {_listed(taken or foreign)}: {what} {does}; set "
            "another name or cluster.storage"
        )


def mark_folder(folder: Path) -> None:
    """Marks a folder as a run's."""
    if not (folder / MARK).exists():
        write_text(folder / MARK, "A run of prunnet. --fresh deletes what jobs made here, and nothing else.\n")


def clear(folder: Path, patterns: Sequence[str] = MADE) -> list[str]:
    """Deletes what jobs made in a folder; returns the names of what it left, relative to the folder.

    Symbolic links are removed, and never followed. Raises ConfigError where something cannot be deleted.
    """
    made, foreign = _sorted_out(folder, _parsed(patterns))
    for path in made:
        remove(path)
    if left := [path for path in made if not is_url(path) and os.path.lexists(path)]:
        raise ConfigError(f"{str(left[0])!r} cannot be deleted; is it somebody else's?")
    return sorted(str(path)[len(str(folder)) :].strip("/") for path in foreign)


def note_of(left: Sequence[str]) -> str:
    """The note on files that were left."""
    return f"left as they were, since no job made them: {_listed(left)}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _parsed(patterns: Sequence[str]) -> list[Pattern]:
    return [tuple(pattern.split("/")) for pattern in patterns]


def _sorted_out(folder: Path, patterns: Sequence[Pattern]) -> tuple[list[Path], list[Path]]:
    """(files that jobs made, other files) in a folder. A folder that holds only files of jobs is listed as a whole."""
    made: list[Path] = []
    foreign: list[Path] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in _IGNORED:
            continue
        link = not is_url(path) and path.is_symlink()
        is_folder = path.is_dir() and not link
        rest = [pattern[1:] for pattern in patterns if fnmatchcase(path.name, pattern[0])]
        if fnmatchcase(path.name, _TEMPORARY):
            made.append(path)
        elif not is_folder:
            # A link may replace one of the folders, for example with one on a larger disk.
            (made if any(link or not below for below in rest) else foreign).append(path)
        elif ("**",) in rest:
            made.append(path)
        elif deeper := [below for below in rest if below]:
            inner, others = _sorted_out(path, deeper)
            made += inner if others else [path]
            foreign += others
        else:
            foreign.append(path)
    return made, foreign


def _is_older_run(folder: Path, names: Sequence[str]) -> bool:
    """Whether jobs of versions without the marker file wrote into this folder."""
    return any(found for found in _traces(folder, names))


def _traces(folder: Path, names: Sequence[str]) -> Iterator[bool]:
    def holds(name: str, pattern: str) -> bool:
        below = folder / name
        return name in names and below.is_dir() and any(fnmatchcase(path.name, pattern) for path in below.iterdir())

    if "manifest.json" in names:
        yield "unit_keys" in _mapping(folder / "manifest.json")
    if "recipe.yaml" in names:  # a run's recipe has all sections, a user's own may not
        yield set(Recipe.model_fields) <= set(_mapping(folder / "recipe.yaml"))
    yield "study.journal" in names or {"search.json", "trials.json"} <= set(names)
    yield holds("training", "train-*")
    results = holds("results", "part-*.parquet") or holds("results", "trial-*")
    yield results and (any(fnmatchcase(name, "model*.safetensors") for name in names) or "models" in names)


def _mapping(path: Path) -> dict[str, object]:
    """What a JSON or YAML file holds; nothing where it is torn or something else."""
    try:
        found = json.loads(path.read_bytes()) if path.suffix == ".json" else read_yaml(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
