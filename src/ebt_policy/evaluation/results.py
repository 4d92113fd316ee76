"""Results of evaluations, kept with the run that they judge."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ebt_policy.errors import UserError
from ebt_policy.evaluation.rollout import of_records
from ebt_policy.policies.files import replace_file
from ebt_policy.tasks import make_task
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
    return [read_result(path) for path in paths]


def read_result(path: Path) -> dict[str, Any]:
    """One result.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    return result


_SAME = ("task", "policy", "sampler", "settings", "parameters", "training", "commit")


def merge_results(paths: list[Path]) -> dict[str, Any]:
    """Join evaluations of one policy on different starts, as several machines make them.

    The episodes are counted anew; latency, hardware and the report's moments are those of the part
    with the first starts, and times are added up.

    Raises:
        UserError: a file is no result, the parts differ in more than their starts, or two of them
            hold the same start.
    """
    parts = {path: read_result(path) for path in paths}
    for path, part in parts.items():
        if not isinstance(part, dict) or not {"records", "seeds", *_SAME} <= part.keys():
            raise UserError(f"{path}: not a result of ebt-policy eval")
    paths = sorted(paths, key=lambda path: parts[path]["seeds"][0])
    first = parts[paths[0]]
    for path in paths[1:]:
        for key in _SAME:
            if parts[path][key] != first[key]:
                raise UserError(
                    f"{path}: its {key} is {parts[path][key]}, that of {paths[0]} is {first[key]}; "
                    "only evaluations of one policy, acting in one way, can be joined"
                )
    records = [record for path in paths for record in parts[path]["records"]]
    seeds = [record["seed"] for record in records]
    if len(set(seeds)) < len(seeds):
        twice = min(seed for seed in seeds if seeds.count(seed) > 1)
        raise UserError(f"start {twice} is in two of {', '.join(map(str, paths))}")
    records.sort(key=lambda record: record["seed"])
    sums = ("evaluation_seconds", "policy_seconds", "simulation_seconds", "workers")
    return (
        first
        | of_records(records, make_task(first["task"]))
        | {key: round(sum(part[key] for part in parts.values()), 2) for key in sums}
    )
