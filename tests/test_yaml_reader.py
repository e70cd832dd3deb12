"""YAML of recipes is plain data or refused in one line, soon, whatever the text is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prunnet.config.recipe import load_recipe
from prunnet.errors import ECHO, ConfigError, echo
from prunnet.storage.yaml_reader import MAX_BYTES, parse_yaml, read_yaml
from sweeps.ablation_recipe import load_ablation
from sweeps.search_recipe import load_search
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "sweeps" / "recipes").glob("*.yaml"))
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_as_pyyaml_reads_it(path: Path) -> None:
    assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0b_", "line 1: '0b_' is no int"),
        ("!!bool x", "line 1: 'x' is no bool"),
        ("!!float x", "is no float"),
        ("!!int ''", "is no int"),
        ("9" * 5000, "a number of 5,000 characters; valid: up to 64"),
        ("1" + ":59" * 2000, "a number of"),
        ("9223372036854775808", "does not fit 64 bits"),
        (".inf", "'.inf' is not a finite number"),
        ("- .nan", "'.nan' is not a finite number"),
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' stands twice"),
        ("x: {a: 1, a: 2}", "line 1: key 'a' stands twice"),
        ("off: 1", "key False is not text; put it in quotes"),
        ("? [1, 2]\n: 3", "key [1, 2] is not text"),
        ("&a [*a]", "an alias holds itself"),
        (BOMB, "aliases make more than 50,000 values"),
        ("[" * 10_000, "nested deeper than 50 levels"),
        ("- a\n" * 60_000, "more than 50,000 values"),
        ("!!python/object/apply:os.system [ls]", "tag 'python/object/apply:os.system' is not used in recipes"),
        ("!!binary aGVsbG8=", "tag 'binary' is not used"),
        ('"\\0"', "which no file name can have"),
        ('"\\ud800"', "which no file name can have"),
        ("a: b: c", "in line 1, column 5"),
        ("---\na\n---\nb", "is not YAML"),
    ],
)
def test_what_is_no_plain_data_is_refused_in_one_line(text: str, says: str) -> None:
    """Issue 15, number 16: PyYAML's constructors raised what they liked, aliases grew, keys won twice."""
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "X")
    said = str(caught.value)
    assert said.startswith("X")
    assert says in said
    assert "\n" not in said
    assert len(said) < 600
    assert time.process_time() - started < 20


def test_plain_data_stay_as_they_are() -> None:
    """Issue 15, number 16: dates are text, aliases are copies, merged keys may be given again."""
    text = "a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  b: 3\ne: 2020-10-01\nf: 2020-13-45\ng: [yes, null, 1_000, 0.5, =]"
    found = parse_yaml(text, "X")
    assert found == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 3},
        "e": "2020-10-01",
        "f": "2020-13-45",
        "g": [True, None, 1000, 0.5, "="],
    }
    found["a"]["b"] = 2
    assert found["c"] == {"b": 1}


@given(st.text(max_size=60))
def test_any_text_is_data_or_one_line(text: str) -> None:
    try:
        yaml.safe_dump(parse_yaml(text, "X"))
        said = ""
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("load", [load_recipe, load_search, load_ablation])
def test_every_kind_of_recipe_is_read_so(load, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Issue 15, number 16: one reader for sweeps, searches and ablations."""
    path = tmp_path / "recipe.yaml"
    for text, says in (
        ("name: a\nname: b", "line 2: key 'name' stands twice"),
        ("name: 0b_", "'0b_' is no int"),
        ("\xff", "not UTF-8 at byte 0"),
        ("x" * (MAX_BYTES + 1), "bytes; valid: up to 1,048,576"),
        ("- 1", "recipe"),
    ):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match="recipe.yaml") as caught:
            load(path)
        assert says in str(caught.value)
    with pytest.raises(ConfigError, match="is not a file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lr=" + "9" * 5000, "a number of 5,000 characters"),
        ("train.lr=!!bool x", "'x' is no bool"),
        ("train.epochs=" + "x" * 5000, "…"),
        ("train.capacities=[" + "0.5," * 3000 + "]", "…"),
        ("x" * 5000 + "=1", "…"),
        ("train.epochs=9223372036854775807", "less than"),
        ("train.lr=1e400", "train.lr"),
        ("sweep.capacities=[" + "a," * 500 + "]", "492 more"),
        ("data.test_fraction={a: [1, 2]}", "data.test_fraction"),
    ],
)
def test_values_are_echoed_in_part(override: str, says: str) -> None:
    """Issue 15, number 16: a message repeats 200 characters of a value at most."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert len(echo(override)) <= ECHO + 1
