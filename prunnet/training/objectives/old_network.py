"""The old network of a backward-compatible training: frozen, seen through its own preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError
from prunnet.networks.files import NETWORK, load_calibrated
from prunnet.storage.tensor_files import kind_of
from prunnet.subnetworks.subnet import Subnetwork, subnetwork


class OldNetwork:
    """What a new network's embeddings must match: a network's file (dense), or a subnetwork's (any capacity).

    It embeds as the old system did, whose gallery is there already: with the BatchNorm statistics that were saved with
    it (a network's file of before there were any: its running ones), never with ones of the new training images.

    Args:
        path: model.safetensors of a run, or what `Subnetwork.save` wrote.
        preprocessing: what the images that reach `embed` were made with.
        class_names: of the new training classes, by label.
        embedding_dim: of the new network; the old one's must be equal.

    Raises:
        CheckpointError: no such file. ConfigError: embeddings of another length.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        preprocessing: Preprocessing,
        class_names: Sequence[str] = (),
        embedding_dim: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.path, self.device = str(path), torch.device(device)
        self.classifier: tuple[Tensor, Tensor] | None = None
        self.untrained: Sequence[str] = ()
        """Modules that its training left as they began."""
        old_names: Sequence[str] = ()
        if kind_of(path) == NETWORK:
            net, header, statistics = load_calibrated(path)
            net.to(self.device)
            self.cut = subnetwork(net, 1.0, weights_sha=header["weights_sha"])
            if statistics is not None:
                self.cut.set_statistics(statistics.tensors, statistics.calibration)
            self.untrained = untrained(header)
            self.classifier = (self.cut.net.classifier.weight.detach(), self.cut.net.classifier.bias.detach())
            made, old_names = header["preprocessing"], header.get("class_names", ())
        else:
            self.cut, made = Subnetwork.load_with_preprocessing(path)
            self.cut.to(self.device)
        if made is None:
            raise CheckpointError(f"{self.path!r} does not say what preprocessing its images had")
        self.made, self.wanted = preprocessing, Preprocessing.from_json(made)
        dim = self.cut.net.spec["embedding_dim"]
        if dim != embedding_dim:
            raise ConfigError(
                f"train.old {self.path!r} has embeddings of length {dim}, the new network {embedding_dim}; "
                f"set model.embedding_dim={dim}"
            )
        position = {name: label for label, name in enumerate(old_names)}
        self.labels = torch.tensor([position.get(name, -1) for name in class_names], device=self.device)
        """[new classes]: the old label of each new class, -1 where the old network was not trained on it."""

    @torch.no_grad()
    def embed(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Images [B, C, H, W] as the new network sees them -> the old network's embeddings [B, d], float32."""
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            embeddings = self.cut.embed(converted(images, self.made, self.wanted).float())
        return embeddings.clone()  # outside of inference mode, so that a loss may keep it


def untrained(header: Mapping[str, Any]) -> Sequence[str]:
    """Modules of a saved network that no loss reached; where its file, as older ones, does not say, by its method."""
    if "untrained" in header:
        return list(header["untrained"])
    train = header.get("recipe", {}).get("train", {})
    return ["classifier"] if {train.get("method"), train.get("compatible")} & {"asymmetric", "regression"} else []


def converted(images: Tensor, made: Preprocessing, wanted: Preprocessing) -> Tensor:
    """Normalised images [B, C, H, W] of one preprocessing as another would have made them; sizes by bilinear
    resampling of what is there."""
    if made == wanted:
        return images
    values = images * _column(made.std, images) + _column(made.mean, images)
    if made.invert != wanted.invert:
        values = 1 - values
    if made.channels == 1 and wanted.channels == 3:
        values = values.expand(-1, 3, -1, -1)
    elif made.channels == 3 and wanted.channels == 1:
        values = (values * _column((0.299, 0.587, 0.114), values)).sum(dim=1, keepdim=True)
    if made.image_size != wanted.image_size:
        size = (wanted.image_size, wanted.image_size)
        values = F.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)
    return (values - _column(wanted.mean, values)) / _column(wanted.std, values)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
