"""Reading the lists that data sets come with: any line ending, with or without a BOM, with blanks at line ends."""

from __future__ import annotations

import csv
import io
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunnet.data.sources.names import MAX_BYTES
from prunnet.data.sources.roots import Root
from prunnet.errors import DataError

csv.field_size_limit(MAX_BYTES)  # a landmark of gldv2 has its images in one field, more than the 128 KiB of default
_BLANKS = re.compile(rf"[{string.whitespace}]+")
"""Python's own split takes more for a blank, such as what Chinese file names may hold."""
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True)
class Lists:
    """The lists below a root. `home`: where the data set can be had, for who does not have them."""

    root: Root
    home: str

    def find(self, *names: str) -> str:
        """The first of some names that is there; DataError naming the first where none is."""
        sizes = self.root.sizes(names)
        for name, size in zip(names, sizes, strict=True):
            if size >= 0:
                return name
        others = f" (nor as {', '.join(names[1:])})" if len(names) > 1 else ""
        raise DataError(f"{names[0]!r} is not in {self.root.path!r}{others}; it can be had from {self.home}")

    def has(self, *names: str) -> bool:
        return bool((self.root.sizes(names) >= 0).any())

    def bytes(self, *names: str) -> bytes:
        name = self.find(*names)
        try:
            return self.root.read(name)
        except (OSError, KeyError) as error:
            raise DataError(f"{name!r} in {self.root.path!r} cannot be read ({type(error).__name__})") from None

    def text(self, *names: str, encoding: str = "utf-8-sig") -> str:
        """Bytes that are no text come as lone surrogates, as they do in the names of files."""
        try:
            text = self.bytes(*names).decode(encoding, "surrogateescape")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.find(*names)!r} in {self.root.path!r} is not {encoding} text: {error}") from None
        if "\0" in text:
            raise DataError(f"{self.find(*names)!r} in {self.root.path!r} is not {encoding} text: it holds zero bytes")
        return text

    def lines(self, *names: str) -> list[tuple[str, str]]:
        """(where, line) of every line that is not blank, stripped; `where` is for messages."""
        name = self.find(*names)
        rows = enumerate(io.StringIO(self.text(name), newline=None), start=1)
        stripped = ((number, line.strip(string.whitespace)) for number, line in rows)
        return [(f"{name}:{number}", line) for number, line in stripped if line]

    def columns(self, *names: str, count: int, skip: int = 0) -> Iterator[tuple[str, list[str]]]:
        """(where, fields) of every line after the first `skip`, cut at blanks into exactly `count` fields."""
        for where, line in self.lines(*names)[skip:]:
            fields = _BLANKS.split(line)
            if len(fields) != count:
                raise DataError(f"{where}: {line[:80]!r} has {len(fields)} fields; valid: {count}")
            yield where, fields

    def table(self, *names: str, header: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """(where, fields of `header`) of every row of a CSV file, whatever else it has and in whatever order."""
        name = self.find(*names)
        rows = csv.reader(io.StringIO(self.text(name), newline=""))
        try:
            given = [column.strip() for column in next(rows, [])]
            if missing := [column for column in header if column not in given]:
                raise DataError(f"{name!r} has columns {given[:8]}; missing: {', '.join(missing)}")
            places = [given.index(column) for column in header]
            for fields in rows:
                where = f"{name}:{rows.line_num}"
                if not any(field.strip() for field in fields):
                    continue
                if len(fields) < len(given):
                    raise DataError(f"{where}: {len(fields)} fields; valid: {len(given)}, as in the header")
                yield where, [fields[place].strip() for place in places]
        except csv.Error as error:
            raise DataError(f"{name}:{rows.line_num}: {error}") from None


def whole_number(text: str, where: str) -> int:
    """DataError where it is none, or too long for 64 bits."""
    if not _NUMBER.fullmatch(text):
        raise DataError(f"{where}: {text[:40]!r} is not a whole number of up to 18 digits")
    return int(text)
