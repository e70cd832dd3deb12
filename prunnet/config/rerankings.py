"""What `sweep.rerank` names: changes of a ranking after the search, with their parameters. Nothing heavy is imported
here; what they compute is in `prunnet.retrieval.reranking`.

To add one, add its class here and its function there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunnet.config.named import made
from prunnet.errors import ConfigError, echo

MEMORY = 4 * 2**30
"""Bytes that a re-ranking may need for its own lists, at most; `Reranking.memory` says how many it may need."""


class Reranking(BaseModel):
    """The parameters of one re-ranking."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: ClassVar[str]

    @property
    def stated(self) -> dict[str, float]:
        """All parameters by their names in a recipe."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def text(self) -> str:
        """As the column `rerank` records it, such as `alpha_qe(n=10,alpha=3)`."""
        return f"{self.name}({','.join(f'{key}={value:.12g}' for key, value in self.stated.items())})"

    def memory(self, queries: int, gallery: int, leave_one_out: bool) -> int:
        """Bytes of its lists for a test of this size, at most."""
        raise NotImplementedError

    def check_size(self, queries: int, gallery: int, leave_one_out: bool) -> None:
        """ConfigError where it may need more than `MEMORY`."""
        needed = self.memory(queries, gallery, leave_one_out)
        if needed > MEMORY:
            searched = f"{gallery:,} images" if leave_one_out else f"{queries:,} queries in {gallery:,} images"
            raise ConfigError(
                f"sweep.rerank: {self.text} of {searched} may need {needed / 2**30:.1f} GiB; valid: at most "
                f"{MEMORY / 2**30:.0f} GiB, so fewer images, or smaller parameters"
            )


_ENTRIES = "names, or {name: {parameter: value}}"
Neighbours = Annotated[int, Field(ge=1, le=1000)]


class KReciprocal(Reranking):
    """k-reciprocal encoding (Zhong et al. 2017, arXiv 1701.08398): `lambda` * the distance + (1 - lambda) * the Jaccard
    distance between sets of `k1`-reciprocal neighbours, each averaged over its `k2` nearest images."""

    name = "k_reciprocal"
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=False)
    k1: Neighbours = 20
    k2: Neighbours = 6
    share: Annotated[float, Field(ge=0, le=1, alias="lambda")] = 0.3

    @model_validator(mode="after")
    def _within(self) -> KReciprocal:
        if self.k2 > self.k1:
            raise ValueError(f"k2={self.k2} is above k1={self.k1}; valid: 1 <= k2 <= k1")
        return self

    def memory(self, queries: int, gallery: int, leave_one_out: bool) -> int:
        images = gallery if leave_one_out else queries + gallery
        set_ = min(images, (self.k1 + 1) * (2 + round(self.k1 / 2)))  # with all that expansion may add
        mean = min(images, self.k2 * set_)
        # An entry is a number of an image (4 bytes) and a weight (8); means are there by row and by column.
        return images * 12 * (2 * (self.k1 + 2) + 2 * set_ + 2 * mean)


class AlphaQE(Reranking):
    """Alpha query expansion (Radenović et al. 2018, arXiv 1711.02512): the query becomes the mean of itself and its `n`
    nearest gallery embeddings, weighted by similarity^`alpha`."""

    name = "alpha_qe"
    n: Annotated[int, Field(ge=0, le=1000)] = 10
    alpha: Annotated[float, Field(ge=0)] = 3.0

    def memory(self, queries: int, gallery: int, leave_one_out: bool) -> int:
        return queries * min(gallery, self.n + 1) * 12


RERANKINGS: dict[str, type[Reranking]] = {kind.name: kind for kind in Reranking.__subclasses__()}
Stated = dict[str, dict[str, Any]]
"""{name: parameters}, one entry, without parameters at their defaults."""


def check_rerank(given: Any) -> tuple[Stated, ...]:
    """A recipe's list of {name: parameters}, or of bare names, as it is kept; ConfigError for anything else."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f"rerank={echo(given)} is no list; valid: a list of {_ENTRIES}, of {', '.join(RERANKINGS)}")
    every = [made(item, RERANKINGS, "re-ranking") for item in given]
    for place, each in enumerate(every):
        if each in every[:place]:
            raise ConfigError(f"rerank names {each.text} twice; valid: once")
    return tuple({each.name: each.model_dump(mode="json", by_alias=True, exclude_defaults=True)} for each in every)


def rerankings(stated: Sequence[Stated]) -> list[Reranking]:
    """The entries of what `check_rerank` gave."""
    return [made(each, RERANKINGS, "re-ranking") for each in stated]
