"""Entries of a recipe's list that name a kind and its parameters: {name: {parameter: value}}, or a bare name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from prunnet.errors import ConfigError, echo, unknown

Kind = TypeVar("Kind", bound=BaseModel)


def made(item: Any, kinds: Mapping[str, type[Kind]], what: str) -> Kind:
    """The parameters that an entry states; `what` is what the kinds are called, such as "augmentation".

    Raises ConfigError, with the nearest valid name, for an entry that is not valid.
    """
    entry = {item: {}} if isinstance(item, str) else item
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigError(f"{echo(item)} is no {what}; valid: a name, or {{name: {{parameter: value}}}}")
    ((name, given),) = entry.items()
    if name not in kinds:
        raise ConfigError(unknown(what, str(name), kinds))
    kind, given = kinds[name], {} if given is None else given
    parameters = [found.alias or key for key, found in kind.model_fields.items()]
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name}: {echo(given)}; valid: parameters {', '.join(parameters) or '(none)'}")
    if odd := [key for key in given if key not in parameters]:
        raise ConfigError(unknown(f"parameter of {name}", str(odd[0]), parameters))
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        # What several parameters together do wrong is said whole by the message.
        shown = "" if isinstance(first["input"], Mapping) else f" (given: {echo(first['input'])})"
        raise ConfigError(f"{where}: {message}{shown}") from None
