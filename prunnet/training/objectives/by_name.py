"""Training methods by name, one file each. An objective turns a batch into gradients; it does not step.

`config.methods` holds the names and what each leaves open. Two kinds of networks (masked.py, switchable.py), and
terms that compare with an old network (`Term`), which a single network is trained with (`bct`, `asymmetric`,
`regression`, `prototypes`, `ndpp`, `odpp`) or which another method adds to every pass (`train.compatible`).
"""

from __future__ import annotations

from collections.abc import Callable

from prunnet.config.methods import METHODS
from prunnet.config.recipe import TrainConfig
from prunnet.errors import ConfigError
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import SwitchableNet
from prunnet.pruning import prunable
from prunnet.training.objectives.base import Context, Objective, Term


def make_objective(net: RetrievalNet, config: TrainConfig, context: Context) -> Objective:
    """The objective named by `config.method`, with the term of `config.compatible` where there is one."""
    from prunnet.training.objectives.independent import Independent
    from prunnet.training.objectives.joint import Joint
    from prunnet.training.objectives.prunnet import PrunNet
    from prunnet.training.objectives.sfsc import Sfsc, SfscReleased
    from prunnet.training.objectives.switchable import Switchable

    method = METHODS[config.method]
    _check_network(net, config)
    named: str | None = config.compatible
    if method.single and method.teacher != "none":
        named = config.method
    term = make_term(named, net, config, context) if named else None
    if method.single:
        return Independent(net, config, context, term)
    kinds: dict[str, Callable[..., Objective]] = {
        "prunnet": PrunNet,
        "joint": Joint,
        "switchable": Switchable,
        "sfsc": Sfsc,
        "sfsc_released": SfscReleased,
    }
    return kinds[config.method](net, config, context, term)


def _check_network(net: RetrievalNet, config: TrainConfig) -> None:
    """ConfigError where a method is given a network of the other kind."""
    switchable = isinstance(net, SwitchableNet)
    if METHODS[config.method].network == "widths":
        if not switchable or net.switch != list(config.capacities):
            raise ConfigError(
                f"train.method={config.method!r} trains a SwitchableNet with switch={list(config.capacities)}, "
                f"not a {type(net).__name__}{f' with switch={net.switch}' if switchable else ''}"
            )
    elif not prunable.layers(net):
        raise ConfigError(
            f"train.method={config.method!r} needs a network with scores; this {type(net).__name__} has none"
        )


def make_term(name: str, net: RetrievalNet, config: TrainConfig, context: Context) -> Term:
    """The term of that name; ConfigError where no old network was given."""
    from prunnet.training.objectives.asymmetric import Asymmetric
    from prunnet.training.objectives.bct import Bct
    from prunnet.training.objectives.ndpp import Ndpp
    from prunnet.training.objectives.odpp import Odpp
    from prunnet.training.objectives.prototypes import Prototypes
    from prunnet.training.objectives.regression import Regression

    if context.old is None:
        raise ConfigError(f"{name!r} compares with another network; set train.old to its checkpoint")
    kinds: dict[str, Callable[..., Term]] = {
        "bct": Bct,
        "asymmetric": Asymmetric,
        "regression": Regression,
        "prototypes": Prototypes,
        "ndpp": Ndpp,
        "odpp": Odpp,
    }
    return kinds[name](net, config, context)
