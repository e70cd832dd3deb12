"""Packages stand in layers: nothing imports upwards, no modules import each other in a circle, and public names are not
hidden by modules of the same name."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunnet

ROOT = Path(__file__).parent.parent
LAYERS = (
    ("prunnet.errors", "prunnet.redact", "prunnet.process", "prunnet.lazy", "prunnet.machine_code"),
    ("prunnet.guard", "prunnet.registry"),
    ("prunnet.storage",),
    ("prunnet.retrieval",),
    ("prunnet.config", "prunnet.results"),
    ("prunnet.networks.timm_library",),
    ("prunnet.data.sources",),
    ("prunnet.data",),
    ("prunnet.data.datasets",),
    ("prunnet.data.by_name",),
    ("prunnet.pruning",),
    ("prunnet.pruning.granularities",),
    ("prunnet.networks",),
    ("prunnet.subnetworks",),
    ("prunnet.export",),
    ("prunnet.evaluation",),
    ("prunnet.training.gradients",),
    ("prunnet.training.losses",),
    ("prunnet.training.objectives",),
    ("prunnet.training",),
    ("prunnet.experiments",),
    ("cluster", "analysis"),
    ("sweeps",),
    ("benchmarks", "prunnet.__main__"),
)
"""From the lowest to the highest; what stands beside each other imports nothing of each other."""
NOT_HERE = {
    "prunnet": {"ray", "optuna"},
    "analysis": {"torch", "ray", "timm", "faiss"},
}
"""Libraries that a package does not import."""


def modules() -> dict[str, Path]:
    found = {}
    for top in ("prunnet", "cluster", "analysis", "sweeps", "benchmarks"):
        for path in (ROOT / top).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """What a file imports, anywhere in it: modules of ours by their full names, others as they are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            assert node.module, path
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def place(module: str) -> tuple[int, str] | None:
    """Number of a module's layer and its package there; None for the package `prunnet` itself and for libraries."""
    of = {name: number for number, names in enumerate(LAYERS) for name in names}
    parts = module.split(".")
    packages = (".".join(parts[:k]) for k in range(len(parts), 0, -1))
    return next(((of[name], name) for name in packages if name in of), None)


def is_package(module: str) -> bool:
    """Whether it is an `__init__.py`: those hand out names of the modules below them, and import none when loaded."""
    return MODULES[module].name == "__init__.py"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if not is_package(m)))
def test_a_module_imports_only_what_stands_below_it(module: str) -> None:
    mine = place(module)
    assert mine is not None, f"{module} belongs to no layer"
    for name in imported(MODULES[module]):
        assert name.partition(".")[0] not in NOT_HERE.get(module.partition(".")[0], ()), f"{module} imports {name}"
        theirs = place(name)
        if theirs is not None and theirs[1] != mine[1] and mine[0] > 0:
            assert theirs[0] < mine[0], f"{module} imports {name}, which does not stand below it"
        elif theirs is not None:
            assert theirs[0] == mine[0], f"{module} imports {name}, which stands above it"


def test_analysis_reads_the_results_table_only() -> None:
    for module, path in MODULES.items():
        if module.startswith("analysis"):
            ours = {name for name in imported(path) if name.startswith("prunnet")}
            assert all(name.startswith("prunnet.results") for name in ours), (module, ours)


def test_no_modules_import_each_other_in_a_circle() -> None:
    below = {m: {n for n in imported(path) if n in MODULES and n != m} for m, path in MODULES.items()}
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in sorted(below[module]):
                follow(name, (*path, module))
            done.add(module)

    for module in below:
        follow(module, ())
    assert sum(map(len, below.values())) > 500  # the graph is that of the source, not an empty one


@pytest.mark.parametrize(
    "module", ["prunnet", "prunnet.results", "prunnet.config", "prunnet.config.recipe", "analysis.report"]
)
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
