"""A wheel puts one name into site-packages and works without the repository: in an environment of its own, which sees
this one's libraries, and in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pyarrow.dataset
import pytest

from hatch_build import rewritten
from tests.conftest import REPOSITORY

SHIPPED = ("prunnet", "cluster", "sweeps", "analysis")
WATCH = """
import os, sys

def look(event, arguments, repository={repository!r}, libraries={libraries!r}):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(repository):
        if not arguments[0].startswith(libraries):
            os.write(log, f"{{arguments[0]}}\\n".encode())

log = os.open({log!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
sys.addaudithook(look)
"""
"""sitecustomize.py: every Python process of the environment notes which files of the repository it opens."""


class Installed:
    """An environment in `folder` that has the wheel. Its processes know nothing of the repository."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.programs, self.opened, self.folder = folder / "bin", folder / "opened", folder / "empty"
        self.folder.mkdir(parents=True)
        venv.create(folder, symlinks=True)
        self.run(sys.executable, "-m", "pip", "--python", self.programs / "python", "install", "--no-deps", wheel)
        paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
        self.site, libraries = Path(paths["purelib"]), sysconfig.get_paths()["purelib"]
        (self.site / "libraries.pth").write_text(libraries)
        told = {"repository": f"{REPOSITORY}{os.sep}", "libraries": f"{sys.prefix}{os.sep}", "log": str(self.opened)}
        (self.site / "sitecustomize.py").write_text(WATCH.format(**told))

    def run(self, program: str | Path, *arguments: str | Path, code: int = 0) -> str:
        """What a program prints; it is started in the empty folder."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [self.programs / program, *arguments]
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (built,) = folder.glob("prunnet-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("environment"), wheel)


def test_the_wheel_holds_the_files_of_the_repository_below_one_name(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        assert {name.partition("/")[0] for name in archive.namelist()} == {"prunnet", wheel.name[:13] + ".dist-info"}
    expected = {}
    for package in SHIPPED:
        for path in (REPOSITORY / package).rglob("*"):
            if path.is_file() and path.parent.name != "__pycache__":
                name = path.relative_to(REPOSITORY).as_posix()
                expected[name if package == "prunnet" else f"prunnet/_jobs/{name}"] = path.read_bytes()
    assert found.keys() == expected.keys()
    for name, held in found.items():
        as_written = re.sub(rb"(?m)^( *from )prunnet\._jobs\.", rb"\1", held) if name.endswith(".py") else held
        assert as_written == expected[name], name
        assert not re.search(rb"(?m)^ *(from|import) (cluster|sweeps|analysis)\b.* import ", held), name


def test_a_build_refuses_an_import_that_it_cannot_rewrite() -> None:
    assert (
        rewritten("if 1:\n    from cluster import pool", "jobs.py")
        == "if 1:\n    from prunnet._jobs.cluster import pool"
    )
    with pytest.raises(ValueError, match="jobs.py, line 2: write `from"):
        rewritten("import torch\nimport cluster.session\n", "jobs.py")


def test_installed_it_helps_and_finds_its_recipes(installed: Installed) -> None:
    assert "Usage: prunnet" in installed.run("prunnet", "--help")
    assert "Usage: python -m prunnet" in installed.run("python", "-m", "prunnet", "--help")
    refused = installed.run("prunnet", "sweep", "--recipe", "dmo", code=2)
    assert re.fullmatch(r"error: recipe 'dmo' is not a file; packaged recipes: .*\bdemo\b.*\n", refused)
    assert not installed.opened.read_text()
    installed.run("python", "-c", f"open({str(REPOSITORY / 'README.md')!r})")
    assert installed.opened.read_text(), "the watch on the repository sees nothing"
    installed.opened.write_text("")


def test_installed_in_a_repository_it_does_not_take_that_one_for_its_own(installed: Installed) -> None:
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], cwd=installed.site, check=True)
    ask = "from prunnet._jobs.sweeps.run import git_commit; print(git_commit())"
    assert installed.run("python", "-c", ask) == "None\n"


@pytest.mark.slow
def test_installed_it_runs_the_demo_in_workers_and_actors(installed: Installed) -> None:
    small = ("data.classes=24", "data.images_per_class=4", "train.epochs=1", "sweep.capacities=[1.0,0.5]")
    said = installed.run("prunnet", "sweep", "--recipe", "demo", *(word for s in small for word in ("--set", s)))
    assert re.search(r"^0\.5\b.*\d", said, re.MULTILINE), said
    assert "self mAP" in said
    run = installed.folder / "runs" / "demo"
    assert pyarrow.dataset.dataset(run / "results").count_rows() == 4
    assert (run / "report.html").is_file()
    assert not installed.opened.read_text()
