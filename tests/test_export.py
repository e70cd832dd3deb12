"""Subnetworks that leave the house: every format opens to the same features, and refuses what is damaged or foreign."""

from __future__ import annotations

import csv
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from prunnet import data
from prunnet.config.recipe import Recipe, parse_recipe
from prunnet.data.transforms import Preprocessing
from prunnet.errors import CheckpointError, ConfigError, DataError
from prunnet.experiments.stages import train_here
from prunnet.export.embedding_sets import Answer, EmbeddingSet, check_same_space, embed_folder, query, write_csv
from prunnet.export.formats import FORMATS, Exported, export, identity, load_sparse, open_export
from prunnet.export.progressive import Nested, ends
from prunnet.networks.headers import Identity
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.subnetworks.batchnorm import calibration_loader
from prunnet.subnetworks.subnet import Subnetwork, subnetwork
from sweeps.cli import app
from tests.conftest import image_folder, tiny_net

PREPROCESSING = Preprocessing(16, 16, 1, False, (0.5,), (0.5,))
SUFFIXES = tuple(FORMATS)
CAPACITIES = (0.2, 0.4, 0.6, 0.8, 1.0)


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def cut_of(net: RetrievalNet, capacity: float) -> Subnetwork:
    return subnetwork(net, capacity).calibrate([images(32)])


@pytest.fixture(scope="module", params=["weight", "channel", "kernel"])
def net(request: pytest.FixtureRequest) -> RetrievalNet:
    return tiny_net(granularity=request.param, channel_multiple=2, image_size=16).eval()


def sent(cut: Subnetwork, path: Path, precision: str = "fp32") -> Exported:
    export(cut, path, identity(cut, PREPROCESSING, (), precision))
    return open_export(path, trust_code=True)


# --- one subnetwork ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_export_gives_the_features_of_its_subnetwork_at_any_batch_size(
    suffix: str, net: RetrievalNet, tmp_path: Path
) -> None:
    cut = cut_of(net, 0.4)
    opened = sent(cut, tmp_path / f"edge{suffix}")
    for count in (1, 2, 7):
        found = opened.embed(images(count))
        assert found.dtype == torch.float32
        assert torch.allclose(found, cut.embed(images(count)), atol=1e-4), count


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_it_carries_its_identity(suffix: str, net: RetrievalNet, tmp_path: Path) -> None:
    cut = cut_of(net, 0.4)
    said = sent(cut, tmp_path / f"edge{suffix}").identity
    assert (said.weights_sha, said.mask_sha, said.calibration) == (
        cut.weights_sha,
        cut.mask_sha,
        cut.calibration,
    )
    assert said.capacity == 0.4
    assert said.capacity_unit == ("macs" if net.granularity == "channel" else "weights")
    assert said.embedding_dim == 16
    assert Preprocessing.from_json(said.preprocessing) == PREPROCESSING


@pytest.mark.parametrize(
    ("suffix", "precision", "near"),
    [
        (".safetensors", "fp16", 0.999),
        (".safetensors", "int8", 0.98),
        (".onnx", "fp16", 0.999),
        (".onnx", "int8", 0.95),
        (".pt2", "fp16", 0.999),
    ],
)
def test_lower_precision_is_smaller_and_near(suffix: str, precision: str, near: float, tmp_path: Path) -> None:
    cut = cut_of(tiny_net(options={"channels": [32, 32, 64, 64]}), 0.5)
    exact, less = (sent(cut, tmp_path / f"{name}{suffix}", name) for name in ("fp32", precision))
    cosine = (exact.embed(images()) * less.embed(images())).sum(1)
    assert float(cosine.min()) > near
    assert less.identity.precision == precision
    sizes = [(tmp_path / f"{name}{suffix}").stat().st_size for name in ("fp32", precision)]
    assert sizes[1] < 0.75 * sizes[0]


def test_a_fifth_of_the_weights_takes_about_a_fifth_of_the_file(tmp_path: Path) -> None:
    net = RetrievalNet("resnet18", 2)
    dense, cut = subnetwork(net, 1.0), subnetwork(net, 0.2)
    dense.save(tmp_path / "dense.safetensors")
    export(cut, tmp_path / "edge.safetensors", identity(cut, PREPROCESSING))
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("edge", "dense")]
    assert sizes[0] <= 0.27 * sizes[1]


