"""How networks and runs are saved: safetensors with a JSON header, and a hash of both (`storage.seal`). No pickle is
ever read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError
from prunnet.networks.headers import NetworkHeader, check, reading
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import build
from prunnet.storage import hashing
from prunnet.storage.tensor_files import load_tensors, save_tensors

NETWORK = "prunnet-network"
TRAINING = "prunnet-training"
CALIBRATED = "calibrated."
"""Before the names of a network's calibrated statistics."""
SPEC_KEYS = frozenset(["backbone", "classes", "embedding_dim", "in_chans", "stem", "neck_norm", "options"])
MORE_SPEC_KEYS = frozenset(["width", "scored", "switch", "granularity", "channel_multiple", "image_size", "pooling"])


@dataclass(frozen=True)
class Statistics:
    """BatchNorm buffers of a dense network, re-estimated on its own training images when its training was over: what
    it embeds with when it is the old one of an upgrade."""

    tensors: Mapping[str, Tensor]
    calibration: str
    """Hash of the images."""


def network_sha(net: RetrievalNet) -> str:
    """Hash of all parameters, scores and buffers, and of the network's description."""
    arrays = {name: t.detach().cpu().contiguous().numpy() for name, t in net.state_dict().items()}
    return hashing.of_json([net.spec, hashing.of_arrays(arrays)])


def save_network(
    path: str | Path,
    net: RetrievalNet,
    preprocessing: Preprocessing,
    *,
    statistics: Statistics | None = None,
    **header: Any,
) -> None:
    """Saves a trained network: `header` may hold anything that JSON can. `statistics`: see `dense_statistics`."""
    described = {
        "net": net.spec,
        "preprocessing": preprocessing.to_json(),
        "weights_sha": network_sha(net),
        **header,
    }
    tensors = net.state_dict()
    if statistics is not None:
        described["calibration"] = statistics.calibration
        tensors |= {CALIBRATED + name: tensor for name, tensor in statistics.tensors.items()}
    save_tensors(path, tensors, NETWORK, described)


def described_net(path: str | Path, header: dict[str, Any]) -> RetrievalNet:
    """A network as a file's header describes it; CheckpointError where the description is not one."""
    spec = header.get("net")
    if not isinstance(spec, dict) or set(spec) - MORE_SPEC_KEYS != SPEC_KEYS:
        raise CheckpointError(
            f"{str(path)!r}: its header describes no network (wanted: {', '.join(sorted(SPEC_KEYS))})"
        )
    with reading(path):
        return build(spec)


def load_network(path: str | Path) -> tuple[RetrievalNet, dict[str, Any]]:
    """(network, header) of a file that `save_network` wrote; CheckpointError for any other."""
    net, header, _ = load_calibrated(path)
    return net, header


def load_calibrated(path: str | Path) -> tuple[RetrievalNet, dict[str, Any], Statistics | None]:
    """As `load_network`, with the statistics; None where a file, as older ones, has none."""
    tensors, header = load_tensors(path, NETWORK)
    check(NetworkHeader, header, path)
    own = {name.removeprefix(CALIBRATED): tensors.pop(name) for name in [*tensors] if name.startswith(CALIBRATED)}
    net = described_net(path, header)
    state = net.state_dict()
    if odd := [name for name, t in own.items() if name not in state or state[name].shape != t.shape]:
        raise CheckpointError(f"{str(path)!r} does not fit its own header: calibrated {odd[:3]}")
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{str(path)!r} does not fit its own header: {' '.join(str(error).split())[:200]}"
        ) from None
    if network_sha(net) != header.get("weights_sha"):
        raise CheckpointError(f"{str(path)!r}: the weights do not have the hash that the header names")
    return net, header, Statistics(own, header["calibration"]) if own and "calibration" in header else None


def save_training(folder: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """A training state, one file in a checkpoint folder."""
    save_tensors(Path(folder) / "state.safetensors", tensors, TRAINING, header)


def load_training(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_training` wrote."""
    return load_tensors(Path(folder) / "state.safetensors", TRAINING)


def copy_into(parameter: Tensor, value: Tensor) -> None:
    """Copies in place, whatever the memory formats."""
    with torch.no_grad():
        parameter.copy_(value)


def allocation_of(header: dict[str, Any]) -> str:
    """How a network's masks were allotted to its layers while it was trained; `layer` where its file lacks the key."""
    return header.get("recipe", {}).get("train", {}).get("allocation") or "layer"
