"""Texts that a spreadsheet takes for a formula, made plain."""

from __future__ import annotations

_STARTS = "=+-@\t\r\n＝＋－＠"
"""What a formula can begin with, also in full-width form; OWASP's list of CSV injections."""


def plain_cell(text: str | None) -> str | None:
    """A text for a CSV file that a spreadsheet may open: an apostrophe precedes what it would run, such as
    `=cmd|…` as the name of a file. Texts that are numbers stay as they are.

    No two texts become one: of an apostrophe that stands before a formula already, there are two then.
    """
    start = (text or "").lstrip(" '")[:1]
    if not text or not start or start not in _STARTS or _is_number(text):
        return text
    return "'" + text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isprintable()
