"""Files of somebody else's making: nothing that is in them is run."""

from __future__ import annotations

import ast
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from typer.testing import CliRunner

from cluster.layerwise import REACH, group, sampler
from prunnet import data, results
from prunnet.config.recipe import DataConfig
from prunnet.errors import CheckpointError, ResultsError
from prunnet.export.formats import export, identity, open_export
from prunnet.subnetworks.subnet import subnetwork
from sweeps.cli import app
from sweeps.study import journal
from tests.conftest import REPOSITORY, image_folder, tiny_net


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "edge.pt2"
    cut = subnetwork(tiny_net(image_size=16), 0.4)
    preprocessing = data.load(DataConfig(classes=4, images_per_class=2, image_size=16, channels=1)).preprocessing
    export(cut, path, identity(cut, preprocessing))
    return path


def poisoned(program: Path, path: Path, kind: str, mark: Path) -> Path:
    """The exported program with something in it that runs as it is loaded."""
    with zipfile.ZipFile(program) as whole, zipfile.ZipFile(path, "w") as evil:
        for name in whole.namelist():
            content = whole.read(name)
            if kind == "pickle" and "/sample_inputs/" in name:
                content = pickle.dumps(Touch(mark))
            if kind == "expression" and name.endswith("models/model.json"):
                call = json.dumps(f"__import__('pathlib').Path('{mark}').touch()")
                content = re.sub(rb'"expr_str": "[^"]*"', f'"expr_str": {call}'.encode(), content)
            evil.writestr(name, content)
    return path


@pytest.mark.parametrize("kind", ["pickle", "expression"])
def test_a_program_is_opened_only_where_its_maker_is_trusted(kind: str, program: Path, tmp_path: Path) -> None:
    """Issue 15, number 1: `prunnet embed evil.pt2` unpickled, and evaluated, what the file held."""
    mark = tmp_path / "it ran"
    evil = poisoned(program, tmp_path / "evil.pt2", kind, mark)
    with pytest.raises(CheckpointError, match=r"any code.*\.onnx or \.safetensors.*--trust-code") as caught:
        open_export(evil)
    assert "\n" not in str(caught.value)
    images = image_folder(tmp_path / "images", classes=2, per_class=1)
    told = CliRunner().invoke(app, ["embed", str(evil), str(images), "--out", str(tmp_path / "emb")])
    assert isinstance(told.exception, CheckpointError) or told.exit_code == 2
    assert not mark.exists()
    # The attack is real: torch itself runs it.
    load = f"import torch; torch.export.load({str(evil)!r})"
    subprocess.run([sys.executable, "-c", load], capture_output=True, check=False)
    assert mark.exists()


def test_a_trusted_program_is_opened(program: Path) -> None:
    assert open_export(program, trust_code=True).embed(torch.zeros(1, 1, 16, 16)).shape == (1, 16)
    with pytest.raises(CheckpointError, match="--trust-code"):
        open_export(program)


def test_an_onnx_file_that_reads_other_files_is_refused(tmp_path: Path) -> None:
    """Issue 15, A3: weights of an ONNX file may stand in any other file that it names."""
    import onnx

    from prunnet.storage import hashing, seal

    (tmp_path / "secret").write_bytes(b"\x00" * 64)
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 4]) for name in ("images", "out")]
    node = onnx.helper.make_node("MatMul", ["images", "w"], ["out"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))
    onnx.helper.set_model_props(model, {"prunnet": hashing.canonical_json({"capacity": 1.0, "seal": seal.BLANK})})
    path = tmp_path / "edge.onnx"
    path.write_bytes(model.SerializeToString())
    seal.close(path)
    with pytest.raises(CheckpointError, match=r"'.*edge.onnx' keeps weights in other files"):
        open_export(path)


# --- studies of Optuna ------------------------------------------------------------------------------------------


def looked_at(path: Path, looks: int, more: dict[str, str] | None = None) -> optuna.Study:
    """So many looks of a CMA-ES search over three groups, in a journal that may have some already; with attributes as
    Optuna's own sampler writes them, where `more` has any."""
    study = optuna.create_study(
        storage=journal(path), study_name="s", sampler=sampler("cmaes", 0, 3), direction="maximize", load_if_exists=True
    )
    study.enqueue_trial({group(place): 0.0 for place in range(3)}, skip_if_exists=True)
    for _ in range(looks - len(study.get_trials(states=(TrialState.COMPLETE,)))):
        trial = study.ask()
        values = [trial.suggest_float(group(place), -REACH, REACH) for place in range(3)]
        for key, text in (more or {}).items():
            study._storage.set_trial_system_attr(trial._trial_id, key, text)
        study.tell(trial, -sum((value - 0.4) ** 2 for value in values))
    return study


