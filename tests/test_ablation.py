"""Ablations: what a recipe asks for, how rates are chosen, what counts as finished, and the page that tells of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from analysis import comparison
from prunnet import results
from prunnet.config.recipe import parse_recipe
from prunnet.config.trial import Trial
from prunnet.errors import ConfigError, ResultsError
from prunnet.experiments.trial import run_trial
from sweeps.ablation_recipe import Ablation, load_ablation
from sweeps.cli import app
from tests.test_method_jobs import SMALL


def written(folder: Path, **changes: Any) -> Path:
    tree = json.loads(json.dumps(SMALL)) | {"table": str(folder / "table.parquet"), **changes}
    (folder / "small.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "small.yaml"


@pytest.fixture
def small(tmp_path: Path) -> Ablation:
    return load_ablation(written(tmp_path))


def row(trial: Trial, query: float, gallery: float, score: float, source: str = "own", **more: Any) -> dict[str, Any]:
    """A row as a trial leaves it."""
    train = trial.recipe.train
    config = json.dumps({"trained": {"train": {"lr": train.lr}}})
    return {
        "unit_key": f"{trial.id}/{query}/{gallery}/{source}",
        "trial_id": trial.id,
        "status": "complete",
        "method": train.method,
        "seed": train.seed,
        "query_capacity": query,
        "gallery_capacity": gallery,
        "gallery_source": source,
        "map": score,
        "recall_at_1": score,
        "train_capacities": "" if train.method == "independent" and not train.capacities else "0.5,0.2",
        "images_seen": 100,
        "train_seconds": 10.0,
        "config_json": config,
        **more,
    }


# --- what there is to do -----------------------------------------------------------------------------------


def test_every_method_is_tuned_and_taught_ones_come_when_their_teacher_is_known(small: Ablation) -> None:
    names = [trial.name for trial in small.tuning()]
    assert "tuning/prunnet/train.lr=0.03/s0" in names
    assert not any("regression" in name for name in names)
    assert all(trial.recipe.sweep.split == "validation" and trial.recipe.train.epochs == 1 for trial in small.tuning())
    teacher = next(t for t in small.tuning() if t.name == "tuning/independent/train.lr=0.1/s0")
    table = results.as_table([row(teacher, c, c, 0.9) for c in (1.0, 0.5, 0.2)])
    taught = small.tuning(taught=True, table=table)
    assert {trial.recipe.train.method for trial in taught} == {"regression"}
    assert {trial.recipe.train.teacher_lr for trial in taught} == {0.1}


def test_the_best_rate_on_validation_classes_is_taken(small: Ablation) -> None:
    by_value = {trial.name.split("=")[1].split("/")[0]: trial for trial in small.tuning() if "/prunnet/" in trial.name}
    rows = [row(by_value["0.03"], c, 1.0, s) for c, s in ((1.0, 0.9), (0.5, 0.1), (0.2, 0.1))]
    rows += [row(by_value["0.1"], c, 1.0, s) for c, s in ((1.0, 0.6), (0.5, 0.5), (0.2, 0.4))]
    rows += [row(by_value["0.03"], 0.1, 1.0, 1.0), row(by_value["0.03"], 0.5, 0.5, 1.0)]  # neither counts
    trials = {trial.name: trial for trial in small.methods_trials(results.as_table(rows))}
    assert trials["methods/prunnet/s0"].recipe.train.lr == 0.1
    variants = small.variants_trials(results.as_table(rows))
    assert {trial.recipe.train.lr for trial in variants} == {0.1}
    assert [trial.recipe.sweep.calibrate for trial in variants] == [False]


def test_upgrades_share_one_old_network(small: Ablation) -> None:
    trials = {trial.name.split("/")[1]: trial for trial in small.upgrade_trials(None)}
    assert trials["old"].old is None
    assert all(trial.old == trials["old"].recipe for name, trial in trials.items() if name != "old")
    assert trials["independent"].recipe.train.old is None  # the control is not trained to match it
    assert trials["odpp"].recipe.train.old
    assert trials["old"].recipe.data.train_fraction == 0.5
    assert small.rows_of(trials["odpp"]) == 2 * 4 - 1 + 4


def test_a_trials_id_holds_what_shapes_its_rows_and_not_where_files_lie() -> None:
    def trial(**data: Any) -> Trial:
        return Trial("a", parse_recipe({"data": {"name": "imagefolder", **data}}))

    assert trial(root="/here/images").id == trial(root="/there/images").id
    assert trial(root="/here/images").id != trial(root="/here/others").id
    assert trial(root="/a", image_size=48).id != trial(root="/a").id
    assert trial(root="/a").id.startswith("a/")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": {"a": {"train.methd": "joint"}}}, "did you mean 'train.method'"),
        ({"variants": {"a": {"train.projection": "first"}}}, "'none', 'last' or 'sequential'"),
        ({"seeds": []}, "seeds"),
        ({"seed": [0]}, "unknown key 'seed'"),
        ({"tuning": {"vals": [1]}}, "tuning.vals"),
        ({"tuning": {"values": [1, 2], "values_of": {"prunnet": [3]}}}, "2 values, as many as for every method"),
        ({"tuning": {"values": [1, 2], "values_of": {"none": [3, 4]}}}, "names of `methods`"),
        ({"upgrade": {"old": {}, "new": {"a": {"train.compatible": "oddp"}}}}, "did you mean 'odpp'"),
    ],
)
def test_mistakes_are_named_in_one_line(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_ablation(written(tmp_path, **changes))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_ablation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        load_ablation(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="list.yaml"):
        load_ablation(tmp_path / "list.yaml")


def test_list_says_what_there_is_to_do(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["ablation", "--recipe", str(written(tmp_path)), "--list"])
    assert found.exit_code == 0, found.output
    assert found.stdout.count("to do") == 6 + 4 + 1 + 4  # the taught method is tuned later
    wrong = CliRunner().invoke(app, ["ablation", "--recipe", str(tmp_path / "none.yaml")])
    assert wrong.exit_code == 2
    assert "error: recipe" in wrong.stderr


# --- a trial without Ray -----------------------------------------------------------------------------------


def test_a_trial_is_trained_and_tested_once(small: Ablation, tmp_path: Path) -> None:
    trial = next(t for t in small.methods_trials(None) if t.name == "methods/regression/s0")
    assert run_trial(trial, tmp_path) == small.rows_of(trial) == 7
    rows = results.read(tmp_path / "results").to_pylist()
    assert {r["trial_id"] for r in rows} == {trial.id}
    assert {r["query_capacity"] for r in rows} == {1.0, 0.5, 0.2, 0.1}
    assert {r["method"] for r in rows} == {"regression"}
    assert not list((tmp_path / "features").iterdir())  # nobody needs them any more
    models = sorted((tmp_path / "models").iterdir())
    assert len(models) == 3
    before = [path.stat().st_mtime_ns for path in models]
    run_trial(trial, tmp_path)
    assert before == [path.stat().st_mtime_ns for path in models]
    teacher = next(t for t in small.methods_trials(None) if t.name == "methods/independent/s0")
    run_trial(teacher, tmp_path)
    assert len(list((tmp_path / "models").iterdir())) == 5  # the dense network serves both
    assert len(results.read(tmp_path / "results")) == 14


def test_the_control_of_an_upgrade_searches_the_old_gallery_too(small: Ablation, tmp_path: Path) -> None:
    trials = {trial.name.split("/")[1]: trial for trial in small.upgrade_trials(None)}
    control = trials["independent"]
    assert run_trial(control, tmp_path) == small.rows_of(control)
    rows = [r for r in results.read(tmp_path / "results").to_pylist() if r["gallery_source"] == "old"]
    assert {r["query_capacity"] for r in rows} == {1.0, 0.5, 0.2, 0.1}
    models = sorted((tmp_path / "models").iterdir())
    run_trial(Trial("alone", control.recipe), tmp_path)
    assert sorted((tmp_path / "models").iterdir()) == models  # the same network as without an old one


def test_a_packed_table_is_the_whole_of_a_results_folder(small: Ablation, tmp_path: Path) -> None:
    trials = small.methods_trials(None)[:2]
    for trial in trials:
        results.write_part(tmp_path / "results", [row(trial, c, 1.0, 0.5) for c in (1.0, 0.5)])
    assert results.pack(tmp_path / "results", tmp_path / "kept" / "table.parquet") == 4
    packed = results.read_packed(tmp_path / "kept" / "table.parquet")
    assert results.deterministic(packed).equals(results.deterministic(results.read(tmp_path / "results")))
    results.write_part(tmp_path / "other", [row(trials[0], 1.0, 1.0, 0.5)])
    assert results.unpack(tmp_path / "kept" / "table.parquet", tmp_path / "other") == 3
    assert results.unpack(tmp_path / "kept" / "table.parquet", tmp_path / "other") == 0
    assert results.deterministic(results.read(tmp_path / "other")).equals(results.deterministic(packed))
    whole = (tmp_path / "kept" / "table.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(whole[:-50])
    with pytest.raises(ResultsError, match="torn"):
        results.unpack(tmp_path / "torn.parquet", tmp_path / "other")


# --- the page ----------------------------------------------------------------------------------------------


def test_the_page_holds_means_deviations_and_gains(tmp_path: Path) -> None:
    small = load_ablation(written(tmp_path, seeds=[0, 1]))
    rows = []
    for trial in small.methods_trials(None):
        for c in (1.0, 0.5, 0.2, 0.1):
            rows.append(row(trial, c, 1.0, 0.5 + 0.1 * trial.recipe.train.seed))
            rows += [row(trial, c, c, 0.25)] if c < 1.0 else []
    scores = {"old": 0.4, "independent": 0.6, "odpp": 0.5, "prunnet+ndpp": 0.5}
    for trial in small.upgrade_trials(None):
        name = trial.name.split("/")[1]
        rows.append(row(trial, 1.0, 1.0, scores[name]))
        if trial.old:
            rows += [row(trial, c, 1.0, 0.45 * c, "old") for c in (1.0, 0.5)]
    results.write_part(tmp_path / "results", rows)
    results.pack(tmp_path / "results", tmp_path / "table.parquet")
    page = tmp_path / "RESULTS.md"
    begin, end = comparison.marks()
    page.write_text(f"# What we found\n\nWords.\n{begin}\nold\n{end}\nMore words.\n")
    comparison.write(tmp_path / "table.parquet", page)
    text = page.read_text()
    assert text.startswith("# What we found\n\nWords.\n")
    assert text.endswith("More words.\n")
    assert "\nold\n" not in text
    assert "| prunnet | 55.0 ± 7.1 | 55.0 ± 7.1 | 55.0 ± 7.1 | 55.0 ± 7.1 | 55.0 ± 7.1 |" in text
    assert "| | 100% | 50% | 20% | *10%* | mean |".replace("| |", "|  |") in text
    # (0.45 - 0.4) / (0.6 - 0.4) = 0.25; P_up = sigma(-1/6); P_comp = sigma(0.25)
    assert "| odpp | 50.0 ± 0.0 | 45.0 ± 0.0 | 0.250 ± 0.000 | 0.458 ± 0.000 | 0.562 ± 0.000 |" in text
    assert "| prunnet+ndpp | 45.0 ± 0.0 | 22.5 ± 0.0 |" in text
    comparison.write(tmp_path / "table.parquet", page)
    assert page.read_text() == text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no marks"):
        comparison.write(tmp_path / "table.parquet", page)


def test_what_a_name_stood_for_once_is_neither_chosen_by_nor_shown(tmp_path: Path) -> None:
    """Issue 15, number 12: when a method is mended, rows of its old definition stay in the table, under its name."""
    small = load_ablation(written(tmp_path, seeds=[0]))
    rates = [t for t in small.tuning() if t.name.startswith("tuning/prunnet/")]
    rows = [row(trial, 1.0, 1.0, score) for trial, score in zip(rates, (0.3, 0.6), strict=True)]
    stale = {**rows[0], "trial_id": f"{rates[0].name}/{'0' * 10}", "unit_key": "stale", "map": 0.9}
    table = results.as_table([*rows, stale])
    (trial,) = (t for t in small.methods_trials(table) if t.name == "methods/prunnet/s0")
    assert trial.recipe.train.lr == rates[1].recipe.train.lr
    told = [{**r, "created_at": day} for r, day in zip((*rows, stale), ("2026-02", "2026-02", "2026-01"), strict=True)]
    assert comparison.newest(told) == told[:2]


def test_the_page_weighs_accuracy_against_cost_and_pairs_layer_wise_cuts_with_uniform_ones(tmp_path: Path) -> None:
    small = load_ablation(written(tmp_path, seeds=[0, 1]))
    rows = []
    for trial in small.methods_trials(None)[:2]:
        sha = f"network of seed {trial.recipe.train.seed}"
        for c in (1.0, 0.5, 0.1):
            own: dict[str, Any] = {"macs": int(1000 * c), "macs_dense": 1000, "query_weights_sha": sha}
            rows.append(row(trial, c, 1.0, 0.8 if c == 1.0 else 0.6, **own, allocation="layer"))
        cut = {**own, "macs": 99, "allocation": "layerwise", "unit_key": f"cut of {sha}", "trial_id": "layerwise"}
        rows.append({**row(trial, 0.2, 1.0, 0.65 + 0.1 * trial.recipe.train.seed), **cut})
    text = comparison.short_page(rows)
    assert "| prunnet | 54.00 ± 0.00 |" in text  # 0.6 from a tenth of the MACs on; the dense network saves none
    assert "| 10% | 2 | 0.000 | 0.000 | 60.0 ± 0.0 | 70.0 ± 7.1 | 10.0 ± 7.1 |" in text
    assert "seconds of training" not in text
    fewer = {**rows[0], "train_capacities": "0.5", "trial_id": "methods/fewer passes/s0", "train_seconds": 60.0}
    assert "| fewer passes | 1 | 0.1 | 100 | 60 |" in comparison.short_page([*rows, fewer])


def test_rows_do_not_say_where_files_lie(tmp_path: Path) -> None:
    from tests.conftest import image_folder

    tables = []
    for place in ("here", "there"):
        root = image_folder(tmp_path / place / "images", classes=6, per_class=6, side=16)
        tree = {
            **SMALL["base"],
            "data": {"name": "imagefolder", "root": str(root), "image_size": 16},
            "train": {"capacities": [0.5], "epochs": 1, "batch_size": 8},
        }
        run_trial(Trial("a", parse_recipe(tree)), tmp_path / place)
        tables.append(results.deterministic(results.read(tmp_path / place / "results")))
    assert tables[0].equals(tables[1])
    assert str(tmp_path) not in str(tables[0].to_pylist())
