"""Pixels mean what the file says, whatever mode it is stored in; what cannot be told is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageDraw

from prunnet import data
from prunnet.config.recipe import DataConfig, Recipe, parse_recipe
from prunnet.data import transforms
from prunnet.data.sources.decode import decoded, formats, suffixes
from prunnet.data.transforms import LONGEST, Preprocessing
from prunnet.errors import CheckpointError, ConfigError, DataError
from prunnet.evaluation.compare import seen_through
from prunnet.experiments.stages import fitting

Array = np.ndarray[Any, np.dtype[Any]]
SIZE = (23, 17)
BLUE = (20, 40, 200)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(*channels: int, high: int = 256, kind: Any = np.uint8) -> Array:
    return np.random.default_rng(0).integers(0, high, (*SIZE[::-1], *channels)).astype(kind)


def over(colours: Array, alpha: Array, background: tuple[int, int, int]) -> Array:
    """The obvious composite, in floats."""
    share = alpha[..., None] / 255
    return colours * share + np.array(background) * (1 - share)


def pixels(data: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> Array:
    return np.asarray(decoded(data, "x", background=background).convert("RGB"), dtype=float)


# --- transparency ------------------------------------------------------------------------------------------


def drawings() -> dict[str, bytes]:
    """One drawing on transparent black, stored in every way that Pillow writes transparency."""
    shape = Image.new("L", (32, 32))
    ImageDraw.Draw(shape).ellipse((6, 9, 25, 20), fill=255)
    black = Image.new("L", shape.size)
    grey, colour = Image.merge("LA", (black, shape)), Image.merge("RGBA", (black, black, black, shape))
    palette = Image.fromarray(np.asarray(shape) // 255).convert("P")
    palette.putpalette([0, 0, 0] * 256)
    key_grey, key_rgb = Image.fromarray(255 - np.asarray(shape) // 255 * 255), Image.new("RGB", shape.size, (9, 9, 9))
    key_rgb.paste((0, 0, 0), mask=shape)
    two, sixteen = (Image.fromarray((np.asarray(shape) == 0).astype(np.uint16) * 7) for _ in range(2))
    return {
        "LA": encoded(grey),
        "RGBA": encoded(colour),
        "RGBA webp": encoded(colour, "WEBP", lossless=True),
        "RGBA tiff": encoded(colour, "TIFF"),
        "P index": encoded(palette, transparency=0),
        "P alphas": encoded(palette, transparency=bytes([0, 255])),
        "P gif": encoded(palette, "GIF", transparency=0),
        "L key": encoded(key_grey, transparency=255),
        "RGB key": encoded(key_rgb, transparency=(9, 9, 9)),
        "1 key": encoded(key_grey.convert("1"), transparency=1),
        "I;16 key": encoded(sixteen, transparency=7),
        "L;2 key": two_bits(np.where(np.asarray(two) == 0, 0, 3), key=3),
    }


def two_bits(values: Array, key: int) -> bytes:
    """A grey PNG of two bits a pixel with a colour key, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows, columns = values.shape
    groups = values.reshape(rows, columns // 4, 4).astype(np.uint8)
    lines = (groups << np.array([6, 4, 2, 0], np.uint8)).sum(axis=2).astype(np.uint8)
    content = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", columns, rows, 2, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


@pytest.mark.parametrize("stored", sorted(drawings()))
def test_a_drawing_on_transparent_ground_is_seen_however_it_is_stored(stored: str) -> None:
    """Issue 15, number 10: transparent pixels kept the colour beneath, so that drawings on transparent black were all
    black."""
    found = pixels(drawings()[stored])
    assert np.array_equal(found, pixels(drawings()["RGBA"]))
    assert set(np.unique(found)) == {0.0, 255.0}
    assert (found == 0).mean() == pytest.approx(0.18, abs=0.03)  # the ellipse
    assert set(np.unique(pixels(drawings()[stored], background=BLUE)[0, 0])) == set(BLUE)


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (90, 90, 90), BLUE])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "La", "RGBa", "PA"])
def test_transparent_pixels_show_the_background_by_as_much_as_they_are_transparent(
    mode: str, background: tuple[int, int, int]
) -> None:
    """Issue 15, number 10, per mode of Pillow, against the composite in floats."""
    shown = Image.fromarray(noise(4), "RGBA")
    if mode in ("LA", "La"):
        shown = shown.convert("LA")
    if mode == "PA":
        shown = Image.merge("PA", (shown.convert("RGB").convert("P").copy(), shown.getchannel("A")))
        shown.putpalette(list(range(256)) * 3)
    colours = np.asarray(shown.convert("RGBA"), dtype=float)
    wanted = over(colours[..., :3], colours[..., 3], background)
    kind = "PNG" if mode in ("LA", "RGBA") else "TIFF"
    found = pixels(encoded(shown, kind), background)
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "RGBX", "LA", "RGBA"])
def test_opaque_images_are_what_pillow_makes_of_them(mode: str) -> None:
    image = Image.fromarray(noise(3)).convert(mode)
    kind = "PNG" if mode in ("1", "L", "P", "RGB", "LA", "RGBA") else "TIFF"
    stored = encoded(image, kind)
    found = decoded(stored, "x")
    with Image.open(io.BytesIO(stored)) as plain:
        assert np.array_equal(np.asarray(found), np.asarray(plain.convert("L" if mode in ("1", "LA") else found.mode)))
    assert found.mode == ("L" if mode in ("1", "L", "LA") else "RGB")


