"""The command line: the whole walk, and one line and exit code 2 for every mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from conftest import episodes, policy
from ebt_policy import save_policy
from ebt_policy.cli.main import main, parse_duration
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.errors import UserError

COMMANDS = [
    "data info", "data get", "data convert", "collect", "train", "eval", "calibrate", "merge",
    "export", "serve", "report", "bench objectives", "bench language", "bench tasks",
    "bench recovery", "bench shift", "bench uncertainty", "bench cost", "bench floor",
    "bench latency", "bench train", "bench serve", "demo",
]  # fmt: skip


def run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:
        return cast(int, stop.code)


@pytest.mark.usefixtures("tiny")
def test_from_collection_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, made = str(tmp_path / "reach.hdf5"), str(tmp_path / "run")
    task = "metaworld/drawer-open"
    expert = tmp_path / "expert.json"
    asked = ["--episodes", "3", "--seed", "7"]
    assert run("collect", task, *asked, "--out", data, "--json", str(expert)) == 0
    written = json.loads(expert.read_text())
    assert written["success_rate"] == 3 / written["starts"] > 0.5
    assert written["success_ci95"][1] <= 1
    assert (written["task"], written["first_seed"], written["steps"] > 3) == (task, 7, True)
    assert run("data", "info", data) == 0
    shown = capsys.readouterr().out
    assert "episodes  3 (" in shown
    assert "rate      80 Hz" in shown
    train = ["train", "--data", data, "--preset", "tiny", "--steps", "12", "--out", made]
    assert run(*train) == 0
    assert run(*train, "--resume") == 0
    result = tmp_path / "result.json"
    assert (
        run(
            "eval", made, "--task", task, "--episodes", "2", "--descent-steps", "3",
            "--starts", "4", "--workers", "1", "--json", str(result),
        )
        == 0
    )  # fmt: skip
    stored = json.loads(result.read_text())
    assert (stored["task"], stored["policy"], stored["starts"]) == (task, "ebt", 4)
    assert stored["descent_steps_mean"] == 3
    assert stored["seeds"] == [100_000, 100_001]
    assert run("report", made, "--out", str(tmp_path / "report.html")) == 0
    assert (tmp_path / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command.split(), "--help") == 0
    assert f"example:\n  ebt-policy {command}" in capsys.readouterr().out


def test_module_runs_as_a_command() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "ebt_policy.cli.main", "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert "collect" in shown.stdout


def test_ends_quietly_when_nobody_reads_on() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "ebt_policy.cli.main", "bench", "tasks", "--list"],
        stdout=writing, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_needs_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["bench", "tasks", "--list"]) == 0


@pytest.mark.parametrize("output", [io.StringIO(), None])
def test_another_broken_pipe_is_no_quiet_end(
    output: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr("ebt_policy.cli.bench._bench_study", breaks)
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(BrokenPipeError, match="a worker is gone"):
        main(["bench", "tasks", "--list"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required"),
        ("trian", "invalid choice: 'trian'"),
        ("data info {tmp}/absent", "absent: no such file"),
        ("data get pushy", "'pushy': unknown; there are pusht"),
        ("collect nothing --episodes 3 --out {tmp}/x", "--task nothing: unknown"),
        ("collect metaworld/reach --episodes 0 --out {tmp}/x", "--episodes 0"),
        ("collect metaworld/reach --episodes 1 --out {data}", "exists already"),
        ("collect planar/fork --episodes 1 --out {tmp}/x --cameras top", "'top'; it has none"),
        ("train --data {data} --out {tmp}/r", "one of the arguments --steps --budget is required"),
        ("train --data {data} --out {tmp}/r --budget 30", "--budget 30: write a time"),
        ("train --data {data} --out {tmp}/r --steps 0", "training.steps = 0"),
        ("train --data {data} --out {tmp}/r --steps 5 --obs stat", "no observation key 'stat'"),
        ("train --data {data} --out {tmp}/r --steps 5 --preset big", "invalid choice: 'big'"),
        ("train --data {data} --out {tmp}/r --steps 5 --encoder conv", "there is no image among"),
        ("train --data {data} --out {tmp}/r --steps 5 --set x=1", "no setting 'x'"),
        ("train --data {data} --out {tmp}/r --steps 5 --set training.x=1", "no setting 'x'"),
        ("train --data {data} --out {data}/r --steps 5", "cannot be written"),
        (
            "train --data {data} --out {tmp}/r --steps 5 --policy mip --objective basin",
            "only --policy ebt has an objective",
        ),
        ("eval {tmp} --task pusht", "config.json: no such file"),
        ("eval {run} --task pusht --sampler ddpm", "only for --policy diffusion"),
        ("eval {run} --task pusht --descent-steps 0", "descent.steps = 0"),
        ("eval {run} --task metaworld/reach", "its actions have 4 dimensions"),
        ("eval {run} --task pusht --episodes 0", "--episodes 0"),
        ("eval {run} --task pusht --seed -1", "--seed -1"),
        ("eval {run} --task pusht --video {tmp}/v.txt", "give the name of an .mp4 file"),
        ("eval {run} --task pusht --set windows.horizon=8", "can change only descent."),
        ("train --data {data} --out {tmp}/r --steps 5 --set objective=unrolled", "use --objective"),
        ("train --data {data} --out {tmp}/r --steps 5 --learning-rate 0", "learning_rate = 0.0"),
        ("train --data {data} --out {tmp}/r --steps 5 --seed -1", "training.seed = -1"),
        ("train --data {data} --out {tmp}/r --steps 5 --set training.warmup_steps=0", "steps = 0"),
        ("collect metaworld/reach --episodes 1 --out {data}/x", "cannot be written"),
        ("collect metaworld/reach --episodes 1 --out {tmp}/x --json {data}/x", "--json"),
        ("collect metaworld/reach --episodes 1 --out {tmp}/x --json {tmp}", "a file of its own"),
        ("collect metaworld/reach --episodes 1 --out {tmp}/x --json {tmp}/x", "a file of its own"),
        ("report {run} --out {tmp}/r.html", "has no results"),
        ("serve {tmp}", "config.json: no such file"),
        ("serve {run} --host 0.0.0.0", "give an --api-key-file"),
        ("serve {run} --host 0.0.0.0 --api-key-file {data}", "cannot be read"),
        ("serve {run} --port 70000", "server.port = 70000"),
        ("serve {run} --budget-ms 0", "server.budget_ms = 0.0"),
        ("serve {run} --max-mb 0", "server.max_mb = 0.0"),
        ("serve {run} --max-mb inf", "server.max_mb = inf"),
        ("serve {run} --limits {tmp}/l.json", "l.json: cannot be read"),
        ("serve {run} --set windows.horizon=8", "can change only descent."),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    arguments: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "demos.hdf5"
    write_robomimic(data, episodes([10, 10]), "toy", {})
    save_policy(policy(), tmp_path / "run")
    filled = arguments.format(tmp=tmp_path, data=data, run=tmp_path / "run")
    assert run(*filled.split()) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert message in lines[0]


def test_broken_data_stops_training_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = episodes([10, 12])
    made[1].actions[7, 1] = np.nan
    data = tmp_path / "nan.hdf5"
    write_robomimic(data, made, "toy", {})
    assert run("train", "--data", str(data), "--steps", "5", "--out", str(tmp_path / "run")) == 2
    assert "actions is nan in episode 1, step 7, element 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny")
def test_train_tells_what_it_does_not_show_and_what_tells_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = episodes([20, 20])
    for episode in made:
        episode.observations["const"] = np.ones((20, 2), np.float32)
        episode.observations["cam"] = np.zeros((20, 8, 8, 3), np.uint8)
    data = tmp_path / "cam.hdf5"
    write_robomimic(data, made, "toy", {})
    train = ["train", "--data", str(data), "--preset", "tiny", "--policy", "regression"]
    assert run(*train, "--steps", "1", "--out", str(tmp_path / "a")) == 0
    said = capsys.readouterr().out
    assert "observing const, state\nnot shown: cam (name it in --obs)\n" in said
    assert "constant observations, which tell nothing: const\n" in said
    assert run(*train, "--obs", "state", "--steps", "1", "--out", str(tmp_path / "b")) == 0
    said = capsys.readouterr().out
    assert "not shown" not in said
    assert "constant observations" not in said


def test_durations() -> None:
    assert [parse_duration(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for text in ("30", "m", "0s", "-3m", "1d", "1e3s"):
        with pytest.raises(UserError, match="write a time"):
            parse_duration(text)
