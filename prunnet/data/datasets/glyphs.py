"""`glyphs`: letters of many scripts rendered from the fonts that matplotlib ships. Needs no download.

A class is a distinct outline: code points that share one in any font are one class, and held-out scripts keep
no outline that a training script has. Training scripts, validation scripts and test scripts do not overlap,
so the test asks for letters of alphabets that were never seen.

The same seed gives the same bytes for the same fonts (pinned by hash) and rasteriser (FreeType in Pillow).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fontTools import unicodedata as scripts
from fontTools.ttLib import TTFont
from PIL import Image, ImageChops, ImageFilter, ImageFont

from prunnet.config.recipe import DataConfig
from prunnet.data.base import Dataset, MemoryImages, RetrievalTest, label_ids, split_queries
from prunnet.data.description import Rendered
from prunnet.data.rendered import Arrays, kept
from prunnet.data.transforms import Preprocessing
from prunnet.errors import DataError

TRAIN_SCRIPTS = ("Latn", "Grek", "Cyrl", "Cans", "Copt", "Lisu")
VALIDATION_SCRIPTS = ("Arab", "Laoo")
TEST_SCRIPTS = ("Armn", "Geor", "Hebr", "Nkoo", "Tfng")

FONTS = {  # matplotlib's text fonts; LastResort (placeholders) and the symbol fonts are left out on purpose
    "DejaVuSans.ttf": "3fdf69cabf06049ea70a00b5919340e2ce1e6d02b0cc3c4b44fb6801bd1e0d22",
    "DejaVuSans-Bold.ttf": "b184b89e3c1075f22f6b71575b6fc20d4972b3cfd3b23322ca6fd596dcaef167",
    "DejaVuSans-BoldOblique.ttf": "6edf0283160186af451cbee71e7b845f2e4cabf264bb992ce668c83c25465e6f",
    "DejaVuSans-Oblique.ttf": "ccdf74b350f11fd3dd5774de50e5e6346a1a5da1f5b7d5fb83590665e97a5213",
    "DejaVuSansMono.ttf": "602ec86b8948cfcd956482fe64f94c36c867770149ef2f791d4613f443bcecb3",
    "DejaVuSansMono-Bold.ttf": "baada9a5172fe20886251aff0433fc38461912d5daf07287e7bee56620a8da96",
    "DejaVuSerif.ttf": "107244956e9962b9e96faccdc551825e0ae0898ae13737133e1b921a2fd35ffa",
    "DejaVuSerif-Bold.ttf": "c3753f2ed6bc673f15846dc45addbeb3b9c872f32fb18fd53a21f1bef1ed7676",
    "DejaVuSerif-Italic.ttf": "3e7994fbc54fa10ce3352a42d548fadd7d9cadb69cb1109bc9d960f6dac57f04",
    "DejaVuSerif-BoldItalic.ttf": "d93efec7a9d2e826768d1a2ee95b95870e15e29599a84f3484af1de1cec2e181",
}
_MASTER = 64
"""Pixels an em when an outline is rasterised, before any distortion."""


@dataclass(frozen=True)
class Glyph:
    """A class: its lowest code point, script, and the masters (one a font that has it)."""

    code: int
    script: str
    masters: tuple[Image.Image, ...]

    @property
    def name(self) -> str:
        return f"{self.script}/{self.code:06X}"


Renderer = Callable[[Glyph, list[int]], Image.Image]
"""A glyph and a seed -> one image."""


def load(config: DataConfig) -> Dataset:
    """The data set of a recipe: `classes` training letters at most, `images_per_class` images each."""
    return rendered("glyphs", config, render)


def rendered(name: str, config: DataConfig, renderer: Renderer) -> Dataset:
    """Letters of training, validation and test scripts as some renderer draws them."""
    preprocessing = Preprocessing.from_config(config)
    _font_files()  # refuses other fonts than those of FONTS
    arrays = kept(
        [name, config.seed, config.classes, config.images_per_class, preprocessing.to_json(), FONTS],
        [renderer, render, Preprocessing],
        lambda: _rendered(config, preprocessing, renderer),
    )
    images, names = {}, {}
    for part in ("train", "validation", "test"):
        labels, names[part] = label_ids(arrays[f"{part}_names"].tolist())
        images[part] = MemoryImages(arrays[f"{part}_pixels"], labels, preprocessing)
    validation, test = (_retrieval(images[part], names[part], config) for part in ("validation", "test"))
    return Dataset(name, images["train"], names["train"], validation, test, preprocessing)


def _rendered(config: DataConfig, preprocessing: Preprocessing, renderer: Renderer) -> Arrays:
    """Pixels [n, C, S, S] and class names [n] of the three parts."""
    seen = list(glyphs(TRAIN_SCRIPTS))
    chosen = np.random.default_rng(config.seed).permutation(len(seen))[: config.classes]
    parts = {
        "train": [seen[i] for i in sorted(chosen)],
        "validation": list(glyphs(VALIDATION_SCRIPTS)),
        "test": list(glyphs(TEST_SCRIPTS)),
    }
    arrays: Arrays = {}
    for part, classes in parts.items():
        pixels = [
            preprocessing.pixels(renderer(glyph, [config.seed, glyph.code, sample]), crop=part != "train")
            for glyph in classes
            for sample in range(config.images_per_class)
        ]
        arrays[f"{part}_pixels"] = np.stack(pixels)
        arrays[f"{part}_names"] = np.array([glyph.name for glyph in classes for _ in range(config.images_per_class)])
    return arrays


def _retrieval(images: MemoryImages, names: tuple[str, ...], config: DataConfig) -> RetrievalTest:
    if config.protocol == "leave_one_out":
        return RetrievalTest(images, images, leave_one_out=True, classes=names)
    parts = [
        MemoryImages(images.pixels[part], images.labels[part], images.preprocessing)
        for part in split_queries(images.labels, config.queries_per_class, config.seed)
    ]
    return RetrievalTest(parts[0], parts[1], leave_one_out=False, classes=names)


def glyphs(wanted: Iterable[str]) -> Iterator[Glyph]:
    """The classes of some scripts, by code point."""
    scripts_wanted = set(wanted)
    return (glyph for glyph in _all_glyphs() if glyph.script in scripts_wanted)


@lru_cache(maxsize=1)
def _all_glyphs() -> tuple[Glyph, ...]:
    """Every class of all scripts: code points joined wherever two of them share an outline in any font."""
    masters: dict[int, list[Image.Image]] = {}
    joined: dict[int, int] = {}
    by_outline: dict[bytes, int] = {}
    for path in _font_files():
        for code, master in _rasterise(path):
            masters.setdefault(code, []).append(master)
            joined.setdefault(code, code)
            first = by_outline.setdefault(_outline(master), code)
            low, high = sorted((_root(joined, first), _root(joined, code)))
            joined[high] = low
    groups: dict[int, list[int]] = {}
    for code in sorted(masters):
        groups.setdefault(_root(joined, code), []).append(code)
    return tuple(Glyph(code, *_class_of(members, masters)) for code, members in groups.items())


def _class_of(codes: list[int], masters: dict[int, list[Image.Image]]) -> tuple[str, tuple[Image.Image, ...]]:
    """The script that owns a group of code points with one outline: training first, so that nothing leaks."""
    owners = {scripts.script(chr(code)) for code in codes}
    rank = (*TRAIN_SCRIPTS, *VALIDATION_SCRIPTS, *TEST_SCRIPTS)
    unique = {_outline(m): m for code in codes for m in masters[code]}
    return min(owners, key=rank.index), tuple(unique.values())


def _root(joined: dict[int, int], code: int) -> int:
    while joined[code] != code:
        code = joined[code]
    return code


def _font_files() -> list[Path]:
    library = importlib.util.find_spec("matplotlib")  # its files are needed, and not the library
    folder = Path((library and library.origin) or "").parent / "mpl-data" / "fonts" / "ttf"
    version = importlib.metadata.version("matplotlib")
    for name, sha in FONTS.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != sha:
            raise DataError(
                f"font {name} of matplotlib {version} is not the one that glyphs are made of "
                f"(sha256 {found[:12]}, wanted {sha[:12]}); install the versions of constraints.txt"
            )
    return [folder / name for name in FONTS]


def _rasterise(path: Path) -> Iterator[tuple[int, Image.Image]]:
    """(code point, upright master) of every letter of our scripts that the font draws with ink."""
    font = ImageFont.truetype(str(path), _MASTER, layout_engine=ImageFont.Layout.BASIC)
    ours = {*TRAIN_SCRIPTS, *VALIDATION_SCRIPTS, *TEST_SCRIPTS}
    with TTFont(path, lazy=True) as tables:
        codes = sorted(code for code, glyph in tables.getBestCmap().items() if glyph != ".notdef")
    for code in codes:
        letter = chr(code)
        # Accented letters that decompose differ from their base by a few pixels only.
        if unicodedata.category(letter)[0] != "L" or unicodedata.decomposition(letter):
            continue
        if scripts.script(letter) in ours:
            mask = font.getmask(letter, mode="L")
            master = Image.frombytes("L", mask.size, bytes(mask))
            if (box := master.getbbox()) is not None:
                yield code, master.crop(box)


def _outline(master: Image.Image) -> bytes:
    return f"{master.size}".encode() + master.tobytes()


def render(glyph: Glyph, seed: list[int], side: int = 64) -> Image.Image:
    """One distorted image [side, side], dark ink on light paper: font, affine map, stroke, blur, noise."""
    rng = np.random.default_rng(seed)
    ink = distorted_ink(glyph, rng, side)
    contrast, paper = rng.uniform(0.45, 1.0), rng.uniform(0.75, 1.0)
    values = paper * (1 - contrast * np.asarray(ink, dtype=np.float64) / 255)
    values += rng.normal(0, rng.uniform(0.02, 0.16), values.shape)
    return Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))


def distorted_ink(glyph: Glyph, rng: np.random.Generator, side: int) -> Image.Image:
    """Where there is ink, 0 … 255, [side, side]: font, affine map, stroke and blur are drawn."""
    master = glyph.masters[rng.integers(len(glyph.masters))]
    ink = _stroked(_placed(master, side, rng), rng)
    return ink.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.2)))


def _placed(master: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """The master under a random affine map, about 70% of the canvas."""
    scale = max(master.size) / (side * rng.uniform(0.5, 0.85))
    angle, shear = rng.uniform(-0.3, 0.3), rng.uniform(-0.35, 0.35)
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.array([[stretch, shear], [0, 1 / stretch]])
    centre = np.array(master.size) / 2 - matrix @ (np.full(2, side / 2) + rng.uniform(-5, 5, 2))
    data = (*matrix[0], centre[0], *matrix[1], centre[1])
    return master.transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def _stroked(ink: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Thinner, as it is, or bolder; sometimes only the rim, as a worn stamp leaves it."""
    kind = rng.random()
    if kind < 0.2:
        return ink.filter(ImageFilter.MinFilter(3))
    if kind < 0.5:
        return ink.filter(ImageFilter.MaxFilter(3))
    if kind < 0.6:
        return ImageChops.difference(ink.filter(ImageFilter.MaxFilter(3)), ink.filter(ImageFilter.MinFilter(3)))
    return ink


def classes_by_split() -> dict[str, npt.NDArray[np.str_]]:
    """Class names of the three groups of scripts, for tests and documentation."""
    groups = {"train": TRAIN_SCRIPTS, "validation": VALIDATION_SCRIPTS, "test": TEST_SCRIPTS}
    return {split: np.array([g.name for g in glyphs(wanted)]) for split, wanted in groups.items()}


DATASET = Rendered(
    "letters of many scripts, rendered from matplotlib's fonts",
    load,
    options=("classes", "images_per_class", "protocol", "queries_per_class"),
)
