"""Mean and standard deviation of pixels, where a recipe does not say them: those that the backbone's weights were made
for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunnet.config.recipe import DataConfig, PixelValues, Recipe
from prunnet.errors import CheckpointError
from prunnet.redact import shown


def data_seen(recipe: Recipe) -> DataConfig:
    """The recipe's data section as its network sees it: `data.mean` and `data.std`, where they are None and the weights
    are pretrained (`model.pretrained`, `model.weights`), are those of the backbone in timm; where a trained network is
    swept (`model.checkpoint`) that was trained so, those of its file.

    timm (and torch) is imported for such a recipe only. A backbone that timm does not know leaves the section as it is;
    whoever makes the network refuses it.
    """
    data = recipe.data
    if recipe.model.checkpoint is not None:
        return _as_the_file_says(data, recipe.model.checkpoint)
    if not recipe.takes_pixel_values:
        return data
    from prunnet.networks.timm_library import timm

    known = timm.get_pretrained_cfg(recipe.model.backbone) if timm.is_model(recipe.model.backbone) else None
    if known is None:
        return data
    mean, std = (_fitting(given, data.channels) for given in (known.mean, known.std))
    return data.model_copy(
        update={
            "mean": as_said(mean) if data.mean is None else data.mean,
            "std": as_said(std) if data.std is None else data.std,
        }
    )


def _as_the_file_says(data: DataConfig, checkpoint: str) -> DataConfig:
    """As it is for a file that cannot be read or says nothing of the kind: whoever opens it refuses it."""
    if data.mean is not None and data.std is not None:
        return data
    from prunnet.storage.tensor_files import read_header

    try:
        header = read_header(checkpoint)
        seen = with_values_of({"mean": data.mean, "std": data.std}, header["recipe"], header["preprocessing"])
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError):
        return data
    return data if seen == {"mean": data.mean, "std": data.std} else data.model_copy(update=seen)


def with_values_of(
    data: Mapping[str, Any], recipe: Mapping[str, Any], preprocessing: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A data section as JSON values, with the mean and std that a network of pretrained weights was trained with where
    the section does not say them.

    Args:
        recipe, preprocessing: of the network's header.
    """
    model = recipe.get("model", {})
    if preprocessing is None or not (model.get("pretrained") or model.get("weights")):
        return dict(data)
    return {**data, **{key: as_said(preprocessing[key]) for key in ("mean", "std") if data.get(key) is None}}


def as_said(values: Sequence[float]) -> PixelValues:
    """Values of each channel, one or three, as a recipe says them: one number where they are the same."""
    if len(set(values)) == 1:
        return float(values[0])
    red, green, blue = map(float, values)
    return red, green, blue


def _fitting(given: Sequence[float], channels: int) -> tuple[float, ...]:
    """Values of each channel. Grey images are the same in all channels of a colour network, whose first layer timm sums
    over the channels: they get the mean over them."""
    return tuple(given) if len(given) == channels else (sum(given) / len(given),) * channels


def note(recipe: Recipe) -> str | None:
    """What is used, for the user; None where the recipe says it itself or no weights are pretrained."""
    seen = data_seen(recipe)
    if seen is recipe.data:
        return None
    said = " and ".join(
        f"data.{name}={_shown(getattr(seen, name))}" for name in ("mean", "std") if getattr(recipe.data, name) is None
    )
    if recipe.model.checkpoint is not None:
        return f"{said}, as {shown(recipe.model.checkpoint)} was trained with"
    return f"{said}, as the weights of {recipe.model.backbone} were trained with (timm)"


def _shown(values: PixelValues | None) -> str:
    if isinstance(values, tuple):
        return f"[{','.join(f'{value:g}' for value in values)}]"
    return f"{values:g}"
