"""Errors that a user can cause. Each message is one line: what was given, what is valid, where."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable

from prunnet.redact import shown

ECHO = 200
"""Characters of a given value that a message repeats, at most."""
MESSAGE = 2000
"""Characters of a message, at most."""
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, changes of the writing direction, and bytes of names that are not UTF-8."""
_FOREIGN = {
    "optuna.exceptions": "OptunaError",
    "pyarrow": "ArrowException",
    "ray.exceptions": "RayError",
    "rich.errors": "MarkupError",
    "safetensors": "SafetensorError",
    "sqlalchemy.exc": "SQLAlchemyError",
    "struct": "error",
    "yaml": "YAMLError",
    "zipfile": "BadZipFile",
    "zlib": "error",
}
"""Modules of libraries, and the errors that they raise for files, processes and services that fail."""


class PrunnetError(ValueError):
    """Base of all errors that a user can cause and mend. Credentials of URLs in its message are masked."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(shown(part) if isinstance(part, str) else part for part in said))


class ConfigError(PrunnetError):
    """A recipe, an override or an argument that is not valid."""


class DataError(PrunnetError):
    """A data set that cannot be read or used."""


class DataWarning(UserWarning):
    """A note on a copy of a data set that can be used nevertheless."""


class CheckpointError(PrunnetError):
    """A saved file that is missing, damaged or of another kind."""


class ResourceError(PrunnetError):
    """A job asks for more than the cluster has."""


class ResultsError(PrunnetError):
    """A results folder that holds something torn or foreign."""


def from_outside(error: BaseException) -> bool:
    """Whether an error comes from input or environment: a user's mistake, a damaged file, a full disk, too little
    memory, a library that refuses its input. Anything else, such as TypeError, is a bug of ours."""
    if isinstance(error, (PrunnetError, OSError, RuntimeError, MemoryError, UnicodeError, EOFError)):
        return True
    raised = [getattr(sys.modules.get(module), name, None) for module, name in _FOREIGN.items()]
    return any(isinstance(error, kind) for kind in raised if kind is not None)  # not loaded: raised nothing


def echo(value: object) -> str:
    """A given value for a message: its `repr`, cut where it is long, credentials of URLs masked."""
    text = shown(repr(value[: ECHO + 1] if isinstance(value, (str, bytes)) else value))
    return text if len(text) <= ECHO else f"{text[:ECHO]}…"


def unknown(what: str, given: str, valid: Iterable[str]) -> str:
    """One line naming the nearest valid name: `unknown backbone 'resnet19'; did you mean 'resnet18'? …`."""
    names = sorted(valid)
    near = difflib.get_close_matches(given[:ECHO], names, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    valid = ", ".join(map(printable, names)) if len(names) <= 30 else f"{len(names)} names"
    return f"unknown {what} {echo(given)};{hint} valid: {valid}"


def printable(text: str) -> str:
    """A name or a message on one line: what a terminal would act on, instead of showing it, and bytes that are no UTF-8
    become escapes such as `\\x1b`; credentials of URLs are masked."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), shown(text))


def one_line(error: BaseException) -> str:
    """The error as one line, for tables and terminals; credentials of URLs are masked."""
    return shown(" ".join(f"{type(error).__name__}: {error}".split()))


def told(error: BaseException) -> str:
    """The error as one line for a user: its message, prefixed by the exception's type where the type is needed to
    understand it; credentials of URLs are masked."""
    cause = getattr(error, "cause", None)  # Ray's, of what a task raised, whose own message is a traceback
    error = cause if isinstance(cause, Exception) else error
    plain = isinstance(error, (PrunnetError, OSError, RuntimeError)) and not isinstance(error, RecursionError)
    text = " ".join(str(error).split()) if plain else ""
    return shown(text)[:MESSAGE] or one_line(error)[:500]
