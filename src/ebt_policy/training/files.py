"""Names and reading of the files that a run leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ebt_policy.errors import UserError

TRAINING_FILE, METRICS_FILE, SUMMARY_FILE = "training.json", "metrics.jsonl", "summary.json"
ARRAYS_FOLDER = "arrays"
FEATURES_FOLDER = "features"  # beside the run


def read_summary(run: Path) -> dict[str, Any] | None:
    """How a finished run was trained; None while it is unfinished (or a bare policy).

    Raises:
        UserError: the file is damaged.
    """
    path = run / SUMMARY_FILE
    if not path.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path}: damaged ({error}); --resume the finished run to write it again"
        ) from error
    return summary


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The run's curves, oldest first; a last line cut short by a kill is left out."""
    path = run / METRICS_FILE
    if not path.exists():
        return []
    records = [parse_record(line) for line in path.read_text().splitlines()]
    return [record for record in records if record["step"] < math.inf]


def parse_record(line: str) -> dict[str, Any]:
    """One line of the metrics file; a step of infinity marks a broken line."""
    try:
        record = json.loads(line)
        return record if isinstance(record.get("step"), int) else {"step": math.inf}
    except (ValueError, AttributeError):
        return {"step": math.inf}
