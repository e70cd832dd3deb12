"""What the JSON headers of prunnet's files hold, and the checks that a file has such a header and what fits it.

Anybody can write a file with a header. It is checked once, where the file is opened, so that later code can rely on the
keys and types defined here. Further keys are kept as they are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, PrunnetError, one_line

Whole = Annotated[int, Field(ge=0, lt=2**63)]


class Header(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class TrainedTrain(Header):
    """Section `train` of the recipe of a trained network."""

    allocation: str | None = None
    old: str | None = None


class TrainedRecipe(Header):
    """The recipe of a trained network, which may be of an older version of prunnet."""

    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    train: TrainedTrain = TrainedTrain()


class NetworkHeader(Header):
    """Of a trained network (`networks.files.save_network`)."""

    weights_sha: str
    preprocessing: dict[str, Any]
    recipe: TrainedRecipe = TrainedRecipe()
    class_names: list[str] = []
    history: list[dict[str, float | None]] = []
    conflicts: list[dict[str, float | None]] = []


class SweptTrain(TrainedTrain):
    """What the rows of a sweep record of the training."""

    method: str
    seed: Whole
    capacities: list[float]
    compatible: str | None = None


class SweptRecipe(TrainedRecipe):
    train: SweptTrain


class SweptHeader(NetworkHeader):
    """Of a network that a sweep can test: one that a recipe has made."""

    recipe: SweptRecipe
    workers: Whole
    epoch: Whole
    images_seen: Whole


class SubnetworkHeader(Header):
    """Of a saved subnetwork (`Subnetwork.save`)."""

    weights_sha: str
    capacity: float = Field(gt=0, le=1)
    calibration: str | None
    preprocessing: dict[str, Any] | None


class Identity(Header):
    """What determines embeddings (`export.identity`); every export and every set of embeddings carries it. Files of
    before a key was added do not have it."""

    model_config = ConfigDict(frozen=True)
    weights_sha: str
    matches: list[str]
    """Hashes of the networks whose embeddings it was trained to match."""
    capacity: float | None = Field(default=None, gt=0, le=1)
    capacity_unit: str | None = None
    granularity: str | None = None
    mask_sha: str | None = None
    calibration: str | None = None
    backbone: str | None = None
    in_chans: int | None = None
    embedding_dim: int = Field(ge=1, lt=2**31)
    preprocessing: dict[str, Any]
    precision: str = "fp32"
    """Of the export."""

    def to_json(self) -> dict[str, Any]:
        """As files carry it: the keys that it was made with."""
        return self.model_dump(exclude_unset=True)


class ProgressivePart(Header):
    """The header of one capacity of a progressive file."""

    capacity: float = Field(gt=0, le=1)
    mask_sha: str
    calibration: str | None
    size: Whole
    sha256: str


class ProgressiveHeader(Header):
    """Of a progressive file (`nested.Nested.save`)."""

    weights_sha: str
    identity: Identity
    parts: list[ProgressivePart] = Field(min_length=1)


class EmbeddingsHeader(Header):
    """Of a set of embeddings (`EmbeddingSet.save`)."""

    names: list[str]
    root: str
    identity: Identity


Kind = TypeVar("Kind", bound=Header)


def check(kind: type[Kind], header: Any, path: str | Path) -> Kind:
    """A file's header, typed; CheckpointError, which names the first key that is not so, where it is not of this
    kind."""
    try:
        found = kind.model_validate(header)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise CheckpointError(
            f"{str(path)!r}: its header is not what prunnet writes ({where}: {first['msg']})"
        ) from None
    said = header.get("identity", header)
    if said.get("preprocessing") is not None:
        with reading(path):
            Preprocessing.from_json(said["preprocessing"])
    return found


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """While an object is built from a file's description: a CheckpointError that names the file replaces the errors
    that Python, torch and timm raise for an invalid description."""
    try:
        yield
    except PrunnetError:
        raise
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
        zlib.error,
    ) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged, or not what prunnet writes ({one_line(error)[:200]})"
        ) from None
