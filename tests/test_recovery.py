"""A damaged checkpoint gives way to the one before, here and under Ray Train, whose own list is made again if torn."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster import checkpoints, training
from prunnet import data
from prunnet.config.recipe import Recipe, parse_recipe
from prunnet.errors import CheckpointError, DataError, DataWarning
from prunnet.experiments.stages import finished, make_trainer, train_here
from prunnet.networks.files import load_network
from prunnet.training import resume
from tests.conftest import image_folder

TINY = {
    "data": {"classes": 4, "images_per_class": 4, "image_size": 16},
    "model": {"options": {"channels": [8, 8, 8, 8]}, "embedding_dim": 8},
    "train": {"epochs": 4, "batch_size": 8, "capacities": [0.5], "precision": "fp32"},
    "cluster": {"workers": 1},
}


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    """One bit, in the middle of the tensors."""
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    file.write_bytes(content)


class Enough(Exception):
    """Ends a training after an epoch, as a kill would."""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe(TINY)


@pytest.fixture(scope="module")
def dataset(recipe: Recipe) -> Any:
    return data.load_for(recipe)


@pytest.fixture(scope="module")
def epochs(recipe: Recipe, dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoint_1` … `checkpoint_4`: a training's state after each epoch; `model.safetensors`: what it ends in."""
    folder = tmp_path_factory.mktemp("epochs")
    trainer = make_trainer(recipe, dataset)
    trainer.run(
        after_epoch=lambda t: resume.save(folder / f"checkpoint_{len(t.progress.history)}", t, recipe, ("a", "b"))
    )
    resume.export(folder / "checkpoint_4", recipe, folder / "model.safetensors")
    return folder


def ray_folder(run: Path, epochs: Path, *kept: int) -> Path:
    """A Ray Train folder with some of the checkpoints; returns its list of them."""
    for epoch in kept:
        shutil.copytree(epochs / f"checkpoint_{epoch}", run / f"checkpoint_{epoch}")
    named = [{"version": 0, "checkpoint_dir_name": f"checkpoint_{e}", "metrics": {"step": 2 * e}} for e in kept]
    said = {
        "ray_version": "2.60.0", "checkpoint_results": named, "checkpoint_report_indices": list(range(len(kept))),
        "latest_checkpoint_result": named[-1], "pending_training_results": [], "pending_validation_specs": [],
        "current_report_index": len(kept), "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [], "failed_validation_checkpoint_dir_names": [],
    }  # fmt: skip
    (run / checkpoints.LIST).write_text(json.dumps(said))
    return run / checkpoints.LIST


def newest(registered: Path) -> str:
    return json.loads(registered.read_text())["latest_checkpoint_result"]["checkpoint_dir_name"]


@pytest.mark.parametrize("damage", [cut_short, flip, Path.unlink])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    damage: Any, recipe: Recipe, epochs: Path, tmp_path: Path
) -> None:
    """Issue 15, number 4: whatever is wrong with the newest checkpoint, all workers are given the one before it."""
    registered = ray_folder(tmp_path, epochs, 2, 3)
    assert checkpoints.mend(tmp_path, recipe.training_hash())[1] == []
    damage(tmp_path / "checkpoint_3" / "state.safetensors")
    _, (note,) = checkpoints.mend(tmp_path, recipe.training_hash())
    assert "checkpoint checkpoint_3 is damaged" in note
    assert "goes on from checkpoint_2 (step 4)" in note
    assert newest(registered) == "checkpoint_2"
    assert checkpoints.mend(tmp_path, recipe.training_hash())[1] == []


TORN = {
    "cut short": lambda said: json.dumps(said)[:-30],
    "empty": lambda said: "",
    "not text": lambda said: "\udcff",
    "a folder that is not there": lambda said: json.dumps(said).replace("checkpoint_3", "checkpoint_7"),
    "a newest one that it does not list": lambda said: json.dumps(
        {**said, "latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_9", "metrics": {}}}
    ),
    "another version of Ray": lambda said: json.dumps({k: v for k, v in said.items() if "validat" not in k}),
}