def test_the_sparse_file_opens_as_the_subnetwork_bit_for_bit(net: RetrievalNet, tmp_path: Path) -> None:
    cut = cut_of(net, 0.4)
    sent(cut, tmp_path / "edge.safetensors")
    loaded, _ = load_sparse(tmp_path / "edge.safetensors")
    assert torch.equal(loaded.embed(images()), cut.embed(images()))
    assert loaded.mask_sha == cut.mask_sha


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"edge{suffix}"
    sent(cut_of(tiny_net(), 0.4), path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name) as caught:
            open_export(path, trust_code=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_bit_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    """Anywhere in the weights, where no format would notice by itself."""
    path = tmp_path / f"edge{suffix}"
    cut = cut_of(tiny_net(), 0.4)
    sent(cut, path)
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(whole) // 3, 2 * len(whole) // 3, 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << 6
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=path.name):
            open_export(path, trust_code=True)


def test_foreign_files_and_unknown_names_are_refused_by_name(tmp_path: Path) -> None:
    import onnx
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "other.pt2")
    for name in ("other.safetensors", "other.onnx", "other.pt2"):
        with pytest.raises(CheckpointError, match=name):
            open_export(tmp_path / name, trust_code=True)
    with pytest.raises(CheckpointError, match="'nothing.onnx' is not a file"):
        open_export("nothing.onnx")
    cut = subnetwork(tiny_net(), 0.4)
    with pytest.raises(ConfigError, match=r"valid: a name that ends in .safetensors, .onnx, .pt2"):
        export(cut, tmp_path / "edge.tflite", identity(cut, PREPROCESSING))
    with pytest.raises(ConfigError, match="'int8' for .pt2; valid: fp32, fp16"):
        export(cut, tmp_path / "edge.pt2", identity(cut, PREPROCESSING, (), "int8"))


# --- several in one -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def progressive(net: RetrievalNet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Subnetwork]]:
    """The file, and the subnetworks that are in it."""
    path = tmp_path_factory.mktemp("progressive") / "all.prunnet"
    cuts = [cut_of(net, capacity) for capacity in CAPACITIES]
    Nested(cuts).save(path, identity(cuts[-1], PREPROCESSING))
    return path, cuts


def test_each_prefix_opens_alone_with_exactly_the_features_of_its_capacities(
    progressive: tuple[Path, list[Subnetwork]],
) -> None:
    path, cuts = progressive
    whole = path.read_bytes()
    sizes = ends(path)
    assert list(sizes) == list(CAPACITIES)
    assert list(sizes.values())[-1] == len(whole)
    for number, end in enumerate(sizes.values(), start=1):
        nested, _ = Nested.read(whole[:end])
        assert nested.capacities == list(CAPACITIES[:number])
        for cut in cuts[:number]:
            assert torch.equal(nested.embed(images(), cut.capacity), cut.embed(images()))
            assert nested.at(cut.capacity).mask_sha == cut.mask_sha
            assert nested.at(cut.capacity).calibration == cut.calibration


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1))
def test_cut_at_any_byte_it_is_the_capacities_that_are_whole_or_refused(
    progressive: tuple[Path, list[Subnetwork]], where: float
) -> None:
    path, cuts = progressive
    whole = path.read_bytes()
    length = int(where * len(whole))
    there = [capacity for capacity, end in ends(path).items() if end <= length]
    if not there:
        with pytest.raises(CheckpointError, match="all.prunnet"):
            Nested.read(whole[:length], "all.prunnet")
        return
    nested, _ = Nested.read(whole[:length])
    assert nested.capacities == there
    assert torch.equal(nested.embed(images(2), there[-1]), cuts[len(there) - 1].embed(images(2)))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(progressive: tuple[Path, list[Subnetwork]], where: float, bit: int) -> None:
    damaged = bytearray(progressive[0].read_bytes())
    damaged[int(where * len(damaged))] ^= 1 << bit
    with pytest.raises(CheckpointError, match="all.prunnet"):
        Nested.read(bytes(damaged), "all.prunnet")


def test_a_header_that_lies_about_its_length_is_refused() -> None:
    with pytest.raises(CheckpointError, match="ends within its header"):
        Nested.read(b"PRUNNET\x01" + struct.pack("<Q", 2**60) + bytes(100), "x")
    with pytest.raises(CheckpointError, match="is not a progressive file"):
        Nested.read(b"", "x")


def test_five_capacities_take_less_than_a_tenth_more_than_the_dense_file(tmp_path: Path) -> None:
    net = RetrievalNet("resnet18", 2)
    cuts = [subnetwork(net, capacity) for capacity in CAPACITIES]
    Nested(cuts).save(tmp_path / "all", identity(cuts[-1], PREPROCESSING))
    cuts[-1].save(tmp_path / "dense.safetensors")
    assert (tmp_path / "all").stat().st_size <= 1.1 * (tmp_path / "dense.safetensors").stat().st_size


