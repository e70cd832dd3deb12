"""Recipes and single values from YAML text: plain data, or one line that says where the text is invalid.

Plain data are mappings with text as keys, lists, text, truth values, null, and numbers that are finite and fit 64 bits.
A date is text. Tags, duplicate keys, and aliases that would grow into megabytes are refused.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer, ComposerError
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from prunnet.errors import ConfigError, echo
from prunnet.storage.seal import read_text

MAX_BYTES = 2**20
"""Of a recipe; those that come with prunnet have a few thousand."""
MAX_DEPTH = 50
MAX_VALUES = 50_000
"""Keys and values, those counted again that an alias repeats."""
MAX_DIGITS = 64
"""Characters of a number."""
_CORE = "tag:yaml.org,2002:"
_MERGE = _CORE + "merge"
_UNFIT = re.compile("[\x00\ud800-\udfff]")
"""Characters that an escape can make and that no file name or UTF-8 text can hold."""


def read_yaml(path: str | Path) -> Any:
    """What a recipe's file holds, as plain data. ConfigError, in one line, where there is no such file, it is too large
    or no such text."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"recipe {echo(str(path))} is not a file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ConfigError(f"recipe {echo(str(path))} has {size:,} bytes; valid: up to {MAX_BYTES:,}")
    try:
        text = read_text(path).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {echo(str(path))} is not YAML: not UTF-8 at byte {error.start}") from None
    return parse_yaml(text, f"recipe {echo(str(path))}")


def parse_yaml(text: str, what: str) -> Any:
    """The plain data of some YAML text. ConfigError, in one line that begins with `what`, where it is anything else."""
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
        return None if node is None else _Values().of(node)
    except _Unfit as error:
        raise ConfigError(f"{what}, {error}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{what} is not YAML: {said[:300]}{where}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {' '.join(str(error).split())[:300]}") from None


class _Unfit(Exception):
    """What YAML allows and recipes do not; the message begins with the line."""

    def __init__(self, reason: str, node: Node) -> None:
        super().__init__(f"line {node.start_mark.line + 1}: {reason}")


class _Composer(Reader, Scanner, Parser, Composer, Resolver):
    """PyYAML's, without its constructors, which raise what they like."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        Resolver.__init__(self)
        self._depth = self._nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        mark = self.peek_event().start_mark
        self._depth += 1
        self._nodes += 1
        if self._depth > MAX_DEPTH or self._nodes > MAX_VALUES:
            deep = self._depth > MAX_DEPTH
            reason = f"nested deeper than {MAX_DEPTH} levels" if deep else f"more than {MAX_VALUES:,} values"
            raise ComposerError(None, None, reason, mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Values:
    """Plain data from nodes. An alias gives a copy of its own."""

    def __init__(self) -> None:
        self._count = 0
        self._open: set[int] = set()

    def of(self, node: Node) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise _Unfit(f"its aliases make more than {MAX_VALUES:,} values", node)
        if isinstance(node, ScalarNode):
            return _scalar(node)
        if id(node) in self._open:
            raise _Unfit("an alias holds itself", node)
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                _check_tag(node, "seq")
                return [self.of(child) for child in node.value]
            assert isinstance(node, MappingNode)
            _check_tag(node, "map")
            return self._mapping(node)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode) -> dict[str, Any]:
        """Its pairs, over those of the mappings that it merges (`<<`)."""
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                given = self.of(value_node)
                for mapping in given if isinstance(given, list) else [given]:
                    if not isinstance(mapping, dict):
                        raise _Unfit("<< merges mappings, and nothing else", value_node)
                    merged = {**mapping, **merged}
                continue
            key = self.of(key_node)
            if not isinstance(key, str):
                raise _Unfit(f"key {echo(key)} is not text; put it in quotes", key_node)
            if key in own:
                raise _Unfit(f"key {echo(key)} stands twice", key_node)
            own[key] = self.of(value_node)
        return {**merged, **own}


def _check_tag(node: Node, kind: str) -> None:
    if node.tag != _CORE + kind:
        raise _Unfit(f"tag {echo(_short(node.tag))} is not used in recipes", node)


def _scalar(node: ScalarNode) -> str | bool | int | float | None:
    """The value that YAML 1.1 gives a scalar, numbers in the bounds of this module."""
    text, kind = node.value, _short(node.tag)
    if kind in ("str", "timestamp", "merge", "value"):  # value: a lone =, which YAML 1.1 reserves
        if unfit := _UNFIT.search(text):
            raise _Unfit(f"text with the character {unfit[0]!r}, which no file name can have", node)
        return text
    if kind not in _READ:
        raise _Unfit(f"tag {echo(kind)} is not used in recipes", node)
    if kind in ("int", "float") and len(text) > MAX_DIGITS:
        raise _Unfit(f"a number of {len(text):,} characters; valid: up to {MAX_DIGITS}", node)
    try:
        value = _READ[kind](node)
    except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
        raise _Unfit(f"{echo(text)} is no {kind}", node) from None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _Unfit(f"{echo(text)} does not fit 64 bits", node)
    if isinstance(value, float) and not math.isfinite(value):
        raise _Unfit(f"{echo(text)} is not a finite number", node)
    return value


_SAFE = yaml.SafeLoader("")
_READ: dict[str, Any] = {
    "null": _SAFE.construct_yaml_null,
    "bool": _SAFE.construct_yaml_bool,
    "int": _SAFE.construct_yaml_int,
    "float": _SAFE.construct_yaml_float,
}


def _short(tag: str) -> str:
    return tag.removeprefix(_CORE)
