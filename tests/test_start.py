"""What a command imports: nothing heavy before its arguments and its recipe are accepted. Nothing is timed here;
docs/PERFORMANCE.md has the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunnet import results
from prunnet.config import load_recipe
from prunnet.config.recipe import absolute_paths
from prunnet.errors import DataError
from prunnet.experiments.run import evaluate_missing, in_this_process, trained_networks
from prunnet.experiments.stages import train_here
from sweeps.capacity import conclude
from sweeps.cli import COMMANDS
from sweeps.finished import drawn_again, open_data
from sweeps.printing import Console
from sweeps.run import RECIPES, open_run
from tests.conftest import REPOSITORY, image_folder

HEAVY = ("faiss", "matplotlib", "numba", "numpy", "optuna", "plotly", "pyarrow", "ray", "timm", "torch", "torchvision")
OF_A_SEARCH = ["numpy", "pyarrow"]
"""Its objectives are columns of the results table."""
SCRIPTS = ("capacity", "ablation", "search", "layerwise")
REFUSED = (
    (["sweep", "--set", "train.epoch=1"], "did you mean 'train.epochs'"),
    (["sweep", "--set", "train.epochs=0"], "train.epochs"),
    (["sweep", "--set", "train.method=prunet"], "unknown train.method 'prunet'"),
    (["sweep", "--set", "train.loss=cosfase"], "did you mean 'cosface'"),
    (["sweep", "--set", "train.loss=cosface", "--set", "train.loss_options.scal=1"], "did you mean 'scale'"),
    (["sweep", "--set", "data.background=blak"], "colour 'blak'"),
    (["sweep", "--recipe", "nowhere.yaml"], "is not a file; packaged recipes: "),
    (["ablation", "--recipe", "demo"], "key 'table' is missing"),
    (["sweep", "--recipe", "omniglot", "--set", "data.fingerprnt=x"], "did you mean 'data.fingerprint'"),
    (["sweep", "--epochs", "3"], "No such option"),
    (["layerwise", "--sampler", "oracle"], "--sampler 'oracle'"),
    (["layerwise", "--budget", "2"], "capacity 2.0 is out of range"),
    (["ablation", "--set", "train.epoch=1"], "did you mean 'train.epochs'"),
    (["search", "--set", "train.epoch=1"], "did you mean 'train.epochs'"),
    (["cost", "run", "--runtime", "abacus"], "--runtime 'abacus'"),
    (["cost", "run", "--capacity", "0"], "0 < capacity <= 1"),
    (["export", "run", "--to", "edge.onnx"], "one of --capacity, --row and --progressive"),
    (["export", "run", "--to", "edge.gif", "--capacity", "0.5"], "valid: a name that ends in .safetensors"),
    (["export", "run", "--to", "e.safetensors", "--capacity", "1", "--precision", "fp8"], "valid: fp32, fp16, int8"),
    (["export", "run", "--to", "edge.onnx", "--capacity", "1", "--precision", "fp8"], "valid: fp32, fp16, int8"),
    (["export", "run", "--to", "edge.pt2", "--capacity", "1", "--precision", "int8"], "for .pt2; valid: fp32, fp16"),
    (["evaluate", "--query", "a", "--gallery", "b", "--split", "train"], "--split 'train'"),
    (["pack", "inshop", "root", "out", "--set", "data.boxs=true"], "did you mean 'data.boxes'"),
    (["doctor", "backbone", "resnet18", "--image-size", "4"], "--image-size"),
    (["doctor", "data", "inshop", "root", "--set", "data.boxs=true"], "did you mean 'data.boxes'"),
    (["query", "a", "b", "--sheet", "found.gif"], "ends in .png"),
    (["best", "nowhere"], "is not a folder"),
    (["report", "nowhere"], "is not a folder"),
)
RUN = """
import json, runpy, sys
heavy, script, sys.argv = json.loads(sys.argv[1])
code = None
try:
    if script:
        runpy.run_path(script, run_name="__main__")
    else:
        from sweeps.cli import main
        main()
except SystemExit as ended:
    code = ended.code or 0
print(json.dumps([code, [name for name in heavy if name in sys.modules]]))
"""


def run(words: list[str], folder: Path, script: str = "") -> tuple[int | None, list[str], str]:
    """Exit code, heavy modules that were imported, and output of a command in a process of its own."""
    asked = json.dumps([HEAVY, script, ["prunnet", *words]])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "400"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, asked], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    code, imported = json.loads(last)
    return code, imported, "\n".join([*said, done.stderr])


@pytest.mark.parametrize(
    "words", [[], *([name] for name in COMMANDS), ["doctor", "backbone"], ["doctor", "data"]], ids=" ".join
)
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code, imported, said = run([*words, "--help"], tmp_path)
    assert (code, imported) == (0, [])
    assert "Usage: " in said


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_helps_and_refuses_without_what_its_job_needs(name: str, tmp_path: Path) -> None:
    script = str(REPOSITORY / "sweeps" / f"{name}.py")
    code, imported, said = run(["--help"], tmp_path, script)
    assert (code, imported) == (0, [])
    assert "--recipe" in said
    code, imported, said = run(["--set", "train.epoch=1"], tmp_path, script)
    assert (code, imported) == (2, OF_A_SEARCH if name == "search" else [])
    assert "did you mean 'train.epochs'" in said


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_a_refusal_imports_nothing_heavy(words: list[str], says: str, tmp_path: Path) -> None:
    code, imported, said = run(words, tmp_path)
    assert (code, imported) == (2, OF_A_SEARCH if words[0] == "search" else [])
    assert says in said


def test_the_package_is_imported_without_what_its_names_need() -> None:
    script = f"import sys, prunnet, prunnet.config; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
    script = "import sys; from prunnet import RetrievalNet; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout == "True\n"


TRAINING = """
import sys
from prunnet.config.recipe import load_recipe
from prunnet.data.augment import Transforms
from prunnet.data.transforms import Augmentation, Preprocessing
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.training.trainer import Trainer
from tests.conftest import striped_images