def points(study: optuna.Study) -> list[dict[str, float]]:
    return [trial.params for trial in study.get_trials()]


def test_a_resumed_search_unpickles_nothing_of_its_journal(tmp_path: Path) -> None:
    """Issue 15, number 2: Optuna's CMA-ES keeps a pickle in the journal, and unpickles what stands there on resume."""
    path, mark = tmp_path / "0.2.journal", tmp_path / "it ran"
    looked_at(path, 20, {"cma:optimizer:0": pickle.dumps(Touch(mark)).hex()})
    resumed = looked_at(path, 30)
    assert "cma:optimizer:0" in resumed.get_trials()[5].system_attrs
    assert len(resumed.get_trials()) == 30
    assert not mark.exists()
    # The attack is real: Optuna's own sampler runs it.
    resumed.sampler = optuna.samplers.CmaEsSampler(seed=0)
    resumed.ask().suggest_float(group(0), -REACH, REACH)
    assert mark.exists()


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    looked_at(tmp_path / "b", 17)
    whole, resumed = looked_at(tmp_path / "a", 40), looked_at(tmp_path / "b", 40)
    assert points(whole) == points(resumed)
    assert whole.best_value > -0.1  # the start is worth -0.48, and a mean random point -2.5


# --- the source ---------------------------------------------------------------------------------------------------

RUNS = re.compile(
    r"(?:^|\.)(?:pickle|cPickle|_pickle|dill|cloudpickle|joblib|marshal|shelve)\.(?:load|loads|open|Unpickler)$"
    r"|^torch\.(?:load|export\.load|jit\.load|hub\.load)$|^yaml\.(?!safe_)\w*load\w*$|^(?:eval|exec|__import__)$"
    r"|^onnx\.load$|^np\.load$|^numpy\.load$|\.extractall$|^read_pickle$|pd\.read_pickle$"
)
PLACES = {
    "prunnet/data/datasets/pickles.py": {"pickle.Unpickler"},  # a subclass that refuses every name but those of data
    "prunnet/export/formats/onnx.py": {"onnx.load", "__import__"},
    "prunnet/export/formats/torch_program.py": {"torch.export.load"},  # only where its maker is trusted
    "prunnet/export/latency.py": {"torch.load"},  # in a text: a process that is fed with a file of a moment ago
}


def loaders(text: str) -> set[str]:
    """What a module calls, or subclasses, that may run what it reads; programs in its texts count, too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import sys" in node.value:
            found |= loaders(node.value)
        names = [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
        for name in names:
            refused = isinstance(node, ast.Call) and any(
                word.arg == "allow_pickle" and getattr(word.value, "value", None) is False for word in node.keywords
            )
            if RUNS.search(ast.unparse(name)) and not refused:
                found.add(ast.unparse(name))
    return found


def test_nothing_that_may_run_a_file_is_called_but_in_the_places_that_are_listed() -> None:
    """Issue 15, number 3: a new reader of that kind is refused here, and the list in docs/SECURITY.md is whole."""
    found = {}
    for package in ("prunnet", "cluster", "sweeps", "analysis"):
        for path in (REPOSITORY / package).rglob("*.py"):
            if names := loaders(path.read_text(encoding="utf-8")):
                found[str(path.relative_to(REPOSITORY))] = names
    assert found == PLACES
    page = (REPOSITORY / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    assert [path for path in PLACES if path not in page] == []


def test_a_part_of_pickled_objects_is_refused_before_they_are_looked_at(tmp_path: Path) -> None:
    """Issue 15, number 3: Ray Data registers an Arrow type whose values are pickles; ray.train imports it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    mark = tmp_path / "it ran"
    evil = ArrowPythonObjectArray.from_objects([Touch(mark)])
    columns = {field.name: pa.nulls(1, field.type) for field in results.SCHEMA} | {"map": evil}
    (tmp_path / "results").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "results" / "part-00.parquet")
    with pytest.raises(ResultsError, match="has another schema"):
        results.read(tmp_path / "results")
    assert not mark.exists()
    evil[0].as_py()  # the attack is real
    assert mark.exists()
