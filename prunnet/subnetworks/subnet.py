"""A capacity made concrete: masked weights over the shared network, its own BatchNorm statistics, its identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from prunnet.config.choices import check_capacity
from prunnet.config.granularities import GRANULARITIES
from prunnet.data.base import ImageSet
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError
from prunnet.networks.files import Statistics, described_net, network_sha
from prunnet.networks.headers import SubnetworkHeader, check, reading
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import SwitchableNet, build
from prunnet.pruning import prunable
from prunnet.pruning.granularities.by_name import select
from prunnet.pruning.masks import LayerMasks, top_k_mask
from prunnet.storage import hashing
from prunnet.storage.tensor_files import load_tensors, save_tensors
from prunnet.subnetworks.batchnorm import calibration_batches, calibration_indices, running_statistics
from prunnet.subnetworks.compact import PlainNet, compact
from prunnet.subnetworks.cost import Cost, cost_of

FORMAT = "prunnet-subnetwork"


class Subnetwork:
    """The dense network's weights under the masks of one capacity.

    Nothing of `net` is copied or changed except the weights that the masks touch; BatchNorm statistics start
    as the dense network's and are this subnetwork's own after `calibrate`.
    """

    def __init__(
        self, net: RetrievalNet, capacity: float, masks: dict[str, Tensor], weights_sha: str | None = None
    ) -> None:
        self.net, self.capacity, self.masks = net, capacity, masks
        self._weights_sha = weights_sha
        self.calibration: str | None = None
        """Hash of the images that the BatchNorm statistics were re-estimated on, and of how layers were refitted to
        them if they were; None: neither."""
        self.reconstructed = False
        """Whether its weights are its own (`subnetworks.reconstruction`) instead of the network's."""
        dense = {name: net.get_submodule(name).get_parameter("weight") for name in masks}
        with torch.no_grad():
            self._tensors = {f"{n}.weight": w * masks[n] for n, w in dense.items() if not bool(masks[n].all())}
            self._tensors |= {name: buffer.clone() for name, buffer in running_statistics(net)}

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return int(self.net.spec["embedding_dim"])

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] -> L2-normalised embeddings [B, embedding_dim], float32."""
        self.net.eval()
        with torch.inference_mode():
            return self._run(images)

    def _run(self, images: Tensor) -> Tensor:
        # Not tied: a module that a backbone uses at two places (CoaT) would keep the other tensors for good.
        return functional_call(_Embedder(self.net), _prefixed(self._tensors), (images,), tie_weights=False)

    def calibrate(self, batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> Subnetwork:
        """Re-estimates BatchNorm statistics on batches of normalised images: reset, cumulative average, forward
        only. Batches should have one size. Returns self. (docs/METHODS.md, section 2, after training.)"""
        norms = [m for m in self.net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.net.eval()
        momenta = [norm.momentum for norm in norms]
        self._tensors |= {name: torch.zeros_like(buffer) for name, buffer in running_statistics(self.net)}
        device = next(self.net.parameters()).device
        seen = []
        try:
            for norm in norms:
                norm.momentum = None
                norm.train()
            with torch.no_grad():
                for batch in batches:
                    images = batch if isinstance(batch, Tensor) else batch[0]
                    self._run(images.to(device))
                    seen.append(hashing.of_arrays({"images": images.cpu().numpy()}))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
        if not seen:
            raise ConfigError("calibrate was given no images; valid: one batch of normalised images or more")
        self.calibration = hashing.of_json(seen)
        return self

    def own(self, names: Iterable[str]) -> None:
        """Parameters, by name, of which this subnetwork gets a copy of its own, to be changed; others that it has, and
        names that the network does not have, are left out."""
        of_net = dict(self.net.named_parameters())
        self._tensors |= {n: of_net[n].detach().clone() for n in names if n in of_net and n not in self._tensors}

    @property
    def weights_sha(self) -> str:
        """Hash of the network that this is a subnetwork of; computed at the first use if it was not given."""
        if self._weights_sha is None:
            self._weights_sha = network_sha(self.net)
        return self._weights_sha

    @property
    def mask_sha(self) -> str:
        """Hash of all masks."""
        return hashing.of_arrays({name: np.packbits(m.cpu().numpy()) for name, m in self.masks.items()})

    def cost(self, image_size: int = 224) -> Cost:
        """Parameters and MACs for a square image of `image_size` pixels."""
        return cost_of(self.net, self.masks, image_size)

    def state(self) -> dict[str, Tensor]:
        """All tensors of the network by name, as this subnetwork has them."""
        return {**self.net.state_dict(), **self._tensors}

    def compact(self, image_size: int | None = None) -> PlainNet:
        """An ordinary torch module with equal features: see `prunnet.subnetworks.compact`."""
        return compact(self.net, self.state(), image_size)

    def statistics(self) -> dict[str, Tensor]:
        """Its own BatchNorm buffers, by name."""
        return {name: self._tensors[name] for name, _ in running_statistics(self.net)}

    def set_statistics(self, statistics: Mapping[str, Tensor], calibration: str | None) -> None:
        """Takes BatchNorm buffers that were estimated before; `calibration` is the hash of their images."""
        self._tensors |= {name: tensor.to(self.device) for name, tensor in statistics.items()}
        self.calibration = calibration

    def save(self, path: str | Path, preprocessing: Preprocessing | None = None) -> None:
        """Writes a safetensors file with a JSON header (capacity, hashes, preprocessing, network)."""
        tensors = {n: t for n, t in self.state().items() if not (prunable.is_score(n) or n.startswith("classifier."))}
        header = {
            "capacity": self.capacity,
            "weights_sha": self.weights_sha,
            "mask_sha": self.mask_sha,
            "calibration": self.calibration,
            "net": self.net.spec,
            "preprocessing": None if preprocessing is None else preprocessing.to_json(),
        }
        save_tensors(path, tensors, FORMAT, header)

    def to(self, device: torch.device | str) -> Subnetwork:
        """Moves network, masks and statistics; returns self."""
        self.net.to(device)
        self.masks = {name: mask.to(device) for name, mask in self.masks.items()}
        self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
        return self

    @classmethod
    def load(cls, path: str | Path) -> Subnetwork:
        """The saved subnetwork; its features are bit-equal. CheckpointError for any other file."""
        return cls.load_with_preprocessing(path)[0]

    @classmethod
    def load_with_preprocessing(cls, path: str | Path) -> tuple[Subnetwork, dict[str, Any] | None]:
        """The saved subnetwork, and what its images had been made with, as JSON."""
        tensors, header = load_tensors(path, FORMAT)
        check(SubnetworkHeader, header, path)
        net = described_net(path, header)
        with reading(path):
            missing, unexpected = net.load_state_dict(tensors, strict=False)
        missing = [m for m in missing if not prunable.is_score(m) and not m.startswith("classifier.")]
        if missing or unexpected:
            raise CheckpointError(f"{str(path)!r} does not fit its own header: {[*missing, *unexpected][:3]}")
        masked = prunable.layers(net) if net.channels is None else net.channels.touched
        masks = {name: net.get_submodule(name).get_parameter("weight") != 0 for name in masked}
        loaded = cls(net, float(header["capacity"]), masks, header["weights_sha"])
        loaded.calibration = header["calibration"]
        return loaded, header["preprocessing"]


def subnetwork(
    net: RetrievalNet,
    capacity: float,
    *,
    allocation: str = "layer",
    random_masks: int | None = None,
    inside: float = 1.0,
    keep: Mapping[str, float] | None = None,
    weights_sha: str | None = None,
) -> Subnetwork:
    """The subnetwork of any capacity in (0, 1], trained or not; ConfigError for any other number.

    A switchable network's is a plain, smaller network with the first channels of every layer.

    `allocation`: `layer` or `global`, see `masks.counts_by_layer`.
    `random_masks`: a seed; masks of the same sizes are drawn at random instead (the control for the scores).
    `inside`: with granularity `channel`, the within-channel density: the share of the weights in each layer's kept
    channels that is kept, by magnitude.
    `keep`: per-layer densities, one for every prunable layer by name (`subnetworks.layer_budgets`); `capacity` is then
    only recorded, not used.
    `weights_sha`: `network_sha(net)` where the caller has it, since hashing takes longer than cutting.
    """
    capacity = check_capacity(capacity)
    if isinstance(net, SwitchableNet):
        return Subnetwork(net.extract(capacity), capacity, {}, weights_sha or network_sha(net))
    names = list(prunable.layers(net))
    if not names and capacity < 1.0:
        raise ConfigError(f"capacity {capacity:g}: this network carries no scores, so nothing can be cut from it")
    drawn = None
    if random_masks is not None:
        generator = torch.Generator().manual_seed(random_masks)

        def drawn(score: Tensor) -> Tensor:
            return torch.rand(score.shape, generator=generator).to(score.device)

    if keep is not None and set(keep) != set(names):
        odd = sorted(set(keep) ^ set(names))
        raise ConfigError(f"keep must name every prunable layer and no other; {odd[:3]} is missing or foreign")
    if keep is None:
        chosen = select(net, [capacity], allocation=allocation, random_scores=drawn)
        masks = {name: mask.mask(0) for name, mask in chosen.layers.items()}
        if check_capacity(inside) < 1.0:
            masks = _thinned(net, masks, inside)
    elif not GRANULARITIES[net.granularity].layerwise:
        raise ConfigError(f"layer-wise capacities are for granularity 'weight', not {net.granularity!r}")
    else:
        scores = prunable.scores(net)
        masks = {n: LayerMasks(s if drawn is None else drawn(s), [keep[n]]).mask(0) for n, s in scores.items()}
    return Subnetwork(net, capacity, masks, weights_sha)


def _thinned(net: RetrievalNet, masks: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks that keep only the largest of each prunable layer's kept weights; ConfigError for other granularities than
    `channel`."""
    if not GRANULARITIES[net.granularity].channels:
        raise ConfigError(
            f"inside={share:g} is for granularity 'channel', not {net.granularity!r}: weights go by capacity"
        )
    thinned = dict(masks)
    for name in prunable.layers(net):
        weight, mask = net.get_submodule(name).get_parameter("weight").detach(), masks[name]
        stays = torch.zeros_like(mask)
        stays[mask] = top_k_mask(weight[mask], share)
        thinned[name] = stays
    return thinned


def dense_statistics(net: RetrievalNet, images: ImageSet, preprocessing: Preprocessing) -> Statistics | None:
    """The dense network's BatchNorm statistics, re-estimated on its training images, to be saved with it (`net` is not
    changed). None where it has no BatchNorm."""
    copied = build(net.spec)  # as it will be loaded: a trainer's memory format would change the last digits
    copied.load_state_dict(net.state_dict())
    cut = subnetwork(copied.to(next(net.parameters()).device), 1.0, weights_sha="")
    if not cut.statistics():
        return None
    indices = calibration_indices(len(images), 1024, 0)
    cut.calibrate(calibration_batches(images.read(indices), preprocessing, 256))
    assert cut.calibration is not None
    return Statistics(cut.statistics(), cut.calibration)


class _Embedder(torch.nn.Module):
    """Lets functional_call reach `embed`."""

    def __init__(self, net: RetrievalNet) -> None:
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, images: Tensor) -> Tensor:
        return self.net.embed(images)


def _prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"net.{name}": tensor for name, tensor in tensors.items()}