def test_the_fourth_byte_of_a_tga_file_is_alpha_only_where_the_header_says_so() -> None:
    stored = bytearray(encoded(Image.fromarray(np.dstack([noise(3), np.zeros(SIZE[::-1], np.uint8)]), "RGBA"), "TGA"))
    assert (pixels(bytes(stored)) == 255).all()
    stored[17] &= 0xF0
    assert np.array_equal(pixels(bytes(stored)), noise(3))


def test_the_background_is_a_key_that_leaves_hashes_alone_at_its_default() -> None:
    """Issue 15, number 10: `data.background`."""
    drawn = DataConfig(name="imagefolder", channels=3, image_size=16)
    black = drawn.model_copy(update={"background": "#000000"})
    seen = [Preprocessing.from_config(config) for config in (drawn, black)]
    assert "background" not in seen[0].to_json()
    assert Preprocessing.from_json(seen[1].to_json()) == seen[1]
    assert seen[0].sha().startswith("780bfbbadd4fa68f")  # as before there was a choice
    assert seen[1].sha() != seen[0].sha()
    for preprocessing in seen:  # networks are compared through the images that each was trained for
        assert Preprocessing.from_config(seen_through(DataConfig(), preprocessing)) == preprocessing
    with pytest.raises(CheckpointError, match=r"other preprocessing: background \[0, 0, 0\] \(recipe: None\)"):
        fitting({"preprocessing": seen[1].to_json()}, "x", seen[0])
    plain, other = (parse_recipe({"data": {"background": colour}}) for colour in ("white", "Black"))
    assert plain.training_hash() == Recipe().training_hash() != other.training_hash()
    assert "background" not in plain.trained_part()["data"]
    for wrong in ("sky", "#12345678", ""):
        with pytest.raises(ConfigError, match=r"data.background: colour .*; valid: a name such as white") as caught:
            parse_recipe({"data": {"background": wrong}})
        assert "\n" not in str(caught.value)


# --- depth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(kind: str) -> None:
    values = noise(high=65536, kind=np.uint16)
    assert np.array_equal(pixels(encoded(Image.fromarray(values), kind))[..., 0], (values / 257).round())

    wide = encoded(Image.fromarray(values.astype(np.int32)), "TIFF")
    assert np.array_equal(pixels(wide)[..., 0], (values / 257).round())


def test_floats_of_the_unit_range_are_scaled() -> None:
    """Issue 15, number 10: float images in 0 to 1 became black."""
    unit, full = noise(kind=np.float32) / 255, noise(kind=np.float32)
    for values in (unit, full):
        assert np.array_equal(pixels(encoded(Image.fromarray(values), "TIFF"))[..., 0], full)
    assert (pixels(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")) == 0).all()


def test_the_scale_is_told_from_the_whole_image_and_not_from_its_box() -> None:
    values = noise(kind=np.float32)
    values[:5, :5] = 1
    assert np.asarray(decoded(encoded(Image.fromarray(values), "TIFF"), "x", (0, 0, 5, 5))).max() == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([[0, 256.0]], np.float32), "floats of 0 to 256"),
        (np.array([[-0.5, 1.0]], np.float32), "floats of -0.5 to 1"),
        (np.array([[0.25, 1.5]], np.float32), "floats of 0.25 to 1.5"),
        (np.array([[0, np.nan]], np.float32), "floats of nan to nan"),
        (np.array([[0, np.inf]], np.float32), "floats of 0 to inf"),
        (np.array([[0, 65536]], np.int32), "32-bit whole numbers of 0 to 65536"),
        (np.array([[-1, 900]], np.int32), "32-bit whole numbers of -1 to 900"),
        (np.array([[0, 200]], np.int32), "32-bit whole numbers of 0 to 200"),
    ],
)
def test_values_whose_scale_cannot_be_told_are_refused_by_name(values: Array, says: str) -> None:
    """Issue 15, number 10: what cannot be told is refused."""
    with pytest.raises(DataError, match=f"image 'depth.tif' is refused: {says}.*; valid: ") as caught:
        decoded(encoded(Image.fromarray(values), "TIFF"), "depth.tif")
    assert "\n" not in str(caught.value)


