"""Pictures side by side, with a line of text below each: one PNG for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from prunnet.errors import printable

GAP, LINE, FRAME = 6, 14, 3
"""Pixels between tiles, of a line of text, of a frame's width."""
HIT, MISS = "#1a9641", "#d7191c"
"""Colours of frames."""


@dataclass(frozen=True)
class Tile:
    """One place of a contact sheet."""

    picture: Image.Image | None
    """None: only the text."""
    text: str
    frame: str | None = None
    """Its colour."""


def drawn(rows: Sequence[Sequence[Tile | None]], side: int, apart: Collection[int] = ()) -> Image.Image:
    """A sheet of tiles whose pictures fit into `side` x `side` pixels; None leaves a place empty. Columns that stand
    `apart` have a wider gap on their left."""
    columns, step = max(map(len, rows)), side + GAP
    sheet = Image.new("RGB", (GAP + columns * step + GAP * len(apart), GAP + len(rows) * (step + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for down, row in enumerate(rows):
        top = GAP + down * (step + LINE)
        for across, tile in enumerate(row):
            if tile is None:
                continue
            left = GAP + across * step + GAP * sum(column <= across for column in apart)
            if tile.picture is not None:
                sheet.paste(_fitted(tile.picture, side), (left, top))
            if tile.frame:
                draw.rectangle((left, top, left + side - 1, top + side - 1), outline=tile.frame, width=FRAME)
            draw.text((left, top + side), printable(tile.text)[: side // 6], fill="black")
    return sheet


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """In the middle of a square; a picture that is smaller stays as it is."""
    picture = picture.copy()
    picture.thumbnail((side, side))
    square = Image.new("RGB", (side, side), "lightgrey")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
