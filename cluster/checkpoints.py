"""Ray Train's checkpoints of one training, looked at before it goes on: a damaged one gives way to the one before, and
Ray's list of them, which Ray rewrites in place, is made again where it is torn."""

from __future__ import annotations

import json
from pathlib import Path

# Private, but the only description of the list that is sure to be what the installed Ray reads.
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)

from prunnet.errors import CheckpointError
from prunnet.storage.atomic import write_text
from prunnet.training import resume

KEPT = 2
"""Checkpoints that a training keeps: the newest, and one to fall back to."""
LIST = "checkpoint_manager_snapshot.json"


def mend(run: Path, training_hash: str) -> tuple[resume.Intact | None, list[str]]:
    """Makes sure that the training in `run` goes on from its newest intact checkpoint, which all workers then get.

    Without a list nothing was registered yet, or somebody removed the list to start over: nothing is done.

    Returns:
        The checkpoint that the training will go on from, if any, and what was mended, a line each, for the user; no
        line where nothing was damaged.

    Raises:
        CheckpointError: no checkpoint is intact; names each with its damage.
    """
    registered = run / LIST
    if not registered.exists():
        return None, []
    names = _named(registered)
    damaged: dict[str, str] = {}
    if names:
        intact, damaged = resume.intact([run / names[-1]], training_hash)
        if intact and all((run / name).is_dir() for name in names):
            return intact[0], []
    left = [path for path in run.glob("checkpoint_*") if path.name not in damaged]
    intact, others = resume.intact(sorted(left), training_hash)
    if not intact:
        found = "; ".join((damaged | others).values()) or "the folder holds none"
        raise CheckpointError(
            f"no checkpoint in {str(run)!r} is intact ({found}); remove that folder to train from the start"
        )
    kept = intact[-KEPT:]
    write_text(registered, _list(kept))
    newest = f"{kept[-1].folder.name} (step {kept[-1].step})"
    if damaged:
        return kept[-1], [f"{reason}; training goes on from {newest}" for reason in damaged.values()]
    return kept[-1], [f"{str(registered)!r} was torn and is made again; training goes on from {newest}"]


def _named(registered: Path) -> list[str] | None:
    """Folders that Ray's list names, the newest last; None where Ray could not read the list."""
    try:
        state = _CheckpointManagerState.parse_obj(json.loads(registered.read_text(encoding="utf-8")))
    except (ValueError, OSError):  # of JSON, of the encoding, of another version of Ray
        return None
    names = [result.checkpoint_dir_name for result in state.checkpoint_results]
    newest = state.latest_checkpoint_result
    fits = newest is not None and names and newest.checkpoint_dir_name == names[-1]
    if not fits or len(state.checkpoint_report_indices) != len(names):
        return None
    return names


def _list(kept: list[resume.Intact]) -> str:
    """Ray's list of some checkpoints, the newest last."""
    results = [_TrainingResultState(checkpoint_dir_name=found.folder.name, metrics=found.metrics) for found in kept]
    return _CheckpointManagerState(
        checkpoint_results=results,
        checkpoint_report_indices=list(range(len(results))),
        latest_checkpoint_result=results[-1],
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(results),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    ).json()
