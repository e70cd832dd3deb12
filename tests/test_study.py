"""The ledger of a search: how trials end, how interrupted ones are taken up, what a killed writer leaves; on a journal
file and on PostgreSQL."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from analysis import search as found
from cluster.search import FAILED, LIMIT, VALUE, Job, Ledger, scheduler
from prunnet.config.trial import Trial
from prunnet.errors import ConfigError
from prunnet.storage.paths import place
from sweeps.search import trial_at, why_ended
from sweeps.search_recipe import Search, SearchFile
from sweeps.study import JOURNAL, open_study
from tests.postgres import postgres, programs


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    if programs() is None:
        pytest.skip("PostgreSQL's initdb is not installed (.ci/packages.txt names the package)")
    with postgres() as url:
        yield url


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "journal" else request.getfixturevalue("database")


def search(storage: str | None = None, **more: Any) -> Search:
    file = {
        "name": "s",
        "base": {"train": {"epochs": 4}},
        "space": {"train.lr": {"low": 0.01, "high": 1.0, "log": True}, "train.weighting": ["mean", "cosine"]},
        "storage": storage,
        "trials": 8,
        **more,
    }
    return Search(SearchFile.model_validate(file))


def job(folder: Path) -> Job:
    return Job(str(folder), lambda rows: ({}, {}), None, None)


def ledger(asked: Search, study: optuna.Study, folder: Path) -> tuple[Ledger, list[Any]]:
    ended: list[Any] = []
    names = [q.label for q in asked.file.objectives]
    return Ledger(study, names, lambda trial: trial_at(asked, trial), ended.append, job(folder)), ended


def complete(worth: float, macs: float, **more: float) -> dict[str, Any]:
    return {VALUE + "mean_cross_map": worth, VALUE + "macs_within": macs, **more}


def test_every_end_is_told_as_what_it_is(storage: str | None, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    asked = search(storage, name=request.node.name.replace("[", "-").replace("]", ""))
    study = open_study(asked, tmp_path)
    book, ended = ledger(asked, study, tmp_path)
    configs = {name: book.suggest(name) for name in "abcdef"}
    assert [config["name"] for config in configs.values()] == [f"search/{n:04d}" for n in range(6)]
    book.on_trial_complete("a", complete(0.7, 1e6, **{LIMIT + "macs": -1.0}))
    book.on_trial_complete("b", complete(0.9, 1e6, **{LIMIT + "macs": 5.0}))
    book.on_trial_complete("c", {"epoch": 2, "score": 0.3})
    book.on_trial_complete("d", {FAILED: "it diverged"})
    trial = Trial(configs["e"]["name"], asked.recipe(study.trials[4].user_attrs["changes"]))
    job(tmp_path).note_error(trial, MemoryError("no room"))
    book.on_trial_complete("e", {"epoch": 1, "score": 0.1}, error=True)
    book.on_trial_complete("f", {})
    records = [found.record_of(t, asked.file.objectives) for t in open_study(asked, tmp_path).trials]
    assert [r.state for r in records] == ["complete", "complete", "stopped", "failed", "failed", "failed"]
    assert [r.feasible for r in records[:2]] == [True, False]
    assert [r.reason for r in records[3:]] == [
        "it diverged",
        "MemoryError: no room",
        "the trial's process died without an error message",
    ]
    assert records[2].epoch == 2
    assert [r.number for r in found.best_front(records, asked.file.objectives)] == [0]
    assert len(ended) == 6
    # And what was told serves the sampler: it goes on proposing.
    assert book.suggest("g")["name"] == "search/0006"


def test_interrupted_trials_are_taken_up_under_their_numbers(
    storage: str | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    asked = search(storage, name=request.node.name.replace("[", "-").replace("]", ""))
    book, _ = ledger(asked, open_study(asked, tmp_path), tmp_path)
    before = [book.suggest(name) for name in "abc"]
    book.on_trial_complete("b", complete(0.5, 1e6))
    # The driver is killed; another begins.
    study = open_study(asked, tmp_path)
    again, _ = ledger(asked, study, tmp_path)
    after = [again.suggest(name) for name in "xyz"]
    assert after[:2] == [before[0], before[2]]
    assert after[2]["name"] == "search/0003"
    for name in "xyz":
        again.on_trial_complete(name, complete(0.5, 1e6))
    assert [t.state for t in study.get_trials()] == [TrialState.COMPLETE] * 4


@pytest.mark.parametrize("name", ["random", "tpe"])  # NSGA-II may well cross its way back to a point
def test_a_resumed_search_draws_no_point_twice(name: str, tmp_path: Path) -> None:
    asked = search(sampler={"name": name, "seed": 3})
    points = []
    for _ in range(3):  # three drivers, each killed after two trials
        book, _ = ledger(asked, open_study(asked, tmp_path), tmp_path)
        for tune_id in "ab":
            points.append(book.suggest(tune_id)["recipe"]["train"]["lr"])
            book.on_trial_complete(tune_id, complete(0.5, 1e6))
    assert len(set(points)) == 6


def test_fresh_forgets_the_study(storage: str | None, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    asked = search(storage, name=request.node.name.replace("[", "-").replace("]", ""))
    book, _ = ledger(asked, open_study(asked, tmp_path), tmp_path)
    book.suggest("a")
    assert len(open_study(asked, tmp_path).trials) == 1
    assert len(open_study(asked, tmp_path, fresh=True).trials) == 0


def test_a_point_that_is_no_recipe_fails_and_the_next_is_proposed(tmp_path: Path) -> None:
    asked = search()
    study = open_study(asked, tmp_path)
    refusals = iter([True, True, False])

    def sometimes(trial: optuna.Trial) -> Trial:
        ready = trial_at(asked, trial)
        if next(refusals):
            raise ConfigError("train.lr is odd")
        return ready

    book = Ledger(study, ["mean_cross_map", "macs_within"], sometimes, lambda trial: None, job(tmp_path))
    assert book.suggest("a")["name"] == "search/0002"
    assert [t.state.name for t in study.trials] == ["FAIL", "FAIL", "RUNNING"]
    assert study.trials[0].user_attrs["reason"] == "train.lr is odd"


def test_what_a_killed_writer_leaves_of_a_journal_is_mended(tmp_path: Path) -> None:
    asked = search()
    book, _ = ledger(asked, open_study(asked, tmp_path), tmp_path)
    book.suggest("a")
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    for cut in (1, 5, 20):
        path.write_bytes(whole + whole.splitlines(keepends=True)[-1][:-cut])
        (tmp_path / f"{JOURNAL}.lock").symlink_to(path)
        study = open_study(asked, tmp_path)  # without waiting for the lock's grace period of 30 s
        assert len(study.trials) == 1
        assert path.read_bytes().startswith(whole)
        path.write_bytes(whole)


def _ask(asked: Search, folder: Path, count: int) -> None:
    study = open_study(asked, folder)
    for _ in range(count):
        trial = study.ask()
        asked.suggest(trial)
        study.tell(trial, [0.1, 1.0])


def test_postgresql_takes_several_writers(database: str, tmp_path: Path) -> None:
    asked = search(database, name="writers")
    open_study(asked, tmp_path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_ask, args=(asked, tmp_path, 5)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(t.number for t in open_study(asked, tmp_path).trials) == list(range(15))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("no url at all", "is no database URL"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/db", "cannot be used"),
        ("nosuchdb://x/y", "cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_said_without_its_password(url: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        open_study(search(url), tmp_path)
    assert "secret" not in str(caught.value)


def test_a_journal_needs_a_folder_of_this_machine() -> None:
    with pytest.raises(ConfigError, match="set `storage` to a database"):
        open_study(search(), place("memory://runs"))


def finish(book: Ledger, name: str, worth: float, macs: float, **more: float) -> None:
    assert book.suggest(name) != Searcher.FINISHED
    book.on_trial_complete(name, complete(worth, macs, **more))


def test_a_search_that_stalls_starts_no_trial_and_a_resumed_one_decides_the_same(
    storage: str | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    asked = search(storage, name=request.node.name.replace("[", "-").replace("]", ""), patience=3)

    def begin(asked: Search) -> tuple[Ledger, optuna.Study]:
        study = open_study(asked, tmp_path)
        names = [q.label for q in asked.file.objectives]
        enough = lambda: bool(why_ended(asked, study))  # noqa: E731
        return Ledger(study, names, partial(trial_at, asked), lambda trial: None, job(tmp_path), enough), study

    book, _ = begin(asked)
    finish(book, "a", 0.5, 100)
    finish(book, "b", 0.4, 90)  # less accurate and cheaper: a new point of the front
    finish(book, "c", 0.9, 10, **{LIMIT + "macs": 1.0})  # beyond a limit
    book.suggest("d")
    book.on_trial_complete("d", {FAILED: "it diverged"})  # says nothing
    book.suggest("e")
    book.on_trial_complete("e", {"epoch": 1, "score": 0.1})
    assert book.suggest("running") != Searcher.FINISHED
    finish(book, "f", 0.4, 90)  # no better than b
    assert book.suggest("g") == Searcher.FINISHED
    # The driver is killed. The interrupted trial goes on and improves the front; the search has ended all the same.
    book, study = begin(asked)
    assert "nothing improved in 3 trials up to trial 6" in why_ended(asked, study)
    finish(book, "x", 0.9, 10)
    assert book.suggest("y") == Searcher.FINISHED
    # More patience goes on.
    patient = Search(asked.file.model_copy(update={"patience": 4}))
    book, study = begin(patient)
    assert why_ended(patient, study) == ""
    assert book.suggest("z") != Searcher.FINISHED


def test_a_single_objective_stalls_when_its_best_value_does() -> None:
    study = optuna.create_study(direction="minimize")
    for value in (5.0, 3.0, 3.0, 4.0, 2.0):
        study.add_trial(optuna.create_trial(value=value))
    assert found.stalled(study.trials, study.directions, 2) == 3
    assert found.stalled(study.trials, study.directions, 3) is None


def rows(trial: str, *scores: float) -> list[dict[str, Any]]:
    return [
        {"trial_id": trial, "epoch": epoch, "map": score + delta, "map_at_100": None, "protocol": "leave_one_out"}
        for epoch, score in enumerate(scores, start=1)
        for delta in (-0.1, 0.1)
    ]


def test_a_resumed_search_stops_trials_by_what_it_saw_before() -> None:
    class New:
        trial_id = "new"

    seen = [*rows("a", 0.5, 0.6, 0.7), *rows("b", 0.6, 0.7, 0.8)]
    for known, decision in ((seen, "STOP"), ([], "CONTINUE")):
        asha: Any = scheduler("asha", grace=1, reduction=2, epochs=4, seen=known)
        asha.on_trial_add(None, New())
        assert asha.on_trial_result(None, New(), {"epoch": 1, "score": 0.1}) == decision
    fresh: Any = scheduler("asha", grace=1, reduction=2, epochs=4, seen=seen)
    fresh.on_trial_add(None, New())
    results = [fresh.on_trial_result(None, New(), {"epoch": e, "score": 0.9}) for e in (1, 2, 3, 4)]
    assert results == ["CONTINUE"] * 4
    assert type(scheduler("asha", grace=1, reduction=2, epochs=1, seen=[])).__name__ == "FIFOScheduler"


def test_fresh_forgets_this_study_and_no_other(storage: str | None, tmp_path: Path) -> None:
    this, other = search(storage, name="fresh"), search(storage, name="other")
    for asked in (this, other):
        open_study(asked, tmp_path).enqueue_trial({"train.lr": 0.1})
    assert len(open_study(this, tmp_path).get_trials()) == 1
    assert len(open_study(this, tmp_path, fresh=True).get_trials()) == 0
    assert len(open_study(other, tmp_path).get_trials()) == 1
