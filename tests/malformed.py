"""Malformed recipes, settings, command lines and files, drawn from a seed, and what a command makes of them.

A case is whole commands: nothing is left out up to where a valid input would start a training, an evaluation on a
cluster, or a measurement; there `Reached` ends it.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from analysis import commands, comparison, devices, plots
from analysis.quantities import Quantity
from analysis.search import Findings, Record
from prunnet import data, results
from prunnet.config.recipe import DataConfig, Recipe
from prunnet.data import packed
from prunnet.data.transforms import Preprocessing
from prunnet.export.embedding_sets import embed_folder
from prunnet.export.formats import export, identity
from prunnet.export.progressive import Nested
from prunnet.networks.files import save_network
from prunnet.storage import hashing
from prunnet.subnetworks.subnet import subnetwork
from sweeps import cli
from tests.conftest import REPOSITORY, image_folder, tiny_net
from tests.test_report import row

CODES = (0, 1, 2, 130, 143)
"""Documented exit codes."""
SLOW = 10.0
"""Seconds of processor time; no malformed input needs so many."""
RECIPES = sorted((REPOSITORY / "sweeps" / "recipes").glob("*.yaml"))
SMALL = {"data": {"image_size": 16}, "model": {"options": {"channels": [8, 8, 16, 32]}, "stem": "released"}}


class Reached(BaseException):
    """A valid input came to where the work would begin."""


def stop(*_: Any, **__: Any) -> Any:
    raise Reached


def cut_off_the_work(patch: pytest.MonkeyPatch) -> None:
    """Replaces what takes long or leaves the machine: Ray, rendering, training, measuring, drawing, the network."""
    for where in ("cluster.experiment", "sweeps.search", "sweeps.layerwise"):
        patch.setattr(f"{where}.session", stop)
    patch.setattr("sweeps.ablation.run_trial", stop)
    patch.setattr("cluster.trials.run_trials", stop)
    patch.setattr("sweeps.cost.measure", stop)
    patch.setattr("sweeps.export.write", stop)
    patch.setattr("sweeps.doctor.inspect_channels", stop)
    patch.setenv("HOME", os.getcwd())
    patch.setattr("socket.socket.connect", refuse)
    patch.setattr("socket.getaddrinfo", refuse)
    for name in ("glyphs", "colour_glyphs"):
        patch.setattr(f"prunnet.data.datasets.{name}.rendered", stop)
    patch.setattr(plots, "rendered", lambda figure, *formats: (plots.plt.close(figure), dict.fromkeys(formats, b""))[1])


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError("no network in this test")


# --- running ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | None
    said: str
    """Its error output, or a traceback."""
    seconds: float
    """Of processor time."""

    @property
    def fault(self) -> str | None:
        """What is wrong with this end, if anything."""
        if self.code not in CODES:
            return f"exit code {self.code}"
        if self.seconds > SLOW:
            return f"{self.seconds:.0f} s"
        lines = self.said.strip().splitlines()
        usage = any(line.startswith(("Usage:", "╭─ Error")) for line in lines)  # typer's own, of several lines
        if self.code == 2 and not usage and (len(lines) != 1 or not lines[0].startswith("error: ")):
            return f"{len(lines)} lines of errors"
        return None if len(self.said) < 10_000 else f"{len(self.said)} characters of errors"


def ran(words: list[str]) -> Outcome:
    """A command line in this process: `prunnet …`, or `devices …` and `comparison …` of the analysis."""
    entries: dict[str, Callable[[], None]] = {
        "prunnet": cli.main,
        "devices": lambda: commands.run(devices.main),
        "comparison": lambda: commands.run(comparison.write),
    }
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before, sys.argv = sys.argv, words
    started = time.process_time()
    code: int | None = 0
    try:
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entries[words[0]]()
    except Reached:
        pass
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except Exception:
        code = None
        err.write("".join(traceback.format_exc(limit=-6)))
    finally:
        sys.argv = before
    err.flush()
    return Outcome(code, err.buffer.getvalue().decode(errors="replace"), time.process_time() - started)  # type: ignore[attr-defined]


def faults(cases: Iterator[tuple[str, list[str]]], count: int) -> list[str]:
    """What went wrong with the first `count` of some cases (what was changed, words), each with its input."""
    found = []
    for number in range(count):
        changed, words = next(cases)
        case = f"case {number}: {changed}: {' '.join(map(repr, words))}"
        print(case[:2000], flush=True)  # a case that hangs is the last one
        outcome = ran(words)
        if outcome.fault:
            found.append(f"{case[:3000]}\n    {outcome.fault}\n{outcome.said[-3000:]}")
    return found


# --- originals ----------------------------------------------------------------------------------------------------


class Originals:
    """One valid file of every kind that a command reads, and the commands that read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = image_folder(folder / "images", classes=4, per_class=3, side=16)
        self._networks()
        self._tables()
        self._data()
        for path in RECIPES:
            shutil.copy(path, folder)

    def _networks(self) -> None:
        net, made = tiny_net().eval(), Preprocessing.from_config(DataConfig(image_size=16))
        recipe = Recipe.model_validate({**SMALL, "data": {**SMALL["data"], **self.data_section()}})
        header = {"training_hash": "x", "recipe": recipe.model_dump(mode="json"), "history": [], "conflicts": []}
        for name in ("model.safetensors", "run/model.safetensors"):
            (self.folder / name).parent.mkdir(exist_ok=True)
            save_network(self.folder / name, net, made, **header)
        cut = subnetwork(net, 0.4)
        cut.save(self.folder / "cut.safetensors", made)
        export(cut, self.folder / "edge.safetensors", identity(cut, made))
        cuts = [subnetwork(net, c) for c in (0.2, 1.0)]
        Nested(cuts).save(self.folder / "all.prunnet", identity(cuts[-1], made))
        embed_folder(cut, self.images, made, identity(cut, made))[0].save(self.folder / "emb")

    def _tables(self) -> None:
        run = self.folder / "run"
        trials = ["methods/prunnet/s0", "methods/joint/s0", "upgrade/old/s0", "tuning/prunnet/train.lr=0.1/s0"]
        rows = [
            {**row(q, g), "unit_key": f"{trial}-{q}-{g}", "trial_id": trial, "status": "complete", "threads": 1}
            for trial in trials
            for q in (1.0, 0.6, 0.3)
            for g in (1.0, 0.6, 0.3)
        ]
        results.write_part(run / "results", rows)
        results.pack(run / "results", self.folder / "table.parquet")
        (run / "recipe.yaml").write_text(yaml.safe_dump(SMALL))
        told = {"name": "a sweep", "unit_keys": [r["unit_key"] for r in rows], "failures": [[0.5, "it died"]]}
        history = [{"epoch": 1, "loss_1": 0.5, "seconds": 1.0}]
        told |= {"kept": {"0.5": {"conv1": 0.4}}, "history": history, "conflicts": [{"conv1": 0.1}]}
        (run / "manifest.json").write_text(json.dumps(told))
        objectives = [Quantity(name="mean_cross_map"), Quantity(name="macs_within")]
        values = {"mean_cross_map": 0.5, "macs_within": 7.0}
        trials_ = [Record(n, "complete", {"train.lr": 0.1}, values, ended=f"{n}", trial_id=f"{n}") for n in (1, 2)]
        (self.folder / "search").mkdir()
        found = Findings("s", objectives, trials_, {"mean_cross_map": {"train.lr": 1.0}}, 9.0, values, "a: 1")
        (self.folder / "search" / "search.json").write_text(found.to_json())

    def _data(self) -> None:
        listing = data.whole(DataConfig(**self.data_section()))
        packed.pack(listing, self.folder / "store")
        shutil.make_archive(str(self.folder / "zipped"), "zip", self.images)
        (self.folder / "classes.txt").write_text("top0/class0\ntop0/class1\n")
        (self.folder / "notes.txt").write_text("no image, no table\n")

    def data_section(self) -> dict[str, Any]:
        return {"name": "imagefolder", "root": str(self.images)}

    def readers(self) -> dict[str, list[list[str]]]:
        """File below the folder -> commands that read it."""
        sets = ["--set", "data.image_size=16", "--set", "cluster.storage=runs"]
        files = ["--set", "data.name=imagefolder", "--set", "data.root=images"]
        doctor = ["doctor", "data", "imagefolder"]
        png = sorted(self.images.rglob("*.png"))[0].relative_to(self.folder)
        part = sorted((self.folder / "run" / "results").glob("*.parquet"))[0].relative_to(self.folder)
        listed = ["--set", "data.holdout=list", "--set", "data.test=[classes.txt]"]
        return {
            "model.safetensors": [
                ["embed", "model.safetensors", "images", "--out", "out"],
                ["evaluate", "--query", "model.safetensors", "--gallery", "cut.safetensors"],
                ["sweep", *sets, *files, "--set", "model.checkpoint=model.safetensors"],
                ["sweep", *sets, "--set", "train.old=model.safetensors", "--set", "train.compatible=bct"],
            ],
            "run/model.safetensors": [
                ["export", "run", "--capacity", "0.5", "--to", "out/x.safetensors"],
                ["cost", "run"],
            ],
            "cut.safetensors": [["evaluate", "--query", "cut.safetensors", "--gallery", "model.safetensors"]],
            "edge.safetensors": [["embed", "edge.safetensors", "images", "--out", "out"]],
            "all.prunnet": [["embed", "all.prunnet", "images", "--out", "out", "--capacity", "0.2"]],
            "emb/embeddings.safetensors": [
                ["query", "emb", "emb", "--top", "3"],
                ["query", "emb", "emb", "--sheet", "s.png"],
            ],
            "run/manifest.json": [["report", "run"]],
            str(part): [["report", "run"], ["best", "run"]],
            "search/search.json": [["report", "search"]],
            "table.parquet": [["devices", "table.parquet", "d.png"], ["comparison", "table.parquet", "page.md"]],
            str(png): [[*doctor, "images", "--decode"], ["embed", "edge.safetensors", "images", "--out", "out"]],
            "zipped.zip": [[*doctor, "zipped.zip", "--decode"]],
            "store/manifest.json": [[*doctor, "store"]],
            "store/classes.arrow": [[*doctor, "store"]],
            "store/shard-00000.arrow": [[*doctor, "store", "--decode"]],
            "classes.txt": [["sweep", *sets, *files, *listed]],
        }


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """A file with other content, until the block ends."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


# --- what can be wrong ------------------------------------------------------------------------------------------


TEXTS = [
    "", " ", "0", "-1", "1", "2", "0.5", "1.5", "-0.0", "1e9", "1.0e+9", "1000000000", "9" * 18, "9" * 19, "9" * 30,
    "9" * 5000, ".nan", ".inf", "-.inf", "nan", "inf", "0b_", "0x", "1:30", "2020-13-45", "2020-01-02", "!!bool x",
    "!!python/object/apply:os.system [ls]", "!!binary aGVsbG8=", "&a [*a]", "*a", "<<", "[]", "{}", "[[]]", "[[[1]]]",
    "{a: 1}", "{a: {b: 1}}", "{a: 1, a: 2}", "{1: 2}", "[a]", "[0.5]", "[0.5, 0.5]", "[1, 2, 3]", "[-1]", "[null]",
    "null", "~", "true", "off", "yes", "a", "x" * 300, "x" * 5000, "[" * 200, "{" * 60, "'", '"', '"\\0"', '"\\ud800"',
    "\t", "a: b: c", "[/x]", "[red]", "\x1b[31m", ":cat:", "💥", "\u202e", "\udcff", "ß", "..", "../..", "notes.txt",
    "images", "nowhere", "/proc/x", "/dev/null", "notes.txt/x", "model.safetensors", "run", "table.parquet",
    "nosuch://x", "memory://x", "file:///nowhere", "$HOME", "~nobody-at-all/x", "-", "--", "--set", "%s", "{}[]",
]  # fmt: skip
"""Values for settings and arguments: other types, edges of ranges, YAML's oddities, names that files cannot have."""
PLAIN: list[Any] = [
    None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1.5, 10**9, 2**63, 10**30, "", "a", "x" * 500, "[/x]", "0.5", [], [[]],
    ["a"], [0.5], [1, 2], [None], {}, {"a": 1}, {"a": {"b": [1]}}, {"": 0}, "nowhere", "/proc/x", "\x1b[0m",
]  # fmt: skip
"""Values for places in JSON and YAML files."""


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every node of nested lists and dicts."""
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


def changed_tree(rng: random.Random, tree: Any, times: int = 1) -> Any:
    """Nested lists and dicts with a node replaced, left out, renamed or put elsewhere."""
    tree = json.loads(json.dumps(tree))
    for _ in range(times):
        *above, last = rng.choice([p for p in places(tree) if p] or [(None,)])
        node = tree
        for key in above:
            node = node[key]
        if last is None:
            return rng.choice(PLAIN)
        kind = rng.randrange(5)
        if kind == 0:
            del node[last]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(["", "x", "name", last.upper(), last + "s"])] = node.pop(last)
        elif kind == 2:
            node[last] = rng.choice([node[last], [node[last]], {"a": node[last]}, str(node[last])])
        else:
            node[last] = rng.choice(PLAIN)
    return tree if rng.random() < 0.97 else rng.choice(PLAIN)


def changed_text(rng: random.Random, text: str) -> str:
    """Text with a line, a word or a piece of it changed."""
    lines = text.splitlines(keepends=True) or [""]
    at, kind = rng.randrange(len(lines)), rng.randrange(6)
    if kind == 0:
        lines[at] = lines[at].partition(":")[0] + ": " + rng.choice(TEXTS) + "\n"
    elif kind == 1:
        lines.insert(at, rng.choice(lines))
    elif kind == 2:
        del lines[at]
    elif kind == 3:
        lines[at] = rng.choice([" ", "  ", "\t", "- ", "&a ", "? "]) + lines[at]
    else:
        line = lines[at]
        cut = rng.randrange(len(line) + 1)
        lines[at] = line[:cut] + rng.choice(TEXTS) + line[cut + rng.randrange(3) :]
    return "".join(lines)


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut, repeated, or others put in."""
    kind, at = rng.randrange(6), rng.randrange(len(content) + 1)
    if rng.random() < 0.5:
        at = min(at, rng.randrange(400))  # heads are what is read first
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:]
    if kind == 2:
        return content[:at] + content[at + rng.randrange(1, 99) :]
    if kind == 3:
        return content + content[:at]
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice([1, 1, 4])):
        changed[min(at, len(changed) - 1)] ^= 1 << rng.randrange(8)
        at = rng.randrange(len(changed))
    return bytes(changed)


