"""The methods by name: what each trains, which variants it leaves open, and why it does not take the others.

Only names and rules; the mathematics is in `training.objectives`, one file a method. No torch is loaded here.

Another package adds a method by one file that holds a `Method` and the objective or compatibility loss that it names,
and an entry point of the group `prunnet.methods`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from prunnet.config.granularities import GRANULARITIES, Granularity
from prunnet.config.losses import DEFAULT, LOSSES, Loss, settled_options
from prunnet.errors import ConfigError, echo, unknown
from prunnet.registry import Named, Registry

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
    objective: Named
    """The `prunnet.training.objectives.base.Objective` that turns a batch into gradients."""
    _: KW_ONLY
    network: Literal["masks", "widths"] = "masks"
    """masks: a score for every weight, any capacity can be cut; widths: slimmable channels."""
    single: bool = False
    """One network a capacity, nothing shared; else one network for all."""
    teacher: Literal["none", "dense", "old"] = "none"
    """What the embeddings are trained to match: nothing, the dense network of the same family (or `train.old`
    where it is given), or `train.old`, which must be given."""
    compatibility_loss: Named | None = None
    """The `prunnet.training.objectives.base.Term` that compares with the teacher. By `train.compatible` another method
    may add it to every pass."""
    open: Mapping[str, Any] = field(default_factory=dict)
    """Variants that a recipe may set, with their defaults."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Variants that the method itself settles."""
    reason: str = ""
    """Why the other variants make no sense."""
    only_cross_entropy: str = ""
    """Why another `train.loss` makes no sense; empty where the method takes any."""
    revision: str = ""
    """Part of every training's hash where it is set. To be changed with what the method computes: networks of before
    then do not count as the same."""

    def __post_init__(self) -> None:
        if odd := sorted({*self.open, *self.fixed} - set(VARIANTS)):
            raise ConfigError(f"a method leaves open or settles {', '.join(odd)}; valid: {', '.join(VARIANTS)}")
        if (self.teacher == "none") != (self.compatibility_loss is None):
            raise ConfigError("a method has a teacher and a compatibility loss, or neither")


_SCORES = {"score_init": "kaiming_uniform", "allocation": "layer"}
_NO_EVIDENCE = {"priorities": "equal"}
"""train.evidential=none: cross-entropy gives no uncertainty of a pass."""
_ALONE = "each network is trained by itself at one capacity, so there is nothing to draw, project or weigh"
_PLAIN = "it is the plain sum of the losses; with conflict handling it would be prunnet"
_WIDTHS = "a switchable network has widths with a BatchNorm each, and no scores"
_REPLACED = "it trains with its own loss in place of train.loss, and nothing else"


_OBJECTIVES = "prunnet.training.objectives"


def _single(
    summary: str,
    teacher: Literal["none", "dense", "old"] = "none",
    loss: str | None = None,
    only_cross_entropy: str = "",
) -> Method:
    return Method(
        summary,
        f"{_OBJECTIVES}.independent:Independent",
        single=True,
        teacher=teacher,
        compatibility_loss=None if loss is None else f"{_OBJECTIVES}.{loss}",
        open=_SCORES,
        fixed={"capacity_sampling": "fixed"},
        reason=_ALONE,
        only_cross_entropy=only_cross_entropy,
    )


_OWN: dict[str, Method] = {
    "prunnet": Method(
        "masks by learned scores, N + 1 passes, conflict-aware integration (arXiv 2504.11879)",
        f"{_OBJECTIVES}.prunnet:PrunNet",
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
        f"{_OBJECTIVES}.joint:Joint",
        open={**_SCORES, "capacity_sampling": "fixed"},
        fixed={"projection": "none", "weighting": "mean"},
        reason=_PLAIN,
    ),
    "independent": _single("one network a capacity, nothing shared"),
    "bct": _single(
        "own loss + cross-entropy through the teacher's frozen classifier (arXiv 2003.11942)", "dense", "bct:Bct"
    ),
    "asymmetric": _single(
        "triplets of own anchors among the teacher's embeddings (AML, Budnik and Avrithis)",
        "dense",
        "asymmetric:Asymmetric",
        _REPLACED,
    ),
    "regression": _single("own embeddings regress the teacher's", "dense", "regression:Regression", _REPLACED),
    "prototypes": _single("own loss + softmax over the old network's class prototypes", "old", "prototypes:Prototypes"),
    "ndpp": _single("as prototypes, perturbed away from their neighbours (arXiv 2503.14824)", "old", "ndpp:Ndpp"),
    "odpp": _single("as prototypes, perturbed by an optimisation (arXiv 2503.14824)", "old", "odpp:Odpp"),
    "switchable": Method(
        "slimmable widths, plain sum of the losses",
        f"{_OBJECTIVES}.switchable:Switchable",
        network="widths",
        fixed={"capacity_sampling": "fixed", "projection": "none", "weighting": "mean"},
        reason=_WIDTHS,
    ),
    "sfsc": Method(
        "slimmable widths, evidential loss, priorities, PCGrad over the whole network (arXiv 2206.08289)",
        f"{_OBJECTIVES}.sfsc:Sfsc",
        network="widths",
        open={"evidential": "exp", "priorities": "uncertainty", "reduction": "sum"},
        fixed={"capacity_sampling": "fixed", "projection": "sequential", "block": "network", "weighting": "mean"},
        reason=_WIDTHS,
    ),
    "sfsc_released": Method(
        "as PrunNet's release runs sfsc: cross-entropy, PCGrad over the whole network, mean",
        f"{_OBJECTIVES}.sfsc:SfscReleased",
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
        only_cross_entropy="it is kept as it was released",
    ),
}
METHODS: Registry[Method] = Registry("train.method", "prunnet.methods", _OWN, Method)
OLD_REVISION = "old network: its own statistics"
"""Revision of networks that are trained to match an old network, and of tests in its gallery; see `revisions`."""


