"""What commands print: names as they are, whole lines in pipes, any encoding, and one line for every mistake."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from rich.errors import MarkupError
from safetensors import SafetensorError

from prunnet.data.transforms import Preprocessing
from prunnet.errors import ConfigError
from prunnet.export.embedding_sets import embed_folder
from prunnet.export.formats import export, identity
from prunnet.storage.atomic import check_output
from prunnet.subnetworks.subnet import subnetwork
from sweeps import cli
from sweeps.printing import Console, Table
from sweeps.run import one_line_errors
from tests.conftest import REPOSITORY, image_folder, tiny_net
from tests.malformed import odd_files, ran

NAMES = ("shoe [blue].png", "[/x].png", ":cat:.png", r"tab\there.png", r"line\nend.png", r"\x1b[31mred.png")
PREPROCESSING = Preprocessing(16, 16, 1, False, (0.5,), (0.5,))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export, images of odd names, and their embeddings."""
    folder = tmp_path_factory.mktemp("odd")
    images = image_folder(folder / "images", classes=2, per_class=2, side=16)
    odd_files(images / "top0" / "class0")
    cut = subnetwork(tiny_net().eval(), 0.4)
    said = identity(cut, PREPROCESSING)
    export(cut, folder / "edge.safetensors", said)
    embed_folder(cut, images, PREPROCESSING, said)[0].save(folder / "emb")
    return folder


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """The output of a command that must succeed."""
    monkeypatch.setattr("sys.argv", ["prunnet", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    found = capsys.readouterr()
    assert not ended.value.code, found.err
    return found.out


def test_names_are_printed_as_they_are_on_whole_lines(
    embedded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15, number 15: `shoe [blue].png` lost a word, `[/x]` was a traceback, a pipe got lines of 80 columns."""
    lines = printed(capsys, monkeypatch, "query", embedded / "emb", embedded / "emb", "--top", 12).splitlines()
    cells = [line.split("\t") for line in lines]
    assert cells[0] == ["query", "rank", "gallery", "similarity"]
    assert {len(line) for line in cells} == {4}
    assert len(cells) == 1 + 10 * 10
    for name in NAMES:
        assert sum(line[0] == f"top0/class0/{name}" for line in cells) == 10
        assert sum(line[2] == f"top0/class0/{name}" for line in cells) == 10


def test_every_command_takes_such_names(
    embedded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Issue 15, number 15: in `doctor data` and `embed`, in notes, and in what they write."""
    bad = embedded / "images" / "top0" / "class1" / "[bad] [red].png"
    bad.write_bytes(b"no image")
    try:
        assert ran(["prunnet", "doctor", "data", "imagefolder", str(embedded / "images"), "--decode"]).code == 1
        edge, images, out = embedded / "edge.safetensors", embedded / "images", tmp_path / "[/x]"
        said = printed(capsys, monkeypatch, "embed", edge, images, "--out", out, "--skip-unreadable")
    finally:
        bad.unlink()
    assert "left out: top0/class1/[bad] [red].png" in said
    assert f"{out}/embeddings.safetensors: 10 embeddings of length 16" in said
    sheet = tmp_path / "[/sheet].png"
    written = printed(capsys, monkeypatch, "query", out, out, "--csv", tmp_path / "[b].csv", "--sheet", sheet)
    assert f"{tmp_path}/[b].csv: {10 * 10} answers" in written
    assert sheet.stat().st_size
    assert "shoe [blue].png" in (tmp_path / "[b].csv").read_text()


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_any_encoding_of_the_terminal_will_do(variables: dict[str, str]) -> None:
    """Issue 15, number 15: an encoding without a character shows an escape."""
    script = (
        "from sweeps.printing import Console, Table\n"
        "console, table = Console(), Table('gr\\u00f6\\u00dfe', title='\\u03b1')\n"
        "table.add_row('shoe \\u2192 \\udcff')\n"
        "console.print('na\\u00efve', table)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.decode().splitlines()
    assert len(lines) == 4
    assert r"\udcff" in lines[-1]


def test_a_terminal_gets_columns_and_no_control_characters() -> None:
    """Issue 15, number 15: an escape in a name must not move the cursor."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=60, color_system=None)
    table = Table("name", "rank", title="\x1b[2J")
    table.add_row("[bold]\x1b[2J :cat: \u202egnp.x", "1")
    console.print(table)
    assert "\x1b[2J" not in stream.getvalue()
    assert r"[bold]\x1b[2J :cat: \u202egnp.x" in stream.getvalue()


def test_a_reader_that_stops_reading_ends_nothing() -> None:
    """Issue 15, number 14: `prunnet query … | head -1`, and a job whose log's reader has gone, go on to their end."""
    script = (
        "from sweeps.printing import Console, print_json\n"
        "from sweeps.run import one_line_errors\n"
        "import sys\n"
        "with one_line_errors():\n"
        "    for _ in range(20000): Console().print('a line of some length, again and again')\n"
        "    print_json({'a': 1}); print('the end', file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    head = f'{sys.executable} -c "$SCRIPT" | head -1; exit ${{PIPESTATUS[0]}}'
    found = subprocess.run(
        ["bash", "-c", head], capture_output=True, text=True, env={**environment, "SCRIPT": script}, check=False
    )
    assert found.stdout.count("\n") == 1
    assert (found.returncode, found.stderr) == (0, "the end\n")
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert (found.returncode, found.stderr) == (2, "error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        RuntimeError("out of\nluck"),
        SafetensorError("header"),
        pa.ArrowInvalid("parquet"),
        pa.ArrowKeyError("column"),
        MarkupError("[/x]"),
        MemoryError(),
        RecursionError("too deep"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    ],
)
def test_what_files_and_services_raise_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 15, number 14: in every command, as in the jobs before."""
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert len(line) > len("error: ")


def test_a_bug_of_ours_is_none_of_them() -> None:
    with pytest.raises(TypeError), one_line_errors():
        raise TypeError("a bug")


@pytest.mark.parametrize("command", ["export", "embed", "csv", "sheet", "pack"])
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    command: str, embedded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Issue 15, number 14: a folder, a place below a file, /proc, a suffix that is not known."""

    def worked(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    for work in ("Source.of", "_opened", "EmbeddingSet.load"):
        monkeypatch.setattr(f"sweeps.export.{work}", worked)
    monkeypatch.setattr("sweeps.pack.data.whole", worked)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder in ("dir/embeddings.safetensors", "dir/manifest.json", "dir.onnx", "dir.png"):
        (tmp_path / folder).mkdir(parents=True)
    words = {
        "export": ["export", "run", "--capacity", "0.4", "--to", "OUT.onnx"],
        "embed": ["embed", "edge", "images", "--out", "OUT"],
        "csv": ["query", "emb", "emb", "--csv", "OUT"],
        "sheet": ["query", "emb", "emb", "--sheet", "OUT.png"],
        "pack": ["pack", "imagefolder", "images", "OUT"],
    }[command]
    for place in ("dir", "file/x", "/proc/x", "/proc/x/y", "link/x", "x" * 300):
        asked = [word.replace("OUT", str(tmp_path / place)) for word in words]
        outcome = ran(["prunnet", *asked])
        assert outcome.code == 2, (asked, outcome.said)
        assert "cannot be written (" in outcome.said
        assert len(outcome.said.splitlines()) == 1
    if command in ("export", "sheet"):
        asked = [f"{tmp_path}/x.gif" if word.startswith("OUT") else word for word in words]
        assert "valid: a name that ends in" in ran(["prunnet", *asked]).said


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folder" / "file", "--to")
    (tmp_path / "file").write_text("kept")
    check_output(tmp_path / "file", "--to")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ConfigError, match="--to .* cannot be written"):
        check_output(tmp_path / "a\0b", "--to")
