"""Another installed package adds a method, a compatibility loss, a loss, a granularity, a data set, a column of the
results table and an export format: one file and one entry point each. The package is written here, and jobs run in
processes that find it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prunnet import best_under, results
from prunnet.errors import ConfigError
from prunnet.storage.tensor_files import read_header
from tests.conftest import REPOSITORY

STRIPES = """
import numpy as np

from prunnet.data import Dataset, MemoryImages, Preprocessing, Rendered, RetrievalTest


def load(config):
    made = Preprocessing.from_config(config)
    parts = [images(made, range(0, 4), config.images_per_class), images(made, range(4, 7), config.images_per_class)]
    test = RetrievalTest(parts[1], parts[1], leave_one_out=True)
    return Dataset("stripes", parts[0], ("a", "b", "c", "d"), None, test, made)


def images(made, classes, each):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(classes)), each)
    columns = np.arange(made.resize)
    waves = [np.sin(columns / (1 + classes[label]) + rng.random()) for label in labels]
    pixels = [np.broadcast_to(128 + 90 * wave, (made.channels, made.resize, made.resize)) for wave in waves]
    return MemoryImages(np.stack(pixels).astype(np.uint8), labels, made)


DATASET = Rendered("stripes of seven widths", load, options=("images_per_class",))
"""
MARGIN = """
import numpy as np

from prunnet.results import Column


def compute(test):
    similar = np.asarray(test.queries) @ np.asarray(test.gallery).T
    right = [similar[query, relevant].mean() for query, relevant in enumerate(test.truth.relevant)]
    assert test.row["queries"] == len(right)
    return np.float32(np.mean(right) - similar.mean())


COLUMN = Column("margin", float, "metric", "mean similarity of the right answers above that of all", compute=compute)
"""
NPZ = """
import json

import numpy as np
import torch

from prunnet.export.formats import Exported, Format
from prunnet.networks.headers import Identity, check
from prunnet.networks.switchable import build
from prunnet.storage.atomic import put_in_place
from prunnet.subnetworks.subnet import Subnetwork


def write(cut, path, said):
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in cut.state().items()}
    texts = {"net": json.dumps(cut.net.spec), "identity": json.dumps(said.to_json())}
    with put_in_place(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **texts, **arrays)


def read(path):
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    said = check(Identity, json.loads(str(arrays.pop("identity"))), path)
    net = build(json.loads(str(arrays.pop("net"))))
    net.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    return Exported(said, Subnetwork(net.eval(), said.capacity, {}, said.weights_sha).embed)


FORMAT = Format("dense arrays", write, read, ("fp32",))
"""
SLOPED = """
import torch

from prunnet.config.methods import Method
from prunnet.training.objectives.prunnet import PrunNet


class Sloped(PrunNet):
    def pass_weights(self, losses):
        return torch.linspace(2.0, 0.5, len(losses))

    def parameters(self):
        return {}


METHOD = Method(
    "the smaller a subnetwork, the less its pass counts",
    Sloped,
    open={"score_init": "normal", "block": "kernel"},
    fixed={"projection": "none", "weighting": "uncertainty"},
    reason="its weights are settled",
)
"""
COSINE = """
import torch.nn.functional as F

from prunnet.config.methods import Method
from prunnet.training.objectives.base import Term


class Cosine(Term):
    def __init__(self, net, config, context):
        self.old, self.dtype = context.old, context.dtype

    def targets(self, images, labels):
        return (self.old.embed(images, self.dtype),)

    def loss(self, features, labels, targets):
        return 1 - F.cosine_similarity(features, targets[0]).mean()


METHOD = Method(
    "own loss + cosine distance to the teacher",
    "prunnet.training.objectives.independent:Independent",
    single=True,
    teacher="dense",
    compatibility_loss=Cosine,
    open={"score_init": "kaiming_uniform"},
)
"""
CENTRES = """
import torch
from torch import nn