def test_a_process_switches_between_capacities_without_a_reload(net: RetrievalNet) -> None:
    cuts = [cut_of(net, capacity) for capacity in CAPACITIES]
    nested = Nested(cuts)
    for cut in [*cuts, *reversed(cuts), cuts[0]]:
        assert torch.equal(nested.embed(images(), cut.capacity), cut.embed(images()))
    with pytest.raises(ConfigError, match=r"capacity 0.5 is not here; valid: 0.2, 0.4, 0.6, 0.8, 1"):
        nested.at(0.5)


def test_what_does_not_nest_is_refused() -> None:
    net = tiny_net()
    with pytest.raises(ConfigError, match="several networks"):
        Nested([subnetwork(net, 0.2), subnetwork(tiny_net(seed=1), 0.4)])
    with pytest.raises(ConfigError, match="keeps weights of backbone.conv1 that the next larger does not keep"):
        Nested([subnetwork(net, 0.2, random_masks=3), subnetwork(net, 0.4)])
    with pytest.raises(ConfigError, match="each once"):
        Nested([subnetwork(net, 0.2), subnetwork(net, 0.2)])


# --- embeddings and retrieval ---------------------------------------------------------------------------------------


def said(weights: str = "a" * 64, **more: Any) -> Identity:
    known = {"weights_sha": weights, "matches": [], "embedding_dim": 16, "preprocessing": PREPROCESSING.to_json()}
    return Identity.model_validate({**known, **more})


def test_spaces_compare_where_one_network_or_a_match_made_both() -> None:
    check_same_space(said(capacity=0.2), said(capacity=1.0))
    check_same_space(said("b" * 64, matches=["a" * 64]), said())
    check_same_space(said(), said("b" * 64, matches=["a" * 64]))
    with pytest.raises(ConfigError, match="neither was trained to match the other"):
        check_same_space(said("b" * 64), said())
    with pytest.raises(
        ConfigError, match="neither was trained"
    ):  # both match a third, which says nothing of each other
        check_same_space(said("b" * 64, matches=["c" * 64]), said(matches=["c" * 64]))
    with pytest.raises(ConfigError, match="length 8 and 16 do not compare"):
        check_same_space(said(embedding_dim=8), said())
    other = Preprocessing(16, 20, 1, True, (0.5,), (0.5,)).to_json()
    with pytest.raises(ConfigError, match="made differently: invert, resize"):
        check_same_space(said(preprocessing=other), said())


