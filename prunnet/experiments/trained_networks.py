"""The trained networks of a sweep or of a run's folder, and what the sweep made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prunnet import data
from prunnet.config.recipe import (
    DataConfig,
    Recipe,
    absolute_paths,
    apply_override,
    check_capacity,
    load_recipe,
    parse_recipe,
)
from prunnet.data.base import Dataset
from prunnet.data.pixel_values import with_values_of
from prunnet.errors import CheckpointError
from prunnet.experiments.row_identity import portable, row_config
from prunnet.networks.files import CALIBRATED, NETWORK
from prunnet.storage.paths import place
from prunnet.storage.tensor_files import kind_of, read_header
from prunnet.subnetworks.subnet import Subnetwork
from prunnet.subnetworks.trained import OLD, Calibration, CalibrationImages, Cut, MemberId, TrainedNetwork

RECIPE = "recipe.yaml"
"""The recipe of the last sweep, in a run's folder."""


@dataclass(frozen=True)
class Family:
    """Trained networks, by the capacity each was trained for."""

    members: Mapping[float, TrainedNetwork]
    old: TrainedNetwork | None = None
    """The network whose gallery they were trained to search (`train.old`)."""

    def everyone(self) -> dict[MemberId, TrainedNetwork]:
        """All networks, the old one too."""
        own = {MemberId(capacity): network for capacity, network in self.members.items()}
        return own if self.old is None else {**own, OLD: self.old}

    @property
    def top(self) -> float:
        """The largest capacity: the gallery's in cross-tests."""
        return max(self.members)

    @property
    def largest(self) -> TrainedNetwork:
        """The network of the largest capacity."""
        return self.members[self.top]

    @property
    def granularity(self) -> str:
        """What one score of the networks stands for."""
        return self.largest.net.granularity

    def serving(self, capacity: float) -> MemberId:
        """Whose network a capacity is cut from: its own, or that of the next larger capacity.

        ConfigError for a number that is no capacity, CheckpointError where every network is smaller.
        """
        larger = [c for c in self.members if c >= check_capacity(capacity)]
        if not larger:
            raise CheckpointError(f"capacity {capacity:g} cannot be cut: the largest network is of {self.top:g}")
        return MemberId(min(larger))

    def network_for(self, capacity: float) -> TrainedNetwork:
        """The network that a capacity is cut from; raises as `serving`."""
        return self.members[self.serving(capacity).capacity]

    def arrays(self) -> dict[MemberId, dict[str, np.ndarray]]:
        """The tensors of all networks; the old one's with the statistics of its gallery."""
        found = {member: network.arrays() for member, network in self.everyone().items()}
        if self.old is not None and self.old.statistics is not None:
            found[OLD] |= {CALIBRATED + name: t.numpy() for name, t in self.old.statistics.tensors.items()}
        return found

    @classmethod
    def of_run(cls, run: Path) -> Family:
        """The networks of a run's folder, or that of one file; CheckpointError where there are none."""
        files = sorted(run.glob("model*.safetensors")) if run.is_dir() else [run]
        if not files and (swept := kept_recipe(run).model.checkpoint):
            files = [place(swept)]
        if not files:
            raise CheckpointError(
                f"{str(run)!r} holds no model.safetensors; valid: a run's folder, or a network's file"
            )
        return cls.load({_capacity_of(file): file for file in files})

    @classmethod
    def load(cls, files: Mapping[float, Path], old: str | None = None) -> Family:
        """The networks of some files, and the old one where it is a whole network's file."""
        members = {capacity: TrainedNetwork.load(path) for capacity, path in files.items()}
        return cls(members, TrainedNetwork.load(old) if old and kind_of(old) == NETWORK else None)


def _capacity_of(file: Path) -> float:
    """Whose network a file of `Stage.file` is: model.safetensors serves all capacities."""
    try:
        return float(file.stem.partition("-")[2] or 1.0)
    except ValueError:
        return 1.0


def kept_recipe(run: Path) -> Recipe:
    """The recipe that the last sweep of a run's folder left there; all defaults where there is none.

    ConfigError for one that this version does not take.
    """
    path = run / RECIPE
    return load_recipe(path if run.is_dir() and path.is_file() else None)


