"""Optuna's storage of a search: a journal file in the run's folder, or a database that a cluster shares."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from prunnet.errors import ConfigError, one_line
from prunnet.storage import is_url, shown
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


def journal(path: Path) -> JournalStorage:
    """A journal file. What a killed writer left of it is mended: its lock, and a last line without an end. The caller
    holds the run's folder, so nobody else writes."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path)))


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
