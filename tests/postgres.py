"""A PostgreSQL server of our own, in a temporary folder, for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """The folder of initdb and postgres: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    if found:
        return Path(os.path.realpath(found)).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


def owner() -> str | None:
    """PostgreSQL refuses to run as root; then somebody else must own it."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextmanager
def postgres() -> Iterator[str]:
    """URL of an empty database."""
    found = programs()
    assert found is not None
    with tempfile.TemporaryDirectory() as temporary, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        folder = Path(temporary) / "data"
        folder.mkdir()
        user = owner()
        if user is not None:
            for path in (Path(temporary), folder):
                shutil.chown(path, user)
        common = {"user": user, "cwd": temporary, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run = [str(found / "initdb"), "-D", str(folder), "-U", "search", "-A", "trust", "--no-sync"]
        subprocess.run(run, check=True, **common)  # type: ignore[call-overload]
        start = [str(found / "postgres"), "-D", str(folder), "-h", "127.0.0.1", "-p", str(port), "-k", temporary, "-F"]
        server = subprocess.Popen(start, **common)  # type: ignore[call-overload]
        try:
            import psycopg

            deadline = time.monotonic() + 60
            while True:
                try:
                    psycopg.connect(f"host=127.0.0.1 port={port} user=search dbname=postgres").close()
                    break
                except psycopg.OperationalError:
                    assert time.monotonic() < deadline, "PostgreSQL did not start"
                    time.sleep(0.1)
            yield f"postgresql+psycopg://search@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # at once, whoever is connected
            server.wait(timeout=30)
