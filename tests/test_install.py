"""The set-up asks uv for the files that pip would take."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", REPOSITORY / ".ci" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answering(text: str) -> Callable[..., Any]:
    return lambda command, **_: subprocess.CompletedProcess(command, 0, stdout=text)


def test_uv_looks_where_pip_looks(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "SSL_CERT_FILE", "UV_INDEX_STRATEGY"):
        monkeypatch.delenv(name, raising=False)
    listed = (
        ":env:.find-links='/wheels /more'\n"
        "global.index-url='https://mirror.example/simple'\n"
        "global.extra-index-url='file:///one file:///two'\n"
        "global.find-links='/other'\n"
    )
    monkeypatch.setattr(installer.subprocess, "run", answering(listed))
    assert installer.settings_of_uv(installer.pip_settings()) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "file:///one file:///two",
        "UV_FIND_LINKS": "/wheels,/more",
    }


def test_what_is_set_for_uv_stays(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX", "https://mine.example/simple")
    assert "UV_INDEX" not in installer.settings_of_uv({"extra-index-url": "https://other.example/simple"})


@pytest.mark.parametrize("fails", ["fetching uv", "uv"])
def test_pip_installs_where_uv_cannot(installer: ModuleType, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    monkeypatch.delenv("PRUNNET_INSTALLER", raising=False)
    called: list[list[str]] = []

    def run(command: list[str], **_: Mapping[str, str]) -> Any:
        called.append(command)
        kind = "uv" if command[2] == "uv" else "fetching uv" if command[-1] == "uv" else "pip"
        return subprocess.CompletedProcess(command, kind == fails, stdout="")

    monkeypatch.setattr(installer.subprocess, "run", run)
    assert installer.main("dev") == 0
    assert called[-1][:3] == installer.PIP[:3]
    assert called[-1][-1] == ".[dev]"


def test_what_uv_installs_is_compiled(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python may not write bytecode, each process would compile torch, timm and Ray again: 10 s of CPU."""
    monkeypatch.delenv("PRUNNET_INSTALLER", raising=False)
    called: list[list[str]] = []

    def run(command: list[str], **_: Mapping[str, str]) -> Any:
        called.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(installer.subprocess, "run", run)
    assert installer.main("dev") == 0
    assert called[-1][2] == "uv"
    assert "--compile-bytecode" in called[-1]
