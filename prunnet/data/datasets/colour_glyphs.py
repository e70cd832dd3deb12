"""`colour_glyphs`: the letters of `glyphs` in colour over textures, for three channels and larger images.

Ink and ground each have a texture of their own (coloured noise of a random coarseness) around a random colour, and
there is light from one side; only the outline tells the class. Needs no download; the same seed gives the same bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from prunnet.config.recipe import DataConfig
from prunnet.data.base import Dataset
from prunnet.data.datasets.glyphs import Glyph, distorted_ink, rendered
from prunnet.data.description import Rendered
from prunnet.errors import DataError

SIDE = 96
_APART = 0.35
"""Least distance of the two colours, of sqrt(3) at most, so that a letter can be seen."""


def load(config: DataConfig) -> Dataset:
    """The data set of a recipe; DataError where it asks for grey images."""
    if config.channels != 3:
        raise DataError(f"data.name=colour_glyphs with data.channels={config.channels}; valid: 3 (grey: glyphs)")
    return rendered("colour_glyphs", config, render)


def render(glyph: Glyph, seed: list[int], side: int = SIDE) -> Image.Image:
    """One image [side, side], RGB."""
    rng = np.random.default_rng([*seed, 5])
    share = np.asarray(distorted_ink(glyph, rng, side), dtype=np.float64)[..., None] / 255
    ground, ink = _colours(rng)
    values = _textured(ground, side, rng) * (1 - share) + _textured(ink, side, rng) * share
    values = values * _light(side, rng) + rng.normal(0, rng.uniform(0.0, 0.05), values.shape)
    return Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8), mode="RGB")


def _colours(rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two colours [3] in 0 … 1 that differ; which one is darker is left to chance."""
    while True:
        pair = rng.random((2, 3))
        if np.linalg.norm(pair[0] - pair[1]) > _APART:
            return pair[0], pair[1]


def _textured(colour: npt.NDArray[np.float64], side: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A colour [3] with noise of two coarsenesses around it: [side, side, 3]."""
    values = np.broadcast_to(colour, (side, side, 3)).copy()
    for cells in (int(rng.integers(2, 7)), int(rng.integers(8, 25))):
        noise = rng.normal(0, rng.uniform(0.02, 0.12), (cells, cells, 3)).astype(np.float32)
        channels = [Image.fromarray(noise[..., c]).resize((side, side), Image.Resampling.BICUBIC) for c in range(3)]
        values += np.stack([np.asarray(channel) for channel in channels], axis=-1)
    return values


def _light(side: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Brightness that falls off along a random direction: [side, side, 1]."""
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    return (1 + strength * (rows * np.sin(angle) + columns * np.cos(angle)))[..., None]


DATASET = Rendered(
    "the letters of `glyphs` in colour over textures",
    load,
    options=("classes", "images_per_class", "protocol", "queries_per_class"),
)
