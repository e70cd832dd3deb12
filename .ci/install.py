"""Installs this project, editable, into the environment whose Python runs this: by uv, or by pip where uv cannot serve.

    .venv/bin/python .ci/install.py ''        # what the jobs need
    .venv/bin/python .ci/install.py dev       # the tests, too

uv is asked for the same files as pip: it gets pip's own indices, links and certificates, whether they come from pip's
files or from the environment. Versions are those of constraints.txt either way. PRUNNET_INSTALLER=pip leaves uv out.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def pip_settings() -> dict[str, str]:
    """What pip is set to, by option name: the environment wins over files, as it does for pip."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = " ".join(shlex.split(value))
    return found


def settings_of_uv(pip: Mapping[str, str]) -> dict[str, str]:
    """The environment that makes uv look where pip looks, and choose among indices as pip does."""
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for option, variable, between in (
        ("index-url", "UV_DEFAULT_INDEX", " "),
        ("extra-index-url", "UV_INDEX", " "),
        ("find-links", "UV_FIND_LINKS", ","),
        ("trusted-host", "UV_INSECURE_HOST", " "),
        ("cert", "SSL_CERT_FILE", " "),
    ):
        if pip.get(option):
            settings[variable] = between.join(pip[option].split())
    return {name: value for name, value in settings.items() if name not in os.environ}


def main(extra: str) -> int:
    """Returns the exit code of whichever installed."""
    wanted = ["--constraint", "constraints.txt", "--editable", f".[{extra}]" if extra else "."]
    if os.environ.get("PRUNNET_INSTALLER", "uv") == "uv":
        fetched = subprocess.run([*PIP, "install", "--quiet", "--constraint", "constraints.txt", "uv"], check=False)
        if fetched.returncode == 0:
            environment = {**os.environ, **settings_of_uv(pip_settings())}
            # Compiled once, as pip does it. Left to the first import, it is done at every import where Python may not
            # write (a read-only environment, PYTHONDONTWRITEBYTECODE): torch, timm and Ray then take 20 s more.
            uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode"]
            uv += ["--python", sys.executable]
            if subprocess.run([*uv, *wanted], env=environment, check=False).returncode == 0:
                return 0
        print("uv cannot install here; pip does it, which takes longer", file=sys.stderr)
    return subprocess.run([*PIP, "install", "--quiet", "--progress-bar", "off", *wanted], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
