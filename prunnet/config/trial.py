"""A trial: a recipe with a name, and the hash by which its rows are known. No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunnet.config.methods import OLD_REVISION, revisions
from prunnet.config.recipe import Recipe, field_defaults
from prunnet.redact import shown
from prunnet.storage import hashing
from prunnet.storage.hashing import METHOD_VERSION


@dataclass(frozen=True)
class Trial:
    """A named recipe. `old`: the recipe of a network whose gallery is searched, too, trained first; where the recipe's
    `train.old` is set (to anything), it is trained to match that network."""

    name: str
    recipe: Recipe
    old: Recipe | None = None

    @property
    def id(self) -> str:
        """Name and hash of all that determines the rows: the table's `trial_id`."""
        parts = [self.recipe, *([self.old] if self.old else [])]
        dumps = [_said(recipe) for recipe in parts]
        for dump in dumps:  # where files lie does not matter
            for section in ("data", "sweep"):
                if root := dump.get(section, {}).get("root"):
                    dump[section]["root"] = Path(shown(root)).name
            if dump.get("data", {}).pop("fingerprint", None) and not dump["data"]:
                del dump["data"]
            if self.old is not None:
                dump["train"].pop("old", None)
        revised = [revision for recipe in parts for revision in revisions(recipe.train.model_dump())]
        if self.old is not None:
            revised.append(OLD_REVISION)
        return f"{self.name}/{hashing.of_json(shown([METHOD_VERSION, *dumps, *revised]))[:10]}"


def _said(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What a recipe says that is not the default, so that a key that is added to recipes later leaves finished trials
    finished."""
    said = {}
    for name in ("data", "model", "train", "sweep"):
        section = getattr(recipe, name)
        if section != type(recipe).model_fields[name].default:
            said[name] = hashing.without_defaults(section.model_dump(mode="json"), field_defaults(section))
    return said
