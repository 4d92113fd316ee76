"""Running cells of a study: train, evaluate, append to ``results/``; whatever is there stays."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebt_policy.benchmarks.floor import multiply_adds, products
from ebt_policy.benchmarks.landscape import fork_landscape
from ebt_policy.benchmarks.study import (
    EVALUATION_SEED,
    LANDSCAPE,
    PARAPHRASED,
    QUALITY,
    WORDS,
    Act,
    Cell,
    Study,
)
from ebt_policy.config import PolicyConfig, StreamConfig, TrainingConfig, from_json, override
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.errors import UserError
from ebt_policy.evaluation.action_error import action_errors, chunk_starts, unseen_windows
from ebt_policy.evaluation.calibration import training_windows
from ebt_policy.evaluation.energy_quality import energy_quality, sentence_quality
from ebt_policy.evaluation.rollout import Rollout, evaluate
from ebt_policy.policies import make_policy
from ebt_policy.policies.base import Policy
from ebt_policy.policies.files import CONFIG_FILE, WEIGHTS_FILE, load_policy
from ebt_policy.provenance import provenance
from ebt_policy.tasks.metaworld_sentences import meaning
from ebt_policy.training.files import TRAINING_FILE, read_summary
from ebt_policy.windows.windows import Windows, choose_streams

QUALITY_OBSERVATIONS = 500
_AROUND = range(-2, 7)  # chunks
_LIMIT = "observation_limit"
_FALSE_ALARMS = 0.1  # of held-out demonstrations, of which there are ten
# Demonstrations that no method learns from, where an expert can make them.
HELD_OUT_EPISODES, HELD_OUT_SEED = 60, 50_000


def results_file(cell: Cell, folder: Path) -> Path:
    """Where a cell's results are: one file for each task, a line for each way of acting."""
    return folder / f"{cell.task.slug}.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The results in a file; a last line cut short by a kill is left out.

    Raises:
        UserError: another line is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    results = []
    for number, line in enumerate(lines, 1):
        try:
            results.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UserError(f"{path}, line {number}: not valid JSON ({error})") from error
    return results


def training_steps(cell: Cell, folder: Path) -> int:
    """The cell's budget in steps of its method, by the costs that were measured side by side.

    They are the study's own, or else those of the study of objectives beside it.

    Raises:
        UserError: they, or this method's among them, were not measured yet.
    """
    preset = cell.task.preset
    name = f"cost-{preset}.json"
    path = folder / name
    if not path.exists():
        path = folder.parent / "objectives" / name
    if not path.exists():
        raise UserError(
            f"{folder / name}: missing; 'ebt-policy bench cost --preset {preset} --results "
            f"{folder}' measures what a step of each method costs, on a machine that does nothing "
            "else"
        )
    costs = json.loads(path.read_text())["methods"]
    method = cell.method.cost or cell.method.name
    if method not in costs:
        raise UserError(
            f"{path}: has {', '.join(costs)} and not {method}; measure it beside Diffusion Policy: "
            f"'ebt-policy bench cost --preset {preset} --methods diffusion,{method} --results "
            f"{path.parent}'"
        )
    return round(1e3 * cell.share * cell.task.budget / costs[method]["ms"])


def missing_acts(cell: Cell, folder: Path) -> list[Act]:
    """The ways of acting that have no result of this method as it is now."""
    lines = read_lines(results_file(cell, folder))
    done = {line["act"] for line in lines if is_current(line, cell, folder)}
    return [act for act in cell.acts if act.name not in done]


def is_current(line: dict[str, Any], cell: Cell, folder: Path) -> bool:
    """Whether a result is of this cell, trained and acting as it would be today."""
    if line["cell"] != cell.name:
        return False
    act = next((act for act in cell.acts if act.name == line["act"]), None)
    settings = _settings(_config(cell))
    was = _completed(line["settings_of_cell"], settings)
    if act is not None and act.disturbance in ("", PARAPHRASED) and not act.imagines:
        # From before there was a limit. Where nothing is disturbed but words it decides less;
        # docs/claims.md names these results.
        was = {_LIMIT: settings[_LIMIT]} | was
    return (
        line["options"] == cell.method.options
        and line["training"]["steps"] == training_steps(cell, folder)
        and was == settings
        and line.get("settings_of_act") == (None if act is None else list(act.settings))
        and line.get("episodes", cell.episodes) >= cell.episodes
    )


