"""What the formats share that hold a program (.onnx, .pt2): the compact network, its stamp, quiet exporters."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunnet.errors import CheckpointError
from prunnet.networks.headers import Identity, check
from prunnet.storage import seal
from prunnet.subnetworks.compact import PlainNet
from prunnet.subnetworks.subnet import Subnetwork


class _Half(nn.Module):
    """Half precision inside, float32 outside."""

    def __init__(self, net: PlainNet) -> None:
        super().__init__()
        self.net = net.half()

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.net.features(images.half()).float())


def plain(cut: Subnetwork, said: Identity) -> tuple[nn.Module, Tensor]:
    """(the compact network in its precision, two images of zeros)."""
    size = int(said.preprocessing["image_size"])
    net: nn.Module = cut.compact(size).cpu()
    if said.precision == "fp16":
        net = _Half(net)  # type: ignore[arg-type]
    return net.eval(), torch.zeros(2, cut.net.spec["in_chans"], size, size)


def sealed(path: Path, content: bytes) -> bool:
    """Whether a file is as it was written; False: it carries no hash. CheckpointError where it is damaged."""
    whole = seal.whole(content)
    if whole is False:
        raise CheckpointError(f"{str(path)!r} is damaged: its bytes do not have the hash that it carries")
    return whole is True


def stamped(path: Path, stamp: str | None, whole: bool, content: Callable[[], str]) -> Identity:
    """The identity that a file carries.

    Args:
        stamp: the identity as JSON; CheckpointError where there is none, or it is not an identity.
        whole: whether the file has the hash that it carries.
        content: hash of what it holds, which a file of before there were seals names in its identity.
    """
    if not stamp:
        raise CheckpointError(f"{str(path)!r} is not an export of prunnet's: it carries no identity")
    try:
        said = json.loads(stamp)
        said.pop("seal", None)
        if not whole:
            whole = said.pop("content") == content()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{str(path)!r} is damaged: its identity cannot be read") from None
    found = check(Identity, said, path)
    if not whole:
        raise CheckpointError(f"{str(path)!r} is damaged: its content does not have the hash that it carries")
    return found


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
