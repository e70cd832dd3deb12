"""The wheel's layout: one name, `prunnet`, at the top of site-packages. docs/ARCHITECTURE.md, "The wheel", says why.

The packages above `prunnet` are shipped below `prunnet/_jobs/`, and imports of them are rewritten. An editable install
is left alone: it has the folders of the repository.
"""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MOVED = ("cluster", "sweeps", "analysis")
PLACE = "prunnet._jobs"
ENTRY = "prunnet/__main__.py"
"""Of prunnet itself, the only file that imports a moved package."""


class Layout(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self.rewritten = tempfile.TemporaryDirectory()
        root, shipped = Path(self.root), {ENTRY: ENTRY}
        for package in MOVED:
            for path in sorted((root / package).rglob("*")):
                if path.is_file() and path.parent.name != "__pycache__":
                    name = path.relative_to(root).as_posix()
                    shipped[name] = f"{PLACE.replace('.', '/')}/{name}"
        for name, place in shipped.items():
            path = root / name
            if path.suffix == ".py":
                path = Path(self.rewritten.name, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(rewritten((root / name).read_text("utf-8"), name), "utf-8")
            build_data["force_include"][str(path)] = place

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.rewritten.cleanup()


def rewritten(source: str, name: str) -> str:
    """A module whose imports name the moved packages where the wheel has them; nothing else of it is changed.

    ValueError for `import cluster.session`, which binds the name `cluster` for all of the module.
    """
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MOVED:
            before, after = lines[node.lineno - 1].split("from ", 1)
            lines[node.lineno - 1] = f"{before}from {PLACE}.{after}"
        elif isinstance(node, ast.Import) and any(alias.name.partition(".")[0] in MOVED for alias in node.names):
            raise ValueError(f"{name}, line {node.lineno}: write `from … import …`, which the wheel can rewrite")
    return "\n".join(lines)
