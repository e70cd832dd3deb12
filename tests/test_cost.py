"""Measured cost: what is timed is the compact network, and what is said of it is said with runtime, threads and
device."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError
from prunnet.export.latency import measure, times_of
from prunnet.networks.files import save_network
from prunnet.subnetworks.subnet import subnetwork
from sweeps.cli import app
from tests.conftest import tiny_net

PREPROCESSING = Preprocessing(16, 16, 1, False, (0.5,), (0.5,))


def test_a_time_is_no_shorter_than_what_is_timed() -> None:
    """A lower limit holds on any machine, however busy; how fast things are is for `benchmarks`."""
    called = []

    def run(images: torch.Tensor) -> None:
        called.append(len(images))
        time.sleep(0.005)

    (found,) = times_of([run], torch.zeros(3, 1), threads=1, seconds=0.05)
    assert found.median_ms >= 5
    assert len(called) >= found.runs + 3  # the warm-up is not counted
    assert set(called) == {3}


def test_what_is_compared_is_timed_by_turns() -> None:
    """A machine that slows down half-way slows all of them down."""
    order: list[str] = []
    runs = [lambda images, name=name: order.append(name) for name in "ab"]
    times_of(runs, torch.zeros(1), threads=1, seconds=0.001)
    turns = [name for place, name in enumerate(order) if not place or name != order[place - 1]]
    assert turns == ["a", "b"] * (len(turns) // 2)
    assert len(turns) >= 6


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_cut_is_measured_with_its_runtime_named(runtime: str) -> None:
    net = tiny_net(granularity="channel", image_size=16, channel_multiple=2)
    cuts = [subnetwork(net, c) for c in (1.0, 0.2)]
    dense, small = measure(cuts, PREPROCESSING, runtime=runtime, seconds=0.02)
    (unknown,) = measure(cuts[:1], PREPROCESSING, runtime=runtime, seconds=0.02, peak=False)
    assert small.bytes_on_disk < 0.4 * dense.bytes_on_disk
    assert small.latency_ms_b1 > 0
    assert small.latency_ms_b32 > 0
    assert runtime in small.runtime
    assert (small.threads, small.device) == (1, "cpu")
    assert unknown.peak_bytes is None
    assert small.peak_bytes is None or small.peak_bytes > 32 * 4 * 16 * 16  # a batch of images at least


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown runtime 'tflite'; valid: compile, eager, onnxruntime"):
        measure([subnetwork(tiny_net(), 0.5)], PREPROCESSING, runtime="tflite")


def test_cost_from_the_command_line(tmp_path: Path) -> None:
    save_network(tmp_path / "model.safetensors", tiny_net(), PREPROCESSING)
    words = ["cost", str(tmp_path), "--capacity", "1.0", "--capacity", "0.4", "--seconds", "0.02", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    assert [row["capacity"] for row in rows] == [1.0, 0.4]
    assert rows[1]["macs"] < rows[0]["macs"]
    assert rows[1]["bytes_on_disk"] < rows[0]["bytes_on_disk"]
    nowhere = CliRunner().invoke(app, ["cost", str(tmp_path / "none")])
    assert "is not a file" in str(nowhere.exception)
    device = CliRunner().invoke(app, ["cost", str(tmp_path), "--device", "abacus"])
    assert "--device 'abacus' cannot be used" in str(device.exception)


def test_a_sweep_fills_the_measured_columns(tmp_path: Path) -> None:
    """Without Ray: what the driver measures lands in the rows of its subnetwork."""
    from prunnet import data, results
    from prunnet.config.recipe import parse_recipe
    from prunnet.evaluation.evaluator import evaluate_here
    from prunnet.experiments.stages import Family, train_here
    from prunnet.experiments.work_units import evaluation_plan, network_arrays, plan_units
    from sweeps.capacity import with_measured
    from tests.conftest import image_folder

    image_folder(tmp_path / "images")
    recipe = parse_recipe(
        {
            "data": {"name": "imagefolder", "root": str(tmp_path / "images"), "image_size": 16},
            "model": {"options": {"channels": [8, 8, 16, 32]}, "stem": "released", "embedding_dim": 16},
            "train": {
                "epochs": 1,
                "batch_size": 8,
                "precision": "fp32",
                "granularity": "channel",
                "channel_multiple": 2,
            },
            "sweep": {"capacities": [1.0, 0.3], "measure": "eager", "measure_threads": 2},
        }
    )
    dataset = data.load_for(recipe)
    train_here(recipe, dataset, tmp_path / "model.safetensors")
    family = Family.of_run(tmp_path)
    units = plan_units(recipe, family, dataset)
    missing = units.missing_tests(set())
    features = units.needed_features(missing)
    plan = evaluation_plan(recipe, family, features=tmp_path / "features", results=tmp_path / "results")
    plan = with_measured(plan, recipe, family, features, lambda line: None)
    evaluate_here(plan, network_arrays(family), units.calibration, dataset.split("test"), features, missing)
    rows = results.read(tmp_path / "results").to_pylist()
    assert len(rows) == 4
    assert all(row["granularity"] == "channel" and row["capacity_unit"] == "macs" for row in rows)
    assert all(row["latency_ms_b1"] > 0 and row["latency_ms_b32"] > 0 and row["threads"] == 2 for row in rows)
    sizes = {row["query_capacity"]: row["bytes_on_disk"] for row in rows}
    assert sizes[0.3] < sizes[1.0]
    kept = {row["query_capacity"]: (row["macs"], row["macs_dense_equivalent"]) for row in rows}
    assert kept[0.3][0] == kept[0.3][1]  # a channel cut is dense
