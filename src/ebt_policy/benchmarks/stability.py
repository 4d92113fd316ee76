"""``bench stability``: what becomes of errors, of the policy's own and of small ones put in.

* *Exposure*: the error of the first executed action of a chunk, where the demonstrator has been and
  where the policy has led itself. On states of its own the reference is what the scripted expert
  would do there, so this is measured only where the expert's action depends on the observation
  alone (:attr:`Task.expert_knows_any_state`).
* *Growth*: every episode twice, from the same start with the same draws, once with a first action
  that is a little off; the distance between the two observations at later chunks, over that.
* *Divergence*: the same descent from a start that is several times as large (the proposal, where
  that is the start), or with other steps; a Diffusion Policy's from larger noise, or told that its
  chunk is of another step of the schedule. It has diverged if it is not finite, or ends further
  than ``BOUND`` from where it ends otherwise.

Distances are root mean squares in half ranges of what was demonstrated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ebt_policy.benchmarks.variants import BareDiffusionPolicy
from ebt_policy.config import DescentConfig
from ebt_policy.descent import descend, rms
from ebt_policy.errors import UserError
from ebt_policy.evaluation.action_error import action_errors, chunk_starts, unseen_windows
from ebt_policy.evaluation.rollout import Rollout, Visit, visits
from ebt_policy.evaluation.statistics import bootstrap_mean
from ebt_policy.policies.alarm import flat
from ebt_policy.policies.base import Policy
from ebt_policy.policies.diffusion import DiffusionPolicy
from ebt_policy.policies.ebt import EnergyPolicy
from ebt_policy.policies.files import load_policy
from ebt_policy.provenance import provenance
from ebt_policy.tasks import Task, make_task
from ebt_policy.training.files import read_summary
from ebt_policy.windows.windows import Windows

NUDGE = 0.1
CHUNKS = (1, 2, 4, 8, 16)  # after which the distance is looked at
# How far from a demonstration the near landscape of ``basin`` was trained to lead home from.
BOUND = 0.25
SCALES = (0.5, 1.5, 2.0, 3.0)  # of the start
FACTORS = (0.5, 0.75, 1.25, 1.5)  # of the step, or of the step of the schedule
MANY_STEPS = 20
RATIO = "visited / demonstrated"
_OBSERVATIONS = 512  # of which descents are compared, at most
_RESAMPLES = 2_000

Sampler = Callable[[dict[str, Tensor], float, float], Tensor]


def measure_stability(
    runs: dict[str, Path], data: str, task_name: str, episodes: int, seed: int
) -> dict[str, Any]:
    """All three, for each policy as it was saved to act.

    Args:
        runs: folders of energy policies and Diffusion Policies, by their names in the result.
        data: path of demonstrations that none of them has learned from.
        task_name: where to roll out.
        episodes: how many.
        seed: of the first start.

    Raises:
        UserError: a run holds another kind of policy, or was trained on these demonstrations.
    """
    task, measured = make_task(task_name), {}
    for name, run in runs.items():
        policy = load_policy(run, with_alarm=False)
        if not isinstance(policy, EnergyPolicy | DiffusionPolicy):
            raise UserError(f"{run} holds --policy {policy.config.policy}; ebt or diffusion needed")
        windows = unseen_windows(run, policy, data)
        plain, nudged = (
            _episodes(run, task_name + suffix, episodes, seed)
            for suffix in ("", f"+nudge={NUDGE:g}")
        )
        measured[name] = {
            "exposure": _exposure(policy, windows, plain, task),
            "growth": _growth(policy, plain, nudged),
            "divergence": _divergence(policy, windows, seed),
            "training": read_summary(run),
        }
    return {
        "task": task_name, "episodes": episodes, "first_seed": seed, "data": Path(data).name,
        "nudge": NUDGE, "bound": BOUND, "policies": measured, **provenance(),
    }  # fmt: skip


def _episodes(run: Path, task: str, episodes: int, seed: int) -> list[Visit]:
    rollout = visits(Rollout(str(run), task), seed)
    seen = list(tqdm(itertools.islice(rollout, episodes), desc=task, total=episodes, unit="ep"))
    rollout.close()
    return seen


def _stacked(policy: Policy, windows: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in policy.stacked(windows).items()}


def _exposure(
    policy: Policy, windows: Windows, seen: list[Visit], task: Task
) -> dict[str, list[float]]:
    """Error of the first executed action: mean over episodes, and its 95% interval."""
    starts = chunk_starts(windows)
    first = action_errors(policy, windows, starts)[:, 0]
    episode = windows.first[starts].numpy()
    found = {
        "demonstrated": [_rms(first[episode == start]) for start in np.unique(episode)],
    }
    if task.make_expert is not None and task.expert_knows_any_state:
        visited = [_visited_error(policy, visit, task) for visit in seen]
        found["visited"] = visited
        found["visited, successes only"] = [
            error for error, visit in zip(visited, seen, strict=True) if visit.record.success
        ]
    means = {
        name: [round(x, 4) for x in (float(np.mean(errors)), *bootstrap_mean(errors))]
        for name, errors in found.items()
        if errors
    }
    if "visited" in means:
        means[RATIO] = _ratio(found["visited"], found["demonstrated"])
    return means


def _ratio(above: list[float], below: list[float]) -> list[float]:
    """Of two means, with its 95% bootstrap interval."""
    random = np.random.default_rng(0)
    drawn = [
        random.choice(above, len(above)).mean() / random.choice(below, len(below)).mean()
        for _ in range(_RESAMPLES)
    ]
    return [
        round(float(x), 4)
        for x in (np.mean(above) / np.mean(below), *np.percentile(drawn, [2.5, 97.5]))
    ]


def _visited_error(policy: Policy, visit: Visit, task: Task) -> float:
    assert task.make_expert is not None
    expert = task.make_expert(visit.record.seed)
    present = [{name: values[-1] for name, values in w.items()} for w in visit.windows]
    reference = np.stack([expert(observation) for observation in present])
    generators = [torch.Generator().manual_seed(i) for i in range(len(present))]
    chosen = policy.predict_chunk(_stacked(policy, visit.windows), generators).actions[:, 0]
    normalise = policy.action_normaliser.normalise
    return _rms(
        (normalise(torch.from_numpy(chosen)) - normalise(torch.from_numpy(reference))).numpy()
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(np.square(values))))


def _growth(policy: Policy, plain: list[Visit], nudged: list[Visit]) -> dict[str, Any]:
    """Distance between observations over the nudge, by the number of chunks since then.

    Of the pairs whose episodes both go on then: their number, median and 90th percentile.
    """
    distances: dict[int, list[float]] = {chunk: [] for chunk in CHUNKS}
    for one, other in zip(plain, nudged, strict=True):
        both = min(len(one.windows), len(other.windows))
        left, right = (
            flat(policy.normalise_observation(_stacked(policy, visit.windows[:both])))
            for visit in (one, other)
        )
        apart = (left - right).square().mean(1).sqrt() / NUDGE
        for chunk in CHUNKS:
            distances[chunk].extend(apart[chunk : chunk + 1].tolist())
    return {
        "success": [float(np.mean([v.record.success for v in each])) for each in (plain, nudged)],
        "distance": {
            str(chunk): [len(found), *(round(float(q), 4) for q in np.percentile(found, [50, 90]))]
            for chunk, found in distances.items()
            if found
        },
    }


def _divergence(
    policy: EnergyPolicy | DiffusionPolicy, windows: Windows, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Of each way of acting and disturbance: share diverged, and error to the demonstration."""
    count = min(_OBSERVATIONS, len(windows))
    batch = windows.gather(torch.linspace(0, len(windows) - 1, count).round().long())
    observation = policy.normalise_observation(batch.observations)
    wanted = policy.action_normaliser.normalise(batch.actions)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for how, sampler in _samplers(policy).items():

        def chunks(scale: float, factor: float, sampler: Sampler = sampler) -> Tensor:
            torch.manual_seed(seed)
            with torch.no_grad():
                return sampler(observation, scale, factor)

        undisturbed = chunks(1.0, 1.0)
        found[how] = {}
        for name, scale, factor in (
            ("undisturbed", 1.0, 1.0),
            *((f"start × {scale:g}", scale, 1.0) for scale in SCALES),
            *((f"step × {factor:g}", 1.0, factor) for factor in FACTORS),
        ):
            chunk = chunks(scale, factor)
            is_home = rms(chunk - undisturbed) <= BOUND  # false where it is not finite
            squares = (chunk - wanted).square().mean(2) * batch.valid
            error = (squares.sum(1) / batch.valid.sum(1)).sqrt()
            found[how][name] = {
                "diverged": round(1 - is_home.float().mean().item(), 4),
                "error": round(error.nanmedian().item(), 4),
            }
    return found


