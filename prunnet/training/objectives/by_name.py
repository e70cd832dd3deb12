"""The objective that a recipe's section `train` asks for. An objective turns a batch into gradients; it does not step.

`config.methods` holds the names, what each leaves open, and which file computes it. Two kinds of networks (masked.py,
switchable.py), and terms that compare with an old network (`Term`), which a single network is trained with or which
another method adds to every pass (`train.compatible`).
"""

from __future__ import annotations

from prunnet.config.losses import DEFAULT
from prunnet.config.methods import METHODS
from prunnet.config.recipe import TrainConfig
from prunnet.errors import ConfigError
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.networks.switchable import SwitchableNet
from prunnet.pruning import prunable
from prunnet.registry import resolve
from prunnet.training.objectives.base import Context, Objective, Term


def make_objective(net: RetrievalNet, config: TrainConfig, context: Context) -> Objective:
    """The objective named by `config.method`, with the method's own term, or that of `config.compatible` where there is
    one."""
    method = METHODS[config.method]
    _check_network(net, config)
    named = config.compatible if method.compatibility_loss is None else config.method
    term = make_term(named, net, config, context) if named else None
    if term is not None and not term.own_loss and config.loss != DEFAULT:
        raise ConfigError(f"train.loss={config.loss!r} makes no sense with {named!r}, which replaces it")
    objective: Objective = resolve(method.objective)(net, config, context, term)
    return objective


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
    """The term of the method of that name; ConfigError where no old network was given."""
    if context.old is None:
        raise ConfigError(f"{name!r} compares with another network; set train.old to its checkpoint")
    loss = METHODS[name].compatibility_loss
    assert loss is not None, name
    term: Term = resolve(loss)(net, config, context)
    return term
