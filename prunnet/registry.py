"""Members of a kind (methods, losses, granularities, data sets, ...) by name: those of prunnet, and those that an
installed package brings by a Python entry point. Standard library only.

A package brings a member by naming one object in its pyproject.toml, `ndpp2 = "my_package.ndpp2:METHOD"` below
`[project.entry-points."prunnet.methods"]`. It is imported when its name is asked for, or a list of all names is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from prunnet.errors import ConfigError, one_line, unknown

Member = TypeVar("Member")
Named = str | Callable[..., Any]
"""A class or function, or "module:attribute", for what should not be imported yet."""


def resolve(named: Named) -> Any:
    """The class or function itself."""
    if not isinstance(named, str):
        return named
    module, _, attribute = named.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Registry(Mapping[str, Member], Generic[Member]):
    """name -> member. A name that is not known is a ConfigError, which lists those that are.

    Args:
        what: what a member is called where a name is refused, such as "train.method".
        group: group of the entry points, such as "prunnet.methods".
        own: prunnet's members by name. A string "module:attribute" is imported when the member is asked for: a recipe
            is read without torch.
        kind: the type that every member must have; ConfigError for another.
    """

    def __init__(self, what: str, group: str, own: Mapping[str, Member | str], kind: type | None = None) -> None:
        self.what, self.group, self.kind = what, group, kind
        self._own = dict(own)
        self._brought: dict[str, Member] = {}

    def __getitem__(self, name: str) -> Member:
        if name in self._own:
            member = self._own[name]
            return self._imported(name, member) if isinstance(member, str) else member
        if name not in self._brought:
            found = self._entry_points()
            if name not in found:
                raise ConfigError(unknown(self.what, str(name), self))
            self._brought[name] = self._load(found[name])
        return self._brought[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._brought or name in self._entry_points()

    def __iter__(self) -> Iterator[str]:
        return iter((*self._own, *(name for name in sorted(self._entry_points()) if name not in self._own)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def _imported(self, name: str, reference: str) -> Member:
        member: Member = resolve(reference)
        self._own[name] = member
        return member

    def _load(self, point: EntryPoint) -> Member:
        brought_by = f"{self.what}={point.name!r}, brought by {point.dist.name if point.dist else 'a package'}"
        try:
            member = point.load()
        except Exception as error:  # another's code may raise anything
            raise ConfigError(f"{brought_by}, cannot be imported from {point.value!r}: {one_line(error)}") from error
        if self.kind is not None and not isinstance(member, self.kind):
            raise ConfigError(
                f"{brought_by}: {point.value!r} is a {type(member).__name__}; valid: a {self.kind.__name__}"
            )
        found: Member = member
        return found