def _config(cell: Cell) -> PolicyConfig:
    """The cell's policy as it would be trained today, but for the data's shapes."""
    method = cell.method
    streams = {"state": StreamConfig((1,))}
    config = PolicyConfig.of_preset(cell.task.preset, method.policy, streams, 1, method.objective)
    return override(config, method.settings)


def _completed(was: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings with those that came later; what a cell changes is in its options."""
    return {
        name: now[name] | value if isinstance(value, dict) and name in now else value
        for name, value in was.items()
    }


def _settings(config: PolicyConfig) -> dict[str, Any]:
    """Those settings that decide on a policy's results, as JSON has them."""
    names = ["network", "windows", _LIMIT]
    if config.policy == "ebt":
        names += ["form", config.objective, "descent"]
    elif config.policy == "ibc":
        names += ["form", "ibc"]
    elif config.policy != "regression":
        names += [config.policy]
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return {name: found[name] for name in names}


def run_cells(
    study: Study, chosen: list[Cell], work: Path, results: Path, pusht: Path, jobs: int
) -> None:
    """Run cells that lack results, ``jobs`` of them beside each other, each in its own process.

    Raises:
        UserError: a cell failed; the others were run all the same.
    """
    waiting = [cell for cell in chosen if missing_acts(cell, results)]
    print(f"{len(chosen)} cells, {len(chosen) - len(waiting)} have their results", flush=True)
    for cell in waiting:  # not by two cells at once
        demonstrations_file(cell, work, pusht)
        missing = missing_acts(cell, results)
        if any(act.name in (QUALITY, WORDS) or act.validates for act in missing):
            held_out_file(cell, work)
    failed: list[str] = []

    def one(cell: Cell) -> None:
        command = [
            sys.executable, "-m", "ebt_policy.cli.main", "bench", study.name, "--only", cell.name,
            "--work", str(work), "--results", str(results), "--pusht", str(pusht), "--here",
        ]  # fmt: skip
        code = subprocess.run(command).returncode
        state = "done" if code == 0 else f"failed with exit code {code}"
        print(f"{cell.name}: {state}", flush=True)
        if code:
            failed.append(cell.name)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, waiting))
    if failed:
        raise UserError(f"bench: {len(failed)} cells failed: {', '.join(failed)}")


def demonstrations_file(cell: Cell, work: Path, pusht: Path) -> Path:
    """The cell's demonstrations; collected from seed 0 on where there is a scripted expert.

    Raises:
        UserError: the published data set is not there.
    """
    if not cell.task.demonstrations:
        if not pusht.exists():
            raise UserError(f"--pusht {pusht}: no such data; ebt-policy data get pusht brings it")
        return pusht
    path = work / "data" / f"{cell.task.data}-{cell.demonstrations}.hdf5"
    if not path.exists():
        _command("collect", cell.task.name, "--episodes", cell.demonstrations, "--out", path)
    return path


def held_out_file(cell: Cell, work: Path) -> Path | None:
    """Demonstrations of the task from other starts; None where they cannot be made."""
    if not cell.task.demonstrations:
        return None
    path = work / "data" / f"{cell.task.data}-held-out.hdf5"
    if not path.exists():
        _command(
            "collect", cell.task.name, "--episodes", HELD_OUT_EPISODES, "--seed", HELD_OUT_SEED,
            "--out", path,
        )  # fmt: skip
    return path


def run_cell(cell: Cell, work: Path, results: Path, pusht: Path) -> None:
    """Train one cell if it is not trained, then measure what is missing of it."""
    run = work / cell.name
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{cell.name}: another process is at it, in {run}") from error
        _run_cell(cell, run, work, results, pusht)


