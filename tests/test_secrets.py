"""Credentials in URLs: masked in all that is printed and kept, and no part of a hash."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import optuna
import pytest
import timm
import torch
from optuna.trial import TrialState, create_trial
from safetensors.torch import save_file
from typer.testing import CliRunner

from cluster.search import Job, Ledger
from prunnet import results
from prunnet.config import Recipe, load_recipe
from prunnet.config.recipe import absolute_paths
from prunnet.config.trial import Trial
from prunnet.errors import CheckpointError, ConfigError, one_line
from prunnet.experiments.run import Failure, Outcome, evaluate_missing, in_this_process, trained_networks
from prunnet.experiments.stages import train_here
from prunnet.redact import restored, shown
from prunnet.storage import place
from sweeps.capacity import conclude
from sweeps.cli import app
from sweeps.finished import open_data
from sweeps.printing import Console
from sweeps.run import Run, one_line_errors, open_run
from sweeps.search import conclude as conclude_search
from sweeps.search import make_job, trial_at
from sweeps.search_recipe import Search, SearchFile
from sweeps.study import open_study
from tests.conftest import image_folder
from tests.methods import save_old

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("given", "masked"),
    [
        (f"https://user:{SECRET}@host/x.zip", "https://***@host/x.zip"),
        (f"https://{SECRET}@host/x.zip", "https://***@host/x.zip"),
        (f"s3://user:a/{SECRET}@bucket/x", "s3://***@bucket/x"),
        (f"postgresql+psycopg://me:{SECRET}@x@10.0.0.1:1/db", "postgresql+psycopg://***@10.0.0.1:1/db"),
        (f"postgresql://h/db?sslmode=require&password={SECRET}", "postgresql://h/db?sslmode=require&password=***"),
        (f"https://h/x.zip?token={SECRET}&part=1", "https://h/x.zip?token=***&part=1"),
        (f"https://h/x?X-Amz-Credential={SECRET}&X-Amz-Date=1", "https://h/x?X-Amz-Credential=***&X-Amz-Date=***"),
        (f"https://h/x?AWSAccessKeyId={SECRET}&Signature={SECRET}", "https://h/x?AWSAccessKeyId=***&Signature=***"),
        (f"az://h/x?sv=2020&sig={SECRET}", "az://h/x?sv=***&sig=***"),
        (f"simplecache::https://u:{SECRET}@h/x", "simplecache::https://***@h/x"),
        (f"'https:/u:{SECRET}@h/x' is not a file", "'https:/***@h/x' is not a file"),
        (f"no server, host=h password={SECRET} user=u", "no server, host=h password=*** user=u"),
        (Path(f"https:/u:{SECRET}@h/x"), "https:/***@h/x"),
        ({"root": f"s3://a:{SECRET}@b/x", "n": [1, None]}, {"root": "s3://***@b/x", "n": [1, None]}),
        *((same, same) for same in ("s3://bucket/a@b/x", "https://host:8080/a@b", "/data/a?token=1", "a@b", "x", 1.5)),
    ],
)
def test_what_is_masked(given: Any, masked: Any) -> None:
    """Issue 15, number 21."""
    assert shown(given) == masked
    assert shown(masked) == masked
    if isinstance(given, str):
        assert restored(masked, {"a": [given]}) == given
        assert str(ConfigError(f"{given} is wrong")) == f"{masked} is wrong"
        assert one_line(OSError(given)) == f"OSError: {masked}"


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Images, weights, an old network on a store whose URL holds a password."""
    url = f"memory://me:{SECRET}@store"
    images = image_folder(tmp_path / "images", classes=8, per_class=4)
    torch.manual_seed(0)
    save_file(timm.create_model("resnet18", channels=[8, 8, 16, 32]).state_dict(), tmp_path / "start.safetensors")
    save_old(tmp_path / "old.safetensors")
    files = {f"images/{path.relative_to(images)}": path for path in images.rglob("*.png")}
    for name, path in {**files, **{path.name: path for path in tmp_path.glob("*.safetensors")}}.items():
        place(f"{url}/{name}").parent.mkdir(parents=True, exist_ok=True)
        place(f"{url}/{name}").write_bytes(path.read_bytes())
    return url


