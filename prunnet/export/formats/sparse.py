"""`.safetensors`: kept weights and a bit mask. The file opens as the subnetwork itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prunnet.errors import CheckpointError
from prunnet.export.formats.base import Format
from prunnet.storage import hashing

if TYPE_CHECKING:  # functions import what needs torch: a command refuses a precision without it
    from torch import Tensor

    from prunnet.export.formats.exported import Exported
    from prunnet.networks.headers import Identity
    from prunnet.networks.retrieval_net import RetrievalNet
    from prunnet.subnetworks.subnet import Subnetwork

SPARSE = "prunnet-sparse"


def write(cut: Subnetwork, path: Path, said: Identity) -> None:
    import numpy as np
    import torch

    from prunnet.storage.tensor_files import save_tensors

    tensors: dict[str, Tensor] = {}
    for name, tensor in cut.state().items():
        layer = name.removesuffix(".weight")
        if name.startswith("classifier.") or name.endswith(".score") or name.startswith("channels."):
            continue
        if layer in cut.masks and name.endswith(".weight"):
            mask = cut.masks[layer].cpu()
            tensors[f"{layer}.mask"] = torch.from_numpy(np.packbits(mask.contiguous().numpy()))
            tensors |= _stored(f"{layer}.kept", tensor.cpu().contiguous()[mask], tensor, mask, said.precision)
        else:
            half = said.precision == "fp16" and tensor.is_floating_point()
            tensors[name] = tensor.half() if half else tensor
    save_tensors(path, tensors, SPARSE, {"net": cut.net.spec, "identity": said.to_json()})


def _stored(name: str, kept: Tensor, whole: Tensor, mask: Tensor, precision: str) -> dict[str, Tensor]:
    """Kept values in a precision; int8: symmetric, one scale an output channel."""
    import torch

    if precision != "int8":
        return {name: kept.half() if precision == "fp16" else kept}
    rows = (whole.detach().cpu() * mask).flatten(1).abs().amax(1)
    scale = torch.where(rows > 0, rows / 127, 1.0).float()
    return {name: (kept / scale[_owners(mask)]).round().clamp(-127, 127).to(torch.int8), f"{name}.scale": scale}


def _owners(mask: Tensor) -> Tensor:
    """Output channel of each kept value."""
    import torch

    return torch.arange(len(mask)).view(-1, *[1] * (mask.dim() - 1)).expand_as(mask)[mask]


def read(path: Path) -> Exported:
    from prunnet.export.formats.exported import Exported

    cut, said = load_sparse(path)
    return Exported(said, cut.embed)


def load_sparse(path: str | Path) -> tuple[Subnetwork, Identity]:
    """(subnetwork, identity) of an exported .safetensors; CheckpointError for any other file."""
    from prunnet.networks.files import described_net
    from prunnet.networks.headers import Identity, check, reading
    from prunnet.storage.tensor_files import load_tensors
    from prunnet.subnetworks.subnet import Subnetwork

    tensors, header = load_tensors(path, SPARSE)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if "content" in header and header["content"] != hashing.of_arrays(arrays):  # an older file without a seal
        raise CheckpointError(f"{str(path)!r} is damaged: its tensors do not have the hash that the header names")
    with reading(path):
        said = check(Identity, header.get("identity"), path)
        if said.capacity is None:
            raise CheckpointError(f"{str(path)!r}: its identity does not say the capacity")
        net = described_net(path, header)
        masks = _loaded(net, tensors)
        cut = Subnetwork(net.eval(), said.capacity, masks, said.weights_sha)
        cut.calibration = said.calibration
        return cut, said


def _loaded(net: RetrievalNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loads the tensors into the network; returns the masks of its layers."""
    import numpy as np
    import torch

    state: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == "mask" and f"{layer}.kept" in tensors:
            shape = net.get_submodule(layer).get_parameter("weight").shape
            bits = np.unpackbits(tensor.numpy(), count=shape.numel())
            masks[layer] = torch.from_numpy(bits).view(shape).bool()
            state[f"{layer}.weight"] = _dense(tensors, layer, masks[layer])
        elif kind not in ("kept", "scale"):
            state[name] = tensor.float() if tensor.dtype == torch.float16 else tensor
    net.load_state_dict(state, strict=False)
    return masks


def _dense(tensors: Mapping[str, Tensor], layer: str, mask: Tensor) -> Tensor:
    import torch

    kept = tensors[f"{layer}.kept"]
    if kept.dtype == torch.int8:
        kept = kept.float() * tensors[f"{layer}.kept.scale"][_owners(mask)]
    return torch.zeros(mask.shape).masked_scatter(mask, kept.float())


FORMAT = Format("kept weights and a bit mask, opened with prunnet", write, read, ("fp32", "fp16", "int8"))
