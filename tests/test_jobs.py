"""The main job for real: end to end, resumed, killed in every part, submitted to a running head."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from prunnet import results
from prunnet.evaluation.stored_features import load_features
from prunnet.networks.files import load_network
from tests.conftest import REPOSITORY, image_folder

pytestmark = pytest.mark.slow

EPOCHS, CAPACITIES = 12, [1.0, 0.7, 0.4, 0.2, 0.1, 0.05]


def command(data: Path, storage: Path, *more: str) -> list[str]:
    """The main job on a small folder of images."""
    settings = {
        "name": "job",
        "data.name": "imagefolder",
        "data.root": str(data),
        "data.image_size": 16,
        "model.options": "{channels: [8, 8, 16, 32]}",
        "train.epochs": EPOCHS,
        "train.batch_size": 16,
        "sweep.capacities": str(CAPACITIES),
        "sweep.calibration_images": 32,
        "cluster.storage": str(storage),
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "sweeps/capacity.py", *sets, *more]


def run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], object], job: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, "the job did not get that far"
        time.sleep(0.02)


LOOK = """
import pathlib, ray, sys, time
from ray.util import placement_group_table
answer, address, patience, path = sys.argv[1:]
ray.init(address, logging_level="ERROR")
deadline = time.monotonic() + float(patience)
while True:
    free, every = (r().get("CPU", 0) for r in (ray.available_resources, ray.cluster_resources))
    held = len([g for g in placement_group_table().values() if g["state"] != "REMOVED"])
    if (free == every and not held) or time.monotonic() > deadline:
        break
    time.sleep(1)
