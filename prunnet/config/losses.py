"""Losses by name: what a network's passes are trained with, its options, and what follows from it for recipes. No torch
is loaded here; the losses themselves are in `prunnet.training.losses`.

Another package adds a loss by one file that holds a `Loss` and the `prunnet.training.losses.base.NetworkLoss` that it
names, and an entry point of the group `prunnet.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from prunnet.errors import ConfigError, echo, unknown
from prunnet.registry import Named, Registry

Value = bool | int | float | str
"""Of an option."""


@dataclass(frozen=True)
class Number:
    """An option that is a number."""

    default: float
    meaning: str
    _: KW_ONLY
    least: float = 0.0
    most: float = 1e6
    above: bool = False
    """Whether `least` itself is out of range."""
    whole: bool = False

    @property
    def valid(self) -> str:
        """The range, after the option's name: `0 < scale <= 1e+06`."""
        return f"{self.least:g} {'<' if self.above else '<='} {{}} <= {self.most:g}{', whole' if self.whole else ''}"

    def fits(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        inside = self.least < value if self.above else self.least <= value
        return inside and value <= self.most and not (self.whole and value != int(value))

    def settled(self, value: Any) -> Value:
        """One type, so that 16 and 16.0 are the same recipe."""
        return int(value) if self.whole else float(value)


@dataclass(frozen=True)
class Choice:
    """An option that is one of some names."""

    default: str
    meaning: str
    names: tuple[str, ...]

    @property
    def valid(self) -> str:
        return ", ".join(self.names)

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and value in self.names

    def settled(self, value: Any) -> Value:
        return str(value)


@dataclass(frozen=True)
class Switch:
    """An option that is on or off."""

    default: bool
    meaning: str

    @property
    def valid(self) -> str:
        return "true, false"

    def fits(self, value: object) -> bool:
        return isinstance(value, bool)

    def settled(self, value: Any) -> Value:
        return bool(value)


Option = Number | Choice | Switch


@dataclass(frozen=True)
class Loss:
    """One loss that the passes of a network may be trained with."""

    summary: str
    loss: Named
    """The `prunnet.training.losses.base.NetworkLoss` that computes it."""
    _: KW_ONLY
    options: Mapping[str, Option] = field(default_factory=dict)
    """Keys of `train.loss_options`."""
    sees: Literal["image", "batch", "pairs"] = "image"
    """image: a mean over the images. batch: it compares the images of a batch, which are gathered over the workers.
    pairs: as batch, and it is nothing without two images of a class, so that it needs `train.sampling: balanced`."""
    classifier: bool = False
    """Whether it trains the network's own classifier; otherwise it has class weights of its own, or none."""
    revision: str = ""
    """Part of the training's hash where it is set. To be changed with what the loss computes: networks of before then
    do not count as the same."""


_LOSSES = "prunnet.training.losses"
_SCALE = Number(64.0, "factor of the cosines before the softmax", above=True)
_DEGREES = Number(28.6, "added to the angle between an image and its class, degrees", most=179.0)
_MINED = "triplets that count. none: all; hard: an image's farthest positive and nearest negative; semihard: "

_OWN: dict[str, Loss] = {
    "cross_entropy": Loss(
        "softmax over the logits of the linear classifier; train.label_smoothing",
        f"{_LOSSES}.cross_entropy:CrossEntropy",
        classifier=True,
    ),
    "normface": Loss(
        "softmax over cosines to class weights (NormFace, arXiv 1704.06369; 1811.12649)",
        f"{_LOSSES}.class_weights:NormFace",
        options={"temperature": Number(0.05, "divides the cosines", above=True)},
    ),
    "cosface": Loss(
        "softmax over cosines, the own one less a margin (arXiv 1801.09414)",
        f"{_LOSSES}.class_weights:CosFace",
        options={"margin": Number(0.35, "subtracted from the cosine to the own class", most=2.0), "scale": _SCALE},
    ),
    "arcface": Loss(
        "softmax over cosines, the own angle plus a margin (arXiv 1801.07698)",
        f"{_LOSSES}.class_weights:ArcFace",
        options={"margin": _DEGREES, "scale": _SCALE},
    ),
    "subcenter_arcface": Loss(
        "arcface with several weights a class, of which the nearest counts (ECCV 2020)",
        f"{_LOSSES}.class_weights:SubCenterArcFace",
        options={
            "margin": _DEGREES,
            "scale": _SCALE,
            "sub_centers": Number(3, "class weights a class", least=1, most=100, whole=True),
        },
    ),
    "proxy_anchor": Loss(
        "a proxy a class, pulled and pushed by the images of a batch (arXiv 2003.13911)",
        f"{_LOSSES}.class_weights:ProxyAnchor",
        options={
            "margin": Number(0.1, "of the cosines", most=2.0),
            "alpha": Number(32.0, "factor of the cosines", above=True),
        },
        sees="batch",
    ),
    "supcon": Loss(
        "supervised contrastive loss (arXiv 2004.11362)",
        f"{_LOSSES}.pairs:SupCon",
        options={"temperature": Number(0.1, "divides the cosines", above=True)},
        sees="pairs",
    ),
    "multi_similarity": Loss(
        "multi-similarity loss of pairs (arXiv 1904.06627)",
        f"{_LOSSES}.pairs:MultiSimilarity",
        options={
            "alpha": Number(2.0, "weight of positive pairs", above=True),
            "beta": Number(50.0, "weight of negative pairs", above=True),
            "base": Number(0.5, "cosine at which a pair weighs neither more nor less", least=-1.0, most=1.0),
            "miner": Choice("multi_similarity", "which pairs count. none: all", ("none", "multi_similarity")),
            "epsilon": Number(0.1, "slack of the miner, in cosines", most=2.0),
        },
        sees="pairs",
    ),
    "triplet": Loss(
        "triplets by Euclidean distances of normalised embeddings (arXiv 1503.03832, 1703.07737)",
        f"{_LOSSES}.pairs:Triplet",
        options={
            "margin": Number(0.2, "by which a negative must be farther than a positive", most=2.0),
            "swap": Switch(False, "the negative's distance to the positive counts where it is smaller"),
            "smooth_loss": Switch(False, "softplus in place of max(0, .)"),
            "miner": Choice(
                "semihard",
                _MINED + "negatives farther than the positive by less than the margin",
                ("none", "hard", "semihard"),
            ),
        },
        sees="pairs",
    ),
    "circle": Loss(
        "circle loss of pairs (arXiv 2002.10857)",
        f"{_LOSSES}.pairs:Circle",
        options={
            "m": Number(0.4, "relaxation: pairs beyond it weigh less", most=1.0),
            "gamma": Number(80.0, "factor of the weighted cosines", above=True),
        },
        sees="pairs",
    ),
}
LOSSES: Registry[Loss] = Registry("train.loss", "prunnet.losses", _OWN, Loss)
DEFAULT = "cross_entropy"


def settled_options(name: str, given: Any) -> dict[str, Value]:
    """`train.loss_options` of a loss: what is given and is not the default, each of its option's type.

    Raises ConfigError, in one line, for an unknown loss or option, or a value out of range.
    """
    options, said = LOSSES[name].options, f"train.loss={name!r}"
    if not isinstance(given, Mapping):
        raise ConfigError(f"train.loss_options={echo(given)}; valid: a mapping, such as {{scale: 16, margin: 0.2}}")
    if given and not options:
        raise ConfigError(f"train.loss_options={echo(dict(given))}: {said} has no options")
    found: dict[str, Value] = {}
    for key, value in given.items():
        option = options.get(key) if isinstance(key, str) else None
        if option is None:
            raise ConfigError(unknown(f"option of {said}", str(key), options))
        if not option.fits(value):
            raise ConfigError(f"train.loss_options.{key}={echo(value)} with {said}; valid: {option.valid.format(key)}")
        settled = option.settled(value)
        if settled != option.default:
            found[key] = settled
    return {key: found[key] for key in options if key in found}


def all_options(name: str, given: Mapping[str, Value]) -> dict[str, Value]:
    """The settled options of a loss with the defaults of those that are left out."""
    return {key: given.get(key, option.default) for key, option in LOSSES[name].options.items()}


def check_batches(name: str, sampling: str, batch_size: int, accumulate: int, per_class: int) -> None:
    """ConfigError for balanced batches that `per_class` does not divide, and where a loss of pairs would meet batches
    without any."""
    if sampling == "balanced" and batch_size % per_class:
        raise ConfigError(f"train.batch_size={batch_size} is no multiple of train.per_class={per_class}")
    if LOSSES[name].sees != "pairs":
        return
    if sampling != "balanced":
        raise ConfigError(
            f"train.loss={name!r} compares images of a class, which a shuffled batch need not hold; set "
            "train.sampling=balanced, with train.per_class images of each class"
        )
    if batch_size // accumulate < 2 * per_class:
        raise ConfigError(
            f"train.loss={name!r} needs images of two classes at once: train.batch_size={batch_size}"
            + (f" in train.accumulate={accumulate} parts" if accumulate > 1 else "")
            + f" holds fewer at train.per_class={per_class}"
        )


def check_parts(name: str, images: int, accumulate: int, per_class: int) -> None:
    """ConfigError where parts of a worker's batch, of so many `images` each, cut the classes of a loss of pairs."""
    if LOSSES[name].sees == "pairs" and accumulate > 1 and images % per_class:
        raise ConfigError(
            f"train.loss={name!r}: train.accumulate={accumulate} leaves {images} images a part and worker, no multiple "
            f"of train.per_class={per_class}: the images of a class would not be compared"
        )
