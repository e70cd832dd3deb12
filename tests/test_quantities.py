"""What a search measures, by hand; and what it makes of its trials."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from analysis import plots, search_page, search_plots
from analysis import search as found
from analysis.quantities import Quantity, dense_self_test
from prunnet.errors import ResultsError

CAPACITIES = {1.0: (100, 0.80), 0.5: (60, 0.78), 0.2: (30, 0.70)}
"""Capacity -> MACs and cross-test mAP; a tenth less in its own gallery."""


def rows(table: dict[float, tuple[float, float]] = CAPACITIES) -> list[dict[str, Any]]:
    tests = []
    for capacity, (macs, value) in table.items():
        common = {"query_capacity": capacity, "gallery_source": "own", "protocol": "leave_one_out"}
        cost = {"macs": macs, "macs_dense": 100, "recall_at_1": value}
        tests.append({**common, **cost, "gallery_capacity": 1.0, "map": value})
        if capacity != 1.0:
            tests.append({**common, **cost, "gallery_capacity": capacity, "map": value - 0.1})
    return tests


def test_the_mean_over_capacities() -> None:
    assert Quantity(name="mean_cross_map").of(rows()) == pytest.approx((0.80 + 0.78 + 0.70) / 3)


@pytest.mark.parametrize(
    ("tolerance", "reference", "expected"),
    [(0.02, 0.80, 60), (0.10, 0.80, 30), (0.0, 0.80, 100), (0.02, 0.95, 100), (0.0, 0.5, 30)],
)
def test_the_cheapest_capacity_within_a_tolerance_of_the_baseline(
    tolerance: float, reference: float, expected: float
) -> None:
    assert Quantity(name="macs_within", tolerance=tolerance + 1e-9).of(rows(), reference) == expected
    assert Quantity(name="macs_within", tolerance=tolerance + 1e-9, reference=reference).of(rows(), 0.1) == expected


def test_hypervolume_is_the_area_under_the_stairs() -> None:
    # MACs saved on one axis, accuracy on the other: 0.7 is to be had at 30 of 100, 0.78 at 60; dense saves none.
    assert Quantity(name="hypervolume").of(rows()) == pytest.approx(0.7 * 0.3 + 0.78 * 0.4)


def test_any_column_at_a_capacity() -> None:
    assert Quantity(name="recall_at_1", capacity=0.2).of(rows()) == 0.70
    assert Quantity(name="map", capacity=0.2, gallery="own").of(rows()) == pytest.approx(0.60)
    assert Quantity(name="macs", capacity=0.5).of(rows()) == 60
    assert not Quantity(name="macs", capacity=0.5).higher
    assert dense_self_test(rows()) == 0.80


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_value_that_cannot_be_compared_is_said(value: float | None) -> None:
    broken = [{**row, "map": value} for row in rows()]
    for name in ("mean_cross_map", "hypervolume"):
        with pytest.raises(ResultsError, match=f"objective {name} is"):
            Quantity(name=name).of(broken)
    with pytest.raises(ResultsError, match=r"sweep\.capacities must hold it"):
        Quantity(name="map", capacity=0.3).of(rows())


TWO = (Quantity(name="mean_cross_map"), Quantity(name="macs_within"))


def record(number: int, worth: float, cost: float, **more: Any) -> found.Record:
    values = {"mean_cross_map": worth, "macs_within": cost}
    return found.Record(number, "complete", {}, values, ended=f"2026-01-01T00:00:{number:02d}", **more)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=10))
def test_the_front_holds_what_nothing_feasible_dominates(given: list[tuple[int, int, bool]]) -> None:
    records = [record(i, w, c, feasible=ok) for i, (w, c, ok) in enumerate(given)]
    chosen = found.best_front(records, TWO)
    able = [r for r in records if r.feasible]
    for one in able:
        beaten = any(found.dominates(other, one, TWO) for other in able)
        assert beaten != any(c.values == one.values for c in chosen)
    assert len({tuple(r.values.values()) for r in chosen}) == len(chosen)
    assert all(r.feasible for r in chosen)


def test_stopped_and_failed_trials_stay_out_of_the_front() -> None:
    records = [
        record(0, 0.5, 50),
        found.Record(1, "stopped", {}, {}, epoch=1),
        found.Record(2, "failed", {}, {}, reason="it diverged"),
        record(3, 0.9, 10, feasible=False),
    ]
    assert [r.number for r in found.best_front(records, TWO)] == [0]
    lines = found.table(records, TWO)
    assert [line[1] for line in lines] == ["front", "beyond a limit", "stopped after epoch 1", "failed: it diverged"]


def test_the_front_only_grows() -> None:
    records = [record(0, 0.5, 50), record(1, 0.4, 80), record(2, 0.6, 20), found.Record(3, "stopped", {}, ended="2027")]
    grown = found.growth(records, TWO, worst_cost=100)
    assert [n for n, _ in grown] == [1, 2, 3, 4]
    assert [v for _, v in grown] == pytest.approx([0.5 * 0.5, 0.5 * 0.5, 0.6 * 0.8, 0.6 * 0.8])
    one = found.growth(records, TWO[:1], worst_cost=100)
    assert [v for _, v in one] == pytest.approx([0.5, 0.5, 0.6, 0.6])


def study_of(trials: int) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(trials):
        trial = study.ask()
        x, kind = (
            trial.suggest_float("train.lr", 0, 1),
            trial.suggest_categorical("train.weighting", ["mean", "cosine"]),
        )
        trial.set_user_attr("changes", {"train.lr": x, "train.weighting": kind})
        if kind == "cosine":
            trial.suggest_float("train.exponent", 0, 1)
        if number % 4 == 3:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        trial.set_constraint("macs", x - 0.9)
        study.tell(trial, [x, 100 * x * x])
    return study


def test_records_figures_and_page() -> None:
    study = study_of(16)
    records = [found.record_of(t, TWO) for t in study.get_trials()]
    assert [r.feasible for r in records if r.state == "complete"] == [
        t.params["train.lr"] <= 0.9 for t in study.get_trials() if t.values
    ]
    shares = found.importances(study, TWO)
    assert set(shares) == {"mean_cross_map", "macs_within"}
    assert shares["mean_cross_map"]["train.lr"] > shares["mean_cross_map"]["train.weighting"]
    assert found.importances(study_of(3), TWO) == {}
    baseline = {"mean_cross_map": 0.4, "macs_within": 30.0}
    findings = found.Findings("A <search>", list(TWO), records, shares, 100.0, baseline, "b: 1")
    again = found.Findings.from_json(findings.to_json())
    assert again == findings
    assert b"<svg" in plots.rendered(search_plots.figure(again), "svg")["svg"]
    text = search_page.render(again, command="c")
    assert "A &lt;search&gt;" in text
    own = text.replace(get_plotlyjs(), "")
    assert "http" not in own
    assert all(f'data-figure="{name}"' in own for name in ("trials", "growth", "importances"))


def test_a_search_that_has_found_nothing_yet_still_has_a_page() -> None:
    nothing = found.Findings("s", TWO, [found.Record(0, "failed", {}, reason="it diverged")], {}, 1.0, None, "")
    text = search_page.render(nothing, command="c")
    assert "it diverged" in text
    assert "The best recipe" not in text
