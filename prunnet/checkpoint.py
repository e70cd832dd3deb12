"""How networks and runs are saved: safetensors with a JSON header. No pickle is ever read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunnet import hashing
from prunnet.atomic import put_in_place
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, one_line
from prunnet.headers import NetworkHeader, check, reading
from prunnet.nets import RetrievalNet
from prunnet.storage import local, place
from prunnet.widths import build

NETWORK = "prunnet-network"
TRAINING = "prunnet-training"
SPEC_KEYS = frozenset(["backbone", "classes", "embedding_dim", "in_chans", "stem", "neck_norm", "options"])
MORE_SPEC_KEYS = frozenset(["width", "scored", "switch", "granularity", "channel_multiple", "image_size"])


def save_tensors(path: str | Path, tensors: dict[str, Tensor], kind: str, header: dict[str, Any]) -> None:
    """Writes tensors and header under a temporary name, syncs, renames: a reader sees all of it or nothing."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with put_in_place(place(path)) as temporary:
        save_file(plain, temporary, metadata={"prunnet": hashing.canonical_json({"kind": kind, **header})})


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a file of this kind; CheckpointError, in one line, for anything else."""
    if not place(path).is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} is not a file")
    try:
        with safe_open(str(local(path)), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("prunnet", "{}"))
            if not isinstance(header, dict) or header.get("kind") != kind:
                found = header.get("kind") if isinstance(header, dict) else None
                raise CheckpointError(f"{str(path)!r} is not a {kind} file (it says {found!r})")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{str(path)!r} is not a whole safetensors file ({reason}); wanted a {kind} file"
        ) from None


def kind_of(path: str | Path) -> str:
    """What a saved file says that it is (`NETWORK`, `prunnet-subnetwork`, …); CheckpointError where it says nothing."""
    return read_header(path).get("kind", "")


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of any file of ours, without its tensors."""
    if not place(path).is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} is not a file")
    try:
        with safe_open(str(local(path)), framework="np") as file:
            header = json.loads((file.metadata() or {}).get("prunnet", "{}"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"{str(path)!r} is not a whole safetensors file ({one_line(error)})") from None
    if not isinstance(header, dict) or "kind" not in header:
        raise CheckpointError(f"{str(path)!r} is not a file of prunnet's")
    return header


def network_sha(net: RetrievalNet) -> str:
    """Hash of all parameters, scores and buffers, and of the network's description."""
    arrays = {name: t.detach().cpu().contiguous().numpy() for name, t in net.state_dict().items()}
    return hashing.of_json([net.spec, hashing.of_arrays(arrays)])


def save_network(path: str | Path, net: RetrievalNet, preprocessing: Preprocessing, **header: Any) -> None:
    """Saves a trained network: `header` may hold anything that JSON can."""
    described = {
        "net": net.spec,
        "preprocessing": preprocessing.to_json(),
        "weights_sha": network_sha(net),
        **header,
    }
    save_tensors(path, net.state_dict(), NETWORK, described)


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
    tensors, header = load_tensors(path, NETWORK)
    check(NetworkHeader, header, path)
    net = described_net(path, header)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{str(path)!r} does not fit its own header: {' '.join(str(error).split())[:200]}"
        ) from None
    if network_sha(net) != header["weights_sha"]:
        raise CheckpointError(f"{str(path)!r}: the weights do not have the hash that the header names")
    return net, header


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
