"""How a driver ends before its work is done: on a signal, or because Ray's own processes died. In both cases it prints
one line, ends within ten seconds with the documented exit code, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn

import psutil
from rich.console import Console

from prunnet import guard
from prunnet.redact import shown

GRACE_SECONDS = 7.0
"""How long a stopped driver may take to close its session before `os._exit` ends it."""
AGAIN = "run the same command again to go on"
_LOOK_EVERY_SECONDS = 0.1
_LOST_SECONDS = 50.0
"""How long a head may not answer before the cluster counts as lost. A head that restarts (with Redis) answers sooner;
after 60 s Ray itself ends its drivers."""


class Stopped(guard.Stopped):
    """A signal asked this driver to end."""

    def __init__(self, signum: int, family: Sequence[psutil.Process]) -> None:
        super().__init__(signum, f"; {AGAIN}")
        self.family = family
        """All descendants of this process when the signal came: once their parents have ended, they cannot be found."""

    def clean_up(self) -> None:
        end({*self.family, *family()}, patience=1)


def stoppable() -> AbstractContextManager[None]:
    """As `guard.stoppable`. If `Stopped` does not end the block (C code keeps running, or a destructor swallows it),
    the process ends after GRACE_SECONDS, or at once at a second signal."""

    def make(signum: int) -> Stopped:
        stopped = Stopped(signum, family())
        threading.Thread(target=_after_grace, args=(stopped,), daemon=True).start()
        return stopped

    return guard.stoppable(make, _leave)


def _after_grace(stopped: Stopped) -> None:
    time.sleep(GRACE_SECONDS)
    _leave(stopped)


def _leave(stopped: guard.Stopped) -> NoReturn:
    leave(stopped.code, str(stopped), stopped.family if isinstance(stopped, Stopped) else ())


def family() -> list[psutil.Process]:
    """All processes below this one."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []


def end(processes: Iterable[psutil.Process], patience: float = 0.0) -> None:
    """Kills those of some processes that do not end by themselves."""
    _, alive = psutil.wait_procs([*processes], timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=2)


def leave(code: int, line: str, processes: Iterable[psutil.Process] = ()) -> NoReturn:
    """Ends this process at once, from any thread, with a line for the user and all processes below it."""
    known = {*processes, *family()}
    console = Console(stderr=True, soft_wrap=True)
    with contextlib.suppress(OSError, ValueError):
        console.show_cursor()
        console.print(f"error: {shown(line)}", style="red", markup=False)
        sys.stdout.flush()
    end(known)
    os._exit(code)


@contextmanager
def depending_on(cluster: str, processes: Sequence[psutil.Process], answers: Callable[[], bool]) -> Iterator[None]:
    """Ends this process, with exit code 2, when Ray's own processes are lost. Ray itself would wait for a minute and
    then end its driver in C++, with exit code 1 and a screen of its log.

    Args:
        cluster: for the message.
        processes: processes of this machine that the cluster needs.
        answers: whether the cluster's head does.
    """
    over = threading.Event()
    known = family()

    def watch() -> None:
        heard = time.monotonic()
        while not over.wait(_LOOK_EVERY_SECONDS):
            dead = [name for name, process in names.items() if _dead(process)]
            if time.monotonic() - heard > _LOST_SECONDS / 10 and answers():
                heard = time.monotonic()
            silent = time.monotonic() - heard > _LOST_SECONDS
            if (dead or silent) and not over.is_set():
                lost = f"Ray's {dead[0]} process died" if dead else "its head does not answer"
                leave(2, f"{cluster} is lost ({lost}); {AGAIN}", known)

    names = {process.name(): process for process in processes}
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _dead(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
