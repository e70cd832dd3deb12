"""The augmentations that `data.augment` names, with their parameters: what torchvision.transforms.v2 does to training
images. Nothing heavy is imported here: a recipe is checked without torch, and `transform` is handed the library.

To add one, add its class here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prunnet.config.named import made
from prunnet.errors import ConfigError, echo


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("valid: [smallest, largest]")
    return pair


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError("valid: an odd number")
    return number


Share = Annotated[float, Field(ge=0, le=1)]
Above0 = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[Above0, Above0], AfterValidator(_ascending)]
_Part = Annotated[float, Field(gt=0, le=1)]
Area = Annotated[tuple[_Part, _Part], AfterValidator(_ascending)]
"""Shares of an image's area, the smallest and the largest."""
Degrees = Annotated[float, Field(ge=0, le=180)]
Fill = Annotated[int, Field(ge=0, le=255)]
"""Grey value of pixels that the image does not cover."""


class AugmentationParameters(BaseModel):
    """The parameters of one augmentation; defaults are torchvision's where it has any."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: ClassVar[str]

    def transform(self, v2: Any, size: int) -> Any:
        """The transform of images uint8 [C, R, R], by `v2` (torchvision.transforms.v2); crops have `size` pixels a
        side."""
        raise NotImplementedError


class RandomResizedCrop(AugmentationParameters):
    """A random part of the image, resized: `scale` of its area, `ratio` of width to height."""

    name = "random_resized_crop"
    scale: Area = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomResizedCrop(size, scale=self.scale, ratio=self.ratio, antialias=True)


class RandomCrop(AugmentationParameters):
    """A random square of the network's size, out of the image with `padding` pixels around."""

    name = "random_crop"
    padding: Annotated[int, Field(ge=0, le=4096)] = 0
    fill: Fill = 0

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomCrop(size, padding=self.padding or None, fill=self.fill)


class HorizontalFlip(AugmentationParameters):
    name = "horizontal_flip"
    p: Share = 0.5

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomHorizontalFlip(self.p)


class VerticalFlip(AugmentationParameters):
    name = "vertical_flip"
    p: Share = 0.5

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomVerticalFlip(self.p)


class Affine(AugmentationParameters):
    """Rotation by up to ±`degrees`, shift by up to ±`translate` of the side, a scale out of a range, shear by up to
    ±`shear` degrees."""

    name = "affine"
    degrees: Degrees = 0.0
    translate: Share = 0.0
    scale: Range = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    fill: Fill = 0

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomAffine(
            self.degrees,
            translate=(self.translate, self.translate),
            scale=self.scale,
            shear=self.shear or None,
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=self.fill,
        )


class Perspective(AugmentationParameters):
    name = "perspective"
    distortion: Share = 0.5
    p: Share = 0.5
    fill: Fill = 0

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomPerspective(self.distortion, p=self.p, fill=self.fill)


class ColourJitter(AugmentationParameters):
    """Factors out of 1 ± each; hue is shifted by up to ±`hue` of the circle. `p`: of images that are changed at all."""

    name = "colour_jitter"
    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Annotated[float, Field(ge=0)] = 0.0
    saturation: Annotated[float, Field(ge=0)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    p: Share = 1.0

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomApply([v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)], self.p)


class Grey(AugmentationParameters):
    """Colours left out, the channels stay."""

    name = "grey"
    p: Share = 0.1

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomGrayscale(self.p)


class GaussianBlur(AugmentationParameters):
    """`kernel`: pixels a side, an odd number; `sigma`: range in pixels."""

    name = "gaussian_blur"
    kernel: Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)] = 5
    sigma: Range = (0.1, 2.0)
    p: Share = 0.5

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomApply([v2.GaussianBlur(self.kernel, self.sigma)], self.p)


class RandAugment(AugmentationParameters):
    """So many operations of RandAugment (Cubuk et al. 2020), drawn anew for each image, of a magnitude of 0 … 30."""

    name = "rand_augment"
    operations: Annotated[int, Field(ge=1, le=16)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    fill: Fill = 0

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandAugment(self.operations, self.magnitude, fill=self.fill)


class TrivialAugment(AugmentationParameters):
    """One operation of random magnitude (Müller and Hutter 2021)."""

    name = "trivial_augment"
    fill: Fill = 0

    def transform(self, v2: Any, size: int) -> Any:
        return v2.TrivialAugmentWide(fill=self.fill)


class RandomErasing(AugmentationParameters):
    """A rectangle is filled (Zhong et al. 2020): `scale` of the area, `ratio` of its sides."""

    name = "random_erasing"
    p: Share = 0.5
    scale: Area = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)
    fill: Fill = 0

    def transform(self, v2: Any, size: int) -> Any:
        return v2.RandomErasing(self.p, scale=self.scale, ratio=self.ratio, value=self.fill)


AUGMENTATIONS: dict[str, type[AugmentationParameters]] = {
    kind.name: kind for kind in AugmentationParameters.__subclasses__()
}
Stated = dict[str, dict[str, Any]]
"""{name: parameters}, one entry, without parameters at their defaults."""


def check_augment(given: Any) -> tuple[Stated, ...] | None:
    """A recipe's list of {name: parameters}, or of bare names, as it is kept; ConfigError for anything else."""
    if given is None:
        return None
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f"augment={echo(given)} is no list; valid: [{{name: {{parameter: value}}}}, …]")
    every = [made(item, AUGMENTATIONS, "augmentation") for item in given]
    return tuple({each.name: each.model_dump(mode="json", exclude_defaults=True)} for each in every)


def parameters(stated: Stated) -> AugmentationParameters:
    """One entry of what `check_augment` gave."""
    return made(stated, AUGMENTATIONS, "augmentation")
