"""`.onnx`: the compact network for onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunnet.errors import CheckpointError, ConfigError, one_line
from prunnet.export.formats.base import Format
from prunnet.storage import hashing, seal
from prunnet.storage.atomic import put_in_place

if TYPE_CHECKING:  # functions import what needs torch: a command refuses a precision without it
    from prunnet.export.formats.exported import Exported
    from prunnet.networks.headers import Identity
    from prunnet.subnetworks.subnet import Subnetwork

_KEY = "prunnet"


def write(cut: Subnetwork, path: Path, said: Identity) -> None:
    import torch

    from prunnet.export.formats.programs import plain, quiet

    onnx = _library("onnx")
    net, images = plain(cut, said)
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
        if said.precision == "int8":
            model = _quantised(model)
        onnx.helper.set_model_props(model, {_KEY: hashing.canonical_json({**said.to_json(), "seal": seal.BLANK})})
        onnx.save(model, str(temporary))
        seal.close(temporary)


def _quantised(model: Any) -> Any:
    """Weights int8 with a scale a channel, activations quantised as they come, by onnxruntime's own tool."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del model.graph.value_info[:]  # the exporter's shapes are from before its transpositions
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8)
        return _library("onnx").load(str(target))


def read(path: Path) -> Exported:
    import torch

    from prunnet.export.formats.exported import Exported
    from prunnet.export.formats.programs import sealed, stamped

    onnx, runtime = _library("onnx"), _library("onnxruntime")
    content = path.read_bytes()
    whole = sealed(path, content)
    try:
        model = onnx.load_model_from_string(content)  # not from the path: no other file is read
        stamp = {entry.key: entry.value for entry in model.metadata_props}.get(_KEY)
    except Exception as error:  # protobuf's own kinds of errors
        raise CheckpointError(f"{str(path)!r} is not a whole ONNX file ({one_line(error)[:80]})") from None
    external = onnx.TensorProto.EXTERNAL
    if any(isinstance(m, onnx.TensorProto) and m.data_location == external for m in _messages(model)):
        raise CheckpointError(f"{str(path)!r} keeps weights in other files, which no export of prunnet's does")
    said = stamped(path, stamp, whole, lambda: _content(model))
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


def _content(model: Any) -> str:
    """Hash of graph and weights, without what is stamped on them: in files of before there were seals."""
    bare = type(model)()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashing.of_bytes(bare.SerializeToString(deterministic=True))


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise ConfigError(f"ONNX files need {name!r}: pip install 'prunnet[onnx]'") from None


FORMAT = Format("the compact network for onnxruntime", write, read, ("fp32", "fp16", "int8"))
