"""The house stands: nothing imports upwards, and public names are not hidden by modules of the same name."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import prunnet

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "prunnet": {"ray", "cluster", "sweeps", "analysis", "optuna"},
    "analysis": {"torch", "ray", "cluster", "sweeps", "timm", "faiss"},
    "cluster": {"sweeps", "analysis"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("floor", sorted(FORBIDDEN))
def test_nothing_imports_upwards(floor: str) -> None:
    for path in (ROOT / floor).rglob("*.py"):
        names = imports(path)
        assert not {name.partition(".")[0] for name in names} & FORBIDDEN[floor], path
        if floor == "analysis":
            ours = {name for name in names if name.startswith("prunnet")}
            assert all(name.startswith("prunnet.results") for name in ours), (path, ours)


@pytest.mark.parametrize("module", ["prunnet", "prunnet.results", "analysis.report"])
def test_light_modules_load_neither_torch_nor_ray(module: str) -> None:
    script = f"import sys, {module}; print([m for m in ('torch', 'ray', 'timm', 'faiss') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_public_names_survive_the_import_of_every_submodule() -> None:
    for module in pkgutil.walk_packages(prunnet.__path__, "prunnet."):
        importlib.import_module(module.name)
    for name in prunnet.__all__:
        assert callable(getattr(prunnet, name)), name
    assert callable(prunnet.subnetwork)
    assert callable(prunnet.retrieval.revisited)
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = prunnet.prune
