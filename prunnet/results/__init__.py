"""The results table, the row to ship, upgrade metrics; and what analysis, which imports nothing else of prunnet, needs
beside them: errors and how a command ends, outputs that are there whole or not at all, plain cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.errors import ConfigError as ConfigError
    from prunnet.errors import ResultsError as ResultsError
    from prunnet.guard import guarded as guarded
    from prunnet.results.columns import Column as Column
    from prunnet.results.columns import FinishedTest as FinishedTest
    from prunnet.results.spreadsheet import plain_cell as plain_cell
    from prunnet.results.table import ADDED as ADDED
    from prunnet.results.table import KEY as KEY
    from prunnet.results.table import MEASURED as MEASURED
    from prunnet.results.table import METRICS as METRICS
    from prunnet.results.table import SCHEMA as SCHEMA
    from prunnet.results.table import as_table as as_table
    from prunnet.results.table import best_under as best_under
    from prunnet.results.table import deterministic as deterministic
    from prunnet.results.table import features_key as features_key
    from prunnet.results.table import finished_keys as finished_keys
    from prunnet.results.table import pack as pack
    from prunnet.results.table import plain as plain
    from prunnet.results.table import ranked_by as ranked_by
    from prunnet.results.table import read as read
    from prunnet.results.table import read_packed as read_packed
    from prunnet.results.table import row_key as row_key
    from prunnet.results.table import row_of as row_of
    from prunnet.results.table import select as select
    from prunnet.results.table import trial_folder as trial_folder
    from prunnet.results.table import unpack as unpack
    from prunnet.results.table import write_part as write_part
    from prunnet.results.upgrade_metrics import p_1 as p_1
    from prunnet.results.upgrade_metrics import p_comp as p_comp
    from prunnet.results.upgrade_metrics import p_up as p_up
    from prunnet.results.upgrade_metrics import update_gain as update_gain
    from prunnet.storage.atomic import check_output as check_output
    from prunnet.storage.atomic import write_bytes as write_bytes
    from prunnet.storage.atomic import write_text as write_text

__getattr__, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.errors": ["ConfigError", "ResultsError"],
        "prunnet.guard": ["guarded"],
        "prunnet.results.columns": ["Column", "FinishedTest"],
        "prunnet.results.spreadsheet": ["plain_cell"],
        "prunnet.results.upgrade_metrics": ["p_1", "p_comp", "p_up", "update_gain"],
        "prunnet.storage.atomic": ["check_output", "write_bytes", "write_text"],
        "prunnet.results.table": [
            "ADDED",
            "KEY",
            "SCHEMA",
            "MEASURED",
            "METRICS",
            "as_table",
            "best_under",
            "deterministic",
            "features_key",
            "finished_keys",
            "pack",
            "plain",
            "ranked_by",
            "read",
            "read_packed",
            "row_key",
            "row_of",
            "select",
            "trial_folder",
            "unpack",
            "write_part",
        ],
    },
)