from prunnet.config.losses import Loss, Number
from prunnet.training.losses.base import NetworkLoss


class Centres(NetworkLoss):
    def __init__(self, setting):
        super().__init__(setting)
        self.centres = nn.Parameter(torch.randn(setting.classes, setting.embedding_dim))

    def forward(self, logits, features, labels):
        distances = torch.cdist(features, self.centres) * self.setting.number("slope")
        return nn.functional.cross_entropy(-distances, labels)


LOSS = Loss("softmax over distances to centres", Centres, options={"slope": Number(1.0, "of the logits", above=True)})
"""
FILTER = """
from prunnet.config.granularities import Granularity
from prunnet.pruning.granularities.stored import StoredSelection
from prunnet.pruning.masks import top_k_mask


class FilterSelection(StoredSelection):
    fused = False

    @classmethod
    def score_shape(cls, weight):
        return len(weight), *[1] * (weight.dim() - 1)

    def mask(self, name, capacity):
        return top_k_mask(self.scores[name], capacity).expand_as(self.weights[name])


GRANULARITY = Granularity("all weights that make an output channel", FilterSelection, score_init="magnitude", slower=10)
"""
WORKING = {
    "sloped": ("prunnet.methods", "sloped", "METHOD", SLOPED),
    "cosine": ("prunnet.methods", "cosine", "METHOD", COSINE),
    "centres": ("prunnet.losses", "centres", "LOSS", CENTRES),
    "filter": ("prunnet.granularities", "filter", "GRANULARITY", FILTER),
    "stripes": ("prunnet.datasets", "stripes", "DATASET", STRIPES),
    "margin": ("prunnet.columns", "margin", "COLUMN", MARGIN),
    "npz": ("prunnet.export_formats", ".npz", "FORMAT", NPZ),
}
"""Module -> group and name of its entry point, the object that this names, and the module's text."""


def installed(folder: Path, package: str, modules: dict[str, tuple[str, str, str, str]]) -> Path:
    """A folder for PYTHONPATH that holds a package as an installer leaves it."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    groups = []
    for module, (group, name, attribute, text) in modules.items():
        (folder / package / f"{module}.py").write_text(text)
        groups.append(f"[{group}]\n{name} = {package}.{module}:{attribute}\n")
    (about / "entry_points.txt").write_text("\n".join(groups))
    return folder


def run(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Python with a package on its path."""
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}", "COLUMNS": "400"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def recipe(folder: Path) -> Path:
    tree = {
        "name": "theirs",
        "table": str(folder / "table.parquet"),
        "seeds": [0],
        "methods": {
            "prunnet": {},
            "sloped": {
                "train.method": "sloped",
                "train.granularity": "filter",
                "train.loss": "centres",
                "train.loss_options.slope": 2,
            },
            "cosine": {"train.method": "cosine"},
        },
        "base": {
            "data": {"name": "stripes", "image_size": 16, "images_per_class": 4},
            "model": {"stem": "released", "embedding_dim": 8, "options": {"channels": [8, 8, 8, 8]}},
            "train": {"epochs": 1, "batch_size": 8, "capacities": [0.5], "precision": "fp32"},
            "sweep": {"capacities": [1.0, 0.5], "gallery": "dense", "calibration_images": 8},
            "cluster": {"storage": str(folder / "runs"), "workers": 1},
        },
    }
    (folder / "theirs.yaml").write_text(yaml.safe_dump(tree))
    return folder / "theirs.yaml"


def network_of(path: Path) -> str | None:
    """The granularity of a saved network."""
    granularity: str | None = read_header(path)["net"].get("granularity")
    return granularity


COMPARED = """
import json, sys, torch
from prunnet.export.formats import open_export
theirs, ours = (open_export(path) for path in sys.argv[1:])
images = torch.randn(3, 1, 16, 16)
same = torch.allclose(theirs.embed(images), ours.embed(images), atol=1e-5)
print(json.dumps([same, theirs.identity == ours.identity, theirs.identity.capacity]))
"""


