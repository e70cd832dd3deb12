"""Errors that a user can cause. Each message is one line: what was given, what is valid, where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrunnetError(ValueError):
    """Base of all errors that a user can cause and mend."""


class ConfigError(PrunnetError):
    """A recipe, an override or an argument that is not valid."""


class DataError(PrunnetError):
    """A data set that cannot be read or does not serve its purpose."""


class DataWarning(UserWarning):
    """What a user should know of a copy of a data set that serves all the same."""


class CheckpointError(PrunnetError):
    """A saved file that is not what it should be."""


class ResourceError(PrunnetError):
    """A job asks for more than the cluster has."""


class ResultsError(PrunnetError):
    """A results folder that holds something torn or foreign."""


def unknown(what: str, given: str, valid: Iterable[str]) -> str:
    """One line naming the nearest valid name: `unknown backbone 'resnet19'; did you mean 'resnet18'? …`."""
    names = sorted(valid)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(map(printable, names)) if len(names) <= 30 else f"{len(names)} names"
    return f"unknown {what} {given!r};{hint} valid: {shown}"


def printable(name: str) -> str:
    """A name of a file as it can be printed anywhere: bytes that are no UTF-8, line ends and the like as escapes."""
    return name if name.isprintable() else repr(name)[1:-1]


def one_line(error: BaseException) -> str:
    """The error as one line, for tables and terminals."""
    return " ".join(f"{type(error).__name__}: {error}".split())