def changed_header(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header of ours, which is JSON, is another, its tensors the same."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    ours = changed_tree(rng, json.loads(header["__metadata__"]["prunnet"]))
    header["__metadata__"]["prunnet"] = json.dumps(ours)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def changed_table(rng: random.Random, content: bytes) -> bytes:
    """A part of a results table in which some cells of some columns are empty or odd."""
    table = pq.read_table(io.BytesIO(content))
    for _ in range(rng.choice([1, 1, 3])):
        column = rng.choice(table.schema.names)
        odd: list[Any] = [None, math.nan, math.inf, -1.0, 0.0, 1e300]
        if table.schema.field(column).type == "int64":
            odd = [None, 0, -1, 2**62]
        elif table.schema.field(column).type == "string":
            odd = [None, "", "a/b", "[/x]", "\x1b[0m", "0.5,x", ",", "{}", "9" * 400]
        value, often = rng.choice(odd), rng.choice([0.2, 1.0])
        cells = [value if rng.random() < often else cell for cell in table[column].to_pylist()]
        at = table.schema.get_field_index(column)
        table = table.set_column(at, table.schema.field(column), pa.array(cells, table.schema.field(column).type))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def changed_store(rng: random.Random, content: bytes) -> bytes:
    """A packed store's manifest of another shape, with the hash of what it holds."""
    told = json.loads(content)
    del told["sha256"]
    told = changed_tree(rng, told)
    if isinstance(told, dict):
        told["sha256"] = hashing.of_json(told)
    return json.dumps(told).encode()


def changed_progressive(rng: random.Random, content: bytes) -> bytes:
    """A progressive file whose header is another, with its hash."""
    import hashlib

    magic = len(b"PRUNNET\x01")
    (length,) = struct.unpack_from("<Q", content, magic)
    start = magic + 8 + 32
    said = json.dumps(changed_tree(rng, json.loads(content[start : start + length]))).encode()
    head = content[:magic] + struct.pack("<Q", len(said)) + hashlib.sha256(said).digest()
    return head + said + content[start + length :]


# --- cases ----------------------------------------------------------------------------------------------------------


def recipe_cases(rng: random.Random, originals: Originals) -> Iterator[tuple[str, list[str]]]:
    """Recipes that come with prunnet, changed as text or as data."""
    readers = {"search": "search", "methods": "ablation", "finalists": "ablation", "found": "ablation"}
    readers |= {"passes": "ablation", "devices": "ablation", "channel": "ablation"}
    texts = {path: path.read_text(encoding="utf-8") for path in RECIPES}
    searches = [path for path in RECIPES if path.stem.startswith("search")]
    while True:
        path = rng.choice(RECIPES)
        if path in searches and rng.random() < 0.6:  # each valid one takes a third of a second
            continue
        if rng.random() < 0.5:
            text = texts[path]
            for _ in range(rng.choice([1, 1, 3])):
                text = changed_text(rng, text)
        else:
            text = yaml.safe_dump(changed_tree(rng, yaml.safe_load(texts[path]), rng.choice([1, 1, 3])))
        content = text.encode("utf-8", "surrogateescape")
        if rng.random() < 0.05:
            content = changed_bytes(rng, content)
        (originals.folder / "recipe.yaml").write_bytes(content)
        command = readers.get(path.stem.partition("_")[0], "sweep")
        if rng.random() < 0.05:
            command = rng.choice(["sweep", "search", "ablation", "layerwise"])
        more = ["--list"] if command == "ablation" else []
        yield f"of {path.name}:\n{text[:1500]}\n", ["prunnet", command, "--recipe", "recipe.yaml", *more]


def setting_cases(rng: random.Random, originals: Originals) -> Iterator[tuple[str, list[str]]]:
    """Settings of every key of a recipe, and of keys that it does not have."""
    plain = Recipe().model_dump(mode="json")
    keys = [f"{section}.{key}" for section, value in plain.items() if isinstance(value, dict) for key in value]
    keys += [*plain, "", ".", "a.b.c.d", "data.", ".name", "train.lr.x", "model.options.channels", "[/x]", "x" * 300]
    fixed = [f"data.root={originals.images}", "data.name=imagefolder", "data.image_size=16", "cluster.storage=runs"]
    fixed += ["model.options={channels: [8, 8, 16, 32]}", "model.stem=released"]
    usual = [arg for each in fixed for arg in ("--set", each)]
    commands_ = [["sweep"]] * 6 + [["layerwise"]] * 2 + [["ablation", "--list"], ["pack", "imagefolder", "images", "p"]]
    commands_ += [["doctor", "data", "imagefolder", "images"], ["export", "run", "--capacity", "1", "--to", "o.onnx"]]
    commands_ += [["evaluate", "--query", "cut.safetensors", "--gallery", "cut.safetensors"]]
    while True:
        words = rng.choice(commands_)
        sets = []
        for _ in range(rng.choice([1, 1, 2])):
            equals = "=" if rng.random() < 0.97 else rng.choice(["", ":", "=="])
            sets += ["--set", rng.choice(keys) + equals + rng.choice(TEXTS)]
        yield "setting", ["prunnet", *words, *usual, *sets]


def command_cases(rng: random.Random, originals: Originals) -> Iterator[tuple[str, list[str]]]:
    """Command lines of every subcommand with some argument or option wrong, missing or too many."""
    valid = [words for commands_ in originals.readers().values() for words in commands_]
    valid += [
        ["doctor", "backbone", "resnet18", "--image-size", "32", "--channels", "1"],
        ["pack", "imagefolder", "images", "packed"],
        ["export", "model.safetensors", "--progressive", "0.2,1.0", "--to", "out/a.prunnet"],
        ["best", "run", "--macs", "5e6", "--min-recall", "0.1", "--metric", "map", "--device", "cpu", "--bytes", "9"],
        ["cost", "run", "--capacity", "0.5", "--runtime", "eager", "--threads", "1", "--seconds", "0.1", "--json"],
        ["cost", "run", "--device", "cpu"],
        ["query", "emb", "emb", "--top", "2", "--csv", "out/a.csv", "--rows", "2"],
        ["embed", "edge.safetensors", "images", "--out", "out", "--batch-size", "4", "--skip-unreadable"],
        [
            "layerwise",
            "--budget",
            "0.2",
            "--evaluations",
            "3",
            "--grouping",
            "layer",
            "--sampler",
            "tpe",
            "--seed",
            "1",
        ],
        ["evaluate", "--query", "cut.safetensors", "--gallery", "cut.safetensors", "--split", "test", "--json"],
        ["evaluate", "--query", "model.safetensors", "--gallery", "model.safetensors", "--query-capacity", "0.5"],
        ["ablation", "--list", "--device", "cpu"],
        ["report", "run"],
    ]
    while True:
        words = list(rng.choice(valid))
        for _ in range(rng.choice([1, 1, 2])):
            at, kind = rng.randrange(len(words)), rng.randrange(6)
            if kind == 0 and len(words) > 1:
                del words[at]
            elif kind == 1:
                words.insert(at, rng.choice(words))
            elif kind == 2:
                words.append(rng.choice(["--json", "--set", "--fresh", "--help", "--top", "--", "-x", "--no-measure"]))
            else:
                words[at] = rng.choice(TEXTS)
        if "\0" not in " ".join(words):
            entry = [] if words[0] in ("devices", "comparison") else ["prunnet"]
            yield "command line", [*entry, *words]


def file_cases(rng: random.Random, originals: Originals) -> Iterator[tuple[str, list[str]]]:
    """Every kind of file, damaged or foreign, given to each command that reads it."""
    readers = originals.readers()
    bodies = {name: (originals.folder / name).read_bytes() for name in readers}
    while True:
        name = rng.choice(list(readers))
        body, path = bodies[name], originals.folder / name
        kind = rng.randrange(10)
        if kind == 0:
            content = rng.choice([*bodies.values(), b"", b"\0" * 64, b"{}", b"[]", b"null", b"[" * 100_000])
        elif name.endswith(".parquet") and kind > 3:
            content = changed_table(rng, body)
        elif name.endswith(".json"):
            as_data = changed_store if name.startswith("store") else _changed_json
            content = as_data(rng, body) if kind > 2 else changed_bytes(rng, body)
        elif name.endswith(".safetensors") and kind > 4:
            content = changed_header(rng, body)
        elif name.endswith(".prunnet") and kind > 4:
            content = changed_progressive(rng, body)
        else:
            content = changed_bytes(rng, body)
        words = rng.choice(readers[name])
        with replaced(path, content):
            entry = [] if words[0] in ("devices", "comparison") else ["prunnet"]
            shutil.rmtree(originals.folder / "out", ignore_errors=True)
            yield f"{name}: {content[:300]!r} ({len(content)} bytes)", [*entry, *words]


def _changed_json(rng: random.Random, content: bytes) -> bytes:
    return json.dumps(changed_tree(rng, json.loads(content), rng.choice([1, 1, 2]))).encode()


def odd_files(folder: Path) -> None:
    """Images with names that terminals and pipes take for something else."""
    (folder / "[").mkdir()
    for name in ("shoe [blue].png", "[/x].png", ":cat:.png", "tab\there.png", "line\nend.png", "\x1b[31mred.png"):
        Image.new("L", (16, 16), len(name)).save(folder / name)
