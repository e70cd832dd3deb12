"""From decoded images to network input: one evaluation transform, and one augmentation for training."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor
from pydantic import TypeAdapter, ValidationError

from prunnet.config.recipe import MAX_SIDE, DataConfig, PixelValues
from prunnet.data.sources.decode import WHITE, Colour
from prunnet.errors import CheckpointError, echo
from prunnet.storage import hashing

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 16
"""Images longer than so many times their width are cut before they are scaled, so that memory stays below so many
squares. The others are scaled first: the last bit of a pixel depends on the order."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform: shorter side to `resize`, centre crop of `image_size`, scale to mean and std; or, with
    `long_side`, the whole image, its longer side brought down to so many pixels.

    It belongs to the embeddings: features made under another one do not compare.
    """

    image_size: int
    resize: int
    channels: int
    invert: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    long_side: int | None = None
    scales: tuple[float, ...] = (1.0,)
    """Embeddings are averaged over the image at these sizes."""
    background: Colour = WHITE
    """What transparent pixels show, before `invert`; the decoder applies it."""
    flip: bool = False
    """Embeddings are averaged over the image and its mirror image, too."""

    @classmethod
    def from_config(cls, data: DataConfig) -> Preprocessing:
        """As the section says it by itself: that of a recipe with pretrained weights is
        `from_config(pixel_values.data_seen(recipe))`."""
        default = (IMAGENET_MEAN, IMAGENET_STD) if data.channels == 3 else ((0.5,), (0.5,))
        return cls(
            image_size=data.image_size,
            resize=max(data.resize or data.image_size, data.image_size),
            channels=data.channels,
            invert=data.invert,
            mean=_of_channels(data.mean, default[0]),
            std=_of_channels(data.std, default[1]),
            background=ImageColor.getrgb(data.background)[:3],
        )

    def to_json(self) -> dict[str, Any]:
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        # What has a default came later: files of before it was a choice do not say it.
        later = {each.name: each.default for each in fields(self) if each.default is not MISSING}
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in later.items()}
        return hashing.without_defaults(values, plain)

    @classmethod
    def from_json(cls, values: Any) -> Preprocessing:
        """What `to_json` gave; CheckpointError for anything else."""
        if isinstance(values, dict) and (foreign := set(values) - {field.name for field in fields(cls)}):
            raise CheckpointError(f"preprocessing with {sorted(map(str, foreign))}: of a newer version of prunnet?")
        try:
            made = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"preprocessing {echo(values)}: {where}: {first['msg']}") from None
        per_channel = (made.mean, made.std)
        if not (
            1 <= made.image_size <= made.resize <= MAX_SIDE
            and made.channels in (1, 3)
            and all(len(numbers) == made.channels for numbers in per_channel)
            and all(math.isfinite(number) for numbers in (*per_channel, made.scales) for number in numbers)
            and all(number > 0 for number in (*made.std, *made.scales))
            and 1 <= (made.long_side or 1) <= MAX_SIDE
        ):
            raise CheckpointError(f"preprocessing {echo(values)} makes no images of any network")
        return made

    def sha(self) -> str:
        return hashing.of_json(self.to_json())

    def pixels(self, image: Image.Image, *, crop: bool = True) -> npt.NDArray[np.uint8]:
        """A decoded image -> [C, S, S]; S is image_size, or `resize` without the crop (training). With `long_side`
        [C, H, W]."""
        image = image.convert("L" if self.channels == 1 else "RGB")
        image = self._whole(image) if self.long_side else self._square(image, self.image_size if crop else self.resize)
        array = np.asarray(image)
        array = 255 - array if self.invert else array
        return array[None] if self.channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))

    def _square(self, image: Image.Image, side: int) -> Image.Image:
        scale = self.resize / min(image.size)
        size = (max(self.resize, round(image.width * scale)), max(self.resize, round(image.height * scale)))
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        if max(size) > LONGEST * self.resize:  # whole, 1 x 30,000 pixels would take gigabytes
            across, down = image.width / size[0], image.height / size[1]
            box = (left * across, top * down, (left + side) * across, (top + side) * down)
            return image.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=None)
        resized = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=None)
        return resized.crop((left, top, left + side, top + side))

    def _whole(self, image: Image.Image) -> Image.Image:
        assert self.long_side is not None
        scale = min(1.0, self.long_side / max(image.size))  # as the public evaluation does, never up
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=None)

    def crop(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Training pixels [n, C, R, R] -> [n, C, S, S] as the evaluation transform sees them."""
        margin = (pixels.shape[-1] - self.image_size) // 2
        return pixels[..., margin : margin + self.image_size, margin : margin + self.image_size]

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [n, C, R, R] -> float32 [n, C, S, S], centre crop; with `long_side` [n, C, H, W], whole."""
        if self.long_side:
            return self._scaled(pixels.float())
        margin = (pixels.shape[-1] - self.image_size) // 2
        inner = pixels[..., margin : margin + self.image_size, margin : margin + self.image_size]
        return self._scaled(inner.float())

    def _scaled(self, values: Tensor) -> Tensor:
        import torch  # whoever reads lists or only draws is spared it

        mean = torch.tensor(self.mean, device=values.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=values.device).view(1, -1, 1, 1)
        return (values / 255 - mean) / std


def _of_channels(given: PixelValues | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if given is None:
        return default
    return given if isinstance(given, tuple) else (given,) * len(default)


@dataclass(frozen=True)
class Augmentation:
    """Random affine maps (and flips) of training images; see `DataConfig` for the ranges.

    An image's draw depends on (seed, epoch, image) only: not on the batch, the worker or their number.
    """

    rotate: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    flip: bool = False

    @classmethod
    def from_config(cls, data: DataConfig) -> Augmentation:
        return cls(data.rotate, data.translate, data.scale, data.shear, data.flip)

    @staticmethod
    @lru_cache(maxsize=2)
    def draws(images: int, *, seed: int, epoch: int) -> npt.NDArray[np.float32]:
        """Uniform numbers [images, 7] of one epoch."""
        return np.random.default_rng([seed, epoch, 1]).random((images, 7), dtype=np.float32)

    def __call__(self, preprocessing: Preprocessing, pixels: Tensor, draws: Tensor) -> Tensor:
        """uint8 [n, C, R, R] -> float32 [n, C, S, S]: random affine, random crop offset, flip, normalised."""
        import torch.nn.functional as F

        side, size = pixels.shape[-1], preprocessing.image_size
        theta = self.matrices(draws, crop=size / side)
        grid = F.affine_grid(theta, [len(pixels), pixels.shape[1], size, size], align_corners=False)
        values = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
        return preprocessing._scaled(values)

    def matrices(self, draws: Tensor, crop: float) -> Tensor:
        """Uniform draws [n, 7] -> maps [n, 2, 3] from output to input coordinates in [-1, 1]."""
        import torch

        signed = draws * 2 - 1
        angle = signed[:, 0] * math.radians(self.rotate)
        shear = (signed[:, 1] * math.radians(self.shear)).tan()
        scale = torch.exp(signed[:, 2] * math.log1p(self.scale)) * crop
        mirror = torch.where(draws[:, 3] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(angle)
        cos, sin = angle.cos() * scale, angle.sin() * scale
        offset = signed[:, 4:6] * (2 * self.translate + (1 - crop))
        rows = [cos * mirror, cos * shear - sin, offset[:, 0], sin * mirror, sin * shear + cos, offset[:, 1]]
        return torch.stack(rows, dim=1).view(-1, 2, 3)