def _run_cell(cell: Cell, run: Path, work: Path, results: Path, pusht: Path) -> None:
    data = demonstrations_file(cell, work, pusht)
    if read_summary(run) is None:
        _command(
            "train", "--data", data, "--preset", cell.task.preset, *cell.method.options,
            "--steps", str(training_steps(cell, results)), "--seed", str(cell.seed),
            "--out", run, "--resume",
        )  # fmt: skip
    torch.set_num_threads(1)
    path = results_file(cell, results)
    summary = read_summary(run)
    assert summary is not None
    _check_trained(cell, run, data, summary["steps"], training_steps(cell, results))
    training = summary | {"multiply_adds": _multiply_adds(run, data) * summary["steps"]}
    for act in missing_acts(cell, results):
        if act.name == QUALITY:
            measured = _quality(run, data, held_out_file(cell, work))
        elif act.name == WORDS:
            measured = _words(run, data, held_out_file(cell, work))
        elif act.name == LANDSCAPE:
            measured = fork_landscape(run)
        else:
            acting_run = _imagining(act.imagines, run, data) if act.imagines else run
            measured = _evaluation(
                cell, act, acting_run, held_out_file(cell, work) if act.validates else None
            )
        line = {
            "cell": cell.name, "task": cell.task.name, "demonstrations": cell.demonstrations,
            "method": cell.method.name, "options": cell.method.options,
            "settings_of_cell": _settings(_config(cell)), "seed": cell.seed,
            "act": act.name, "settings_of_act": act.settings, **measured,
            "training": training, **provenance(),
        }  # fmt: skip
        _append(path, line)


def _check_trained(cell: Cell, run: Path, data: Path, steps: int, expected_steps: int) -> None:
    """Check that a run was trained as its cell would be today; how it acts may have changed.

    Raises:
        UserError: names the first setting that differs.
    """
    trained = load_policy(run).config
    was, now = _settings(trained), _settings(_config(cell))
    now.pop("descent", None)
    was["streams"] = trained.streams
    now["streams"] = choose_streams(
        open_demonstrations(str(data), None), cell.method.observes or None
    )
    for name in now:
        if was.get(name) != now[name]:
            raise UserError(
                f"{run}: was trained with {name} = {was.get(name)}, now {now[name]}; move it away"
            )
    if steps != expected_steps:
        raise UserError(f"{run}: was trained for {steps} steps, now {expected_steps}; move it away")


def _command(*arguments: Any) -> None:
    command = [sys.executable, "-m", "ebt_policy.cli.main", *map(str, arguments)]
    code = subprocess.run(command).returncode
    if code:
        raise UserError(f"bench: '{' '.join(command[2:])}' ended with exit code {code}")


