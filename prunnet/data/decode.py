"""Encoded bytes to pixels, whatever real collections hold: grey, palette, CMYK and 16-bit images, EXIF rotation, and
headers that lie about their size."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from prunnet.errors import DataError

MAX_PIXELS = 128 * 2**20
"""Images of more pixels are refused unread: a file of some KB may claim the memory of the whole machine."""
Box = Sequence[float]
"""Left, top, right, bottom in pixels of the stored image."""


def decoded(data: bytes | memoryview, name: str, box: Box | None = None) -> Image.Image:
    """An upright image of mode L or RGB, cut to `box` before it is turned upright.

    Raises DataError, with `name`, for bytes that are no image, are torn, or claim more than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width * image.height} pixels")
                return _eight_bits(ImageOps.exif_transpose(_cut(image, box)))
    except Image.DecompressionBombError as error:
        digits = re.search(r"\d+", str(error))  # the number that the message begins with, ours or Pillow's
        claimed = f"{int(digits[0]):,}" if digits else "too many"
        raise DataError(f"image {name!r} is refused: it claims {claimed} pixels; valid: up to {MAX_PIXELS:,}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:80]
        raise DataError(f"image {name!r} cannot be read ({reason})") from None


def size_of(data: bytes | memoryview) -> tuple[int, int]:
    """Width and height that a header claims, without decoding; (0, 0) where there is no header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0


def _cut(image: Image.Image, box: Box | None) -> Image.Image:
    if box is None:
        image.load()
        return image
    left, top, right, bottom = (round(value) for value in box)
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ValueError(f"box {[left, top, right, bottom]} holds nothing of {image.width} x {image.height} pixels")
    part = image.crop(inside)
    part.info, exif = dict(image.info), image.getexif()
    part.getexif().update(exif)
    return part


def _eight_bits(image: Image.Image) -> Image.Image:
    """Mode L or RGB. Sixteen bits are scaled to eight; Pillow's own conversion would cut them off at 255."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        deep = image.mode != "F" or values.max(initial=0) > 255
        return Image.fromarray((values / (257 if deep else 1)).clip(0, 255).round().astype(np.uint8))
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