def test_a_folder_is_embedded_by_name_and_finds_itself(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", classes=3, per_class=4)
    (folder / "notes.txt").write_text("no image")
    cut = subnetwork(tiny_net(), 0.5)
    made, left_out = embed_folder(cut, folder, PREPROCESSING, said())
    assert left_out == {}
    assert len(made.names) == 12
    assert list(made.names) == sorted(made.names)
    made.save(tmp_path / "emb")
    loaded = EmbeddingSet.load(tmp_path / "emb")
    assert np.array_equal(loaded.embeddings, made.embeddings)
    assert (loaded.names, loaded.identity) == (made.names, made.identity)
    best = [answer for answer in query(made, loaded, top=3) if answer.rank == 1]
    assert all(answer.query == answer.gallery and answer.similarity > 0.9999 for answer in best)


def test_an_unreadable_image_stops_it_by_name_or_is_left_out_when_asked(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", classes=2, per_class=2)
    (folder / "top0" / "class0" / "0.png").write_bytes(b"torn")
    cut = subnetwork(tiny_net(), 0.5)
    with pytest.raises(DataError, match=r"top0/class0/0.png"):
        embed_folder(cut, folder, PREPROCESSING, said())
    made, left_out = embed_folder(cut, folder, PREPROCESSING, said(), skip_unreadable=True)
    assert list(left_out) == ["top0/class0/0.png"]
    assert len(made.names) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        embed_folder(cut, tmp_path / "empty", PREPROCESSING, said())


# --- as a user would
# ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a trained network, and its images beside it."""
    folder = tmp_path_factory.mktemp("run")
    image_folder(folder / "images")
    recipe = recipe_of(folder)
    train_here(recipe, data.load_for(recipe), folder / "model.safetensors")
    return folder


def recipe_of(folder: Path) -> Recipe:
    return parse_recipe(
        {
            "data": {"name": "imagefolder", "root": str(folder / "images"), "image_size": 16},
            "model": {"options": {"channels": [8, 8, 16, 32]}, "stem": "released", "embedding_dim": 16},
            "train": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
            "cluster": {"workers": 1},
        }
    )


def ask(*words: object) -> str:
    """A command's output; it must succeed."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.mark.parametrize("name", ["edge.safetensors", "edge.onnx", "edge.pt2"])
def test_export_embed_and_query_from_the_command_line(run: Path, name: str, tmp_path: Path) -> None:
    said = ask("export", run, "--capacity", 0.4, "--to", tmp_path / name)
    assert f"{(tmp_path / name).stat().st_size:,} bytes" in said
    ask("export", run, "--capacity", 1.0, "--to", tmp_path / "server.safetensors")
    trust = ["--trust-code"] if name.endswith(".pt2") else []
    ask("embed", tmp_path / name, run / "images", "--out", tmp_path / "q", *trust)
    ask("embed", tmp_path / "server.safetensors", run / "images", "--out", tmp_path / "g")
    ask("query", tmp_path / "q", tmp_path / "g", "--top", 4, "--csv", tmp_path / "a.csv", "--sheet", tmp_path / "a.png")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 36 * 4
    assert [int(row["rank"]) for row in rows[:4]] == [1, 2, 3, 4]
    evil = [Answer("=cmd|'/c calc'!A1.png", 1, "+shoe.png", -0.5)]
    for raw, names in ((False, ("'=cmd|'/c calc'!A1.png", "'+shoe.png")), (True, (evil[0].query, evil[0].gallery))):
        write_csv(evil, tmp_path / "evil.csv", raw=raw)  # issue 15, number 23
        (line,) = csv.DictReader((tmp_path / "evil.csv").open())
        assert (line["query"], line["gallery"], line["similarity"]) == (*names, "-0.500000")
    for one, next_ in itertools.pairwise(rows):
        assert one["query"] != next_["query"] or float(one["similarity"]) >= float(next_["similarity"])
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 5 * 96
        assert sheet.height > 20 * 96
    recipe = recipe_of(run)
    cut = Subnetwork.load(_saved(run, recipe, tmp_path))
    pixels = EmbeddingSet.load(tmp_path / "q")
    wanted, _ = embed_folder(cut, run / "images", Preprocessing.from_config(recipe.data), pixels.identity)
    assert np.allclose(pixels.embeddings, wanted.embeddings, atol=1e-4)


def _saved(run: Path, recipe: Recipe, folder: Path) -> Path:
    """The same subnetwork, cut and calibrated in Python."""
    from prunnet.networks.files import load_network

    net, _ = load_network(run / "model.safetensors")
    cut = subnetwork(net, 0.4).calibrate(calibration_loader(data.load_for(recipe).train))
    cut.save(folder / "by_hand.safetensors")
    return folder / "by_hand.safetensors"


def test_a_progressive_file_from_the_command_line(run: Path, tmp_path: Path) -> None:
    table = ask("export", run, "--progressive", "0.2,0.6,1.0", "--to", tmp_path / "all.prunnet")
    assert all(f"{end:,}" in table for end in ends(tmp_path / "all.prunnet").values())
    part = tmp_path / "first.prunnet"
    part.write_bytes((tmp_path / "all.prunnet").read_bytes()[: ends(tmp_path / "all.prunnet")[0.2]])
    ask("embed", part, run / "images", "--out", tmp_path / "q")
    assert EmbeddingSet.load(tmp_path / "q").identity.capacity == 0.2
    ask("embed", tmp_path / "all.prunnet", run / "images", "--capacity", 1.0, "--out", tmp_path / "g")
    assert "rank" in ask("query", tmp_path / "q", tmp_path / "g", "--top", 1)


def test_the_loss_of_a_lower_precision_is_measured_not_assumed(run: Path, tmp_path: Path) -> None:
    table = ask("export", run, "--capacity", 0.5, "--to", tmp_path / "edge.onnx", "--precision", "int8")
    assert "masked network, fp32" in table
    assert "the file" in table


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["export", "RUN", "--to", "x.onnx"], "one of --capacity, --row and --progressive is needed"),
        (["export", "NONE", "--capacity", "0.4", "--to", "x.onnx"], "'NONE' is not a file"),
        (["export", "RUN", "--capacity", "1.4", "--to", "x.onnx"], "1.4 is out of range"),
        (["export", "RUN", "--capacity", "0.4", "--to", "x.gif"], "valid: a name that ends in"),
        (["export", "RUN", "--capacity", "0.4", "--to", "x.onnx", "--precision", "fp8"], "valid: fp32, fp16, int8"),
        (["export", "RUN", "--progressive", "a,b", "--to", "x"], "valid: capacities with commas"),
        (["embed", "RUN/images/top0/class0/0.png", "RUN/images", "--out", "x"], "is no export; valid: .safetensors"),
        (["query", "RUN", "RUN"], "embeddings.safetensors' is not a file"),
    ],
)
def test_a_users_mistake_ends_in_one_line(run: Path, words: list[str], reason: str) -> None:
    result = CliRunner().invoke(app, [word.replace("RUN", str(run)) for word in words])
    assert result.exception is not None
    assert reason in str(result.exception)
    assert "\n" not in str(result.exception)
