"""A model card: what a run learned, from what, how well it did, and what is not known of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ebt_policy.evaluation.results import RESULTS_FOLDER, read_result
from ebt_policy.policies.files import load_policy
from ebt_policy.training.files import read_summary

_NAMES = {
    "ebt": "an energy-based transformer policy (EBT-Policy, arXiv 2510.27545)",
    "diffusion": "a Diffusion Policy (arXiv 2303.04137) on the trunk of an energy policy",
    "flow": "a flow-matching policy on the trunk of an energy policy",
    "mip": "a minimal iterative policy on the trunk of an energy policy",
    "regression": "a regression policy on the trunk of an energy policy",
    "ibc": "an implicit behavioural cloning policy (arXiv 2109.00137)",
}


def model_card(run: Path, name: str) -> str:
    """The README of a run's repository, in the Hub's format.

    Args:
        run: folder of a policy; its summary and its evaluations are told if it has them.
        name: of the repository, ``user/name``.

    Raises:
        UserError: the run holds no policy, or one of its files is damaged.
    """
    policy = load_policy(run)
    config, summary = policy.config, read_summary(run)
    windows = config.windows
    kind = _NAMES[config.policy]
    if config.policy == "diffusion" and config.diffusion.prediction == "sample":
        kind += " that predicts actions"
    seen = "\n".join(
        f"| `{stream}` | {tuple(given.shape)} | {given.kind}"
        f"{', may be missing' if given.may_be_missing else ''}"
        f"{f', withheld in {given.dropout:g} of training' if given.dropout else ''} |"
        for stream, given in sorted(config.streams.items())
    )
    settings = {
        part: value
        for part, value in json.loads((run / "config.json").read_text()).items()
        if part not in ("streams", "vision" if not config.cameras else "")
    }
    return f"""---
library_name: ebt-policy
pipeline_tag: robotics
tags:
- robotics
- imitation-learning
- {config.policy}
---

# {name}

{kind[0].upper() + kind[1:]}, made with `ebt-policy`.

```bash
ebt-policy pull {name} --out runs/{name.split("/")[-1]}
ebt-policy serve runs/{name.split("/")[-1]}
```

## What it sees and does

| observation | shape | kind |
| --- | --- | --- |
{seen}

It sees the last {windows.observation_steps} observations and plans {windows.horizon} actions of \
{config.action_dim} numbers, of which {windows.action_steps} are executed before it plans again. \
Observations and actions are in the units of its demonstrations.

## Data

{_data(summary)}

## Results

{_results(run)}

## Limits

* It has learned from these demonstrations alone. What it does where they show nothing is unknown,
  and success elsewhere than in the table above has not been measured.
* A figure of one training says little of another training's, a simulation's little of a robot's.
* {
        "It tells when an observation is off its demonstrations (`policy.alarm`)."
        if policy.alarm is not None
        else "It has no alarm: `ebt-policy calibrate` gives it one."
    }
* Nothing but `ebt-policy serve --limits` keeps its actions from harm: range and velocity of a
  robot's actions are to be limited there, and in the robot's driver.

## Settings

```json
{json.dumps(settings, indent=1)}
```
"""


def _data(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "Nothing is recorded of its training."
    data = summary["data"]
    return (
        f"`{data['name']}`: {data['episodes']} episodes, {data['steps']:,} steps. Trained for "
        f"{summary['steps']:,} steps ({summary['samples']:,} windows) in "
        f"{summary['seconds']:.0f} s on {summary['hardware']}, "
        f"with seed {summary['training']['seed']}, at commit {summary['commit']}."
    )


def _results(run: Path) -> str:
    paths = sorted((run / RESULTS_FOLDER).glob("*.json"))
    if not paths:
        return "It has not been evaluated."
    rows = [
        "| task | acts by | steps | episodes | from seed | success [95%] | mean score |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in map(read_result, paths):
        low, high = result["success_ci95"]
        rows.append(
            f"| {result['task']} | {result['sampler']} | {result['descent_steps_mean']:.1f} | "
            f"{result['episodes']} | {result['seeds'][0]} | {result['success_rate']:.3f} "
            f"[{low:.3f}, {high:.3f}] | {result['score_mean']:.3f} |"
        )
    return "\n".join(rows)