def small(store: str, storage: object, *more: str) -> Recipe:
    return absolute_paths(
        load_recipe(
            None,
            [
                *(f"cluster.storage={storage}", "name=job", "data.name=imagefolder", f"data.root={store}/images"),
                *("data.image_size=32", "data.test_fraction=0.5", "model.options={channels: [8, 8, 16, 32]}"),
                *("model.embedding_dim=8", "train.epochs=1", "train.capacities=[0.5]", "sweep.capacities=[1.0, 0.5]"),
                *("sweep.dataset=imagefolder", f"sweep.root={store}/images", "train.batch_size=8", *more),
            ],
        )
    )


def evaluated(recipe: Recipe, run: Run, console: Console, trained: bool) -> None:
    """What `sweep` does, in this process."""
    dataset = open_data(recipe, console)
    if trained:
        train_here(recipe, dataset, run.model)
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"checkpoint": str(run.model)})})
    networks = trained_networks(recipe, dataset, train_here, run.place, say=console.print)
    outcome = evaluate_missing(
        recipe, dataset, networks, in_this_process, features=run.features, results=run.results, say=console.print
    )
    failed = one_line(OSError(f"no answer from {recipe.data.root}?token={SECRET}"))
    conclude(recipe, run, dataset, networks, Outcome(outcome.units, [Failure(0.1, failed)]), console)


