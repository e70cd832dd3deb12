"""The columns of the results table, each once: name, type, kind and meaning. Schema, metrics, what counts as measured
and docs/COLUMNS.md follow from this list. Standard library only.

    python -m prunnet.results.columns        prints the table of docs/COLUMNS.md

Another package adds a column by an entry point of the group `prunnet.columns` that names a `Column`. It stands behind
ours in every part that is written while the package is installed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from prunnet.errors import ConfigError, one_line
from prunnet.registry import Registry

if TYPE_CHECKING:  # they import faiss
    from prunnet.retrieval.exact_search import Features
    from prunnet.retrieval.protocol import Truth

Kind = Literal["identity", "metric", "result", "cost", "measured"]
KINDS: dict[str, str] = {
    "identity": "what was trained, cut and tested",
    "metric": "how good the test is: rows are ranked by these",
    "result": "what else the test gives",
    "cost": "of embedding one image with the query's subnetwork",
    "measured": "measurements and provenance, in which two equal runs may differ",
}
"""Two rows are equal where all but their measured columns are."""


@dataclass(frozen=True)
class FinishedTest:
    """What the value of a column may be computed from."""

    row: Mapping[str, Any]
    """The other columns of the row, those of other packages left out."""
    queries: Features
    """[Q, d], L2-normalised."""
    gallery: Features
    """[G, d]."""
    truth: Truth


@dataclass(frozen=True)
class Column:
    """A column; a value that is not known is null, never 0."""

    name: str
    type: type
    """str, int or float."""
    kind: Kind
    meaning: str
    added: bool = False
    """Version 2 of the schema did not have it from the start: it is null in older parts."""
    compute: Callable[[FinishedTest], str | int | float | None] | None = None
    """Of a package's column: its value for a row, computed where the row is made. Null in rows of before the package
    was installed, in those that a search tests while a training runs, and in re-ranked ones."""

    def __post_init__(self) -> None:
        if self.type not in (str, int, float) or self.kind not in get_args(Kind):
            raise ConfigError(
                f"column {self.name!r} of type {self.type!r} and kind {self.kind!r}; valid: str, int or float; "
                f"{', '.join(KINDS)}"
            )


OWN = (
    Column("sweep_id", str, "measured", "name of the recipe that made the row"),
    Column("trial_id", str, "identity", "trial of an ablation or a search"),
    Column("status", str, "identity", "`complete`; `partial`: tested by a search while the training ran"),
    Column("unit_key", str, "identity", "hash of all that determines the row"),
    Column("query_weights_sha", str, "identity", "hash of the weights that the query subnetwork was cut from"),
    Column("gallery_weights_sha", str, "identity", "hash of the weights that the gallery subnetwork was cut from"),
    Column("method", str, "identity", "training method, `+` the compatibility loss that was added"),
    Column("backbone", str, "identity", "timm's name"),
    Column("dataset", str, "identity", "data set of the test"),
    Column("split", str, "identity", "`test` or `validation`"),
    Column("config_json", str, "identity", "recipe of the training, and the sections `data` and `sweep`"),
    Column("config_hash", str, "identity", "hash of `config_json`"),
    Column("preprocessing_sha", str, "identity", "hash of how the test's images are made"),
    Column("train_capacities", str, "identity", "capacities trained beside the dense network, with commas"),
    Column("capacity_sampling", str, "identity", "how the capacities of a step were chosen"),
    Column("capacity_unit", str, "identity", "what a capacity is a fraction of: `weights` or `macs`"),
    Column("score_init", str, "identity", "how scores started"),
    Column("allocation", str, "identity", "`layer`, `global`, or `layerwise`: a density for every layer"),
    Column("granularity", str, "identity", "what one score stands for"),
    Column("mask_source", str, "identity", "`scores`, or `random`: the control"),
    Column("gallery_source", str, "identity", "`own`, or `old`: the gallery of the network that was to be matched"),
    Column("protocol", str, "identity", "of the benchmark", added=True),
    Column("further_json", str, "result", "metrics that have no column", added=True),
    Column("projection", str, "identity", "variant of the gradients' integration"),
    Column("projection_block", str, "identity", "what is projected together"),
    Column("weighting", str, "identity", "how projected gradients are weighted"),
    Column("bn_calibration", str, "identity", "`on` where BatchNorm was re-estimated for the subnetwork, `off`"),
    Column(
        "reconstruction",
        str,
        "identity",
        "`on` where the sweep refitted kept layers to the dense network's outputs; null: not",
        added=True,
    ),
    Column(
        "rerank",
        str,
        "identity",
        "re-ranking after the search, such as `alpha_qe(n=10,alpha=3)`; null: none",
        added=True,
    ),
    Column("runtime", str, "measured", "what ran the network: name and version"),
    Column("device", str, "measured", "`cpu`, or the name of the GPU"),
    Column("git_commit", str, "measured", "of the code, where it is a checkout"),
    Column("created_at", str, "measured", "when the row was made, UTC"),
    Column("schema_version", int, "identity", "of this table"),
    Column("seed", int, "identity", "of the training"),
    Column("epoch", int, "identity", "epochs trained"),
    Column("images_seen", int, "identity", "images that the training read"),
    Column("embedding_dim", int, "identity", "length of an embedding"),
    Column("queries", int, "result", "number of queries"),
    Column("queries_without_positive", int, "result", "queries left out of the means"),
    Column("gallery_size", int, "result", "images of the gallery"),
    Column("params_kept", int, "cost", "weights kept, with all that cannot be pruned"),
    Column("params_total", int, "cost", "parameters of the dense network, its classifier left out"),
    Column("macs", int, "cost", "multiply-adds that ideal sparse kernels would do"),
    Column("macs_dense_equivalent", int, "cost", "multiply-adds of dense kernels once dead channels are cut away"),
    Column("macs_dense", int, "cost", "multiply-adds of the dense network"),
    Column("bytes_on_disk", int, "cost", "of the exported .safetensors in fp32 (`sweep.measure`)"),
    Column("peak_bytes", int, "measured", "peak memory of the compact network over 32 images (`sweep.measure`)"),
    Column("threads", int, "measured", "of the process"),
    Column("weighting_exponent", float, "identity", "of `weighting: cosine`"),
    Column("query_capacity", float, "identity", "capacity of the subnetwork that embedded the queries"),
    Column("gallery_capacity", float, "identity", "capacity of the subnetwork that embedded the gallery"),
    Column("map", float, "metric", "mean average precision; Medium's under Revisited protocols"),
    Column("map_easy", float, "metric", "Revisited protocols: Easy"),
    Column("map_medium", float, "metric", "Revisited protocols: Medium"),
    Column("map_hard", float, "metric", "Revisited protocols: Hard"),
    Column("map_at_100", float, "metric", "mean average precision of the first 100 answers"),
    Column("recall_at_1", float, "metric", "share of queries whose first answer is right"),
    Column("recall_at_5", float, "metric", "share of queries with a right answer among the first 5"),
    Column("recall_at_10", float, "metric", "share of queries with a right answer among the first 10"),
    Column("latency_ms_b1", float, "measured", "median milliseconds for one image (`sweep.measure`)"),
    Column("latency_ms_b32", float, "measured", "median milliseconds for 32 images (`sweep.measure`)"),
    Column("latency_spread_ms", float, "measured", "interquartile range of `latency_ms_b1`"),
    Column("train_seconds", float, "measured", "of the training, of all networks of a family"),
    Column("eval_seconds", float, "measured", "of embedding and test"),
)
"""prunnet's own, in the order of the schema."""

