"""A run's contact sheet: a few queries, and what the subnetwork of each capacity finds for them. The file holds
thumbnails of all images, so that the sheet can be drawn again where the data set is not."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunnet.errors import ResultsError
from prunnet.results.contact_sheet import HIT, MISS, Tile, drawn
from prunnet.storage.seal import read_json, write_json

SIDE = 96
"""Pixels of a thumbnail's longer side, at most."""
_SHOWN, _ABREAST = 64, 3
"""Pixels of a thumbnail in the PNG, and queries side by side."""
_Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]
"""Nothing else may stand where the page takes an image."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Found(_Part):
    """A gallery image that a query found."""

    image: Annotated[int, Field(ge=0)]
    """Its place among the sheet's images."""
    name: str
    """Of its class; "" where that is not known."""
    hit: bool
    """Whether it is what the query looks for."""


class Asked(_Part):
    """A query."""

    image: Annotated[int, Field(ge=0)]
    name: str
    found: tuple[tuple[Found, ...], ...]
    """For each capacity of the sheet, best first."""


class Sheet(_Part):
    """What the file holds."""

    made_of: str = ""
    """Hash of all that determines it."""
    left_out: str = ""
    """Why there is nothing to show."""
    capacities: tuple[float, ...] = ()
    """Of the queries' subnetworks, largest first."""
    gallery: float = 1.0
    """Capacity of the gallery's subnetwork."""
    compared: int = 0
    """Queries that were drawn, of which those that capacities disagree on come first."""
    queries: tuple[Asked, ...] = ()
    images: tuple[_Base64, ...] = ()
    """JPEG files."""

    @model_validator(mode="after")
    def _complete(self) -> Sheet:
        for asked in self.queries:
            if len(asked.found) != len(self.capacities):
                raise ValueError("a query without an answer of some capacity")
            if any(
                place >= len(self.images) for place in (asked.image, *(f.image for row in asked.found for f in row))
            ):
                raise ValueError("an image that the file does not hold")
        return self

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Sheet | None:
        """What `save` wrote; None where there is no file. ResultsError for a torn one."""
        try:
            return cls.model_validate(read_json(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError, RecursionError):
            raise ResultsError(f"contact sheet {str(path)!r} is torn; the job makes it anew") from None


def encoded(picture: Image.Image, side: int, quality: int) -> bytes:
    """A thumbnail as a JPEG file; a picture that is smaller keeps its size."""
    picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def as_png(sheet: Sheet) -> bytes:
    """The sheet as a picture: a block for each query, in it a row for each capacity, hits framed green, misses red.

    Raises ResultsError where its images are no thumbnails.
    """
    pictures = [_picture(text) for text in sheet.images]
    wide = 1 + max(len(row) for asked in sheet.queries for row in asked.found)

    def block(asked: Asked) -> list[list[Tile | None]]:
        rows: list[list[Tile | None]] = [[Tile(pictures[asked.image], asked.name or "query"), *[None] * (wide - 1)]]
        for capacity, found in zip(sheet.capacities, asked.found, strict=True):
            tiles = [Tile(pictures[f.image], f.name, HIT if f.hit else MISS) for f in found]
            rows.append([Tile(None, f"{capacity:g}"), *tiles, *[None] * (wide - 1 - len(tiles))])
        return rows

    lines: list[list[Tile | None]] = []
    for start in range(0, len(sheet.queries), _ABREAST):
        blocks = [block(asked) for asked in sheet.queries[start : start + _ABREAST]]
        lines += [[tile for row in rows for tile in row] for rows in zip(*blocks, strict=True)]
    abreast = min(_ABREAST, len(sheet.queries))
    file = io.BytesIO()
    drawn(lines, _SHOWN, apart=[wide * number for number in range(1, abreast)]).save(file, "PNG")
    return file.getvalue()


def _picture(text: str) -> Image.Image:
    """A thumbnail, letters of a few pixels enlarged."""
    try:
        opened = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("JPEG",))
        if max(opened.size) > SIDE:
            raise ValueError("larger than a thumbnail")
        picture = opened.convert("RGB")
    except (OSError, ValueError, binascii.Error, SyntaxError):
        raise ResultsError("the contact sheet holds an image that is none") from None
    scale = _SHOWN / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BILINEAR) if scale > 1 else picture