def test_no_file_and_no_line_of_a_run_holds_a_password(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15, number 21: every key that takes a URL, in a recipe that is trained, tested and reported."""
    monkeypatch.setenv("PRUNNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STORE_PASSWORD", SECRET)
    said = Console(file=io.StringIO(), width=10_000)
    old, start = f"train.old={store}/old.safetensors", f"model.weights={store}/start.safetensors"
    more = ("train.compatible=odpp", old, start)
    from_variable = small(store.replace(SECRET, "$STORE_PASSWORD"), tmp_path / "runs", *more)
    recipe = small(store, tmp_path / "runs", *more)
    assert recipe == from_variable
    with open_run(recipe, console=said) as run:
        evaluated(recipe, run, said, trained=True)
        place(f"{store}/model.safetensors").write_bytes(run.model.read_bytes())
    swept = small(store, f"{store}/runs", f"model.checkpoint={store}/model.safetensors")
    with open_run(swept, console=said) as remote:
        evaluated(swept, remote, said, trained=False)
    files = {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "runs" in p.parts}
    files |= {p: fsspec.filesystem("memory").cat(p) for p in fsspec.filesystem("memory").find(remote.folder.path)}
    kept = {Path(name).name for name in files}
    assert {"recipe.yaml", "manifest.json", "report.html", "rows.csv", "model.safetensors"} <= kept
    assert not [name for name, content in files.items() if SECRET.encode() in content]
    assert SECRET not in said.file.getvalue()  # type: ignore[attr-defined]
    assert "memory://***@store/runs/job" in said.file.getvalue()  # type: ignore[attr-defined]
    assert not [str(p) for p in (tmp_path / "cache").rglob("*") if SECRET in str(p)]
    for folder in (run.results, remote.results):
        assert SECRET not in json.dumps(results.read(folder).to_pylist())
    with pytest.raises(ConfigError, match="whose credentials were not kept; give the URL again"):
        open_data(load_recipe(run.recipe), said)
    again = load_recipe(
        run.recipe, [f"data.root={store}/images", f"sweep.root={store}/images", *more[1:], "model.checkpoint=null"]
    )
    assert again.with_files_seen().training_hash() == recipe.with_files_seen().training_hash()


def test_a_hash_tells_places_apart_and_not_passwords() -> None:
    """Issue 15, number 21: another password is the same training; another host or folder is another one."""

    def hashes(root: str) -> tuple[str, str]:
        recipe = load_recipe(None, ["data.name=imagefolder", f"data.root={root}"])
        return recipe.training_hash(), Trial("a", recipe).id

    one = hashes(f"https://me:{SECRET}@host/a.zip?token={SECRET}")
    assert hashes("https://you:other@host/a.zip?token=another") == one
    assert hashes(f"https://me:{SECRET}@elsewhere/a.zip?token={SECRET}")[0] != one[0]
    assert hashes(f"https://me:{SECRET}@host/b.zip?token={SECRET}") != one
    plain = load_recipe(None, ["data.name=imagefolder", "data.root=s3://bucket/a@b/x?version=3"])
    assert plain.trained_part()["data"]["root"] == "s3://bucket/a@b/x?version=3"


def test_a_search_keeps_no_password(tmp_path: Path) -> None:
    """Issue 15, number 21: journal, records, recipes, page, and what Tune is given to write down."""
    url = f"https://me:{SECRET}@host"
    file = {
        "name": "s",
        "base": {"data": {"name": "imagefolder", "root": f"{url}/a"}, "cluster": {"storage": str(tmp_path)}},
        "space": {"data.root": [f"{url}/a", f"{url}/b"], "train.lr": {"low": 0.01, "high": 1.0}},
        "trials": 2,
    }
    asked = Search(SearchFile.model_validate(file))
    with open_run(asked.base) as run:
        study = open_study(asked, run.folder)
        job: Job = make_job(asked, run, None)
        names = [q.label for q in asked.file.objectives]
        ledger = Ledger(study, names, lambda trial: trial_at(asked, trial), lambda trial: None, job)
        for number in range(2):
            config = ledger.suggest(f"t{number}")
            assert SECRET not in json.dumps(config)
            assert restored(config["recipe"], job.known)["data"]["root"] in (f"{url}/a", f"{url}/b")
            result = {f"value:{name}": 0.5 for name in names} if number else {"failed": one_line(OSError(url))}
            ledger.on_trial_complete(f"t{number}", result)
        states = [trial.state for trial in study.get_trials()]
        assert states == [TrialState.FAIL, TrialState.COMPLETE]
        said = Console(file=io.StringIO(), width=10_000)
        conclude_search(asked, run, study, [], said)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"best.yaml", "search.json", "search.html", "trials.json", "study.journal"} <= {p.name for p in files}
    assert not [path.name for path, content in files.items() if SECRET.encode() in content]
    assert SECRET not in said.file.getvalue()  # type: ignore[attr-defined]
    assert "https://***@host/" in (run.folder / "best.yaml").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "--set", "data.name=imagefolder", "--set", f"data.root=https://me:{SECRET}@127.0.0.1:1/x.zip"],
        ["sweep", "--set", f"data.root=nonsense://me:{SECRET}@host/x", "--set", "data.name=imagefolder"],
        ["sweep", "--set", f"model.checkpoint=https://127.0.0.1:1/x.safetensors?token={SECRET}"],
        ["sweep", "--set", f"train.epochs=https://me:{SECRET}@host"],
        ["sweep", "--set", f"data.roto=https://me:{SECRET}@host", "--set", f"https://me:{SECRET}@host"],
        ["sweep", "--recipe", f"https://me:{SECRET}@host/recipe.yaml"],
        ["report", f"s3://me:{SECRET}@bucket/run"],
        ["embed", f"https://me:{SECRET}@host/edge.onnx", "images", "--out", "out"],
        ["query", f"https://me:{SECRET}@host/q", "g"],
    ],
    ids=lambda words: " ".join(words).replace(SECRET, "")[:60],
)
def test_no_refusal_repeats_a_password(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, number 21: messages of ours, and of the libraries that the URL was given to."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    said = done.output + (str(done.exception) if isinstance(done.exception, ValueError | CheckpointError) else "")
    assert done.exit_code != 0
    assert said.strip()
    assert SECRET not in said


def test_a_librarys_own_message_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 15, number 21: the guard of all jobs."""
    with pytest.raises(SystemExit), one_line_errors():
        raise OSError(f"cannot connect to https://me:{SECRET}@host/x?sig={SECRET}")
    assert capsys.readouterr().err.strip() == "error: cannot connect to https://***@host/x?sig=***"


def test_a_database_is_named_without_its_password(tmp_path: Path) -> None:
    """Issue 15, number 21: SQLAlchemy hides `user:password@`, and not `?password=`."""
    file = {"name": "s", "base": {}, "space": {"train.lr": [0.1, 0.2]}}
    storage = f"postgresql+psycopg://127.0.0.1:1/db?user=me&password={SECRET}&connect_timeout=1"
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        open_study(Search(SearchFile.model_validate({**file, "storage": storage})), tmp_path)
    assert SECRET not in str(caught.value)


def test_an_optuna_trial_of_before_is_told_without_its_password() -> None:
    """A study of before this was masked holds the URLs of its trials; what is made of it does not."""
    asked = Search(SearchFile.model_validate({"name": "s", "base": {}, "space": {"train.lr": [0.1, 0.2]}}))
    study = optuna.create_study(directions=["maximize", "minimize"])
    attributes = {"trial_id": "search/0000/a", "changes": {"data.root": f"https://me:{SECRET}@host/a"}}
    study.add_trial(create_trial(values=[0.5, 1.0], user_attrs=attributes))
    from analysis import search as found
    from sweeps.search import recipe_text

    assert SECRET not in recipe_text(asked, found.record_of(study.trials[0], asked.file.objectives))
