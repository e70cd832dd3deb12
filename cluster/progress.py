"""Progress from workers to the terminal of the driver: a progress actor that workers write to and the driver reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@ray.remote(num_cpus=0)
class Board:
    """Holds the latest state of a training run."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def post(self, **state: Any) -> None:
        self._state.update(state)

    def state(self) -> dict[str, Any]:
        return self._state


def bar(console: Console) -> Progress:
    """A progress bar with counts, time gone and time left; plain lines where the output is no terminal."""
    return Progress(
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        refresh_per_second=2,
    )


@contextmanager
def watched(board: Any, console: Console) -> Iterator[None]:
    """Shows what workers post to the progress actor until the block ends: steps on a bar, a line an epoch."""
    stop = threading.Event()
    with bar(console) as progress:
        thread = threading.Thread(target=_follow, args=(board, progress, console, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10)


def _follow(board: Any, progress: Progress, console: Console, stop: threading.Event) -> None:
    task = progress.add_task("training", total=None, note="workers start")
    shown, noted = 0, 0
    while True:
        last = stop.wait(0.5)
        try:
            state = ray.get(board.state.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):
            return
        for note in state.get("notes", ())[noted:]:
            console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        noted = len(state.get("notes", ()))
        if "total" in state:
            progress.update(task, total=state["total"], completed=state["step"], note=f"epoch {state['epoch']}")
        history = state.get("history", [])
        for entry in history[shown:]:
            losses = "  ".join(f"{k.removeprefix('loss_')}: {v:.3f}" for k, v in entry.items() if k.startswith("loss_"))
            console.print(
                f"epoch {entry['epoch']:g}  {entry['seconds']:.0f} s  loss at capacity {losses}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        shown = len(history)
        if last:
            return
