"""``report``: one self-contained HTML file that compares runs."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ebt_policy.config import DescentConfig, from_json
from ebt_policy.errors import UserError
from ebt_policy.evaluation.energy_quality import pixel_saliency, word_saliency
from ebt_policy.evaluation.results import RESULTS_FOLDER, read_results
from ebt_policy.evaluation.rollout import observed
from ebt_policy.policies.ebt import EnergyPolicy
from ebt_policy.policies.files import load_policy, replace_file
from ebt_policy.report import figures
from ebt_policy.tasks import make_task
from ebt_policy.training.files import read_metrics
from ebt_policy.windows.sentences import words

_DESCENT_STEPS = 10  # of the energy curves: beyond what the policy uses, to show the basin
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-size:13px;width:100%}td,th{padding:.3rem .6rem;text-align:right;
border-bottom:1px solid #e5e5e5}td:nth-child(-n+3),th:nth-child(-n+3)
{text-align:left}img{max-width:100%}video{max-width:30rem;width:100%;margin-right:1rem}
.note{background:#fff6e5;border-left:4px solid #e0a030;padding:.6rem 1rem}
figcaption{color:#555;font-size:13px}figure{margin:1rem 0}footer{color:#777;font-size:12px;
margin-top:3rem}
"""


def write_report(runs: list[Path], out: Path, note: str | None = None) -> None:
    """Write the report of evaluated runs.

    Args:
        runs: run folders, each with at least one result.
        out: the HTML file.
        note: a remark for the top, for instance how short the training was.

    Raises:
        UserError: a run has no results, or the file cannot be written.
    """
    names = _run_names(runs)
    results = [result | {"run": names[run]} for run in runs for result in read_results(run)]
    parts = [f"<h1>{html.escape(_title(results))}</h1>"]
    if note:
        parts.append(f'<p class="note">{html.escape(note)}</p>')
    parts += ["<h2>Side by side</h2>", _table(results)]
    parts.append(_figure(
        figures.success_bars(results, "success"),
        "Success rate over unseen starts, with 95% Wilson intervals.",
    ))  # fmt: skip
    if any(result["score_mean"] != result["success_rate"] for result in results):
        parts.append(_figure(
            figures.success_bars(results, "score"),
            "Mean of each episode's highest score, with 95% intervals.",
        ))  # fmt: skip
    curves = [(names[run], _policy_name(run), read_metrics(run)) for run in runs]
    parts += ["<h2>Learning</h2>", _figure(
        figures.learning_curves(curves),
        "Left: training loss. Right: error of predicted chunks on held-out episodes.",
    )]  # fmt: skip
    for run in runs:
        energy = next((r for r in results if r["run"] == names[run] and r["policy"] == "ebt"), None)
        if energy is not None:
            parts += _energy_section(run, energy)
    parts += _videos(names)
    first = results[0]
    parts.append(
        f"<footer>commit {html.escape(first['commit'])} · {html.escape(first['hardware'])} · "
        f"torch {first['torch']} · {first['date']}</footer>"
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(_title(results))}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
    replace_file(out, page.encode())


def _title(results: list[dict[str, Any]]) -> str:
    return "ebt-policy: " + ", ".join(sorted({result["task"] for result in results}))


def _run_names(runs: list[Path]) -> dict[Path, str]:
    """Each folder's name, with as much of the path before it as tells them apart."""
    places = {run: run.absolute() for run in runs}
    longest = max(len(place.parts) for place in places.values())
    for count in range(1, longest):
        names = {run: "/".join(place.parts[-count:]) for run, place in places.items()}
        if len(set(names.values())) == len(set(places.values())):
            return names
    return {run: str(place) for run, place in places.items()}


def _policy_name(run: Path) -> str:
    return str(read_results(run)[0]["policy"])