@pytest.mark.parametrize("kind", TORN)
def test_a_torn_list_of_checkpoints_is_made_again(kind: str, recipe: Recipe, epochs: Path, tmp_path: Path) -> None:
    """Issue 15, number 4: Ray rewrites its list in place, and a torn one said to start over."""
    registered = ray_folder(tmp_path, epochs, 2, 3)
    torn = TORN[kind](json.loads(registered.read_text()))
    registered.write_text(torn, encoding="utf-8", errors="surrogateescape")
    _, (note,) = checkpoints.mend(tmp_path, recipe.training_hash())
    assert "step 6" in note
    assert newest(registered) == "checkpoint_3"
    assert [r["checkpoint_dir_name"] for r in json.loads(registered.read_text())["checkpoint_results"]] == [
        "checkpoint_2",
        "checkpoint_3",
    ]


def test_where_no_checkpoint_is_intact_each_is_named(recipe: Recipe, epochs: Path, tmp_path: Path) -> None:
    """Issue 15, number 4."""
    ray_folder(tmp_path, epochs, 2, 3)
    cut_short(tmp_path / "checkpoint_2" / "state.safetensors")
    (tmp_path / "checkpoint_3" / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint in .* is intact") as caught:
        checkpoints.mend(tmp_path, recipe.training_hash())
    assert all(name in str(caught.value) for name in ("checkpoint_2", "checkpoint_3"))
    assert "\n" not in str(caught.value)


def test_a_training_whose_checkpoint_is_damaged_while_it_runs_goes_on_from_the_one_before(
    recipe: Recipe, dataset: Any, epochs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15, number 4: workers that start again, or the export, may be the first who see the damage."""
    name = f"train-{recipe.training_hash()[:12]}"
    registered = ray_folder(tmp_path / name, epochs, 3, 4)
    began_from: list[str] = []

    def fit(*arguments: Any) -> Any:
        began_from.append(newest(registered))
        if len(began_from) == 1:
            cut_short(tmp_path / name / "checkpoint_4" / "state.safetensors")
            raise CheckpointError("said by a worker")
        return training.Checkpoint(str(epochs / "checkpoint_4"))

    monkeypatch.setattr(training, "_fit", fit)
    console = Console(record=True, quiet=False, width=400)
    training.train(recipe, tmp_path, tmp_path / "model.safetensors", console, dataset)
    assert began_from == ["checkpoint_4", "checkpoint_3"]
    assert "checkpoint checkpoint_4 is damaged" in console.export_text()
    assert load_network(tmp_path / "model.safetensors")[1]["weights_sha"]


def test_a_refusal_that_no_checkpoint_explains_is_said_once(
    recipe: Recipe, dataset: Any, epochs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_folder(tmp_path / f"train-{recipe.training_hash()[:12]}", epochs, 3, 4)
    calls: list[int] = []

    def fit(*arguments: Any) -> Any:
        calls.append(1)
        raise CheckpointError("train.old is not what it was")

    monkeypatch.setattr(training, "_fit", fit)
    with pytest.raises(CheckpointError, match=r"train\.old"):
        training.train(recipe, tmp_path, tmp_path / "model.safetensors", Console(quiet=True), dataset)
    assert calls == [1]


def test_a_training_in_this_process_goes_on_from_the_checkpoint_before(
    recipe: Recipe, dataset: Any, epochs: Path, tmp_path: Path
) -> None:
    """Issue 15, number 4: trials of an ablation kept one checkpoint, and a damaged one ended them."""
    model = tmp_path / "model.safetensors"

    def interrupt(trainer: Any) -> None:
        if len(trainer.progress.history) == 3:
            raise Enough

    with pytest.raises(Enough):
        train_here(recipe, dataset, model, report=interrupt)
    states = sorted(tmp_path.glob(".model-*/*/state.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    assert len(states) == 2
    cut_short(states[-1])
    seen: list[int] = []
    with pytest.warns(DataWarning, match="is damaged.*goes on from step 4"):
        train_here(recipe, dataset, model, report=lambda trainer: seen.append(len(trainer.progress.history)))
    assert seen == [3, 4]
    assert load_network(model)[1]["weights_sha"] == load_network(epochs / "model.safetensors")[1]["weights_sha"]
    assert not list(tmp_path.glob(".model-*"))


def test_the_only_checkpoint_of_an_earlier_release_is_still_read(
    recipe: Recipe, dataset: Any, epochs: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.safetensors"
    shutil.copytree(epochs / "checkpoint_3", tmp_path / f".model-{recipe.training_hash()[:12]}")
    seen: list[int] = []
    train_here(recipe, dataset, model, report=lambda trainer: seen.append(len(trainer.progress.history)))
    assert seen == [4]


def on_files(root: Path, **data_keys: object) -> Recipe:
    section = {"name": "imagefolder", "root": str(root), "image_size": 16, **data_keys}
    return parse_recipe({**TINY, "data": section, "train": {**TINY["train"], "epochs": 2}})


def test_a_finished_training_says_when_its_images_were_changed(tmp_path: Path) -> None:
    """Issue 15, number 7: a changed image under data.root was "nothing to do"."""
    root, model = image_folder(tmp_path / "images"), tmp_path / "model.safetensors"
    recipe = on_files(root)
    train_here(recipe, data.load_for(recipe), model)
    assert finished(model, recipe, data.load_for(recipe))
    trained = [data.load_for(recipe).listed.files.name(int(r)) for r in data.load_for(recipe).listed.rows]  # type: ignore[union-attr]
    image = root / trained[0]
    stamp = image.stat().st_mtime_ns

    def said(of: Recipe) -> str:
        with pytest.raises(DataError, match="was trained on other images") as caught:
            finished(model, of, data.load_for(of))
        assert "--fresh trains anew, another name keeps both" in str(caught.value)
        return str(caught.value)

    os.utime(image, ns=(stamp, stamp + 10**9))
    assert "other modification times of images" in said(recipe)
    assert finished(model, on_files(root, fingerprint="sizes"), data.load_for(recipe))
    content = image.read_bytes()
    image.write_bytes(content + b"x")
    assert "other sizes of images" in said(on_files(root, fingerprint="sizes"))
    image.write_bytes(content)
    os.utime(image, ns=(stamp, stamp))
    assert finished(model, recipe, data.load_for(recipe))
    image.unlink()
    assert "images then, " in said(recipe)


def test_content_tells_images_of_one_size_and_time_apart(tmp_path: Path) -> None:
    """Issue 15, number 7: on request, bytes and not times decide."""
    root, model = image_folder(tmp_path / "images"), tmp_path / "model.safetensors"
    recipe = on_files(root, fingerprint="content")
    assert recipe.training_hash() == on_files(root).training_hash()
    train_here(recipe, data.load_for(recipe), model)
    listed = data.load_for(recipe).listed
    image = root / listed.files.name(int(listed.rows[0]))  # type: ignore[union-attr]
    stamp, content = image.stat().st_mtime_ns, image.read_bytes()
    os.utime(image, ns=(stamp, stamp + 10**9))
    assert finished(model, recipe, data.load_for(recipe))
    image.write_bytes(content[:-1] + b"?")
    os.utime(image, ns=(stamp, stamp))
    with pytest.raises(DataError, match="other contents of images"):
        finished(model, recipe, data.load_for(recipe))


def test_an_unfinished_training_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    """Issue 15, number 7, of a training under Ray Train and of one in this process; files of before are accepted."""
    root = image_folder(tmp_path / "images")
    recipe = on_files(root)
    dataset = data.load_for(recipe)
    trainer = make_trainer(recipe, dataset)
    saved = tmp_path / "saved"
    trainer.run(
        after_epoch=lambda t: resume.save(
            saved / f"checkpoint_{len(t.progress.history)}", t, recipe, dataset.class_names, dataset.origin("times")
        )
    )
    ray_folder(tmp_path / f"train-{recipe.training_hash()[:12]}", saved, 1)
    shutil.copytree(saved / "checkpoint_1", tmp_path / f".model-{recipe.training_hash()[:12]}")
    for image in root.rglob("*.png"):
        os.utime(image, ns=(1, 1))
    dataset = data.load_for(recipe)
    with pytest.raises(DataError, match="unfinished training .* was trained on other images"):
        training.train(recipe, tmp_path, tmp_path / "model.safetensors", Console(quiet=True), dataset)
    with pytest.raises(DataError, match="was trained on other images"):
        train_here(recipe, dataset, tmp_path / "model.safetensors")
    resume.check_images(None, dataset, "times", "a file of an earlier release")
