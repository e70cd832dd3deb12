"""Starting or joining a cluster: what cannot be joined is said in seconds, in one line, by the name of its variable."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import cluster.session
from cluster import environment
from cluster.ending import depending_on, stoppable
from cluster.session import session
from prunnet.config.recipe import ClusterConfig
from prunnet.errors import ResourceError
from tests.conftest import REPOSITORY


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.session, "_TRIES", 1)


@pytest.fixture
def web_server() -> Iterator[int]:
    """The port of something that is no Ray head, such as its dashboard."""
    server = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign,assignment]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}", "nonsense", "127.0.0.1", "auto"]
)
@pytest.mark.usefixtures("quick")
def test_the_address_of_a_dead_head_is_said_at_once(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 17: it took 15 minutes, and did not name the variable."""
    address = form.format(closed_port())
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: frozenset())
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)
    began = time.monotonic()
    with pytest.raises(ResourceError, match="RAY_ADDRESS=.*no Ray cluster answers there") as caught:
        session(ClusterConfig()).__enter__()
    assert time.monotonic() - began < 20
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("quick")
def test_a_port_of_something_else_is_no_head(web_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 17: the dashboard's address is `ray job submit`'s, not a driver's."""
    for form in ("127.0.0.1:{}", "http://127.0.0.1:{}"):
        monkeypatch.setenv("RAY_ADDRESS", form.format(web_server))
        with pytest.raises(ResourceError, match="is no Ray head"):
            session(ClusterConfig()).__enter__()


def test_a_machine_that_does_not_start_ray_in_time_is_told_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 17: it was a bare Exception, a hundred lines and exit code 1."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    left: list[subprocess.Popen[bytes]] = []

    def times_out(*arguments: Any, **options: Any) -> None:
        left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(ray, "init", times_out)
    monkeypatch.setattr(os, "getloadavg", lambda: (40.0, 40.0, 40.0))
    with pytest.raises(ResourceError, match="Ray did not start within .*load 40.*timed out during startup") as caught:
        session(ClusterConfig()).__enter__()
    assert "\n" not in str(caught.value)
    assert len(left) == 2  # a port may have been taken: it is tried again
    for process in left:
        process.wait(timeout=5)  # what it had started is ended


def test_a_loaded_machine_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 17: Ray gives up after 30 s, by a constant in its code."""
    answers = iter([RuntimeError("not there"), RuntimeError("not there"), {"labels": {}}])

    def ask(*where: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(ray._private.services, "get_node", ask)
    monkeypatch.setattr(cluster.session, "_ray_here", lambda: [psutil.Process()])
    monkeypatch.setattr(psutil.Process, "name", lambda self: "raylet")
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert cluster.session._patience() == 300
    watched: list[str] = []

    @contextmanager
    def depending_on(*arguments: Any) -> Iterator[None]:
        watched.append("watched")
        yield
        watched.append("over")

    monkeypatch.setattr(cluster.session, "depending_on", depending_on)
    with cluster.session._waiting_for_the_node(60):
        assert watched == []
        assert ray._private.services.get_node("address", "node") == {"labels": {}}
        assert watched == ["watched"]  # while the driver joins it, the node may die
    assert watched == ["watched", "over"]
    assert ray._private.services.get_node is ask


def test_a_nodes_agents_are_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Issue 15, number 17: a node dies when its agents have not chosen their ports after 15 s, a constant in its code
    (ray-project/ray#65983). It does not wait for agents whose ports it is told: three by arguments, one by a file."""
    told: dict[str, Any] = {}

    def start_raylet(node_id: str, session_dir: str, **ports: int | None) -> None:
        told.update(ports)

    monkeypatch.setattr(ray._private.services, "start_raylet", start_raylet)
    node, usual = "ab" * 28, 52365
    with cluster.session._waiting_for_the_node(60):
        ray._private.services.start_raylet(node, str(tmp_path), metrics_agent_port=0, dashboard_agent_listen_port=usual)
    assert ray._private.services.start_raylet is start_raylet
    assert set(told) == set(cluster.session._AGENTS_PORTS)
    assert len({*told.values(), 0, None, usual}) == len(told) + 3
    (by_file,) = tmp_path.iterdir()
    assert by_file.name == f"dashboard_agent_listen_port_{node}"
    assert int(by_file.read_text()) == told["dashboard_agent_listen_port"]


def test_a_proxy_is_not_asked_for_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 17: with http_proxy set, Ray's state API "does not answer"."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert cluster.session._around_proxies("10.1.2.3:6379", "http://10.1.2.3:8265") == []
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "example.org")
    hosts = cluster.session._around_proxies("10.1.2.3:6379", "http://head.local:8265")
    try:
        found = environment.set_for_cluster("http://head.local:8265", hosts, own=False)
    finally:
        environment.forget_cluster()
    assert found["no_proxy"] == found["NO_PROXY"]
    assert {"example.org", "127.0.0.1", "localhost", "10.1.2.3", "head.local"} <= set(found["NO_PROXY"].split(","))


def ended(script: str, signum: int | None = None) -> tuple[int, str, float]:
    """(exit code, stderr, seconds) of a driver that prints `ready` and is sent a signal then."""
    head = "import sys, time, subprocess, psutil\nfrom sweeps.run import one_line_errors\n"
    job = subprocess.Popen(
        [sys.executable, "-c", head + script], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert job.stdout is not None
    child = int(job.stdout.readline())
    began = time.monotonic()
    if signum is not None:
        job.send_signal(signum)
    said = job.communicate(timeout=60)[1]
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    return job.returncode, said, time.monotonic() - began


CHILD = "child = subprocess.Popen(['sleep', '600'])\n"
READY = "print(child.pid, flush=True)\n"


@pytest.mark.parametrize(("signum", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_stopped_command_ends_with_a_line_and_no_process(signum: int, code: int, name: str) -> None:
    """Issue 15, number 14: also where a destructor swallows the exception and the work goes on, and
    where C code makes another of it, as Ray does."""
    heard = CHILD + "with one_line_errors():\n    " + READY + "    time.sleep(600)\n"
    swallowed = CHILD + (
        "with one_line_errors():\n    " + READY + "    while True:\n        try:\n            time.sleep(1)\n"
        "        except BaseException:\n            pass\n"
    )
    turned = CHILD + (
        "with one_line_errors():\n    " + READY + "    try:\n        time.sleep(600)\n"
        "    except BaseException:\n        raise KeyboardInterrupt\n"
    )
    for script in (turned, swallowed) if signum == signal.SIGTERM else (heard,):
        found, said, seconds = ended(script, signum)
        assert found == code, said
        assert f"stopped by {name}" in said
        assert "run the same command again to go on" in said
        assert said.count("\n") == 1
        assert seconds < 10


def test_a_driver_whose_cluster_is_lost_ends_with_a_line_and_exit_code_2() -> None:
    """Issue 15, number 17: a killed gcs_server ended its driver with exit code 1, a minute later."""
    script = (
        "from cluster.ending import depending_on\n" + CHILD + "with one_line_errors():\n"
        "    with depending_on('Ray', [psutil.Process(child.pid)], lambda: True):\n"
        "        " + READY + "        child.kill()\n        time.sleep(600)\n"
    )
    code, said, seconds = ended(script)
    assert code == 2, said
    assert "error: Ray is lost (Ray's sleep process died); run the same command again to go on" in said
    assert seconds < 10


def test_a_second_block_does_not_keep_the_handlers_of_the_first() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    with depending_on("Ray", [], lambda: True):
        pass
