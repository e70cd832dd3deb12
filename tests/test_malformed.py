"""A thousand malformed inputs: each ends in one line and a documented exit code, soon."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from tests.malformed import (
    Originals,
    command_cases,
    cut_off_the_work,
    faults,
    file_cases,
    recipe_cases,
    setting_cases,
)

Cases = Callable[[random.Random, Originals], Iterator[tuple[str, list[str]]]]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return Originals(tmp_path_factory.mktemp("far") / "from" / "home" / "work")


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("cases", "count"), [(recipe_cases, 250), (setting_cases, 300), (command_cases, 250), (file_cases, 250)]
)
def test_malformed_inputs_end_in_one_line(
    cases: Cases, count: int, originals: Originals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15, "Done when" 2: no traceback, no hang, no exit code that is not documented. Python and the seed alone
    decide the cases, so that a failure comes again; PRUNNET_MALFORMED_SEED=7 draws others."""
    monkeypatch.chdir(originals.folder)
    monkeypatch.setenv("COLUMNS", "400")
    cut_off_the_work(monkeypatch)
    found = faults(cases(random.Random(int(os.environ.get("PRUNNET_MALFORMED_SEED", "15"))), originals), count)
    assert not found, f"{len(found)} of {count}:\n" + "\n".join(found)
