"""Export formats of a subnetwork, and how they are opened.

    edge.safetensors   kept weights and a bit mask: small on disk, opened with prunnet, fp32, fp16 or int8 weights
    edge.onnx          the compact network for onnxruntime, any batch size, fp32, fp16 or int8
    edge.pt2           the compact network as a torch.export program, fp32 or fp16; opened only from a trusted maker

Each carries its identity (weights, capacity, mask, calibration, preprocessing, embedding size) and a hash of the whole
file (`storage.seal`), so that a flipped bit is refused like a foreign file. Embeddings are stamped with the identity,
and galleries of another space are refused (`prunnet.export.embedding_sets`).
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunnet.config.choices import UNITS, check_format
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError, PrunnetError, one_line
from prunnet.networks.files import described_net
from prunnet.networks.headers import Identity, check, reading
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.storage import hashing, seal
from prunnet.storage.atomic import put_in_place
from prunnet.storage.paths import local, place
from prunnet.storage.tensor_files import load_tensors, save_tensors
from prunnet.subnetworks.compact import PlainNet
from prunnet.subnetworks.subnet import Subnetwork

Precision = Literal["fp32", "fp16", "int8"]
SPARSE = "prunnet-sparse"
_KEY = "prunnet"
_JSON = "prunnet.json"


def identity(
    cut: Subnetwork, preprocessing: Preprocessing, matches: Sequence[str] = (), precision: str = "fp32"
) -> dict[str, Any]:
    """What determines embeddings, as JSON.

    `matches`: hashes of the networks whose embeddings it was trained to match (`TrainedHeader.matches`).
    """
    return {
        "weights_sha": cut.weights_sha,
        "matches": list(matches),
        "capacity": cut.capacity,
        "capacity_unit": UNITS[cut.net.granularity],
        "granularity": cut.net.granularity,
        "mask_sha": cut.mask_sha,
        "calibration": cut.calibration,
        "backbone": cut.net.spec["backbone"],
        "in_chans": cut.net.spec["in_chans"],
        "embedding_dim": cut.net.spec["embedding_dim"],
        "preprocessing": preprocessing.to_json(),
        "precision": precision,
    }


def export(cut: Subnetwork, path: str | Path, said: dict[str, Any]) -> None:
    """Writes the subnetwork in the format that the suffix of `path` names, in the precision of its identity `said`.

    Raises ConfigError for another suffix, or a precision that the format does not have.
    """
    check_format(path, said["precision"])
    _WRITERS[Path(path).suffix.lower()](cut, place(path), said)


@dataclass(frozen=True)
class Exported:
    """An exported subnetwork, opened."""

    identity: dict[str, Any]
    run: Callable[[Tensor], Tensor]
    """Normalised images [B, C, H, W] -> embeddings [B, embedding_dim], float32."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    @property
    def embedding_dim(self) -> int:
        return int(self.identity["embedding_dim"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images are made."""
        return Preprocessing.from_json(self.identity["preprocessing"])

    def embed(self, images: Tensor) -> Tensor:
        """As `Subnetwork.embed`."""
        with torch.inference_mode():
            return self.run(images.float())


def open_export(path: str | Path, *, trust_code: bool = False) -> Exported:
    """What `export` wrote; CheckpointError, by name and in one line, for a file that is truncated, damaged or
    foreign.

    Args:
        trust_code: open a .pt2 file, too. torch.export.load unpickles and evaluates what is in it, before anything of
            it can be checked: its maker can run any code with the rights of this process.
    """
    path = Path(local(path))
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} is not a file")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise CheckpointError(f"{str(path)!r} is no export; valid: {', '.join(_READERS)}")
    if suffix == ".pt2" and not trust_code:
        raise CheckpointError(
            f"{str(path)!r} is not opened: loading a .pt2 program can run any code that its maker put into it; use an "
            "export as .onnx or .safetensors, or, if you trust the maker, --trust-code (trust_code=True)"
        )
    try:
        opened = _READERS[suffix](path)
        _ = opened.preprocessing, opened.embedding_dim
    except PrunnetError:
        raise
    except Exception as error:  # libraries raise errors of any kind for foreign files
        raise CheckpointError(f"{str(path)!r} is not an export of prunnet's ({one_line(error)[:200]})") from None
    return opened


# --- .safetensors ---------------------------------------------------------------------------------------------


def _write_sparse(cut: Subnetwork, path: Path, said: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, tensor in cut.state().items():
        layer = name.removesuffix(".weight")
        if name.startswith("classifier.") or name.endswith(".score") or name.startswith("channels."):
            continue
        if layer in cut.masks and name.endswith(".weight"):
            mask = cut.masks[layer].cpu()
            tensors[f"{layer}.mask"] = torch.from_numpy(np.packbits(mask.contiguous().numpy()))
            tensors |= _stored(f"{layer}.kept", tensor.cpu().contiguous()[mask], tensor, mask, said["precision"])
        else:
            half = said["precision"] == "fp16" and tensor.is_floating_point()
            tensors[name] = tensor.half() if half else tensor
    save_tensors(path, tensors, SPARSE, {"net": cut.net.spec, "identity": said})


def _stored(name: str, kept: Tensor, whole: Tensor, mask: Tensor, precision: str) -> dict[str, Tensor]:
    """Kept values in a precision; int8: symmetric, one scale an output channel."""
    if precision != "int8":
        return {name: kept.half() if precision == "fp16" else kept}
    rows = (whole.detach().cpu() * mask).flatten(1).abs().amax(1)
    scale = torch.where(rows > 0, rows / 127, 1.0).float()
    owner = torch.arange(len(scale)).view(-1, *[1] * (mask.dim() - 1)).expand_as(mask)[mask]
    return {name: (kept / scale[owner]).round().clamp(-127, 127).to(torch.int8), f"{name}.scale": scale}


def _read_sparse(path: Path) -> Exported:
    cut, said = load_sparse(path)
    return Exported(said, cut.embed)


def load_sparse(path: str | Path) -> tuple[Subnetwork, dict[str, Any]]:
    """(subnetwork, identity) of an exported .safetensors; CheckpointError for any other file."""
    tensors, header = load_tensors(path, SPARSE)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if "content" in header and header["content"] != hashing.of_arrays(arrays):  # an older file without a seal
        raise CheckpointError(f"{str(path)!r} is damaged: its tensors do not have the hash that the header names")
    with reading(path):
        check(Identity, header.get("identity"), path)
        return _sparse(described_net(path, header), tensors, header["identity"])


def _sparse(
    net: RetrievalNet, tensors: Mapping[str, Tensor], said: dict[str, Any]
) -> tuple[Subnetwork, dict[str, Any]]:
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
    cut = Subnetwork(net.eval(), float(said["capacity"]), masks, said["weights_sha"])
    cut.calibration = said["calibration"]
    return cut, said


def _dense(tensors: Mapping[str, Tensor], layer: str, mask: Tensor) -> Tensor:
    kept = tensors[f"{layer}.kept"]
    if kept.dtype == torch.int8:
        owner = torch.arange(len(mask)).view(-1, *[1] * (mask.dim() - 1)).expand_as(mask)[mask]
        kept = kept.float() * tensors[f"{layer}.kept.scale"][owner]
    return torch.zeros(mask.shape).masked_scatter(mask, kept.float())


# --- .onnx ----------------------------------------------------------------------------------------------------


class _Half(nn.Module):
    """Half precision inside, float32 outside."""

    def __init__(self, net: PlainNet) -> None:
        super().__init__()
        self.net = net.half()

    def forward(self, images: Tensor) -> Tensor:
        features = self.net.neck(self.net.backbone(images.half()))
        return nn.functional.normalize(features.float())


def _plain(cut: Subnetwork, said: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """(the compact network in its precision, two images of zeros)."""
    size = int(said["preprocessing"]["image_size"])
    net: nn.Module = cut.compact(size).cpu()
    if said["precision"] == "fp16":
        net = _Half(net)  # type: ignore[arg-type]
    return net.eval(), torch.zeros(2, said["in_chans"], size, size)


def _write_onnx(cut: Subnetwork, path: Path, said: dict[str, Any]) -> None:
    onnx = _onnx("onnx")
    net, images = _plain(cut, said)
    with put_in_place(path) as temporary, quiet():
        program = torch.onnx.export(
            net,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
        assert program is not None
        program.save(str(temporary))
        model = onnx.load(str(temporary))
        if said["precision"] == "int8":
            model = _quantised(model)
        onnx.helper.set_model_props(model, {_KEY: hashing.canonical_json({**said, "seal": seal.BLANK})})
        onnx.save(model, str(temporary))
        seal.close(temporary)


def _quantised(model: Any) -> Any:
    """Weights int8 with a scale a channel, activations quantised as they come, by onnxruntime's own tool."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del model.graph.value_info[:]  # the exporter's shapes are from before its transpositions
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8)
        return _onnx("onnx").load(str(target))


def _read_onnx(path: Path) -> Exported:
    onnx, runtime = _onnx("onnx"), _onnx("onnxruntime")
    content = path.read_bytes()
    whole = _whole(path, content)
    try:
        model = onnx.load_model_from_string(content)  # not from the path: no other file is read
        stamped = {entry.key: entry.value for entry in model.metadata_props}.get(_KEY)
    except Exception as error:  # protobuf's own kinds of errors
        raise CheckpointError(f"{str(path)!r} is not a whole ONNX file ({one_line(error)[:80]})") from None
    external = onnx.TensorProto.EXTERNAL
    if any(isinstance(m, onnx.TensorProto) and m.data_location == external for m in _messages(model)):
        raise CheckpointError(f"{str(path)!r} keeps weights in other files, which no export of prunnet's does")
    said = _checked(path, stamped, whole, lambda: _onnx_content(model))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Exported(said, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all that are in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else (value,):
                yield from _messages(part)


def _onnx_content(model: Any) -> str:
    """Hash of graph and weights, without what is stamped on them: in files of before there were seals."""
    bare = type(model)()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashing.of_bytes(bare.SerializeToString(deterministic=True))


def _onnx(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise ConfigError(f"ONNX files need {name!r}: pip install 'prunnet[onnx]'") from None


# --- .pt2 -----------------------------------------------------------------------------------------------------


def _write_program(cut: Subnetwork, path: Path, said: dict[str, Any]) -> None:
    net, images = _plain(cut, said)
    batch = {"images": {0: torch.export.Dim("batch")}}
    with put_in_place(path) as temporary, quiet():
        program = torch.export.export(net, (images,), dynamic_shapes=batch)
        with temporary.open("wb") as file:
            torch.export.save(program, file, extra_files={_JSON: hashing.canonical_json(said)})
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = seal.BLANK.encode()
        seal.close(temporary)


def _read_program(path: Path) -> Exported:
    """Of a file whose maker is trusted. Damage is looked for before anything of the file is run."""
    extra = {_JSON: ""}
    whole = _whole(path, path.read_bytes())
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            if bad is not None:
                raise CheckpointError(f"{str(path)!r} is damaged: {bad} does not have the checksum beside it")
            if not any(name.endswith(_JSON) for name in archive.namelist()):
                raise CheckpointError(f"{str(path)!r} is not an export of prunnet's: it carries no identity")
        with quiet():
            program = torch.export.load(path, extra_files=extra)
    except CheckpointError:
        raise
    except Exception as error:  # zip, JSON and torch's own kinds of errors
        raise CheckpointError(f"{str(path)!r} is not a whole torch.export file ({one_line(error)[:80]})") from None
    said = _checked(path, extra[_JSON], whole, lambda: _program_content(program))
    return Exported(said, program.module())


def _program_content(program: Any) -> str:
    """Hash of the weights: in files of before there were seals."""
    arrays = {name: tensor.detach().numpy() for name, tensor in program.state_dict.items()}
    return hashing.of_arrays(arrays)


# --- all --------------------------------------------------------------------------------------------------------


def _whole(path: Path, content: bytes) -> bool:
    """Whether a file is as it was written; False: it carries no hash. CheckpointError where it is damaged."""
    whole = seal.whole(content)
    if whole is False:
        raise CheckpointError(f"{str(path)!r} is damaged: its bytes do not have the hash that it carries")
    return whole is True


def _checked(path: Path, stamped: str | None, whole: bool, content: Callable[[], str]) -> dict[str, Any]:
    """The identity that a file carries.

    Args:
        whole: whether the file has the hash that it carries.
        content: hash of what it holds, which a file of before there were seals names in its identity.
    """
    if not stamped:
        raise CheckpointError(f"{str(path)!r} is not an export of prunnet's: it carries no identity")
    try:
        said = json.loads(stamped)
        said.pop("seal", None)
        if not whole:
            whole = said.pop("content") == content()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{str(path)!r} is damaged: its identity cannot be read") from None
    check(Identity, said, path)
    if not whole:
        raise CheckpointError(f"{str(path)!r} is damaged: its content does not have the hash that it carries")
    return said


class quiet(warnings.catch_warnings):
    """torch.onnx and torch.export log verbosely; their output is suppressed."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *details: Any) -> None:
        logging.disable(self._before)
        super().__exit__(*details)


_WRITERS: dict[str, Callable[[Subnetwork, Path, dict[str, Any]], None]] = {
    ".safetensors": _write_sparse,
    ".onnx": _write_onnx,
    ".pt2": _write_program,
}
_READERS: dict[str, Callable[[Path], Exported]] = {
    ".safetensors": _read_sparse,
    ".onnx": _read_onnx,
    ".pt2": _read_program,
}
