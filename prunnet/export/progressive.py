"""Several capacities in one: dense weights held once, switched between capacities without a reload, and a file whose
prefixes are the nested subnetworks.

A weight needs but one small number: the first of the nested capacities, counted from the smallest, that keeps it.
The file has the weights in that order: its first part opens alone as the smallest subnetwork, and each further part
adds what the next capacity keeps, so that a device which has 20% fetches only the bytes from there to 40%. Each
part brings the BatchNorm statistics of its capacity, and its own hash.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunnet.errors import CheckpointError, ConfigError
from prunnet.networks.files import described_net
from prunnet.networks.headers import Identity, ProgressiveHeader, check, reading
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.storage.atomic import put_in_place
from prunnet.storage.hashing import canonical_json
from prunnet.storage.paths import local, place
from prunnet.subnetworks.batchnorm import running_statistics
from prunnet.subnetworks.subnet import Subnetwork

MAGIC = b"PRUNNET\x01"
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class _Part:
    """What a capacity adds to the next smaller one."""

    capacity: float
    mask_sha: str
    calibration: str | None
    size: int
    """Bytes."""
    sha256: str


class Nested:
    """One network at several capacities, from small to large.

    Memory: the weights once, a byte a weight for the capacity that first keeps it, the statistics of each, and the
    masked weights of the capacity in use.
    """

    def __init__(self, cuts: Sequence[Subnetwork]) -> None:
        """`cuts`: subnetworks of one network; ConfigError where a smaller one is not inside a larger one."""
        ordered = sorted(cuts, key=lambda cut: cut.capacity)
        if len({cut.capacity for cut in ordered}) != len(ordered) or not ordered:
            raise ConfigError(f"capacities {[cut.capacity for cut in ordered]}: one or more, each once, are needed")
        if any(cut.reconstructed for cut in ordered):
            raise ConfigError(
                "reconstructed subnetworks have weights of their own: a larger one does not hold a smaller one; "
                "valid: subnetworks of a sweep without sweep.reconstruct"
            )
        if len({cut.weights_sha for cut in ordered}) > 1:
            raise ConfigError("the subnetworks are of several networks; those of one nest")
        self.net, self.weights_sha = ordered[-1].net, ordered[-1].weights_sha
        self.capacities = [cut.capacity for cut in ordered]
        self.first = {name: _first(name, ordered) for name in ordered[-1].masks}
        """Layer -> [*weight.shape] uint8: place in `capacities` of the first that keeps a weight; their number: none
        does."""
        self._own = [cut.statistics() for cut in ordered]
        self._said = [(cut.mask_sha, cut.calibration) for cut in ordered]
        self._in_use: Subnetwork | None = None

    def at(self, capacity: float) -> Subnetwork:
        """The subnetwork of one of `capacities`; the last one that was asked for is kept."""
        if capacity not in self.capacities:
            raise ConfigError(
                f"capacity {capacity:g} is not here; valid: {', '.join(f'{c:g}' for c in self.capacities)}"
            )
        if self._in_use is None or self._in_use.capacity != capacity:
            place = self.capacities.index(capacity)
            masks = {name: first <= place for name, first in self.first.items()}
            cut = Subnetwork(self.net, capacity, masks, self.weights_sha)
            cut.set_statistics(self._own[place], self._said[place][1])
            self._in_use = cut
        return self._in_use

    def embed(self, images: Tensor, capacity: float) -> Tensor:
        """As `Subnetwork.embed`, at any of `capacities`."""
        return self.at(capacity).embed(images)

    def save(self, path: str | Path, identity: Identity) -> None:
        """Writes the progressive file. `identity`: what a reader of embeddings must know
        (`prunnet.export.formats.identity`)."""
        bodies = [self._part(place) for place in range(len(self.capacities))]
        parts = [
            _Part(capacity, *self._said[place], len(body), hashlib.sha256(body).hexdigest())
            for place, (capacity, body) in enumerate(zip(self.capacities, bodies, strict=True))
        ]
        header = {
            "kind": "prunnet-progressive",
            "weights_sha": self.weights_sha,
            "net": self.net.spec,
            "identity": identity.to_json(),
            "parts": [vars(part) for part in parts],
        }
        said = canonical_json(header).encode()
        with put_in_place(place(path)) as temporary, temporary.open("wb") as file:
            file.write(MAGIC + _LENGTH.pack(len(said)) + hashlib.sha256(said).digest() + said)
            file.writelines(bodies)

    def _part(self, number: int) -> bytes:
        """The bytes of one capacity: the positions of its weights among those that no smaller capacity has, and their
        values."""
        blobs: list[bytes] = []
        if number == 0:
            blobs += [_bytes_of(tensor) for _, tensor in _whole(self.net, self.first, self._own[0])]
        for name, first in self.first.items():
            weight = self.net.get_submodule(name).get_parameter("weight").detach().cpu().contiguous().view(-1)
            flat = first.cpu().contiguous().view(-1)
            mine = flat[flat >= number] == number
            packed = zlib.compress(np.packbits(mine.numpy()).tobytes(), 6)
            blobs += [_LENGTH.pack(len(packed)), packed, _bytes_of(weight[flat == number])]
        blobs += [_bytes_of(tensor) for _, tensor in sorted(self._own[number].items())]
        return b"".join(blobs)

    @classmethod
    def load(cls, path: str | Path) -> Nested:
        """As many capacities as the file holds whole: a prefix of it will do.

        Raises CheckpointError for a file that is not one of these, is damaged, or ends before its first capacity does.
        """
        try:
            data = local(path).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}") from None
        return cls.read(data, str(path))[0]

    @classmethod
    def read(cls, data: bytes, path: str = "progressive file") -> tuple[Nested, dict[str, Any]]:
        """(the capacities that are there, the header) of the first bytes of a file."""
        header, start = read_header(data, path)
        with reading(path):
            return cls._read(data, path, header, start), header

    @classmethod
    def _read(cls, data: bytes, path: str, header: dict[str, Any], start: int) -> Nested:
        check(ProgressiveHeader, header, path)
        net = described_net(path, header)
        parts = [_Part(**part) for part in header["parts"]]
        bodies = list(_bodies(data, start, parts, path))
        self = cls.__new__(cls)
        self.net, self.weights_sha, self._in_use = net.eval(), header["weights_sha"], None
        self.capacities = [part.capacity for part in parts[: len(bodies)]]
        self._said = [(part.mask_sha, part.calibration) for part in parts[: len(bodies)]]
        masked = list(prunable.layers(net)) if net.channels is None else net.channels.touched
        shapes = {name: net.get_submodule(name).get_parameter("weight").shape for name in masked}
        self.first = {name: torch.full(shape, 255, dtype=torch.uint8) for name, shape in shapes.items()}
        own = dict(running_statistics(net))
        self._own = []
        for number, body in enumerate(bodies):
            reader = _Reader(body)
            if number == 0:
                for _, tensor in _whole(net, self.first, own):
                    tensor.copy_(reader.tensor(tensor))
            for name, first in self.first.items():
                _add(reader, net.get_submodule(name).get_parameter("weight"), first, number)
            self._own.append({name: reader.tensor(like) for name, like in sorted(own.items())})
        for first in self.first.values():
            first[first == 255] = len(bodies)
        return self


def read_header(data: bytes, path: str) -> tuple[dict[str, Any], int]:
    """(header, where the first part begins) of the first bytes of a progressive file; CheckpointError for others."""
    fixed = len(MAGIC) + _LENGTH.size + 32
    if data[: len(MAGIC)] != MAGIC:
        raise CheckpointError(f"{path!r} is not a progressive file")
    if len(data) < fixed:
        raise CheckpointError(f"{path!r} ends within its header")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    said = data[fixed : fixed + length]
    if len(said) < length:
        raise CheckpointError(f"{path!r} ends within its header")
    if hashlib.sha256(said).digest() != data[fixed - 32 : fixed]:
        raise CheckpointError(f"{path!r} is damaged: its header does not have the hash that stands before it")
    try:
        header = json.loads(said)
    except ValueError:
        raise CheckpointError(f"{path!r} is not a progressive file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path!r} is not a progressive file: its header is a {type(header).__name__}")
    return header, fixed + length


def ends(path: str | Path) -> dict[float, int]:
    """Capacity -> how many bytes of the file it needs."""
    header, end = read_header(local(path).read_bytes(), str(path))
    found = {}
    for part in header["parts"]:
        end += part["size"]
        found[float(part["capacity"])] = end
    return found


def _bodies(data: bytes, start: int, parts: Sequence[_Part], path: str) -> Iterator[bytes]:
    """The parts that are there whole."""
    for number, part in enumerate(parts):
        body = data[start : start + part.size]
        start += part.size
        if len(body) < part.size:
            if number == 0:
                raise CheckpointError(f"{path!r} ends before its smallest capacity, {part.capacity:g}, is whole")
            return
        if hashlib.sha256(body).hexdigest() != part.sha256:
            raise CheckpointError(f"{path!r} is damaged: the part of capacity {part.capacity:g} has another hash")
        yield body


def _add(reader: _Reader, weight: Tensor, first: Tensor, number: int) -> None:
    """Puts the weights that a part brings in their places."""
    flat, values = first.view(-1), weight.detach().view(-1)
    open_places = torch.nonzero(flat == 255).view(-1)
    bits = np.unpackbits(np.frombuffer(zlib.decompress(reader.blob()), np.uint8), count=len(open_places))
    mine = open_places[torch.from_numpy(bits).bool()]
    if number == 0:
        values.zero_()
    values[mine] = reader.values(len(mine), weight.dtype)
    flat[mine] = number


class _Reader:
    """Reads a part from its start to its end."""

    def __init__(self, body: bytes) -> None:
        self.body, self.at = memoryview(body), 0

    def take(self, count: int) -> bytes:
        taken = bytes(self.body[self.at : self.at + count])
        assert len(taken) == count, "a part whose hash is right has all of its bytes"
        self.at += count
        return taken

    def blob(self) -> bytes:
        return self.take(_LENGTH.unpack(self.take(_LENGTH.size))[0])

    def values(self, count: int, dtype: torch.dtype) -> Tensor:
        """As `_bytes_of` wrote them."""
        size = torch.empty((), dtype=dtype).element_size()
        top = zlib.decompress(self.blob())
        planes = np.frombuffer(self.take(count * (size - 1)) + top, np.uint8).reshape(size, count)
        return torch.from_numpy(planes.T.copy().reshape(-1)).view(dtype)

    def tensor(self, like: Tensor) -> Tensor:
        return self.values(like.numel(), like.dtype).view(like.shape)


def _first(name: str, ordered: Sequence[Subnetwork]) -> Tensor:
    masks = [cut.masks[name] for cut in ordered]
    for small, large, cut in zip(masks, masks[1:], ordered, strict=False):
        if bool((small & ~large).any()):
            raise ConfigError(f"capacity {cut.capacity:g} keeps weights of {name} that the next larger does not keep")
    return len(masks) - torch.stack(masks).sum(0).to(torch.uint8)


def _whole(net: RetrievalNet, first: dict[str, Tensor], own: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What no capacity cuts: biases, norms, neck; without scores, classifier and running statistics."""
    for name, tensor in sorted(net.state_dict().items()):
        cut = name.removesuffix(".weight") in first
        if not (cut or name in own or prunable.is_score(name) or name.startswith("classifier.")):
            yield name, tensor


def _bytes_of(tensor: Tensor) -> bytes:
    """All bits of a tensor, the first bytes of its numbers together: signs and exponents repeat, and are compressed,
    which pays for the masks."""
    numbers = tensor.detach().cpu().contiguous().numpy().reshape(-1)
    planes = numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize).T
    top = zlib.compress(planes[-1].tobytes(), 6)
    return _LENGTH.pack(len(top)) + top + planes[:-1].tobytes()