COLUMNS: Registry[Column] = Registry(
    "column of the results table", "prunnet.columns", {column.name: column for column in OWN}, Column
)


@functools.cache
def brought() -> tuple[Column, ...]:
    """Columns that installed packages bring, by name; ConfigError for one that cannot be imported."""
    own = {column.name for column in OWN}
    found = {name: COLUMNS[name] for name in COLUMNS if name not in own}
    for name, column in found.items():
        if column.name != name:
            raise ConfigError(f"column {column.name!r} is brought by an entry point called {name!r}; valid: its name")
    return tuple(found.values())


def computed(test: FinishedTest) -> dict[str, Any]:
    """The values of those columns for a row; ConfigError that names a column whose computation fails."""
    values: dict[str, Any] = {}
    for column in brought():
        if column.compute is not None:
            try:
                value = column.compute(test)
                values[column.name] = None if value is None or value != value else column.type(value)
            except Exception as error:  # another's code may raise anything
                raise ConfigError(f"column {column.name!r} cannot be computed: {one_line(error)}") from error
    return values


def markdown() -> str:
    """The table of docs/COLUMNS.md."""
    types = {str: "text", int: "whole number", float: "number"}
    lines = ["| column | type | kind | meaning |", "|---|---|---|---|"]
    lines += [f"| `{each.name}` | {types[each.type]} | {each.kind} | {each.meaning} |" for each in OWN]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
