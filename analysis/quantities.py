"""What a search makes better or keeps within limits: numbers of one trial, from its rows of the results table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from analysis.frame import Frame
from analysis.pareto import Point, hypervolume
from prunnet.results import ConfigError, ResultsError
from prunnet.results.table import METRICS, SCHEMA

Row = dict[str, Any]
HIGHER = ("mean_cross_map", "hypervolume", *METRICS)
LOWER = (
    "macs_within",
    "macs",
    "macs_dense_equivalent",
    "params_kept",
    "bytes_on_disk",
    "latency_ms_b1",
    "latency_ms_b32",
    "peak_bytes",
    "train_seconds",
    "eval_seconds",
)
OWN = ("mean_cross_map", "macs_within", "hypervolume")
"""Quantities over all capacities; the others are columns of the table, at one capacity."""


class Quantity(BaseModel):
    """A number by name.

    mean_cross_map: mean accuracy of all capacities in the dense gallery. macs_within: MACs of the smallest capacity
    whose cross-test is at most `tolerance` below the baseline's dense self-test; the dense network's where none is.
    hypervolume: of (1 - MACs / dense MACs, cross-test accuracy) over all capacities, from (0, 0). Anything else is a
    column of the results table at one `capacity`. Accuracy is the benchmark's metric, in [0, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str
    capacity: float | None = None
    gallery: Literal["dense", "own"] = "dense"
    tolerance: float = Field(default=0.02, ge=0)
    """macs_within only."""
    reference: float | None = None
    """macs_within only: what to measure against; None: the baseline's dense self-test."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _known(self) -> Quantity:
        if self.name not in HIGHER and self.name not in LOWER:
            raise ConfigError(f"unknown quantity {self.name[:200]!r}; valid: {', '.join([*HIGHER, *LOWER])}")
        assert self.name in OWN or self.name in SCHEMA.names
        if (self.name in OWN) != (self.capacity is None):
            raise ConfigError(
                f"quantity {self.name!r}: "
                + ("it is over all capacities; leave `capacity` out" if self.name in OWN else "at which `capacity`?")
            )
        return self

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.name in HIGHER

    @property
    def label(self) -> str:
        """For axes, columns and storage; unique within a search."""
        if self.capacity is None:
            return self.name
        return f"{self.name}@{self.capacity:g}" + ("/own" if self.gallery == "own" else "")

    def of(self, rows: Sequence[Row], reference: float | None = None) -> float:
        """The number of a trial with these rows.

        Args:
            reference: the baseline's dense self-test, for macs_within.

        Raises ResultsError where a row or a value is missing or not finite.
        """
        frame = Frame(list(rows))
        value = self._value(frame, reference)
        if value is None or not math.isfinite(value):
            raise ResultsError(f"objective {self.label} is {value}: nothing that a search could compare")
        return float(value)

    def _value(self, frame: Frame, reference: float | None) -> float | None:
        if self.name not in OWN:
            assert self.capacity is not None
            row = frame.get(self.capacity, 1.0 if self.gallery == "dense" else self.capacity)
            if row is None:
                raise ResultsError(f"objective {self.label}: no test of this capacity; sweep.capacities must hold it")
            return row[self.name]
        crossed = frame.cross_tests()
        if bad := [row[frame.metric] for row in crossed if not _finite(row[frame.metric])]:
            return bad[0]
        if not crossed:
            return None
        if self.name == "mean_cross_map":
            return sum(row[frame.metric] for row in crossed) / len(crossed)
        if self.name == "hypervolume":
            if any(not (row["macs"] and row["macs_dense"]) for row in crossed):
                return None
            dense = max(row["macs_dense"] for row in crossed)  # a narrower network of a family has its own
            points = [Point(row["macs"] / dense, row[frame.metric]) for row in crossed]
            return hypervolume(points, reference=Point(1.0, 0.0))
        wanted = self.reference if self.reference is not None else reference
        if wanted is None:
            return None
        within = [row["macs"] for row in crossed if row[frame.metric] >= wanted - self.tolerance]
        return min(within, default=crossed[0]["macs_dense"])


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def dense_self_test(rows: Sequence[Row]) -> float:
    """The accuracy of the dense network in its own gallery; ResultsError where it was not tested."""
    frame = Frame(list(rows))
    row = frame.get(1.0, 1.0)
    if row is None or row[frame.metric] is None:
        raise ResultsError("the baseline has no dense self-test")
    return row[frame.metric]
