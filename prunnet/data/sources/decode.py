"""Encoded bytes to pixels, whatever real collections hold: grey, palette, CMYK, 16-bit and transparent images, EXIF
rotation, and headers that lie about their size. Of files with several images (animations, pages) the first is read.

Formats that Pillow hands to another program or library to draw (EPS to Ghostscript, WMF), and those that may hold one
of them (IPTC), are never opened, whatever a file's suffix says.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from prunnet.errors import DataError

# Pillow warns of large images and broken tags; the limit is ours. Here and not around each image: catch_warnings is for
# one thread, and images are decoded in many.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 128 * 2**20
"""Images of more pixels are refused unread: a file of some KB may claim the memory of the whole machine."""
Box = Sequence[float]
"""Left, top, right, bottom in pixels of the stored image."""
Colour = tuple[int, int, int]
"""Red, green, blue in 0 … 255."""
WHITE: Colour = (255, 255, 255)
# fmt: off
_FORMATS = frozenset((
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO", "IM", "IMT",
    "JPEG", "JPEG2000", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF",
    "WEBP", "XBM", "XPM", "XVTHUMB",
))
# fmt: on
"""What Pillow decodes itself; a list of what is allowed, so that a format which comes with a plugin is not opened."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation."""


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Names of the image formats that are opened, of those that this build of Pillow has."""
    Image.init()
    return tuple(sorted(_FORMATS & set(Image.OPEN)))


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that are taken for images, such as `.jpg`."""
    known = set(formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def decoded(data: bytes | memoryview, name: str, box: Box | None = None, background: Colour = WHITE) -> Image.Image:
    """An upright image of mode L or RGB, cut to `box` before it is turned upright.

    Args:
        background: what shows through transparent pixels.

    Raises DataError, with `name`, for bytes that are no image, are torn, claim more than MAX_PIXELS, or whose values
    may mean more than one thing.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width * image.height} pixels")
            opaque = _opaque(_loaded(image, data, name), box, background)
            orientation = _orientation(image)
        # Pillow's exif_transpose would also write the EXIF block anew, which fails where a tag in it is broken.
        return opaque.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else opaque
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        digits = re.search(r"\d+", str(error))  # the number that the message begins with, ours or Pillow's
        claimed = f"{int(digits[0]):,}" if digits else "too many"
        raise DataError(f"image {name!r} is refused: it claims {claimed} pixels; valid: up to {MAX_PIXELS:,}") from None
    except Exception as error:  # decoders of three dozen formats raise whatever they trip over in foreign bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:80]
        raise DataError(f"image {name!r} cannot be read ({reason})") from None


def size_of(data: bytes | memoryview) -> tuple[int, int]:
    """Width and height that a header claims, without decoding; (0, 0) where there is no header."""
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            return image.size
    except Exception:  # as in `decoded`
        return 0, 0


def _orientation(image: Image.Image) -> int | None:
    """Of an image that is loaded: Pillow turns TIFF files when it loads them, and drops the tag."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # an EXIF block that cannot be parsed says nothing; viewers show such images as they are stored
        return None


def _loaded(image: Image.Image, data: bytes | memoryview, name: str) -> Image.Image:
    """The image in one of the modes L, RGB, LA, RGBA, P or PA (a colour key made an alpha channel)."""
    tiles = getattr(image, "tile", [])
    depth = tiles[0][3] if tiles else ""  # of PNG files, which alone have such keys: Pillow's name of the stored bits
    key = image.info.get("transparency")
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = Image.fromarray(_eight_bits(values, image, name))
        return grey if not isinstance(key, int) else _keyed(grey, values == key)
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == "RGBA" and image.format == "TGA" and not data[17] & 0x0F:
        return image.convert("RGB")  # the header says that the fourth byte is no alpha; it is often 0
    if key is None or image.mode not in ("L", "RGB"):
        return image
    scale = {"L;2": 85, "L;4": 17}.get(str(depth), 1)  # the key is of the stored depth, the pixels are of eight bits
    wanted = np.asarray(key) >> 8 if depth == "RGB;16B" else np.asarray(key) * scale
    pixels = np.asarray(image)
    return _keyed(image, (pixels == wanted).all(axis=-1) if pixels.ndim == 3 else pixels == wanted)


def _keyed(image: Image.Image, clear: npt.NDArray[np.bool_]) -> Image.Image:
    """L or RGB with the pixels [H, W] that a colour key makes transparent."""
    keyed = image.copy()
    keyed.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return keyed


def _eight_bits(values: npt.NDArray[np.generic], image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    """Grey values [H, W] of more than eight bits to 0 … 255; DataError where their scale cannot be told.

    16-bit files hold 0 … 65535. Of floats, 0 … 1 and 0 … 255 are told apart by the largest value.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if values.dtype.kind == "f":
        if 0 <= low <= high <= 1:
            return (values * 255).round().astype(np.uint8)
        # Below 16, 0 … 255 would be a black image: rather bright spots of a picture whose white is 1.
        if 0 <= low <= high <= 255 and (high >= 16 or np.array_equal(values, values.round())):
            return values.round().astype(np.uint8)
        raise DataError(
            f"image {name!r} is refused: floats of {low:g} to {high:g}; valid: 0 to 1, or 0 to 255 and more than 16"
        )
    deep = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")  # Pillow scales the latter to 65535
    if low < 0 or high > 65535 or (not deep and 0 < high <= 255):
        raise DataError(
            f"image {name!r} is refused: {'16' if deep else '32'}-bit whole numbers of {low:.0f} to {high:.0f}, whose "
            "white may be 255, 65535 or else; valid: files of 8 or 16 bits"
        )
    levels = values.astype(np.uint32)
    levels += 128
    levels //= 257  # rounded to the nearest; 257 is odd, so nothing lies half-way
    return levels.astype(np.uint8)


def _opaque(image: Image.Image, box: Box | None, background: Colour) -> Image.Image:
    """Mode L or RGB, cut to the box, over the background."""
    image = _cut(image, box)
    if image.mode in ("PA", "P", "La", "RGBa"):
        plain = image.mode == "P" and "transparency" not in image.info
        image = image.convert("RGB" if plain else "LA" if image.mode == "La" else "RGBA")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode not in ("LA", "RGBA"):
        return image.convert("RGB")
    mode = "L" if image.mode == "LA" and len(set(background)) == 1 else "RGB"
    below = Image.new(mode, image.size, background[0] if mode == "L" else background)
    below.paste(image.convert(mode), mask=image.getchannel("A"))
    return below


def _cut(image: Image.Image, box: Box | None) -> Image.Image:
    if box is None:
        return image
    left, top, right, bottom = (round(value) for value in box)
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ValueError(f"box {[left, top, right, bottom]} holds nothing of {image.width} x {image.height} pixels")
    return image.crop(inside)