pathlib.Path(path).write_text(answer.format(free=free, every=every, held=held))
"""


def asked(answer: str, address: str, patience: float, **options: object) -> str:
    """`answer` with the CPUs that are free, of every, and the placement groups that are held, as a driver that joins
    the cluster sees them: once nothing is held, or after `patience` seconds. By a file: Ray prints news of the cluster,
    of nodes that died for instance, among whatever a driver prints."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answer"
        done = run([sys.executable, "-c", LOOK, answer, address, str(patience), str(path)], **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return path.read_text()


def descendants(job: subprocess.Popen[str], title: str) -> list[psutil.Process]:
    """Processes below the job whose title (Ray's `ray::Class.method`) holds `title`."""
    found = []
    for process in psutil.Process(job.pid).children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(job: subprocess.Popen[str]) -> None:
    """Kills a driver as the kernel would, and waits until its cluster's workers are gone with it; agents linger."""
    agents = {process.pid for process in descendants(job, "Agent")}
    family = [p for title in ("ray::", "raylet") for p in descendants(job, title) if p.pid not in agents]
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    psutil.wait_procs(family, timeout=20)


def checkpoints(storage: Path) -> int:
    """Registered checkpoints: those that Ray Train's own list names."""
    lists = list(storage.glob("job/training/*/checkpoint_manager_snapshot.json"))
    return lists[0].read_text().count("checkpoint_dir_name") if lists else 0


def outcome(storage: Path) -> tuple[str, object]:
    """The weights' hash and the deterministic columns of the table."""
    _, header = load_network(storage / "job" / "model.safetensors")
    return header["weights_sha"], results.deterministic(results.read(storage / "job" / "results"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), classes=10, per_class=10, side=16)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    storage = tmp_path_factory.mktemp("undisturbed")
    done = run(command(data, storage))
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("epoch 12", "36 tests", "pareto.png", "report.html"):
        assert said in done.stdout
    return storage


def test_a_run_leaves_everything_and_a_second_does_nothing_twice(data: Path, undisturbed: Path) -> None:
    folder = undisturbed / "job"
    assert all((folder / name).stat().st_size > 0 for name in ("pareto.png", "report.html", "recipe.yaml"))
    table = results.read(folder / "results")
    assert len(table) == len(CAPACITIES) ** 2
    before = {p: p.stat().st_mtime_ns for d in ("results", "features", "training") for p in (folder / d).rglob("*")}
    again = run(command(data, undisturbed))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "finished before (12 epochs), nothing to do" in again.stdout
    assert "36 of 36 finished before" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_new_capacity_adds_only_the_missing_pairs(data: Path, undisturbed: Path) -> None:
    storage = undisturbed.parent / "more"
    shutil.copytree(undisturbed, storage)
    features = {p.name for p in (storage / "job" / "features").iterdir()}
    done = run(command(data, storage, "--set", "sweep.capacities=[1.0,0.7,0.4,0.2,0.1,0.05,0.3]"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "36 of 49 finished before" in done.stdout
    assert len({p.name for p in (storage / "job" / "features").iterdir()} - features) == 1
    assert len(results.read(storage / "job" / "results")) == 49


def test_killed_workers_and_actors_change_nothing(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    job = start(command(data, tmp_path, "--set", "train.checkpoint_every_steps=2"))
    wait_until(lambda: checkpoints(tmp_path) >= 1, job)
    descendants(job, "RayTrainWorker")[0].kill()
    wait_until(lambda: len(list(tmp_path.glob("job/features/*"))) >= 1, job)
    descendants(job, "ray::EvaluationActor")[0].kill()
    output = job.communicate(timeout=600)[0]
    assert job.returncode == 0, output
    assert outcome(tmp_path) == outcome(undisturbed)


def test_a_killed_driver_loses_nothing(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    def killed_when(condition: Callable[[], object]) -> None:
        job = start(command(data, tmp_path))
        wait_until(condition, job)
        kill(job)

    killed_when(lambda: checkpoints(tmp_path) >= 2)
    trained = checkpoints(tmp_path)
    killed_when(lambda: len(list(tmp_path.glob("job/features/[!.]*"))) >= 2)
    assert trained >= 2
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("job/features/[!.]*")}
    done = run(command(data, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to do" in done.stdout
    assert kept == {p: p.stat().st_mtime_ns for p in kept}
    assert outcome(tmp_path) == outcome(undisturbed)


def test_a_capacity_that_keeps_failing_is_reported_and_the_rest_is_done(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    features = tmp_path / "job" / "features"
    (victim,) = (p for p in features.iterdir() if load_features(p).identity["capacity"] == 0.2)
    shutil.rmtree(victim)
    victim.write_text("")  # no folder can be put there
    shutil.rmtree(tmp_path / "job" / "results")
    done = run(command(data, tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("capacity 0.2 is tried again") == 2
    assert "capacity 0.2 failed: NotADirectoryError" in done.stdout
    assert len(results.read(tmp_path / "job" / "results")) == 25
    victim.unlink()
    assert run(command(data, tmp_path)).returncode == 0
    assert outcome(tmp_path) == outcome(undisturbed)


def test_a_damaged_checkpoint_and_a_torn_list_of_them_change_nothing(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Issue 15, number 4: the training goes on from the checkpoint before, and says so."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "job" / "model.safetensors").unlink()
    snapshot = next(tmp_path.glob("job/training/*/checkpoint_manager_snapshot.json"))
    snapshot.write_text(snapshot.read_text()[:-30])
    newest = max(snapshot.parent.glob("checkpoint_*/state.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = run(command(data, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was torn and is made again; training goes on from checkpoint_" in done.stdout
    assert "epoch 12" in done.stdout
    assert outcome(tmp_path) == outcome(undisturbed)


def stopped(job: subprocess.Popen[str], signum: int) -> str:
    """Sends a signal; asserts that the job ends in time and leaves nothing behind. Returns its last line."""
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signum)
    output = job.communicate(timeout=10)[0]
    assert job.returncode == 128 + signum, output
    _, alive = psutil.wait_procs(family, timeout=0.5)
    assert not alive
    assert "Traceback" not in output
    return next(line for line in reversed(output.splitlines()) if line.strip())


def test_a_stopped_job_says_how_to_go_on_and_goes_on(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Issue 15, number 14: Ctrl-C was taken by Ray Train, and SIGTERM ended with a trace of C++ and exit code 15."""
    job = start(command(data, tmp_path))
    wait_until(lambda: checkpoints(tmp_path) >= 1, job)
    assert stopped(job, signal.SIGINT) == "stopped by Ctrl-C (SIGINT); run the same command again to go on"
    job = start(command(data, tmp_path))
    wait_until(lambda: len(list(tmp_path.glob("job/features/[!.]*"))) >= 1, job)
    assert stopped(job, signal.SIGTERM) == "stopped by SIGTERM; run the same command again to go on"
    done = run(command(data, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(tmp_path) == outcome(undisturbed)


def test_a_training_that_diverges_is_said_and_not_tried_again(data: Path, tmp_path: Path) -> None:
    done = run(command(data, tmp_path, "--set", "train.lr=1e12", "--set", "train.precision=fp32"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("error: training diverged in epoch 1") == 1


def test_two_jobs_in_one_folder_are_refused(data: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "job").mkdir()
    with (tmp_path / "job" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(command(data, tmp_path))
    assert done.returncode == 2
    assert "another job is at work" in done.stderr


def in_venv() -> dict[str, str]:
    """The environment with this Python first on the path, as an activated .venv has it: jobs call `python`."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Head(NamedTuple):
    jobs: str
    """Address of the job server."""
    cluster: str
    environment: dict[str, str]
    """Of whoever submits to it: it asks for a token, as Ray does unless it is told not to."""

    def free_cpus(self) -> str:
        """`free of all`, as a driver that joins the cluster sees it."""
        return asked("{free} of {every}", self.cluster, 0, env=self.environment)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """A Ray head on loopback, with a token and a temporary folder of its own (by that folder a submitted job finds its
    cluster: see docs/CLUSTER.md). Ends only what it started."""
    port, dashboard = free_port(), free_port()
    temporary = tempfile.mkdtemp(prefix="ray-")  # short: it holds sockets, whose paths may have 107 characters
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {**in_venv(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    head = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
            f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1",
            "--disable-usage-stats", f"--temp-dir={temporary}", f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}",  # its default is taken where another Ray runs
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment,
    )  # fmt: skip
    try:
        wait_until(lambda: answers(dashboard), head, seconds=90)
        yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", environment)
    finally:
        family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.terminate()
        for process in (*family, head):
            with contextlib.suppress(psutil.Error, OSError):
                process.kill()
        head.wait(timeout=30)
        shutil.rmtree(temporary, ignore_errors=True)


def answers(port: int) -> bool:
    import urllib.error
    import urllib.request

    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2).status == 200
    except urllib.error.HTTPError as error:
        return error.code == 401  # it is there, and asks who we are
    except (urllib.error.URLError, OSError):
        return False


def test_the_job_is_submitted_to_a_running_head_and_resumes(data: Path, head: Head, tmp_path: Path) -> None:
    submit = [
        str(Path(sys.executable).parent / "ray"),
        "job",
        "submit",
        "--address",
        head.jobs,
        "--working-dir",
        ".",
    ]
    arguments = ["python" if part == sys.executable else part for part in command(data, tmp_path)]

    stranger = run([*submit, "--", "python", "-c", "pass"], env={**head.environment, "RAY_AUTH_MODE": "disabled"})
    assert stranger.returncode != 0
    assert "Missing authentication token" in stranger.stdout + stranger.stderr
    first = run([*submit, "--", *arguments, "--set", "train.epochs=3"], env=head.environment)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "36 tests" in first.stdout
    second = run([*submit, "--", *arguments, "--set", "train.epochs=3"], env=head.environment)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "36 of 36 finished before" in second.stdout
    assert head.free_cpus() == "2.0 of 2.0"
    refused = run([*submit, "--", *arguments, "--set", "cluster.workers=16", "--fresh"], env=head.environment)
    assert refused.returncode == 1
    assert "cluster.workers=16 with 1 CPU(s) a worker asks for 16 CPU(s)" in refused.stdout + refused.stderr