def test_a_package_adds_one_of_each_kind_by_a_file_each(tmp_path: Path) -> None:
    site = installed(tmp_path / "site", "stripes_plugin", WORKING)
    done = run(site, "sweeps/ablation.py", "--recipe", recipe(tmp_path), "--local")
    assert done.returncode == 0, done.stdout + done.stderr

    folder = tmp_path / "runs" / "theirs"
    rows = results.read(folder / "results").to_pylist()  # this process does not have the package
    made = {"prunnet": "weight", "sloped": "filter", "cosine": "weight"}
    assert {row["method"]: row["granularity"] for row in rows} == made
    for method in made:
        tests = [row for row in rows if row["method"] == method]
        assert {(row["query_capacity"], row["gallery_capacity"]) for row in tests} == {(1, 1), (0.5, 1), (0.5, 0.5)}
        assert len({row["margin"] for row in tests}) == 3
    sloped = next(row for row in rows if row["method"] == "sloped" and row["query_capacity"] == 0.5)
    assert (sloped["score_init"], sloped["projection"], sloped["capacity_sampling"]) == ("magnitude", "none", None)
    assert '"loss":"centres","loss_options":{"slope":2.0}' in sloped["config_json"]
    assert {row["dataset"] for row in rows} == {"stripes"}
    assert all(0 < abs(row["margin"]) < 2 for row in rows)
    assert results.read_packed(tmp_path / "table.parquet")["margin"].null_count == 0
    with pytest.raises(ConfigError, match="metric 'margin'; valid: map"):
        best_under(folder / "results", metric="margin")
    best = run(site, "-m", "sweeps.cli", "best", folder, "--metric", "margin")
    assert best.returncode == 0, best.stderr
    cross = [row["margin"] for row in rows if row["gallery_capacity"] == 1.0]
    assert json.loads(best.stdout)["margin"] == max(cross)

    (model,) = (path for path in (folder / "models").glob("*.safetensors") if network_of(path) == "filter")
    edges = [tmp_path / "edge.npz", tmp_path / "edge.safetensors"]
    for edge in edges:
        said = run(site, "-m", "sweeps.cli", "export", model, "--capacity", 0.5, "--to", edge)
        assert said.returncode == 0, said.stderr
    assert json.loads(run(site, "-c", COMPARED, *edges).stdout) == [True, True, 0.5]
    refused = run(site, "-m", "sweeps.cli", "export", model, "--capacity", 0.5, "--to", edges[0], "--precision", "fp16")
    assert (refused.returncode, refused.stderr) == (2, "error: --precision 'fp16' for .npz; valid: fp32\n")


@pytest.mark.parametrize(
    ("group", "name", "words"),
    [
        ("prunnet.datasets", "broken", ["doctor", "data", "broken", "FOLDER"]),
        ("prunnet.methods", "broken", ["sweep", "--set", "train.method=broken"]),
        ("prunnet.granularities", "broken", ["sweep", "--set", "train.granularity=broken"]),
        ("prunnet.losses", "broken", ["sweep", "--set", "train.loss=broken"]),
        ("prunnet.columns", "broken", ["best", "FOLDER"]),
        ("prunnet.export_formats", ".broken", ["export", "FOLDER", "--capacity", "0.5", "--to", "edge.broken"]),
    ],
)
def test_a_package_that_cannot_be_imported_is_refused_in_one_line(
    group: str, name: str, words: list[str], tmp_path: Path
) -> None:
    results.write_part(tmp_path / "results", [{"unit_key": "a", "status": "complete", "map": 0.5}])
    site = installed(tmp_path / "site", "broken_plugin", {"member": (group, name, "MEMBER", "import no_such_library")})
    done = run(site, "-m", "sweeps.cli", *(word.replace("FOLDER", str(tmp_path)) for word in words))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"{name!r}, brought by broken_plugin, cannot be imported" in line
    assert "No module named 'no_such_library'" in line