def compatible() -> list[str]:
    """Methods whose compatibility loss another method may add to every pass, by `train.compatible`."""
    return [name for name, method in METHODS.items() if method.compatibility_loss is not None]


def check_reconstruction(name: str) -> None:
    """ConfigError for a method whose subnetworks are not parts of a dense network that was trained; a method that is
    not installed here passes."""
    if name in METHODS and (METHODS[name].single or METHODS[name].network == "widths"):
        raise ConfigError(
            f"sweep.reconstruct=true makes no sense with train.method={name!r}: its subnetworks are not parts of a "
            "dense network that was trained; valid: a method of masks in one network"
        )


def settle(train: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `train` section with every variant that was left out (or null) filled in by its method.

    Raises ConfigError, with the reason, for an unknown method and for variants that make no sense with it.
    """
    name, granularity = train.get("method", "prunnet"), train.get("granularity", "weight")
    method, settled = METHODS[_text("train.method", name)], dict(train)
    start = GRANULARITIES[_text("train.granularity", granularity)].score_init
    own = {} if start is None else {"score_init": start}
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
    _settle_loss(name, method, settled)
    return settled


def _settle_loss(name: str, method: Method, train: dict[str, Any]) -> None:
    """Settles `loss_options`; ConfigError, with the reason, for a loss that the method does not take."""
    loss = _text("train.loss", train.get("loss", DEFAULT))
    options = settled_options(loss, train.get("loss_options", {}))
    if "loss_options" in train:
        train["loss_options"] = options
    if loss == DEFAULT:
        return
    said, added = f"train.loss={loss!r} makes no sense with", train.get("compatible")
    members = {f"train.method={name!r}": method, **({f"train.compatible={added!r}": METHODS[added]} if added else {})}
    for key, member in members.items():
        if member.only_cross_entropy:
            raise ConfigError(f"{said} {key}: {member.only_cross_entropy}")
    if train.get("evidential") not in (None, "none"):
        raise ConfigError(f"{said} train.method={name!r}: its evidential loss is its own; valid with: evidential=none")
    if train.get("label_smoothing"):
        raise ConfigError(f"{said} train.label_smoothing={echo(train['label_smoothing'])}: it smooths cross-entropy")
    if name == "bct" and not train.get("old") and not LOSSES[loss].classifier:
        raise ConfigError(
            f"{said} train.method='bct' and no train.old: the dense network would teach by its classifier, which this "
            "loss does not train; set train.old to a network that cross_entropy trained"
        )


def _text(key: str, given: object) -> str:
    if not isinstance(given, str):
        raise ConfigError(f"{key}={echo(given)}; valid: a name")
    return given


def revisions(train: Mapping[str, Any]) -> list[str]:
    """Changes of definition that affect a settled `train` section, for hashes: networks and rows of an earlier
    definition do not count as the same."""
    revised = ["snip: no branch is silent"] if train.get("score_init") == "snip" else []
    method, added = METHODS[train.get("method", "prunnet")], train.get("compatible")
    if added or method.teacher == "old":
        revised.append(OLD_REVISION)
    granularity = GRANULARITIES[train.get("granularity", "weight")]
    loss = LOSSES[train.get("loss", DEFAULT)]
    members: list[Method | Granularity | Loss] = [method, granularity, loss, *([METHODS[added]] if added else [])]
    return [*revised, *(member.revision for member in members if member.revision)]


def _check_teacher(name: str, method: Method, train: Mapping[str, Any]) -> None:
    added, old = train.get("compatible"), train.get("old")
    if added is not None and (
        _text("train.compatible", added) not in METHODS or METHODS[added].compatibility_loss is None
    ):
        raise ConfigError(unknown("train.compatible", added, compatible()))
    if added is not None and (method.single or method.compatibility_loss is not None):
        raise ConfigError(
            f"train.compatible={added!r} makes no sense with train.method={name!r}: "
            + (f"a single network says so by train.method={added!r}" if method.single else "it has a loss of its own")
        )
    if (added is not None or method.teacher == "old") and not old:
        raise ConfigError(
            f"train.{'compatible' if added else 'method'}={added or name!r} needs train.old: "
            "the checkpoint (model.safetensors) whose embeddings the new network must match"
        )
    if old and added is None and method.teacher == "none":
        raise ConfigError(
            f"train.old makes no sense with train.method={name!r}: nothing of it is used; "
            f"set train.compatible to one of {', '.join(compatible())}"
            if not method.single
            else f"train.old makes no sense with train.method={name!r}: nothing of it is used"
        )
