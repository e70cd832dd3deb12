"""A trained network with what its file says of it, and the one way to cut a subnetwork from it.

    network = TrainedNetwork.load("runs/demo/model.safetensors")
    network.subnetwork(Cut(0.35), images)           # a capacity
    network.subnetwork(Cut.of_row(row), images)     # what a row of the results table tested

A `Cut` says everything that decides which weights stay and which statistics BatchNorm has. Sweeps, exports, costs,
reports and comparisons all cut by it, so that what is shipped is what was tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prunnet.config.methods import check_reconstruction
from prunnet.config.recipe import SweepConfig
from prunnet.data.base import ImageSet, Pixels
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ResultsError
from prunnet.networks.files import Statistics, load_calibrated
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.storage import hashing
from prunnet.subnetworks.batchnorm import calibration_batches, calibration_indices
from prunnet.subnetworks.reconstruction import reconstruct
from prunnet.subnetworks.subnet import Subnetwork, subnetwork

LayerDensities = tuple[tuple[str, float], ...]
"""(layer, share of its weights that stays), one a prunable layer."""


@dataclass(frozen=True)
class MemberId:
    """Which of the networks of a sweep: the one that was trained for a capacity, or the old one."""

    capacity: float = 1.0
    """1.0 also where one network serves all capacities."""
    old: bool = False
    """The network whose gallery the others were trained to search (`train.old`)."""


OLD = MemberId(old=True)


@dataclass(frozen=True)
class Calibration:
    """The training images on which a subnetwork's BatchNorm statistics are re-estimated."""

    images: int = 1024
    seed: int = 0
    """They are drawn from it."""
    batch_size: int = 256

    @classmethod
    def of_sweep(cls, sweep: SweepConfig) -> Calibration | None:
        """None where the sweep does not re-estimate statistics."""
        return cls(sweep.calibration_images, sweep.seed, sweep.batch_size) if sweep.calibrate else None


@dataclass(frozen=True)
class Reconstruction:
    """How a subnetwork's layers are refitted to the dense network's outputs (`subnetworks.reconstruction`)."""

    images: int = 512
    """Of the calibration images, evenly over them."""
    ridge: float = 0.5

    @classmethod
    def of_sweep(cls, sweep: SweepConfig) -> Reconstruction | None:
        """None where the sweep takes weights as they were trained."""
        return cls(sweep.reconstruct_images, sweep.ridge) if sweep.reconstruct else None


@dataclass(frozen=True)
class CalibrationImages:
    """Those images, read once for all subnetworks of a network."""

    pixels: Pixels
    """[n, C, S, S], as the evaluation transform crops them."""
    preprocessing: Preprocessing

    @classmethod
    def chosen(cls, train: ImageSet, calibration: Calibration) -> CalibrationImages:
        pixels = train.read(calibration_indices(len(train), calibration.images, calibration.seed))
        return cls(train.preprocessing.crop(pixels), train.preprocessing)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        return calibration_batches(self.pixels, self.preprocessing, batch_size)

    def some(self, count: int) -> Tensor:
        """At most so many, evenly over all: one normalised batch."""
        places = np.linspace(0, len(self.pixels) - 1, min(count, len(self.pixels))).astype(int)
        return self.preprocessing.normalise(torch.from_numpy(self.pixels[places]))


@dataclass(frozen=True)
class Cut:
    """Which subnetwork of a trained network. How capacity is allotted to layers is the network's own."""

    capacity: float
    layer_densities: LayerDensities | None = None
    """A density for every prunable layer instead; `capacity` is then only recorded, not used."""
    within_channel: float = 1.0
    """Granularity channel: share of the weights inside the channels left that stays, by magnitude."""
    random_masks: int | None = None
    """Seed of masks that are drawn at random, the control; None: the learned scores decide."""
    calibration: Calibration | None = Calibration()
    """None: the network's own statistics."""
    reconstruction: Reconstruction | None = None
    """None: the kept weights are as they were trained. It needs a calibration."""

    @property
    def whole(self) -> bool:
        """Whether it is the dense network, of which nothing is refitted."""
        return self.capacity == 1.0 and self.within_channel == 1.0 and self.layer_densities is None

    @classmethod
    def of_sweep(cls, sweep: SweepConfig, capacity: float, layers: Mapping[str, float] | None = None) -> Cut:
        """The subnetwork that a sweep tests at a capacity, or at a density for every layer."""
        return cls(
            capacity,
            None if layers is None else tuple(layers.items()),
            sweep.inside,
            sweep.seed if sweep.masks == "random" else None,
            Calibration.of_sweep(sweep),
            Reconstruction.of_sweep(sweep),
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any], side: Literal["query", "gallery"] = "query") -> Cut:
        """The subnetwork whose queries, or whose gallery, a row of the results table tested.

        ResultsError where the row does not say how it was cut, or the gallery is an old network's, which is not cut.
        """
        if side == "gallery" and row["gallery_source"] == "old":
            raise ResultsError(f"the gallery of row {row['unit_key'][:16]} is an old network's, as it was written")
        try:
            config = json.loads(row["config_json"])
            sweep = SweepConfig.model_validate(config["sweep"])
            # A gallery is never cut layer by layer: it is one of the sweep's capacities.
            layers = config["keep"] if row["allocation"] == "layerwise" and side == "query" else None
            return cls.of_sweep(sweep, row[f"{side}_capacity"], layers)
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ResultsError(f"row {row['unit_key'][:16]} does not say how its subnetwork was cut") from None


