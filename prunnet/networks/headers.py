"""What the JSON headers of prunnet's files hold, and the checks that a file has such a header and what fits it.

A header is a part of a file that anybody can write. It is checked once, where the file is opened; whoever uses it later
finds the keys and types that stand here. Further keys are kept as they are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

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
    """Of a trained network (`checkpoint.save_network`)."""

    weights_sha: str
    preprocessing: dict[str, Any]
    recipe: TrainedRecipe = TrainedRecipe()
    class_names: list[str] = []
    history: list[dict[str, float | None]] = []
    conflicts: list[dict[str, float | None]] = []


class SweptTrain(TrainedTrain):
    """What the rows of a sweep tell of the training."""

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
    """What determines embeddings (`export.identity`)."""

    weights_sha: str
    matches: list[str]
    capacity: float | None = Field(default=None, gt=0, le=1)
    calibration: str | None = None
    embedding_dim: int = Field(ge=1, lt=2**31)
    preprocessing: dict[str, Any]


class ProgressivePart(Header):
    """What a progressive file says of one of its capacities."""

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


def check(kind: type[Header], header: Any, path: str | Path) -> None:
    """CheckpointError, which names the first key that is not so, where a file's header is not of this kind."""
    try:
        kind.model_validate(header)
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


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """While an object is built as a file describes it: CheckpointError that names the file instead of whatever Python,
    torch and timm raise of a description that fits nothing."""
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
