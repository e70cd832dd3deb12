"""Colours as recipes name them."""

from __future__ import annotations

import contextlib

from prunnet.errors import ConfigError


def check_colour(value: str) -> str:
    """`value` as #rrggbb, else ConfigError."""
    from PIL import ImageColor  # not before a recipe is read: Pillow takes longer to load than this module

    channels: tuple[int, ...] = ()
    with contextlib.suppress(ValueError):
        channels = ImageColor.getrgb(value.strip())
    if len(channels) != 3:
        raise ConfigError(f"colour {value!r}; valid: a name such as white, or '#rrggbb', without transparency")
    return "#{:02x}{:02x}{:02x}".format(*channels)
