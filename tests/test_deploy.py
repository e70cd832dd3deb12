"""The cluster files are valid as far as this can be seen without a cluster, and everything they name exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from prunnet.config.recipe import load_recipe
from tests.conftest import REPOSITORY

DEPLOY = REPOSITORY / "cluster" / "deploy"
PAGE = (REPOSITORY / "docs" / "CLUSTER.md").read_text()


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_rays_own_validator_takes_the_files_of_ray_up(name: str) -> None:
    (config,) = documents(name)
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert types["driver"]["resources"]["trial_slot"] >= 1
    assert types["driver"]["min_workers"] == 1
    assert config["docker"]["image"].split(":")[1].startswith(ray.__version__)
    started = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert started.count("RAY_AUTH_MODE=token ray start") == 2
    assert "--dashboard-host=127.0.0.1" in started
    assert "spot" in json.dumps(types["gpu"]).lower()


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"] for group in groups]


@pytest.mark.parametrize("name", ["kuberay-rayjob.yaml", "kuberay-raycluster.yaml"])
def test_every_pod_is_one_that_kubernetes_takes(name: str) -> None:
    (document,) = documents(name)
    assert document["apiVersion"] == "ray.io/v1"
    spec = document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    templates = pods(spec)
    if document["kind"] == "RayJob":
        templates.append(document["spec"]["submitterPodTemplate"])
        assert document["spec"]["shutdownAfterJobFinishes"]
        assert document["spec"]["backoffLimit"] >= 1
    for template in templates:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", **template["metadata"]},
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        for container in template["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["image"] in ("prunnet:cpu", "prunnet:cuda")
    for template in pods(spec):
        mounts = template["spec"]["containers"][0]["volumeMounts"]
        assert "/runs" in {mount["mountPath"] for mount in mounts}


def test_the_volume_and_the_wall_are_valid() -> None:
    for document in documents("storage.yaml"):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_kuberays_operator_reaches_the_dashboard_and_nothing_else() -> None:
    """Issue 15, number 22: the operator asks the head's dashboard whether a RayJob has ended (GetJobInfo), from a
    namespace of its own; the labels are those of KubeRay's chart, and of the policies that KubeRay 1.7 makes itself."""
    policy = documents("storage.yaml")[1]["spec"]
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": policy["podSelector"]}]}
    labels = {"app.kubernetes.io/component": "kuberay-operator"}
    assert operator["from"] == [{"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}]
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_the_entrypoint_of_the_job_is_a_command_of_this_repository() -> None:
    (document,) = documents("kuberay-rayjob.yaml")
    check_command(document["spec"]["entrypoint"])


def check_command(line: str) -> None:
    """A call of one of our scripts: the script and its recipe exist, and its recipe takes the settings."""
    words = shlex.split(line)
    script = next(word for word in words if word.endswith(".py"))
    assert (REPOSITORY / script).is_file(), script
    recipe = REPOSITORY / words[words.index("--recipe") + 1]
    load_recipe(recipe, [words[i + 1] for i, word in enumerate(words) if word == "--set"])


def test_commands_and_paths_of_the_page_exist() -> None:
    joined = PAGE.replace("\\\n", " ")
    commands = [line.strip().partition("#")[0] for line in joined.splitlines() if line.startswith("    ")]
    ours = [line for line in commands if "sweeps/" in line]
    assert len(ours) >= 4
    for line in ours:
        check_command(line)
    for path in re.findall(r"(?:cluster|sweeps|docs)/[\w/.-]+\.(?:yaml|py|md|sbatch)|cluster/deploy/Dockerfile", PAGE):
        assert (REPOSITORY / path).is_file(), path
    for key in re.findall(r"`cluster\.(\w+)`", PAGE):
        assert key in type(load_recipe(None).cluster).model_fields


def test_the_image_holds_what_it_copies() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for path in line.split():
            assert (REPOSITORY / path).exists(), path
    packages = {p.name for p in REPOSITORY.iterdir() if (p / "__init__.py").exists()} - {"tests"}
    assert packages <= set(re.findall(r"^COPY (\w+) ", text, re.MULTILINE))


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A Slurm and a Ray that only write down what they are asked."""
    fake = tmp_path / "bin"
    fake.mkdir()
    log = tmp_path / "log"
    program(fake, "scontrol", 'printf "node1\\nnode2\\nnode3\\n"')
    # srun: the options are logged, the command runs here.
    program(
        fake,
        "srun",
        f"node=; while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${{1#*=}}; shift; done\n"
        f'echo "$node: $*" >> {log}\n[[ $1 == hostname ]] && {{ echo "10.0.0.1 10.0.0.2"; exit; }}\nexec "$@"',
    )
    program(
        fake,
        "ray",
        f"[[ $1 == get-auth-token && ! -e ~/.ray ]] && {{ mkdir ~/.ray; echo t > ~/.ray/auth_token; }}\n"
        f'[[ $1 == start ]] || exit 0\n[[ -e {tmp_path}/fails ]] && exit 1\necho "started $$" >> {log}\n'
        f"trap 'echo \"ended $$\" >> {log}; exit 0' TERM\nwhile true; do sleep 0.1; done",
    )
    program(
        fake, "python", f'if [[ $1 == - ]]; then cat > /dev/null; echo "waits for $2 nodes" >> {log}; else "$@"; fi'
    )
    program(
        fake,
        "long",
        f"trap 'echo long was told >> {log}; exit 0' TERM\necho long began >> {log}\nwhile true; do sleep 0.1; done",
    )
    program(fake, "job", f'echo "job with $RAY_ADDRESS and $RAY_AUTH_MODE: $*" >> {log}; sleep 0.5; exit ${{CODE:-0}}')
    environment = {
        "PATH": f"{fake}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LOG": str(log),
        "SLURM_TMPDIR": str(tmp_path),
    }
    return {**environment, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_ON_NODE": "8"}


def submit(slurm: dict[str, str], *words: str, **more: str) -> tuple[int, list[str]]:
    folder = Path(slurm["HOME"])  # without a .venv
    done = subprocess.run(
        ["bash", str(DEPLOY / "slurm.sbatch"), *words],
        env={**slurm, **more},
        cwd=folder,
        capture_output=True,
        timeout=60,
    )
    log = Path(slurm["LOG"])
    return done.returncode, log.read_text().splitlines() if log.exists() else []


def test_slurm_starts_one_node_each_runs_the_job_and_ends_them(slurm: dict[str, str]) -> None:
    code, lines = submit(slurm, "job", "with", "two words")
    assert code == 0
    starts = sorted(line for line in lines if "ray start" in line)
    assert len(starts) == 3
    assert starts[0].startswith("node1: ray start --block --num-cpus=8 --num-gpus=0 --head --node-ip-address=10.0.0.1")
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert [line.split(":")[0] for line in starts] == ["node1", "node2", "node3"]
    assert all("--address=10.0.0.1:20007" in line for line in starts[1:])
    assert "waits for 3 nodes" in lines
    assert "job with 10.0.0.1:20007 and token: with two words" in lines
    assert sum(line.startswith("ended") for line in lines) == sum(line.startswith("started") for line in lines) == 3


def test_slurm_passes_the_jobs_exit_code_on_and_still_ends_the_nodes(slurm: dict[str, str]) -> None:
    code, lines = submit(slurm, "job", CODE="3")
    assert code == 3
    assert sum(line.startswith("ended") for line in lines) == 3


def test_slurm_says_what_is_missing(slurm: dict[str, str]) -> None:
    assert submit(slurm)[0] == 2
    (Path(slurm["HOME"]) / "fails").touch()
    program(Path(slurm["PATH"].partition(":")[0]), "ray", "exit 1")
    assert submit(slurm, "job")[0] == 1


@pytest.mark.parametrize("before", [None, 0o644])
def test_only_its_user_can_read_what_slurm_jobs_share(slurm: dict[str, str], before: int | None) -> None:
    """Issue 15, number 22: Ray writes its token as the umask says, and keeps one that is there as it is."""
    token, home = Path(slurm["HOME"]) / ".ray" / "auth_token", Path(slurm["HOME"])
    if before is not None:
        token.parent.mkdir()
        token.write_text("t")
        token.chmod(before)
    assert submit(slurm, "job")[0] == 0
    assert token.stat().st_mode & 0o077 == 0
    assert (home / "ray-7").stat().st_mode & 0o777 == 0o700
    (home / "ray-7").rmdir()
    (home / "elsewhere").mkdir()
    (home / "ray-7").symlink_to(home / "elsewhere")
    code, lines = submit(slurm, "job", "again")
    assert code == 1
    assert not any("again" in line for line in lines)


def test_slurms_notice_reaches_the_job_at_once(slurm: dict[str, str]) -> None:
    """Issue 15, number 22: a job in the foreground kept the notice from the script until it was over."""
    script = subprocess.Popen(
        ["bash", str(DEPLOY / "slurm.sbatch"), "long"], env=slurm, cwd=slurm["HOME"], stderr=subprocess.DEVNULL
    )
    log, deadline = Path(slurm["LOG"]), time.monotonic() + 30
    while not log.exists() or "long began" not in log.read_text():
        assert time.monotonic() < deadline
        assert script.poll() is None
        time.sleep(0.05)
    script.terminate()
    assert script.wait(timeout=30) == 143
    lines = log.read_text().splitlines()
    assert lines.count("long was told") == 1
    assert sum(line.startswith("ended") for line in lines) == 3


def test_no_file_holds_a_secret() -> None:
    for path in DEPLOY.iterdir():
        assert not re.search(r"AKIA|BEGIN .*KEY|password\s*[:=]\s*\S", path.read_text()), path
