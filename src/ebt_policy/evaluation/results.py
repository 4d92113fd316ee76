"""Results of evaluations, kept with the run that they judge."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ebt_policy.errors import UserError
from ebt_policy.policies.files import replace_file
from ebt_policy.training.files import read_summary

RESULTS_FOLDER = "results"


def store_result(result: dict[str, Any], run: Path, copy: Path | None) -> Path:
    """Write a result into ``run/results/``, and a copy where the user wants one.

    The run's training summary (time, samples, data) is added, so that a result stands alone.
    Other settings give another file name; the same evaluation again replaces its own file.

    Raises:
        UserError: a file cannot be written.
    """
    result = {**result, "training": read_summary(run)}
    settings = json.dumps(result["settings"], sort_keys=True)
    seeds = result["seeds"]
    name = (
        f"{result['task']}-{result['sampler']}-{round(result['descent_steps_mean'])}-steps-"
        f"{seeds[0]}-{seeds[-1]}-{hashlib.sha256(settings.encode()).hexdigest()[:6]}.json"
    )
    path = run / RESULTS_FOLDER / re.sub(r"[/:]", "-", name)
    content = to_text(result).encode()
    replace_file(path, content)
    if copy is not None:
        replace_file(copy, content)
    return path


def to_text(result: dict[str, Any]) -> str:
    """A result as JSON that people can read and compare: one line for each episode."""
    long = ("records", "moments")
    head = json.dumps({k: v for k, v in result.items() if k not in long}, indent=1)
    parts = [head.removesuffix("\n}")]
    for key in long:
        lines = ",\n  ".join(json.dumps(item) for item in result[key])
        parts.append(f',\n "{key}": [\n  {lines}\n ]')
    return "".join(parts) + "\n}\n"


def read_results(run: Path) -> list[dict[str, Any]]:
    """The results of a run's evaluations.

    Raises:
        UserError: the run has none, or one is damaged.
    """
    paths = sorted((run / RESULTS_FOLDER).glob("*.json"))
    if not paths:
        raise UserError(f"{run}: has no results; evaluate it first: ebt-policy eval {run} --task …")
    results = []
    for path in paths:
        try:
            results.append(json.loads(path.read_text()))
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
    return results
