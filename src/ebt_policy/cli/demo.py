"""``demo``: demonstrations, training, rollout and report on two Meta-World tasks, in minutes.

Every part is a command that a user could type; the demo only runs them in order. The energy
policy and the Diffusion Policy train beside each other, one process and one thread each, with
the same budget of CPU time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from ebt_policy.errors import UserError
from ebt_policy.evaluation.results import read_results
from ebt_policy.policies.files import replace_file
from ebt_policy.provenance import provenance
from ebt_policy.report.html import write_report


@dataclass(frozen=True)
class DemoTask:
    """One task of the demo.

    Attributes:
        task: its name.
        episodes: demonstrations to collect, from seed 0 on.
        budget: training time of each policy.
    """

    task: str
    episodes: int
    budget: str


TASKS = (
    DemoTask("metaworld/pick-place", 60, "110s"),
    DemoTask("metaworld/drawer-open", 40, "55s"),
)
POLICIES = ("ebt", "diffusion")
PRESET = "tiny"
EVALUATION_SEED, EVALUATION_EPISODES = 100_000, 30


def demo(out: Path) -> None:
    """Run the whole demo into ``out``; what a finished earlier run left there is used again.

    Raises:
        UserError: a part failed; its own message stands above.
    """
    _begin(out)
    for task in TASKS:
        name = task.task.split("/")[1]
        data = out / f"{name}.hdf5"
        if not data.exists():
            _run("collect", task.task, "--episodes", str(task.episodes), "--out", str(data))
        runs = {policy: out / f"{name}-{policy}" for policy in POLICIES}
        _together(
            [
                ["train", "--data", str(data), "--policy", policy, "--preset", PRESET,
                 "--budget", task.budget, "--out", str(run), "--resume"]
                for policy, run in runs.items()
                if not (run / "summary.json").exists()
            ]
        )  # fmt: skip
        for run in runs.values():
            if not list(run.glob("results/*.json")):
                evaluate = (
                    "eval", str(run), "--task", task.task, "--seed", str(EVALUATION_SEED),
                    "--episodes", str(EVALUATION_EPISODES), "--workers", "2",
                )  # fmt: skip
                try:
                    _run(*evaluate, "--video", str(run / "results" / "rollout.mp4"))
                except UserError:  # its reason stands above; the report goes without a video
                    _run(*evaluate)
    folders = [out / f"{t.task.split('/')[1]}-{policy}" for t in TASKS for policy in POLICIES]
    results = [result for folder in folders for result in read_results(folder)]
    replace_file(out / "results.json", (json.dumps({"results": results}, indent=1) + "\n").encode())
    budgets = " and ".join(f"{t.budget} ({t.task})" for t in TASKS)
    write_report(
        folders, out / "report.html",
        f"Both trainings are short: {budgets} of CPU time on one thread for each policy. "
        "A Diffusion Policy usually trains far longer, and gets better when it does; compare "
        "the methods by the longer runs under results/, not by this demo.",
    )  # fmt: skip
    print(f"\n{'task':<24}{'policy':<12}{'success':<24}steps/chunk   ms p50")
    for result in results:
        low, high = result["success_ci95"]
        success = f"{result['success_rate']:.2f} [{low:.2f}, {high:.2f}]"
        print(
            f"{result['task']:<24}{result['policy']:<12}{success:<24}"
            f"{result['descent_steps_mean']:<14.1f}{result['latency_ms']['p50']:.1f}"
        )
    print(f"\n{out / 'report.html'}\n{out / 'results.json'}")


def _begin(out: Path) -> None:
    """Keep what an earlier demo of the same code and settings left; clear anything else."""
    stamp = json.dumps(
        {"commit": provenance()["commit"], "tasks": [asdict(t) for t in TASKS], "preset": PRESET}
    )
    path = out / "demo.json"
    if path.exists() and path.read_text() == stamp:
        print(f"{out}: continuing an earlier demo; remove the folder to start over", flush=True)
        return
    if out.exists():
        if not path.exists() and any(out.iterdir()):
            raise UserError(f"--out {out}: exists and is not an earlier demo; choose another")
        shutil.rmtree(out)
    replace_file(path, stamp.encode())


def _environment(position: int) -> dict[str, str]:
    interval = "0.5" if sys.stderr.isatty() else "15"
    return os.environ | {"TQDM_POSITION": str(position), "TQDM_MININTERVAL": interval}


def _start(arguments: list[str], position: int = 0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ebt_policy.cli.main", *arguments]
    return subprocess.Popen(command, env=_environment(position))


def _run(*arguments: str) -> None:
    _together([list(arguments)])


def _together(commands: list[list[str]]) -> None:
    """Run commands beside each other and wait for all of them."""
    started = [_start(arguments, position) for position, arguments in enumerate(commands)]
    codes = [process.wait() for process in started]
    for arguments, code in zip(commands, codes, strict=True):
        if code:
            raise UserError(f"demo: 'ebt-policy {' '.join(arguments)}' ended with exit code {code}")
