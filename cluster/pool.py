"""Units of work on a pool of actors: retry, replacement of dead actors, and a report of what failed for good.

`ray.util.ActorPool` drops a dead actor together with its task; here neither is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayError

from prunnet.errors import one_line

Unit = TypeVar("Unit")
_NONE: Any = object()


@dataclass
class Outcome(Generic[Unit]):
    """Results of the units."""

    done: list[tuple[Unit, Any]] = field(default_factory=list)
    failed: list[tuple[Unit, str]] = field(default_factory=list)
    """Units that failed as often as allowed, each with its last error in one line."""
    retries: int = 0


class Pool(Generic[Unit]):
    """Actors that work through units.

    Args:
        start: makes one actor.
        size: how many there are.
        attempts: how often a unit is tried.
    """

    def __init__(self, start: Callable[[], Any], size: int, attempts: int) -> None:
        self._start: Callable[[], Any] | None = start
        self._attempts = attempts
        self.actors = [start() for _ in range(size)]

    @classmethod
    def of(cls, actors: Sequence[Any], attempts: int) -> Pool[Unit]:
        """A pool of actors that belong to another owner: it neither replaces nor ends them."""
        pool = cls.__new__(cls)
        pool._start, pool._attempts, pool.actors = None, attempts, list(actors)
        return pool

    def run(
        self,
        units: Iterable[Unit],
        call: Callable[[Any, Unit], ray.ObjectRef],
        *,
        on_done: Callable[[Unit, Any], None] | None = None,
        on_retry: Callable[[Unit, str], None] | None = None,
    ) -> Outcome[Unit]:
        """Runs every unit on some actor by `call(actor, unit)`; returns when all are done or have failed.

        A unit is taken from `units` when an actor is idle, not before: it may depend on what was done until then.
        """
        fresh, waiting = iter(units), deque[tuple[Unit, int]]()
        idle = deque(range(len(self.actors)))
        running: dict[ray.ObjectRef, tuple[int, Unit, int]] = {}
        outcome: Outcome[Unit] = Outcome()
        while True:
            while idle and (waiting or (more := next(fresh, _NONE)) is not _NONE):
                place, (unit, attempt) = idle.popleft(), waiting.popleft() if waiting else (more, 1)
                running[call(self.actors[place], unit)] = (place, unit, attempt)
            if not running:
                return outcome
            ready, _ = ray.wait(list(running), num_returns=1)
            place, unit, attempt = running.pop(ready[0])
            idle.append(place)
            try:
                result = ray.get(ready[0])
            except RayError as error:
                if isinstance(error, RayActorError) and self._start is not None:
                    ray.kill(self.actors[place])
                    self.actors[place] = self._start()
                self._again(unit, attempt, error, waiting, outcome, on_retry)
                continue
            outcome.done.append((unit, result))
            if on_done is not None:
                on_done(unit, result)

    def _again(
        self,
        unit: Unit,
        attempt: int,
        error: RayError,
        waiting: deque[tuple[Unit, int]],
        outcome: Outcome[Unit],
        on_retry: Callable[[Unit, str], None] | None,
    ) -> None:
        reason = one_line(getattr(error, "cause", None) or error)[:500]
        if attempt >= self._attempts:
            outcome.failed.append((unit, reason))
            return
        outcome.retries += 1
        waiting.append((unit, attempt + 1))
        if on_retry is not None:
            on_retry(unit, reason)

    def close(self) -> None:
        """Ends the actors, where they are the pool's own, and gives their resources back."""
        for actor in self.actors if self._start is not None else ():
            ray.kill(actor)
        self.actors = []
