"""Joins or starts a Ray cluster, and refuses at once what the cluster cannot provide."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psutil
import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.autoscaler.sdk import request_resources
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.util.state import list_actors

from cluster import environment
from cluster.ending import AGAIN, depending_on, end, family
from cluster.environment import ADDRESS
from prunnet.config.recipe import ClusterConfig
from prunnet.errors import ResourceError, one_line

_TRIES = 5
"""Seconds that a head may take until its port is open."""
_SETTINGS = bytes(3) + b"\x04" + bytes(5)
"""HTTP/2's first frame, of either side: length, type, flags, stream."""
_NOWHERE = "http://127.0.0.1:1"
_STARTS = 2
"""How often a cluster on this machine is started, at most: another process may take a port that was free."""
_AGENTS_PORTS = "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port"
"""Arguments of Ray's `start_raylet`."""


@contextmanager
def session(config: ClusterConfig, *, state_api: bool = False) -> Iterator[None]:
    """A Ray cluster for the duration of a job: that of RAY_ADDRESS (as in a submitted job), else a local one. Inside
    another session it is that session's cluster.

    Args:
        state_api: whether Ray's dashboard process must run: see `check_state_api`.

    Raises ResourceError where there is no such cluster or it cannot hold the job; see `check_resources`.
    """
    if ray.is_initialized():
        wait_for_resources(config)
        if state_api:
            check_state_api()
        yield
        return
    address = environment.address()
    with _keeping_signals():
        _start(address, state_api)
    try:
        cluster = f"the cluster of {ADDRESS}={address}" if address else "Ray"
        with depending_on(cluster, _ray_here(), _head_answers()):
            wait_for_resources(config)
            if state_api:
                check_state_api()
            yield
    finally:
        ray.shutdown()
        environment.forget_cluster()