@dataclass(frozen=True)
class TrainedHeader:
    """What the file of a trained network says of it (`networks.files.save_network`)."""

    weights_sha: str = ""
    preprocessing: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Sections `data`, `model`, `train` as JSON values, perhaps of an older version; empty: no recipe trained it."""
    workers: int | None = None
    epoch: int | None = None
    images_seen: int | None = None
    train_seconds: float = 0.0
    class_names: Sequence[str] = ()
    history: Sequence[Mapping[str, float]] = ()
    """One entry an epoch, with the loss of each capacity."""
    conflicts: Sequence[Mapping[str, float]] = ()
    """One entry an epoch: layer -> share of conflicting pairs of gradients."""
    untrained: Sequence[str] | None = None
    """Modules that no loss reached; None: an older file, which does not say."""
    calibration: str | None = None
    """Hash of the images of the saved statistics."""

    @classmethod
    def from_json(cls, header: Mapping[str, Any]) -> TrainedHeader:
        """Of a file's header, which may hold more."""
        return cls(**{each.name: header[each.name] for each in fields(cls) if each.name in header})

    @property
    def train(self) -> Mapping[str, Any]:
        """Section `train` of the recipe."""
        return self.recipe.get("train", {})

    @property
    def allocation(self) -> str:
        """How masks were allotted to layers in training; `layer` where the file does not say."""
        return self.train.get("allocation") or "layer"

    @property
    def matches(self) -> list[str]:
        """Hash of the network whose embeddings it was trained to match, if any."""
        old = self.train.get("old")
        return [old] if old else []

    def without_history(self) -> TrainedHeader:
        """What whoever evaluates needs: histories of long trainings are large."""
        return replace(self, history=(), conflicts=(), class_names=())


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, its file's header, and the statistics that were saved with it."""

    net: RetrievalNet
    header: TrainedHeader
    statistics: Statistics | None = None
    """Of the dense network; None: an older file's, or no BatchNorm."""

    @classmethod
    def load(cls, path: str | Path) -> TrainedNetwork:
        """Of a file that `save_network` wrote; CheckpointError for any other."""
        net, header, statistics = load_calibrated(path)
        return cls(net, TrainedHeader.from_json(header), statistics)

    def masked(self, cut: Cut) -> Subnetwork:
        """The weights that a cut keeps, with the network's own statistics: all that costs and masks depend on."""
        return subnetwork(
            self.net,
            cut.capacity,
            allocation=self.header.allocation,
            random_masks=cut.random_masks,
            inside=cut.within_channel,
            keep=None if cut.layer_densities is None else dict(cut.layer_densities),
            weights_sha=self.header.weights_sha,
        )

    def subnetwork(self, cut: Cut, images: CalibrationImages | None = None) -> Subnetwork:
        """The subnetwork, ready to embed. `images` are needed where the cut is calibrated."""
        made = self.masked(cut)
        if cut.calibration is None:
            return made
        assert images is not None, "a cut that is calibrated needs images"
        size, how = cut.calibration.batch_size, None if cut.whole else cut.reconstruction
        if how is not None:
            self._refit(made, how, images, size)
        made.calibrate(images.batches(size))
        if how is not None:
            made.calibration = hashing.of_json(["reconstructed", asdict(how), made.calibration])
        return made

    def _refit(self, made: Subnetwork, how: Reconstruction, images: CalibrationImages, batch_size: int) -> None:
        """ConfigError as `check_reconstruction`."""
        check_reconstruction(self.header.train.get("method", "prunnet"))
        dense = self.masked(Cut(1.0)).calibrate(images.batches(batch_size))
        reconstruct(made, dense, images.some(how.images), how.ridge)

    def deployed(self) -> Subnetwork:
        """The dense network as it is in service: with the statistics that were saved with it, else its running ones."""
        made = self.masked(Cut(1.0))
        if self.statistics is not None:
            made.set_statistics(self.statistics.tensors, self.statistics.calibration)
        return made

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images are made; CheckpointError where its file does not say."""
        if self.header.preprocessing is None:
            raise CheckpointError("the network's file does not say what its images are like")
        return Preprocessing.from_json(self.header.preprocessing)

    def arrays(self) -> dict[str, np.ndarray]:
        """All its tensors as numpy arrays, which an object store shares without copies."""
        return {name: tensor.numpy() for name, tensor in self.net.state_dict().items()}


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Copies, since arrays of an object store are read-only and shared."""
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
