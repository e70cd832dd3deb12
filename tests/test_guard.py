"""Commands of the analysis end as the jobs do: one line, the documented exit code, and no half-written file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import commands, comparison, devices
from prunnet import results
from tests.conftest import REPOSITORY

WAITS = """
import time
from analysis import commands

def main() -> None:
    print("ready", flush=True)
    time.sleep(60)

commands.run(main)
"""


@pytest.mark.parametrize(("asked", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_of_the_analysis_with_its_own_exit_code(asked: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=-1, stderr=-1, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        job.send_signal(asked)
        _, said = job.communicate(timeout=60)
    assert job.returncode == code
    assert said.startswith("stopped by ")
    assert said.count("\n") == 1


def ended(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command that raises."""

    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["main"])
    with pytest.raises(SystemExit) as found:
        commands.run(main)
    return int(found.value.code or 0)


def test_a_pipe_that_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunnet.guard.silence", lambda stream: None)
    assert ended(BrokenPipeError(32, "Broken pipe"), monkeypatch) == 0


def test_what_a_user_can_mend_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(results.ResultsError("a torn\x1b[2J part"), monkeypatch) == 2
    assert capsys.readouterr().err == "error: a torn\\x1b[2J part\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="a bug"):
        ended(TypeError("a bug"), monkeypatch)


@pytest.mark.parametrize("command", ["devices", "comparison"])
def test_a_full_disk_leaves_the_old_file_as_it_was(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "unit_key": "a", "status": "complete", "trial_id": "methods/prunnet/s0/0", "seed": 0, "query_capacity": 1.0,
        "gallery_capacity": 1.0, "gallery_source": "own", "map": 0.5, "macs": 7, "latency_ms_b1": 1.0,
        "train_capacities": "0.5", "config_json": "{}", "train_seconds": 1.0,
    }  # fmt: skip
    results.write_part(tmp_path / "results", [row])
    target = tmp_path / ("page.md" if command == "comparison" else "figure.png")
    before = "\n".join(comparison.marks())
    target.write_text(before)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunnet.storage.atomic._sync", full)
    write = comparison.write if command == "comparison" else devices.main
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "results", target)
    assert target.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["results", target.name])