def _start(address: str | None, state_api: bool) -> None:
    """Joins the cluster at `address`, or starts one.

    Every process gets the address of its own cluster's state API, or learns that there is none. Otherwise Ray searches
    for it for ten seconds at the end of each training, or takes the newest cluster of the machine, which does not know
    this training, so that its workers would be removed.

    Raises ResourceError, in one line, if Ray does not start or no head answers at the address.
    """
    more: dict[str, Any] = {"log_to_driver": environment.verbose(), "include_dashboard": False}
    api = _NOWHERE
    if address:
        _reach(address)
        # A Ray client, which has a process of its own on the cluster, takes no such argument.
        more = {} if address.startswith("ray://") else {"log_to_driver": environment.verbose()}
        with contextlib.suppress(Exception):  # a cluster without a dashboard: requests', gRPC's and Ray's own
            api = ray_address_to_api_server_url(address)
    elif state_api:
        (port,) = _free_ports(1)
        api = f"http://127.0.0.1:{port}"
        more |= {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    variables = environment.set_for_cluster(api, _around_proxies(address, api), own=not address)
    if address:
        more["runtime_env"] = {"env_vars": variables}
    before, patience = family(), _patience()
    for tries_left in reversed(range(_STARTS)):
        try:
            with _waiting_for_the_node(patience):
                ray.init(address or "local", logging_level=logging.WARNING, **more)
            return
        except Exception as error:  # Ray's are of many kinds, bare Exception among them
            ray.shutdown()
            end(process for process in family() if process not in before)
            said = one_line(error)[:300]
        if address or not tries_left:
            environment.forget_cluster()
        if address:
            raise ResourceError(f"{ADDRESS}={address}: this cluster cannot be joined ({said})")
    raise ResourceError(
        f"Ray did not start within {patience:.0f} s, tried {_STARTS} times (load {os.getloadavg()[0]:.0f} on "
        f"{os.cpu_count()} processors): {said}; {AGAIN}, when the machine is less loaded"
    )


def _patience() -> float:
    """Seconds that Ray's processes may take to start: 30, as in Ray, or more where the machine is loaded."""
    return 30 * min(10.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


@contextmanager
def _waiting_for_the_node(patience: float) -> Iterator[None]:
    """Ray gives its processes 30 s to start, and the node's agents 15 s (ray-project/ray#65983). For the head that is
    a variable, for the node and its agents constants in Ray's code. So the function that asks for the node is replaced
    by one that waits; and the agents get ports, since the node only waits for agents that choose theirs."""
    environment.let_processes_start(patience)
    services: Any = ray._private.services
    raylet: Any = ray._raylet
    ask, start, deadline = services.get_node, services.start_raylet, time.monotonic() + patience
    watched = contextlib.ExitStack()

    def ask_again(*where: Any) -> Any:
        while True:
            try:
                found = ask(*where)
                # From here on Ray's C++ code ends this process, with exit code 1, when the node dies.
                watched.enter_context(depending_on("Ray", _ray_here(), lambda: True))
                return found
            except RuntimeError:  # not there yet
                if time.monotonic() > deadline or not any(process.name() == "raylet" for process in _ray_here()):
                    raise
                time.sleep(0.5)

    def start_with_ports(*arguments: Any, **named: Any) -> Any:
        ports = dict(zip(_AGENTS_PORTS, _free_ports(len(_AGENTS_PORTS)), strict=True))
        node = inspect.signature(start).bind(*arguments, **named).arguments
        # Only the agent is told this one by an argument, the node by a file.
        name = raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME
        raylet.persist_port(node["session_dir"], node["node_id"], name, ports[name])
        return start(*arguments, **named | ports)

    services.get_node, services.start_raylet = ask_again, start_with_ports
    try:
        with watched:
            yield
    finally:
        services.get_node, services.start_raylet = ask, start


@contextmanager
def _keeping_signals() -> Iterator[None]:
    """Keeps the job's SIGTERM handler: Ray installs its own when it starts, in Python and in C++."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(ours) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def _reach(address: str) -> None:
    """ResourceError where no head answers at an address: Ray itself tries for a quarter of an hour."""
    try:
        found = canonicalize_bootstrap_address(address) if address == "auto" else address
        host, port = _host_and_port(found or "")
        for left in range(_TRIES, 0, -1):
            try:
                return _greet(host, port)
            except OSError:
                if left == 1:
                    raise
                time.sleep(1)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"{ADDRESS}={address}: no Ray cluster answers there ({one_line(error)[:150]}); start its head, set its "
            f"HOST:PORT, or unset {ADDRESS} to start a cluster on this machine"
        ) from None


def _greet(host: str, port: int) -> None:
    """OSError where no gRPC server, as a head is one, answers. (To ask with Ray's own client would settle whether it
    shows a token before Ray has looked for one.)"""
    with socket.create_connection((host, port), timeout=5) as connection:
        if environment.uses_tls():
            return  # an open port must do
        connection.settimeout(10)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
        if connection.recv(4)[3:] != _SETTINGS[3:4]:
            raise ConnectionError("what listens there is no Ray head, whose port is 6379 if not set otherwise")


def _host_and_port(address: str) -> tuple[str, int]:
    """Of `host:port`, `ray://host:port` or `[::1]:port`; ValueError for anything else."""
    found = urlsplit(address if "://" in address else f"//{address}")
    if found.hostname is None or found.port is None:
        raise ValueError("it is not HOST:PORT")
    return found.hostname, found.port


def _around_proxies(address: str | None, api: str) -> list[str]:
    """The cluster's own hosts, where a proxy is set: Ray's state API would be asked through it."""
    if not environment.has_proxy():
        return []
    hosts = ["127.0.0.1", "localhost", ray.util.get_node_ip_address()]
    for where in (address, api):
        with contextlib.suppress(ValueError):
            hosts.append(_host_and_port(where or "")[0])
    return hosts


def _ray_here() -> list[psutil.Process]:
    """This node's raylet, and the cluster's head where it is on this machine."""
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
    candidates = family() if node is None else psutil.process_iter()
    found = []
    for process in candidates:
        with contextlib.suppress(psutil.Error):
            if process.name() in ("raylet", "gcs_server") and (
                node is None or any(node in a for a in process.cmdline())
            ):
                found.append(process)
    return found


def _head_answers() -> Callable[[], bool]:
    """Asks whether the head's port is open."""
    host, port = _host_and_port(ray.get_runtime_context().gcs_address)

    def answers() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=5).close()
            return True
        return False

    return answers


def _free_ports(count: int) -> list[int]:
    """Different ones, which nobody listens at now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def check_state_api() -> None:
    """ResourceError where Ray's state API does not answer.

    When the driver of a nested training dies or is stopped, Ray Train's cleaner asks that API whether it is dead, and
    takes the workers' placement group back. The API is part of the dashboard: without it every stopped trial keeps its
    CPUs, and the search waits for ever.
    """
    try:
        list_actors(limit=1, timeout=30)
    except Exception as error:  # requests', gRPC's and Ray's own, by how far it came
        raise ResourceError(
            f"Ray's state API does not answer ({type(error).__name__}), so stopped trials would keep their CPUs; "
            "start the head with --include-dashboard=true"
        ) from None


def wait_for_resources(config: ClusterConfig) -> None:
    """Repeats `check_resources` for up to `cluster.wait_minutes`; an autoscaler is asked for what is needed."""
    deadline = time.monotonic() + 60 * config.wait_minutes
    asked = False
    while True:
        try:
            return check_resources(config)
        except ResourceError:
            if time.monotonic() >= deadline:
                raise
            if not asked:
                request_resources(bundles=_bundles(config))
                asked = True
            time.sleep(min(2.0, max(0.05, deadline - time.monotonic())))


def _bundles(config: ClusterConfig) -> list[dict[str, float]]:
    worker = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    actor = {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor}
    every = [worker] * config.workers + [actor] * config.actors
    return [{kind: share for kind, share in bundle.items() if share} for bundle in every]


def check_resources(config: ClusterConfig) -> None:
    """ResourceError, with the arithmetic, where training or evaluation asks for more than the cluster has."""
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asks = {
        "cluster.workers": (config.workers, config.cpus_per_worker, config.gpus_per_worker, "worker"),
        "cluster.actors": (config.actors, config.cpus_per_actor, config.gpus_per_actor, "actor"),
    }
    for key, (count, cpus, gpus, unit) in asks.items():
        for kind, each in (("CPU", cpus), ("GPU", gpus)):
            places = sum(int((node.get(kind, 0.0) + 1e-9) // each) for node in nodes) if each else count
            if places < count:
                raise ResourceError(
                    f"{key}={count} with {each:g} {kind}(s) a {unit} asks for {count * each:g} {kind}(s); the cluster "
                    f"has {total.get(kind, 0.0):g} on {len(nodes)} node(s), room for {places}: lower {key} "
                    f"or cluster.{kind.lower()}s_per_{unit}"
                )