# --- formats -----------------------------------------------------------------------------------------------


def test_no_format_that_starts_a_program_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, numbers 3 and 11: Pillow hands EPS to Ghostscript, also where a file is called .png."""

    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("Ghostscript was asked")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    eps = encoded(Image.fromarray(noise(3)), "EPS")
    for name in ("x.eps", "x.png"):
        with pytest.raises(DataError, match="cannot be read"):
            decoded(eps, name)
    assert not {"EPS", "WMF", "IPTC"} & set(formats())
    assert not {".eps", ".ps", ".pdf", ".wmf", ".mpg", ".ttf", ".h5"} & suffixes()
    assert {".jfif", ".jpe", ".pnm", ".webp", ".jpg", ".tif", ".bmp"} <= suffixes()


def test_of_several_images_in_a_file_the_first_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        stored = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        assert pixels(stored)[3, 3].tolist() == [255, 0, 0]


# --- EXIF and shape ----------------------------------------------------------------------------------------


def with_exif(orientation: int, *, broken: bool) -> bytes:
    """A JPEG whose EXIF block says how it is turned; broken: another tag in it holds a value that cannot be packed."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x0129] = (1, 2)  # PageNumber, two shorts
    stored = encoded(Image.fromarray(noise(3)), "JPEG", exif=exif, quality=95)
    # PageNumber is made a signed long of -1: read well, but a tag that is written as a short.
    tag = struct.pack(">HHIHH", 0x0129, 3, 2, 1, 2)
    little = struct.pack("<HHIHH", 0x0129, 3, 2, 1, 2)
    assert tag in stored or little in stored
    if not broken:
        return stored
    return stored.replace(tag, struct.pack(">HHIi", 0x0129, 9, 1, -1)).replace(
        little, struct.pack("<HHIi", 0x0129, 9, 1, -1)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_broken_tag_does_not_keep_an_image_from_being_turned(orientation: int) -> None:
    """Issue 15, number 18: struct.error in a rewrite of the EXIF block that is not needed."""
    whole, broken = (decoded(with_exif(orientation, broken=b), "x") for b in (False, True))
    assert np.array_equal(np.asarray(whole), np.asarray(broken))
    assert whole.size == (SIZE if orientation < 5 else SIZE[::-1])


@pytest.mark.parametrize("cut", [4, 10, 20])
def test_an_exif_block_that_cannot_be_parsed_says_nothing(cut: int) -> None:
    stored = with_exif(6, broken=False)
    at = stored.index(b"Exif\0\0") + 6
    assert decoded(stored[:at] + b"\xff" * cut + stored[at + cut :], "x").size == SIZE


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (3, 9000), (200, 40_000)])
def test_a_long_thin_image_is_cut_before_it_is_scaled(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 18: 1 x 30,000 pixels took 6.9 GB at 224 px."""
    made: list[int] = []
    resize = Image.Image.resize

    def counted(image: Image.Image, wanted: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        made.append(wanted[0] * wanted[1])
        assert made[-1] < 10**7
        return resize(image, wanted, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", counted)
    gradient = np.linspace(0, 255, max(size)).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(gradient if size[0] > size[1] else gradient[:, None], size[::-1]).copy())
    for side in (64, 224):
        seen = Preprocessing.from_config(DataConfig(image_size=side, resize=side + 8))
        for crop in (True, False):
            found = seen.pixels(image, crop=crop)
            assert found.shape == (1, *[side if crop else side + 8] * 2)
            assert abs(float(found.mean()) - 127) < 2  # the middle of the gradient
    assert max(made) <= (LONGEST * 232) * 232


@pytest.mark.parametrize("size", [(30, 47), (300, 111), (64, 64), (20, 400)])
def test_cutting_first_shows_what_scaling_first_shows(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Preprocessing.from_config(DataConfig(image_size=32, resize=40, channels=3))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
    first = seen.pixels(image).astype(int)
    monkeypatch.setattr(transforms, "LONGEST", 0)
    assert np.abs(first - seen.pixels(image)).max() <= 2


def test_a_folder_is_seen_on_the_background_of_its_recipe(tmp_path: Path) -> None:
    for label in range(4):
        (tmp_path / f"class{label}").mkdir()
        for number in range(3):
            (tmp_path / f"class{label}" / f"{number}.png").write_bytes(drawings()["LA"])
    found = {}
    for name, more in {"white": {}, "grey": {"background": "#808080"}, "inverted": {"invert": True}}.items():
        config = DataConfig(
            name="imagefolder", root=str(tmp_path), image_size=16, test_fraction=0.5, validation_fraction=0.0, **more
        )
        found[name] = data.load(config).train.read(np.array([0]))[0, 0, 0, 0]
    assert found == {"white": 255, "grey": 128, "inverted": 0}
