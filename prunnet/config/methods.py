"""The methods by name: what each trains, which variants it leaves open, and why it does not take the others.

Only names and rules; the mathematics is in `training.objectives.by_name`, one file a method. No torch is loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prunnet.errors import ConfigError, echo, unknown

VARIANTS = (
    "score_init",
    "allocation",
    "capacity_sampling",
    "projection",
    "block",
    "weighting",
    "evidential",
    "priorities",
    "reduction",
)
"""Keys of a recipe's `train` section whose default depends on the method; null in a row where it has none."""


@dataclass(frozen=True)
class Method:
    """One way to train networks of several capacities."""

    summary: str
    network: Literal["masks", "widths"] = "masks"
    """masks: a score for every weight, any capacity can be cut; widths: slimmable channels."""
    single: bool = False
    """One network a capacity, nothing shared; else one network for all."""
    teacher: Literal["none", "dense", "old"] = "none"
    """What the embeddings are trained to match: nothing, the dense network of the same family (or `train.old`
    where it is given), or `train.old`, which must be given."""
    open: Mapping[str, Any] = field(default_factory=dict)
    """Variants that a recipe may set, with their defaults."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Variants that the method itself settles."""
    reason: str = ""
    """Why the other variants make no sense."""


_SCORES = {"score_init": "kaiming_uniform", "allocation": "layer"}
_CHANNEL_SCORES = {"score_init": "magnitude"}
"""Granularity `channel`: of few scores, each a sum over many weights, a good start is worth more (docs/RESULTS.md)."""
_NO_EVIDENCE = {"priorities": "equal"}
"""train.evidential=none: cross-entropy says nothing of how sure a pass is."""
_ALONE = "each network is trained by itself at one capacity, so there is nothing to draw, project or weigh"
_PLAIN = "it is the plain sum of the losses; with conflict handling it would be prunnet"
_WIDTHS = "a switchable network has widths with a BatchNorm each, and no scores"


def _single(summary: str, teacher: Literal["none", "dense", "old"]) -> Method:
    return Method(
        summary, single=True, teacher=teacher, open=_SCORES, fixed={"capacity_sampling": "fixed"}, reason=_ALONE
    )


METHODS: dict[str, Method] = {
    "prunnet": Method(
        "masks by learned scores, N + 1 passes, conflict-aware integration (arXiv 2504.11879)",
        open={
            **_SCORES,
            "capacity_sampling": "fixed",
            "projection": "last",
            "block": "kernel",
            "weighting": "cosine",
        },
        reason="evidential, priorities and reduction belong to sfsc",
    ),
    "joint": Method(
        "prunnet's passes with the plain sum of their gradients",
        open={**_SCORES, "capacity_sampling": "fixed"},
        fixed={"projection": "none", "weighting": "mean"},
        reason=_PLAIN,
    ),
    "independent": _single("one network a capacity, nothing shared", "none"),
    "bct": _single("own loss + cross-entropy through the teacher's frozen classifier (arXiv 2003.11942)", "dense"),
    "asymmetric": _single("triplets of own anchors among the teacher's embeddings (AML, Budnik and Avrithis)", "dense"),
    "regression": _single("own embeddings regress the teacher's", "dense"),
    "prototypes": _single("own loss + softmax over the old network's class prototypes", "old"),
    "ndpp": _single("as prototypes, perturbed away from their neighbours (arXiv 2503.14824)", "old"),
    "odpp": _single("as prototypes, perturbed by an optimisation (arXiv 2503.14824)", "old"),
    "switchable": Method(
        "slimmable widths, plain sum of the losses",
        network="widths",
        fixed={"capacity_sampling": "fixed", "projection": "none", "weighting": "mean"},
        reason=_WIDTHS,
    ),
    "sfsc": Method(
        "slimmable widths, evidential loss, priorities, PCGrad over the whole network (arXiv 2206.08289)",
        network="widths",
        open={"evidential": "exp", "priorities": "uncertainty", "reduction": "sum"},
        fixed={"capacity_sampling": "fixed", "projection": "sequential", "block": "network", "weighting": "mean"},
        reason=_WIDTHS,
    ),
    "sfsc_released": Method(
        "as PrunNet's release runs sfsc: cross-entropy, PCGrad over the whole network, mean",
        network="widths",
        fixed={
            "capacity_sampling": "fixed",
            "projection": "sequential",
            "block": "network",
            "weighting": "mean",
            "evidential": "none",
            "priorities": "equal",
            "reduction": "mean",
        },
        reason="it is kept as it was released",
    ),
}
OLD_REVISION = "old network: its own statistics"
"""Of what is trained to match an old network, and of what searches its gallery; see `revisions`."""
COMPATIBLE = ("bct", "asymmetric", "regression", "prototypes", "ndpp", "odpp")
"""Methods whose term another method may add, in every pass, by `train.compatible`."""


def settle(train: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `train` section with every variant that was left out (or null) filled in by its method.

    Raises ConfigError, with the reason, for an unknown method and for variants that make no sense with it.
    """
    name = train.get("method", "prunnet")
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(unknown("train.method", str(name), METHODS))
    method, settled = METHODS[name], dict(train)
    own = _CHANNEL_SCORES if train.get("granularity") == "channel" else {}
    if train.get("evidential") == "none":
        own = {**own, **_NO_EVIDENCE}
    for variant in VARIANTS:
        given = train.get(variant)
        if variant in method.open:
            settled[variant] = own.get(variant, method.open[variant]) if given is None else given
        elif given is None or given == method.fixed.get(variant):
            settled[variant] = method.fixed.get(variant)
        else:
            raise ConfigError(
                f"train.{variant}={echo(given)} makes no sense with train.method={name!r}: {method.reason}"
            )
    if (settled["evidential"], settled["priorities"]) == ("none", "uncertainty"):
        raise ConfigError(
            "train.priorities='uncertainty' makes no sense with train.evidential='none': cross-entropy says nothing of "
            "how sure a pass is; valid: equal"
        )
    _check_teacher(name, method, settled)
    return settled


def revisions(train: Mapping[str, Any]) -> list[str]:
    """What a settled `train` section means otherwise than it once did, for the hashes of what it determines: what was
    trained and tested before a revision does not count as the same."""
    revised = ["snip: no branch is silent"] if train.get("score_init") == "snip" else []
    if train.get("compatible") or METHODS[train.get("method", "prunnet")].teacher == "old":
        revised.append(OLD_REVISION)
    return revised


def _check_teacher(name: str, method: Method, train: Mapping[str, Any]) -> None:
    added, old = train.get("compatible"), train.get("old")
    if added is not None and (not isinstance(added, str) or added not in COMPATIBLE):
        return  # the type says so, with the valid names
    if added is not None and method.single:
        raise ConfigError(
            f"train.compatible={added!r} makes no sense with train.method={name!r}: a single network says so by "
            f"train.method={added!r}"
        )
    if (added is not None or method.teacher == "old") and not old:
        raise ConfigError(
            f"train.{'compatible' if added else 'method'}={added or name!r} needs train.old: "
            "the checkpoint (model.safetensors) whose embeddings the new network must match"
        )
    if old and added is None and method.teacher == "none":
        raise ConfigError(
            f"train.old makes no sense with train.method={name!r}: nothing of it is used; "
            f"set train.compatible to one of {', '.join(COMPATIBLE)}"
            if not method.single
            else f"train.old makes no sense with train.method={name!r}: nothing of it is used"
        )
