"""The tables of docs/evidence still read, and what they hold still counts as finished."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import TypeAdapter

from analysis.search import Record
from prunnet import results
from prunnet.results.table import check_tests
from sweeps.ablation_recipe import load_ablation
from sweeps.run import RECIPES
from tests.conftest import REPOSITORY

EVIDENCE = REPOSITORY / "docs" / "evidence"
TABLES = sorted(path.stem for path in EVIDENCE.glob("*.parquet"))
ABLATIONS = sorted(path.stem for path in RECIPES.glob("*.yaml") if "\nseeds:" in path.read_text())


@pytest.mark.parametrize("name", TABLES)
def test_a_table_reads(name: str) -> None:
    path = EVIDENCE / f"{name}.parquet"
    table = results.read_packed(path)
    check_tests(table, path)
    assert table.num_rows > 0
    assert set(table["status"].to_pylist()) <= {"complete", "partial"}


def test_a_search_reads() -> None:
    records = TypeAdapter(list[Record]).validate_json((EVIDENCE / "search_omniglot.json").read_bytes())
    assert {record.trial_id for record in records if record.state == "complete"} <= {
        *results.read_packed(EVIDENCE / "search_omniglot.parquet")["trial_id"].to_pylist()
    }


@pytest.mark.parametrize("name", ABLATIONS)
def test_finished_trials_count_as_finished(name: str) -> None:
    ablation = load_ablation(RECIPES / f"{name}.yaml")
    table = results.read_packed(EVIDENCE / f"{name}.parquet")
    rows = Counter(table["trial_id"].to_pylist())
    trials = [
        *ablation.tuning(),
        *ablation.tuning(taught=True, table=table),
        *ablation.methods_trials(table),
        *ablation.variants_trials(table),
        *ablation.upgrade_trials(table),
    ]
    unfinished = {trial.name for trial in trials if rows[trial.id] < ablation.rows_of(trial)}
    # Those that match an old network were trained before its own statistics counted (docs/RESULTS.md).
    redefined = {trial.name for trial in ablation.upgrade_trials(table) if trial.old is not None}
    assert trials
    assert unfinished <= redefined
    assert all(name.startswith("upgrade/") for name in unfinished)
