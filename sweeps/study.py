"""Optuna's storage of a search: a journal file in the run's folder, or a database that a cluster shares."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from prunnet.errors import ConfigError, one_line
from prunnet.redact import shown
from prunnet.storage.paths import is_url, read_file
from sweeps.search_recipe import Search

JOURNAL = "study.journal"


def open_study(search: Search, folder: Path, *, fresh: bool = False) -> optuna.Study:
    """The search's study, as far as it is; `fresh` deletes it first.

    Raises ConfigError, without the password, where the storage cannot be reached.
    """
    quiet_optuna()
    file, name = search.file, search.study_name
    if not file.storage and is_url(folder):
        raise ConfigError(f"a journal file cannot grow on {str(folder)!r}; set `storage` to a database (RDB URL)")
    storage = database(os.path.expandvars(file.storage)) if file.storage else journal(folder / JOURNAL)
    if fresh and name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=["maximize" if q.higher else "minimize" for q in file.objectives],
        load_if_exists=True,
    )
    study.sampler = file.sampler.make(file.trials, len(study.get_trials(deepcopy=False)))
    study.set_metric_names([q.label for q in file.objectives])
    return study


def quiet_optuna() -> None:
    """Neither a line a trial, nor that grouped TPE and metric names are called experimental."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class HashedJournal(JournalFileBackend):
    """Optuna's journal file with a hash of itself in every line. Lines of before there were hashes come first, if at
    all."""

    HASH = "sha256"

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        super().append_logs([{**log, self.HASH: _hash(log)} for log in logs])

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        for log in super().read_logs(log_number_from):
            yield {key: value for key, value in log.items() if key != self.HASH}


def _hash(log: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(log))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def journal(path: Path) -> JournalStorage:
    """A journal file. What a killed writer left of it is mended: its lock, and a last line without an end. The caller
    holds the run's folder, so nobody else writes.

    Raises ConfigError, with the line, for a damaged one.
    """
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists():
        _check_lines(path)
    try:
        return JournalStorage(HashedJournal(str(path)))
    except OSError:
        raise
    except Exception as error:  # lines of before there were hashes are replayed unseen
        raise ConfigError(
            f"journal {str(path)!r} is damaged ({one_line(error)[:200]}); remove it to start over"
        ) from None


def _check_lines(path: Path) -> None:
    """Drops a last line without an end; ConfigError for any other line that is not as it was written."""
    content = read_file(path)
    *lines, last = content.split(b"\n")
    hashed = False
    for number, line in enumerate(lines, start=1):
        log = _log(line)
        if log is None or (hashed and HashedJournal.HASH not in log):
            raise ConfigError(
                f"line {number} of journal {str(path)!r} is damaged; remove that line to go on without what it tells, "
                "or the file to start over"
            )
        hashed = HashedJournal.HASH in log
    if last:
        whole = _log(last[:-1])  # all of it is there but its end
        end = b"\n" if whole is not None and HashedJournal.HASH in whole else b""
        with path.open("r+b") as file:
            file.truncate(len(content) - (1 if end else len(last)))
            file.seek(0, os.SEEK_END)
            file.write(end)


def _log(line: bytes) -> dict[str, Any] | None:
    """An entry of a journal with its hash, if it has one; None for a damaged one."""
    try:
        log = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(log, dict) or "op_code" not in log:
        return None
    told = {key: value for key, value in log.items() if key != HashedJournal.HASH}
    return log if log.get(HashedJournal.HASH, _hash(told)) == _hash(told) else None


def database(url: str) -> BaseStorage:
    """A database that SQLAlchemy knows; PostgreSQL for a cluster."""
    try:
        make_url(url)
    except SQLAlchemyError:
        raise ConfigError("storage is no database URL; example: postgresql+psycopg://host/name") from None
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigError(f"storage {shown(url)!r} cannot be used ({one_line(error)[:200]})") from None
