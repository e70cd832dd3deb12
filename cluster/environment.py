"""Variables of the environment that the cluster's processes read or are given, in one place. No Ray is imported here.

RAY_ADDRESS         the cluster to join; without it one is started
PRUNNET_VERBOSE=1   shows what the workers print
"""

from __future__ import annotations

import os

ADDRESS = "RAY_ADDRESS"
_API_URL = "RAY_API_SERVER_ADDRESS"
_LOOKS = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
_LOOK_EVERY_SECONDS = "0.5"
"""Ray Train takes a worker's checkpoint at its next look, and the worker waits for that: 2 s, left to itself, which is
longer than an epoch of a small network."""
_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray Train starts a process, 2 s, that asks whether a machine is about to be taken away."""
_HEAD_PATIENCE = "RAY_gcs_server_port_wait_time_s"
_AGENTS_PATIENCE = "RAY_agent_register_timeout_ms"
_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_before: dict[str, str | None] = {}
"""Values of variables that are set only while a cluster is there."""


def address() -> str | None:
    """Of the cluster to join."""
    return os.environ.get(ADDRESS)


def uses_tls() -> bool:
    """Whether Ray's processes talk over TLS."""
    return os.environ.get("RAY_USE_TLS", "0") not in ("", "0")


def in_submitted_job() -> bool:
    """Whether this process is a driver that `ray job submit` started."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def verbose() -> bool:
    """PRUNNET_VERBOSE=1 shows what the workers print."""
    return os.environ.get("PRUNNET_VERBOSE", "") not in ("", "0")


def has_proxy() -> bool:
    return any(os.environ.get(name) for name in _PROXIES)


def set_for_cluster(api: str, around_proxies: list[str], *, own: bool) -> dict[str, str]:
    """Sets what a cluster's processes must know, which those of a new cluster inherit; returns it, for the processes of
    a cluster that is joined.

    Args:
        api: address of *this* cluster's state API.
        around_proxies: hosts that are not asked through a proxy.
        own: whether the cluster is started by this process: its machine is not taken away from it with a notice.
    """
    variables = {_API_URL: api, _LOOKS: os.environ.get(_LOOKS, _LOOK_EVERY_SECONDS)}
    if own:
        variables[_WATCHER] = os.environ.get(_WATCHER, "0")
    if around_proxies:
        given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        hosts = ",".join(dict.fromkeys([*filter(None, given.split(",")), *around_proxies]))
        variables |= {"NO_PROXY": hosts, "no_proxy": hosts}
    _before.update({name: os.environ.get(name) for name in (_API_URL, _WATCHER)})
    os.environ.update(variables)
    return variables


def forget_cluster() -> None:
    """Another cluster may have another state API, and lose machines."""
    for name, value in _before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _before.clear()


def let_processes_start(seconds: float) -> None:
    """How long a new cluster's head may take until its port is open, and a node's agents until theirs are."""
    os.environ.setdefault(_HEAD_PATIENCE, str(int(seconds)))
    os.environ.setdefault(_AGENTS_PATIENCE, str(int(1000 * seconds)))


def set_for_tune(concurrent: int) -> None:
    """What Tune reads when a search begins.

    Args:
        concurrent: trials at once.
    """
    # Epochs report a score, the end reports objectives: Tune would want every metric in every report.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(concurrent)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is the job's: Tune would go on for a while
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # or it prints a banner in spite of verbose=0