def _table(results: list[dict[str, Any]]) -> str:
    head = (
        "run", "task", "policy", "success [95%]", "score [95%]", "episodes", "steps / chunk",
        "latency p50 / p95", "training", "parameters",
    )  # fmt: skip
    rows = ["".join(f"<th>{name}</th>" for name in head)]
    for result in sorted(results, key=lambda r: r["task"]):
        training = result["training"]
        trained = (
            "unfinished"
            if training is None
            else f"{training['seconds']:.0f} s, {training['samples']:,} samples"
        )
        latency = result["latency_ms"]
        cells = (
            html.escape(result["run"]),
            html.escape(result["task"]),
            html.escape(figures.label(result)),
            _interval(result["success_rate"], result["success_ci95"]),
            _interval(result["score_mean"], result["score_ci95"]),
            str(result["episodes"]),
            f"{result['descent_steps_mean']:.1f}",
            f"{latency['p50']:.1f} / {latency['p95']:.1f} ms",
            trained,
            f"{result['parameters'] / 1e6:.2f} M",
        )
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _interval(value: float, interval: list[float]) -> str:
    return f"{value:.3f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _figure(figure: Figure, caption: str) -> str:
    data = base64.b64encode(figures.png(figure)).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _energy_section(run: Path, result: dict[str, Any]) -> list[str]:
    """The energy at some moments of the first evaluated episode, and one descent drawn."""
    policy = load_policy(run)
    if not isinstance(policy, EnergyPolicy):
        raise UserError(f"{run}: its results are of an energy policy, its config.json is not")
    moments = result["moments"]
    streams = policy.stacked(
        [{name: observed(moment, name) for name in moment["observation"]} for moment in moments]
    )
    shown = result["settings"]["descent"]["steps"]
    descent = from_json(DescentConfig, json.dumps(result["settings"]["descent"]), str(run))
    settings = dataclasses.replace(
        descent,
        steps=max(_DESCENT_STEPS, shown + 1), tolerance=0.0, starts=1, noise=0.0,
        max_ms=None,
    )  # fmt: skip
    drawn = policy.with_sampling(settings)
    assert isinstance(drawn, EnergyPolicy)
    generators = [torch.Generator().manual_seed(0) for _ in moments]
    with torch.no_grad():
        observation = policy.normalise_observation(policy.raw_windows(streams))
        _, _, trace = drawn.sample(observation, generators, None, keep_path=True)
    assert trace is not None
    middle = len(moments) // 2
    taken = settings.steps + 1 - len(trace.path)  # a proposal is a step already taken
    unnormalise = policy.action_normaliser.unnormalise
    path = [unnormalise(iterate[middle].detach()).numpy() for iterate in trace.path]
    rate = make_task(result["task"]).rate
    steps = [moment["step"] for moment in moments]
    curves = (
        f"go through {settings.steps} levels, each with an energy of its own."
        if settings.rule == "annealed"
        else f"go on to {settings.steps} to show the landscape beyond. Drawn without the noise "
        "that is added before each step."
    )
    first = result["records"][0]
    outcome = "succeeds" if first["success"] else "does not succeed"
    return [
        f"<h2>The energy of {html.escape(result['run'])}: {html.escape(result['task'])}</h2>",
        f"<p>Moments of the first evaluated episode (seed {first['seed']}), which {outcome} after "
        f"{first['steps']} steps. The policy takes {shown} descent steps per chunk; the curves "
        f"{curves}</p>",
        _figure(
            figures.energy_against_step(trace, taken, steps, rate),
            "Energy and gradient norm against the descent step, at some moments of the episode.",
        ),
        _figure(
            figures.descent_in_action_space(
                path[: shown + 1 - taken], taken, policy.config.windows.executed
            ),
            f"One chunk on its way down the energy, {steps[middle] / rate:.1f} s into the episode.",
        ),
        _figure(
            figures.along_episode(first, policy.config.windows.action_steps, rate),
            "Descent steps and final energy of every chunk along the same episode.",
        ),
        *_words_section(policy, streams, steps, rate),
        *_pictures_section(policy, streams, steps, rate),
    ]


def _words_section(
    policy: EnergyPolicy, streams: dict[str, np.ndarray], steps: list[int], rate: float
) -> list[str]:
    """What each word of the sentence does to the chunk, for a policy that is told what to do."""
    texts = [n for n, s in policy.config.streams.items() if s.kind == "text" and n in streams]
    if not texts or len(words(str(streams[texts[0]].flat[0]))) == 1:
        return []
    said, moved = word_saliency(policy, streams, texts[0])
    return [_figure(
        figures.word_saliency(said, moved, steps, rate),
        "How far a descent step would move each chunk if a word of the sentence had not been said.",
    )]  # fmt: skip


def _pictures_section(
    policy: EnergyPolicy, streams: dict[str, np.ndarray], steps: list[int], rate: float
) -> list[str]:
    """What in the pictures the energy looks at; a frozen encoder has no slopes to tell."""
    vision = policy.config.vision
    if vision.encoder == "pretrained" and vision.frozen:
        return []
    return [
        _figure(
            figures.pixel_saliency(*pixel_saliency(policy, streams, camera), steps, rate),
            f"{camera}: what the network sees, and how much the energy of the chunk changes with "
            "each pixel (bright: most).",
        )
        for camera in policy.config.cameras
        if camera in streams
    ]


def _videos(names: dict[Path, str]) -> list[str]:
    parts = []
    for run, name in names.items():
        for path in sorted((run / RESULTS_FOLDER).glob("*.mp4")):
            data = base64.b64encode(path.read_bytes()).decode()
            caption = f"{name}: first evaluated episode"
            parts.append(
                f'<figure style="display:inline-block"><video controls loop muted playsinline '
                f'src="data:video/mp4;base64,{data}"></video>'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
    return ["<h2>Rollouts</h2>", *parts] if parts else []