def _append(path: Path, line: dict[str, Any]) -> None:
    """Add one line; several processes may, and a line cut short earlier is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        if text and not text.endswith("\n"):
            file.truncate(len(text[: text.rfind("\n") + 1].encode()))
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _evaluation(cell: Cell, act: Act, run: Path, held_out: Path | None) -> dict[str, Any]:
    policy = load_policy(run)
    acting = None
    if policy.acting is not None:
        # Today's descent, not the one of the training's day.
        config = dataclasses.replace(policy.config, descent=_config(cell).descent)
        acting = getattr(override(config, act.settings), policy.acting)
    rollout = Rollout(str(run), cell.task.name + act.disturbance, acting)
    result = evaluate(rollout, cell.episodes, EVALUATION_SEED)
    records = result.pop("records")
    for key in ("moments", "policy", "task", "seeds"):
        result.pop(key)
    steps_by_doing: dict[str, dict[int, int]] = {}
    energies: dict[str, list[float]] = {}
    for record in records:
        for chunk, doing in enumerate(record["doing"]):
            counts, taken = steps_by_doing.setdefault(doing, {}), record["descent_steps"][chunk]
            counts[taken] = counts.get(taken, 0) + 1
            energies.setdefault(doing, []).extend(record["energy"][chunk : chunk + 1])
    around = _energy_around(records, policy.config.windows.action_steps)
    return (
        result
        | ({"energy_around": around} if around else {})
        | ({} if held_out is None else {"validation_error": _validation_error(rollout, held_out)})
        | {
            "first_seed": EVALUATION_SEED,
            "scores": [round(record["score"], 4) for record in records],
            "successes": [int(record["success"]) for record in records],
            "steps_by_doing": steps_by_doing,
            "energy_by_doing": {
                doing: round(float(np.mean(values)), 4)
                for doing, values in energies.items()
                if values
            },
            "first_episode": {
                "steps": records[0]["descent_steps"],
                "doing": records[0]["doing"],
                "energy": [round(value, 3) for value in records[0]["energy"]],
            },
        }
    )


def _validation_error(rollout: Rollout, held_out: Path) -> float:
    """Root mean square error of the executed actions, in half ranges, on other demonstrations."""
    policy = rollout.policy()
    windows = unseen_windows(Path(rollout.run), policy, str(held_out))
    errors = action_errors(policy, windows, chunk_starts(windows))
    return round(float(np.sqrt(np.nanmean(np.square(errors)))), 5)


@functools.cache  # once for all the ways of acting of a cell
def _imagining(streams: tuple[str, ...], run: Path, data: Path) -> Path:
    """A copy of a trained policy, with an alarm and streams that it may imagine otherwise."""
    copy = run.with_name(f"{run.name}-imagining")
    copy.mkdir(exist_ok=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE):
        shutil.copy2(run / name, copy / name)
    chosen = [part for name in streams for part in ("--imagine", name)]
    _command("calibrate", copy, "--data", data, "--false-alarms", _FALSE_ALARMS, *chosen)
    return copy


def _energy_around(records: list[dict[str, Any]], action_steps: int) -> dict[str, float]:
    """Mean energy of the chunks before and after the one in which a disturbance took effect.

    By the number of chunks after it: -1 is the one before, 0 that in which it happened and which
    did not know of it, 1 the first that saw it.
    """
    found: dict[int, list[float]] = {}
    for record in records:
        if record["facts"].get("took_effect") and record["energy"]:
            first = record["facts"]["disturbed_at"] // action_steps
            for place in _AROUND:
                if 0 <= first + place < len(record["energy"]):
                    found.setdefault(place, []).append(record["energy"][first + place])
    return {str(place): round(float(np.mean(found[place])), 4) for place in sorted(found)}


def _windows(
    policy: Policy, run: Path, data: Path, other: Path | None = None
) -> tuple[Windows, Windows]:
    """The windows a run was trained on, and those it held out (or all of another file)."""
    trained, held_out = training_windows(run, policy, str(data))
    return trained, held_out if other is None else unseen_windows(run, policy, str(other))


def _quality(run: Path, data: Path, other: Path | None) -> dict[str, Any]:
    """The trained network's energy, and an untrained one's beside it."""
    policy = load_policy(run)
    trained, held_out = _windows(policy, run, data, other)
    torch.manual_seed(0)
    untrained = make_policy(policy.config).eval()
    untrained.action_normaliser = policy.action_normaliser
    untrained.stream_normalisers = policy.stream_normalisers
    measure: Callable[[Policy], dict[str, Any]] = lambda which: energy_quality(  # noqa: E731
        which, held_out, trained, QUALITY_OBSERVATIONS, seed=0
    )
    return {"quality": measure(policy), "untrained": measure(untrained)}


def _words(run: Path, data: Path, other: Path | None) -> dict[str, Any]:
    """The energy of the right sentence against those of other tasks, on held-out episodes."""
    policy = load_policy(run)
    _, held_out = _windows(policy, run, data, other)
    meanings = [meaning(sentence) for sentence in open_demonstrations(str(other or data)).tasks]
    return {"words": sentence_quality(policy, held_out, meanings, QUALITY_OBSERVATIONS, seed=0)}


def _multiply_adds(run: Path, data: Path) -> int:
    """Multiply-adds of one training step, counted in the matrix products."""
    policy = load_policy(run)
    training = from_json(TrainingConfig, (run / TRAINING_FILE).read_text(), str(run))
    trained, _ = _windows(policy, run, data)
    batch = trained.gather(torch.arange(min(training.batch_size, len(trained))))
    return multiply_adds(products(lambda: policy.train()(batch).backward()))