sets = ["data.image_size=16", "model.options={channels: [8, 8, 16, 32]}", "train.batch_size=8", "train.epochs=1"]
recipe = load_recipe(None, sets)
made = Preprocessing.from_config(recipe.data)
net = RetrievalNet.from_config(recipe.model, classes=4, in_chans=1, score_init=None, seed=0, image_size=16)
chain = Transforms(({"rand_augment": {}}, {"random_erasing": {}}), 16)
Trainer(net, striped_images(made, 4, 4), recipe.train, preprocessing=made, augmentation=chain).run()
print([name for name in ("torch._dynamo", "sympy", "faiss", "matplotlib", "ray", "optuna",
    "pytorch_metric_learning") if name in sys.modules])

import torch, torchvision
boxes = torch.tensor([[0, 0, 0, 4, 4.0]])
print(tuple(torchvision.ops.roi_align(torch.rand(1, 1, 8, 8), boxes, 2).shape))
print(torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(1)).item(), "torch._dynamo" in sys.modules)
from timm.models.naflexvit import NaFlexRopeIterator
from prunnet import lazy
print(lazy.is_compile_supported("cpu"), lazy.disable(lambda: 3)())
"""


def test_a_training_loads_no_compiler_and_the_compiler_still_works() -> None:
    """What torchvision and timm were given in place of torch._dynamo is not kept, and calls it when it is called."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run(
        [sys.executable, "-c", TRAINING], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["[]", "(1, 1, 2, 2)", "1.0 True", "True 3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of a sweep that is finished; made in this process, without Ray."""
    folder = tmp_path_factory.mktemp("finished")
    images = image_folder(folder / "images", classes=6, per_class=6, side=16)
    sets = [
        *(f"cluster.storage={folder}", "data.name=imagefolder", f"data.root={images}", "data.image_size=16"),
        *("model.options={channels: [8, 8, 16, 32]}", "model.embedding_dim=8", "train.epochs=1", "cluster.workers=1"),
        *("train.batch_size=8", "train.capacities=[0.5]", "sweep.capacities=[1.0, 0.5]"),
    ]
    recipe, console = absolute_paths(load_recipe(RECIPES / "demo.yaml", sets)), Console(quiet=True)
    with open_run(recipe) as run:
        dataset = open_data(recipe, console)
        networks = trained_networks(recipe, dataset, train_here, run.place)
        outcome = evaluate_missing(
            recipe, dataset, networks, in_this_process, features=run.features, results=run.results
        )
        conclude(recipe, run, dataset, networks, outcome, console)
    return ["sweep", *(word for each in sets for word in ("--set", each))]


def test_a_finished_sweep_starts_no_ray_and_no_torch(finished: list[str], tmp_path: Path) -> None:
    code, imported, said = run(finished, tmp_path)
    assert code == 0, said
    assert set(imported) == {"matplotlib", "numpy", "plotly", "pyarrow"}
    assert "training: model.safetensors finished before (1 epochs), nothing to do" in said
    assert "tests: 4 of 4 finished before" in said
    assert "4 tests" in said
    assert "report.html" in said


def test_a_sweep_of_which_something_is_missing_is_not_taken_for_finished(finished: list[str]) -> None:
    recipe = absolute_paths(load_recipe(RECIPES / "demo.yaml", finished[2::2]))
    console = Console(quiet=True)
    with open_run(recipe) as run:
        assert drawn_again(recipe, run, console)
        other = recipe.model_copy(update={"sweep": recipe.sweep.model_copy(update={"capacities": (1.0, 0.5, 0.3)})})
        assert not drawn_again(other, run, console)
        (part, *_) = run.results.glob("*.parquet")
        kept = part.read_bytes()
        part.unlink()
        assert not drawn_again(recipe, run, console)
        part.write_bytes(kept)
        whole = run.model.read_bytes()
        run.model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert not drawn_again(recipe, run, console)
        run.model.write_bytes(whole)
        kept = run.sheet.read_bytes()
        run.sheet.write_bytes(kept[:-9])
        assert not drawn_again(recipe, run, console)
        run.sheet.write_bytes(kept)
        image = next(Path(str(recipe.data.root)).rglob("*.png"))
        image.touch()
        with pytest.raises(DataError, match="other modification times"):
            drawn_again(recipe, run, console)
        assert len(results.read(run.results)) == 4