@dataclass(frozen=True)
class Source:
    """A run's folder or one network's file: its networks, the images they were trained on, and how its sweep cuts."""

    run: Path
    recipe: Recipe
    """`data` and `sweep` of the run, or of one row's."""
    family: Family
    """Empty where one row is asked for: its networks are found by their hashes."""
    _images: dict[Calibration, CalibrationImages] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Path, overrides: Sequence[str] = ()) -> Source:
        """A run's folder or one network's file. `overrides` mend where the data lie: data.root=DIR."""
        family, kept = Family.of_run(run), kept_recipe(run)
        header = family.largest.header
        trained = header.recipe.get("data")
        if not trained:
            raise CheckpointError(f"{str(run)!r} does not say on which data it was trained; valid: a run of prunnet's")
        swept = (run / RECIPE).is_file()
        given = with_values_of(kept.data.model_dump() if swept else trained, header.recipe, header.preprocessing)
        return cls(run, _recipe_of(given, kept.sweep.model_dump(), overrides), family)

    @classmethod
    def of_row(cls, run: Path, row: Mapping[str, Any], overrides: Sequence[str] = ()) -> Source:
        """As `of`, with data and sweep of one row of the results table. Rows do not say where files lie: that is taken
        from the run's recipe, or from the file of the row's network."""
        config, kept = row_config(row), kept_recipe(run)
        header = read_header(_file_of(run, row["query_weights_sha"]))
        trained = header.get("recipe", {}).get("data", {})
        wanted = portable(DataConfig.model_validate(config["data"]).model_dump(mode="json"))
        chosen = config["data"]
        for candidate in (kept.data.model_dump(mode="json"), trained):
            if portable(DataConfig.model_validate(candidate).model_dump(mode="json")) == wanted:
                chosen = candidate
                break
        sweep = dict(config["sweep"])
        if portable(kept.sweep.model_dump(mode="json")).get("root") == sweep.get("root"):
            sweep["root"] = kept.sweep.root
        chosen = with_values_of(chosen, header.get("recipe", {}), header.get("preprocessing"))
        return cls(run, _recipe_of(chosen, sweep, overrides), Family({}))

    @cached_property
    def dataset(self) -> Dataset:
        """With the tests that the sweep asks for."""
        return data.load_for(self.recipe)

    @cached_property
    def trained_on(self) -> Dataset:
        """Without them: another benchmark need not be there for a subnetwork to be cut."""
        return data.load(self.recipe.data)

    def network(self, weights_sha: str) -> TrainedNetwork:
        """A network of the run by the hash of its weights; CheckpointError where it is not there."""
        return TrainedNetwork.load(_file_of(self.run, weights_sha))

    def subnetwork(self, network: TrainedNetwork, cut: Cut) -> Subnetwork:
        """A subnetwork as the sweep tests it."""
        calibration = cut.calibration
        if calibration is not None and calibration not in self._images:
            self._images[calibration] = CalibrationImages.chosen(self.trained_on.train, calibration)
        return network.subnetwork(cut, None if calibration is None else self._images[calibration])

    def at(self, capacity: float) -> Subnetwork:
        """The subnetwork of a capacity, as the run's sweep tests it."""
        return self.subnetwork(self.family.network_for(capacity), Cut.of_sweep(self.recipe.sweep, capacity))


def _recipe_of(data: Mapping[str, Any], sweep: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    tree: dict[str, Any] = {"data": dict(data), "sweep": dict(sweep)}
    for override in overrides:
        apply_override(tree, override)
    return absolute_paths(parse_recipe(tree))


def _file_of(run: Path, weights_sha: str) -> Path:
    """The file of a run's folder (a sweep's, or one that keeps many networks) that holds some weights."""
    files = [*run.glob("model*.safetensors"), *run.glob("models/*.safetensors")] if run.is_dir() else [run]
    swept = kept_recipe(run).model.checkpoint
    for file in [*sorted(files), *([place(swept)] if swept else [])]:
        if read_header(file).get("weights_sha") == weights_sha:
            return file
    raise CheckpointError(f"{str(run)!r} does not hold network {weights_sha[:12]}, which the row tested")
