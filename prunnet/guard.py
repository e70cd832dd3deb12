"""How a command ends: with one line instead of a traceback, and the documented exit code. The jobs and the commands of
the analysis share it; it needs the standard library only.

0 done; 2 what the command is given or runs on cannot serve; 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

from prunnet.errors import from_outside, printable, told

NAMES = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGTERM: "SIGTERM"}
_COLOURS = {"red": 31, "yellow": 33}


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, signum: int, further: str = "") -> None:
        super().__init__(f"stopped by {NAMES[signal.Signals(signum)]}{further}")
        self.code = 128 + signum

    def clean_up(self) -> None:
        """What must be done before the process ends: here nothing."""


@contextmanager
def guarded(stopping: AbstractContextManager[None] | None = None) -> Iterator[None]:
    """Ends a command with one line and its exit code; a bug of ours keeps its traceback.

    `stopping`: raises `Stopped` in the block when a signal comes; None: `stoppable()`.
    """
    any_encoding()
    try:
        with stopping or stoppable(), _without_traceback():
            yield
    except Stopped as stopped:
        stopped.clean_up()
        say(str(stopped), "yellow")
        sys.exit(stopped.code)


@contextmanager
def stoppable(
    make: Callable[[int], Stopped] = Stopped, at_second: Callable[[Stopped], NoReturn] | None = None
) -> Iterator[None]:
    """SIGINT and SIGTERM raise a `Stopped` in the block. It also leaves the block, even if other code catches it or
    raises another exception in its place: typer and Ray do.

    Args:
        make: the exception of a signal's number.
        at_second: ends the process at a second signal, also after the block, while the interpreter ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    stopped: list[Stopped] = []

    def stop(signum: int, frame: object) -> None:
        if stopped and at_second is not None:
            at_second(stopped[0])
        stopped.append(make(signum))
        raise stopped[0]

    before = {each: signal.getsignal(each) for each in NAMES}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup and a shell's `&` ask for
            signal.signal(each, stop)
    try:
        yield
    except BaseException:
        if stopped:
            raise stopped[0] from None
        raise
    else:
        if stopped:
            raise stopped[0]
    finally:
        if not (stopped and at_second):
            for each, handler in before.items():
                signal.signal(each, handler)


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
    say(f"error: {said}", "red")
    sys.exit(2)


def say(line: str, colour: str) -> None:
    """A line to standard error."""
    if sys.stderr is None:
        return
    text = printable(line)
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        text = f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
        print(text, file=sys.stderr, flush=True)


def any_encoding() -> None:
    """Lets standard output and error write every string: a character that their encoding lacks becomes an escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def silence(stream: Any) -> None:
    """Sends what is still written to a stream nowhere: neither a closed pipe nor a full disk fails a second time, when
    the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
