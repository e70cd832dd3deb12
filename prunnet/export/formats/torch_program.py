"""`.pt2`: the compact network as a torch.export program. Only a trusted maker's is opened: loading it runs code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunnet.errors import CheckpointError, one_line
from prunnet.export.formats.base import Format
from prunnet.storage import hashing, seal
from prunnet.storage.atomic import put_in_place

if TYPE_CHECKING:  # functions import what needs torch: a command refuses a precision without it
    from prunnet.export.formats.exported import Exported
    from prunnet.networks.headers import Identity
    from prunnet.subnetworks.subnet import Subnetwork

_JSON = "prunnet.json"


def write(cut: Subnetwork, path: Path, said: Identity) -> None:
    import torch

    from prunnet.export.formats.programs import plain, quiet

    net, images = plain(cut, said)
    batch = {"images": {0: torch.export.Dim("batch")}}
    with put_in_place(path) as temporary, quiet():
        program = torch.export.export(net, (images,), dynamic_shapes=batch)
        with temporary.open("wb") as file:
            torch.export.save(program, file, extra_files={_JSON: hashing.canonical_json(said.to_json())})
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = seal.BLANK.encode()
        seal.close(temporary)


def read(path: Path) -> Exported:
    """Of a file whose maker is trusted. Damage is looked for before anything of the file is run."""
    import torch

    from prunnet.export.formats.exported import Exported
    from prunnet.export.formats.programs import quiet, sealed, stamped

    extra = {_JSON: ""}
    whole = sealed(path, path.read_bytes())
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
    said = stamped(path, extra[_JSON], whole, lambda: _content(program))
    return Exported(said, program.module())


def _content(program: Any) -> str:
    """Hash of the weights: in files of before there were seals."""
    arrays = {name: tensor.detach().numpy() for name, tensor in program.state_dict.items()}
    return hashing.of_arrays(arrays)


FORMAT = Format("the compact network as a torch.export program", write, read, ("fp32", "fp16"), trust_code=True)