def _samplers(policy: EnergyPolicy | DiffusionPolicy) -> dict[str, Sampler]:
    """Ways to make chunks from observations, a scale of the start and a factor of the step."""
    if isinstance(policy, DiffusionPolicy):
        config = replace(policy.config, diffusion=replace(policy.config.diffusion, sampler="ddim"))
        bare = BareDiffusionPolicy(config)
        bare.load_state_dict(policy.state_dict())
        levels = torch.tensor(bare.times) / config.diffusion.training_steps

        def denoised(observation: dict[str, Tensor], scale: float, factor: float) -> Tensor:
            memory = bare.network.remember(observation)
            shape = (len(memory[0][0]), config.windows.horizon, config.action_dim)
            chunk: Tensor = bare.denoise(
                lambda x, step: bare.network(x, memory, factor * levels[step].expand(len(x))),
                lambda: scale * torch.randn(shape),
            )
            return chunk

        return {f"DDIM-{config.diffusion.ddim_steps}": denoised}

    def descending(settings: DescentConfig) -> Sampler:
        mine = policy.with_sampling(settings)
        assert isinstance(mine, EnergyPolicy)

        def descended(observation: dict[str, Tensor], scale: float, factor: float) -> Tensor:
            memory = mine.energy.remember(observation)
            start, noise, taken = mine.starts(memory, None, None)
            stretched = replace(settings, step_size=factor * settings.step_size)
            energy = mine.energy.given(memory)
            return descend(energy, scale * start, stretched, noise, taken=taken)[0]

        return descended

    saved = replace(policy.config.descent, starts=1)
    many = replace(saved, steps=MANY_STEPS)
    ways = {f"{saved.steps} steps": saved, f"{MANY_STEPS} steps": many}
    if saved.start != "noise":
        ways[f"{MANY_STEPS} steps from noise"] = replace(many, start="noise")
    return {how: descending(settings) for how, settings in ways.items()}
