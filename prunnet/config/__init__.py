"""The typed recipe, its loading, methods by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.config.recipe import ClusterConfig as ClusterConfig
    from prunnet.config.recipe import DataConfig as DataConfig
    from prunnet.config.recipe import ModelConfig as ModelConfig
    from prunnet.config.recipe import Recipe as Recipe
    from prunnet.config.recipe import SweepConfig as SweepConfig
    from prunnet.config.recipe import TrainConfig as TrainConfig
    from prunnet.config.recipe import load_recipe as load_recipe
    from prunnet.config.recipe import parse_recipe as parse_recipe

__getattr__, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.config.recipe": [
            "ClusterConfig",
            "DataConfig",
            "ModelConfig",
            "Recipe",
            "SweepConfig",
            "TrainConfig",
            "load_recipe",
            "parse_recipe",
        ],
    },
)
