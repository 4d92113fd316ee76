"""Rolling out a policy on seeded starts; the result does not depend on the workers.

Episodes are cut into groups of consecutive seeds, the same for any number of workers. A group
runs in one process, its policy calls batched over the episodes that are still going; every
episode has its own generator for starts and noise. Workers only share out whole groups.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import multiprocessing
import time
import zlib
from collections import deque
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ebt_policy.demonstrations.base import TASK, plain_name
from ebt_policy.errors import UserError
from ebt_policy.evaluation.statistics import score_interval, wilson
from ebt_policy.evaluation.video import VideoWriter
from ebt_policy.policies.base import Policy, moved_on
from ebt_policy.policies.files import load_policy
from ebt_policy.provenance import provenance
from ebt_policy.tasks import Environment, Task, make_task
from ebt_policy.tasks.base import Observation

GROUP = 25  # at most: policies are called on so many observations at once
_LATENCY_CALLS, _LATENCY_WARMUP = 30, 3
_MOMENTS = 5


@dataclass
class EpisodeRecord:
    """One evaluated episode.

    Attributes:
        seed: of the start.
        success, score: whether it succeeded, and its highest score.
        steps: control steps until success or the end.
        descent_steps: sequential evaluations of each chunk, in order.
        energy: final energy of each chunk (energy policies only).
        novelty: energy of the observation of each chunk (policies with an alarm only).
        alarm: whether one of these was above the alarm's threshold; None without an alarm.
        doing: what the robot did during each chunk, where the task can tell.
        facts: what the task tells of the episode beyond that.
    """

    seed: int
    success: bool = False
    score: float = -math.inf
    steps: int = 0
    descent_steps: list[int] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    novelty: list[float] = field(default_factory=list)
    alarm: bool | None = None
    doing: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """What a worker needs to run any group of episodes.

    Attributes:
        run: the policy's folder.
        task: the task's name.
        acting: settings for acting instead of the saved ones, e.g. a ``DescentConfig``.
        action_steps: actions executed of each chunk instead of the saved number.
        video: where to write a video of ``film_seed``.
        with_alarm: whether the policy's alarm is part of it, and what it imagines then.
    """

    run: str
    task: str
    acting: Any = None
    video: str | None = None
    film_seed: int | None = None
    with_alarm: bool = True
    action_steps: int | None = None

    def policy(self) -> Policy:
        """The policy as it will act."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        policy = load_policy(self.run, device, self.with_alarm)
        return policy.with_sampling(self.acting, self.action_steps)


@dataclass
class _Group:
    """What one group of episodes gave.

    Attributes:
        records: of its episodes.
        windows: observation windows, one per chunk, of the first episodes.
        policy_seconds, simulation_seconds: spent in the policy, and in the environments.
    """

    records: list[EpisodeRecord]
    windows: list[list[dict[str, np.ndarray]]] = field(default_factory=list)
    policy_seconds: float = 0.0
    simulation_seconds: float = 0.0


class _Worker:
    """A process's policy, task and environments, kept from one group to the next."""

    def __init__(self, rollout: Rollout) -> None:
        torch.set_num_threads(1)
        self.rollout = rollout
        self.task, self.policy = make_task(rollout.task), rollout.policy()
        check_fit(self.policy, self.task)
        plain = {name: plain_name(name) for name in self.policy.stream_names}
        self.aliases = {name: short for name, short in plain.items() if name != short}
        self.environments: list[Environment] = []

    def group(self, seeds: list[int], kept: int = 1) -> _Group:
        """Run one group of episodes; keep the observation windows of the first ``kept``."""
        while len(self.environments) < len(seeds):
            self.environments.append(self.task.make())
        video = None
        if self.rollout.video is not None and self.rollout.film_seed in seeds:
            video = VideoWriter(Path(self.rollout.video), self.task.rate)
            film = seeds.index(self.rollout.film_seed)
        policy, windows = self.policy, self.policy.config.windows
        sizes = {plain_name(name): size for name, size in policy.config.cameras.items()}
        sizes |= policy.config.cameras
        cameras = {n: s for n, s in sizes.items() if n in self.task.cameras}
        records = [EpisodeRecord(seed) for seed in seeds]
        group = _Group(records, [[] for _ in seeds[:kept]])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        seen: list[deque] = []
        for environment, seed in zip(self.environments, seeds, strict=False):
            began = time.perf_counter()
            environment.cameras = cameras
            first = self._named(environment.reset(seed))
            group.simulation_seconds += time.perf_counter() - began
            try:
                policy.check_observation(first)
            except UserError as error:
                raise UserError(f"--task {self.task.name}: {error}") from error
            seen.append(deque([first] * windows.observation_steps, windows.observation_steps))
        previous = np.zeros((len(seeds), windows.horizon, policy.config.action_dim), np.float32)
        has_previous = False
        going = list(range(len(seeds)))
        while going:
            now = [policy.window(seen[i]) for i in going]
            for window, i in zip(now, going, strict=True):
                if i < kept:
                    group.windows[i].append(window)
            began = time.perf_counter()
            prediction = policy.predict_chunk(
                policy.stacked(now),
                [generators[i] for i in going],
                previous[going] if has_previous else None,
            )
            group.policy_seconds += time.perf_counter() - began
            previous[going] = moved_on(prediction.plan, windows.action_steps)
            has_previous = True
            ended = set()
            for row, i in enumerate(going):
                record = records[i]
                record.descent_steps.append(int(prediction.evaluations[row]))
                if prediction.trace is not None:
                    record.energy.append(float(prediction.trace.energy[row, -1]))
                if prediction.score is not None and prediction.alarm is not None:
                    record.novelty.append(float(prediction.score[row]))
                    record.alarm = bool(record.alarm) or bool(prediction.alarm[row])
                before = seen[i][-1]
                for k, action in enumerate(prediction.actions[row]):
                    if video is not None and i == film:
                        video.frame(self.environments[i], record.steps)
                    began = time.perf_counter()
                    # Only what is still in the window at the end of the chunk will be looked at.
                    is_seen = k >= windows.action_steps - windows.observation_steps
                    self.environments[i].cameras = cameras if is_seen else {}
                    outcome = self.environments[i].step(action)
                    group.simulation_seconds += time.perf_counter() - began
                    seen[i].append(self._named(outcome.observation))
                    record.steps += 1
                    record.score = max(record.score, outcome.score)
                    record.success = outcome.success
                    if outcome.success or outcome.done or record.steps >= self.task.horizon:
                        ended.add(i)
                        break
                if self.task.describe is not None:
                    record.doing.append(self.task.describe(before, seen[i][-1]))
            for i in ended:
                records[i].facts = self.environments[i].facts()
            going = [i for i in going if i not in ended]
        if video is not None:
            video.frame(self.environments[film], 0)
            video.close()
        return group

    def _named(self, observation: Observation) -> Observation:
        """The observation, also by the names that LeRobot's data have for its streams."""
        lacking = {
            name: observation[short]
            for name, short in self.aliases.items()
            if name not in observation and short in observation
        }
        return {**observation, **lacking} if lacking else observation

    def close(self) -> None:
        """Close the environments."""
        for environment in self.environments:
            environment.close()


_worker: _Worker | None = None


def _start_worker(rollout: Rollout) -> None:
    global _worker
    _worker = _Worker(rollout)


def _run_group(seeds: list[int]) -> _Group:
    assert _worker is not None
    return _worker.group(seeds)


def check_fit(policy: Policy, task: Task) -> None:
    """Check that a policy's actions are a task's, before the first rollout.

    Raises:
        UserError: the action dimensions differ.
    """
    if policy.config.action_dim != task.action_dim:
        raise UserError(
            f"--task {task.name}: its actions have {task.action_dim} dimensions, the policy was "
            f"trained on {policy.config.action_dim}"
        )


def evaluate(
    rollout: Rollout, episodes: int, seed: int, workers: int = 1, progress: bool = True
) -> dict[str, Any]:
    """Evaluate a policy on the starts ``seed … seed + episodes - 1``.

    Args:
        rollout: policy, task and settings.
        episodes: how many.
        seed: of the first start.
        workers: processes; the result is the same for any number.
        progress: show a progress bar with the success rate so far.

    Returns:
        The result as ``eval --json`` writes it.

    Raises:
        UserError: the policy does not fit the task, or a worker died.
    """
    if episodes < 1:
        raise UserError(f"--episodes {episodes}: at least one is needed")
    if workers < 1:
        raise UserError(f"--workers {workers}: at least one is needed")
    seeds = list(range(seed, seed + episodes))
    count = 2 * math.ceil(episodes / (2 * GROUP))  # even, so that two workers share them well
    groups = [part.tolist() for part in np.array_split(seeds, count) if len(part)]
    policy, task = rollout.policy(), make_task(rollout.task)
    check_fit(policy, task)
    done: list[_Group] = []
    began = time.perf_counter()
    title = f"{rollout.task} {policy.config.policy}"
    with tqdm(total=episodes, desc=title, unit="ep", disable=not progress) as bar:

        def collect(group: _Group) -> None:
            done.append(group)
            records = [record for group in done for record in group.records]
            success = np.mean([record.success for record in records])
            score = np.mean([record.score for record in records])
            bar.set_postfix_str(f"success {success:.2f}, score {score:.3f}", refresh=False)
            bar.update(len(group.records))

        threads = torch.get_num_threads()
        if workers == 1 or len(groups) == 1:
            worker = _Worker(rollout)
            for group in groups:
                collect(worker.group(group))
            worker.close()
        else:
            with ProcessPoolExecutor(
                min(workers, len(groups)), multiprocessing.get_context("spawn"),
                initializer=_start_worker, initargs=(rollout,),
            ) as pool:  # fmt: skip
                try:
                    for future in as_completed([pool.submit(_run_group, g) for g in groups]):
                        collect(future.result())
                except BrokenProcessPool as error:
                    raise UserError(
                        f"--workers {workers}: a worker process died (out of memory, or the "
                        "simulator crashed); try --workers 1 to see its own message"
                    ) from error
        seconds = time.perf_counter() - began
        done.sort(key=lambda group: group.records[0].seed)
        records = [record for group in done for record in group.records]
        windows = done[0].windows[0]
        torch.set_num_threads(1)
        latency = measure_latency(policy, windows)
        torch.set_num_threads(threads)
    result = {
        **_of_policy(policy, rollout), **of_records([dataclasses.asdict(r) for r in records], task),
        "latency_ms": latency,
        "evaluation_seconds": round(seconds, 2),
        "policy_seconds": round(sum(group.policy_seconds for group in done), 2),
        "simulation_seconds": round(sum(group.simulation_seconds for group in done), 2),
        "workers": min(workers, len(groups)), **provenance(),
    }  # fmt: skip
    missing = [name for name in policy.stream_names if name not in windows[0]]
    return {
        **result,
        **({"missing": missing} if missing else {}),
        "moments": _moments(windows, policy),
    }


@dataclass
class Visit:
    """An episode with every observation window at which a chunk was predicted.

    Attributes:
        record: of the episode.
        windows: per chunk each stream (To, *shape).
    """

    record: EpisodeRecord
    windows: list[dict[str, np.ndarray]]


def visits(rollout: Rollout, seed: int) -> Generator[Visit, None, None]:
    """Episodes from the starts ``seed, seed + 1, …``, without end, in groups that run together.

    The policy acts as if it had no alarm, so that one is not calibrated by what another imagines.

    Raises:
        UserError: the policy does not fit the task.
    """
    worker = _Worker(dataclasses.replace(rollout, with_alarm=False))
    try:
        while True:
            group = worker.group(list(range(seed, seed + GROUP)), kept=GROUP)
            yield from map(Visit, group.records, group.windows)
            seed += GROUP
    finally:
        worker.close()


def measure_latency(policy: Policy, windows: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Milliseconds of one chunk at batch 1 on one thread, observation encoding included."""
    times = []
    for call in range(_LATENCY_WARMUP + _LATENCY_CALLS):
        window = windows[call % len(windows)]
        began = time.perf_counter()
        policy.predict_chunk(
            {name: values[None] for name, values in window.items()},
            [torch.Generator().manual_seed(call)],
        )
        times.append(1e3 * (time.perf_counter() - began))
    p50, p95 = np.percentile(times[_LATENCY_WARMUP:], [50, 95])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


def _moments(windows: list[dict[str, np.ndarray]], policy: Policy) -> list[dict[str, Any]]:
    """Some observation windows of the first episode, for the report."""
    chosen = np.unique(np.linspace(0, len(windows) - 1, _MOMENTS).round().astype(int))
    return [
        {
            "step": int(i) * policy.config.windows.action_steps,
            "observation": {name: _to_json(values) for name, values in windows[i].items()},
        }
        for i in chosen
    ]


def _to_json(values: np.ndarray) -> Any:
    """Numbers as lists; images, which would be long ones, as compressed bytes in base64."""
    if values.dtype != np.uint8:
        return values.tolist()
    packed = base64.b64encode(zlib.compress(values.tobytes())).decode()
    return {"shape": values.shape, "uint8": packed}


def observed(moment: dict[str, Any], stream: str) -> np.ndarray:
    """A stream of a moment in a result, as the policy was given it: (To, *shape), or text (To,)."""
    values = moment["observation"][stream]
    if isinstance(values, dict):
        raw = zlib.decompress(base64.b64decode(values["uint8"]))
        return np.frombuffer(raw, np.uint8).reshape(values["shape"])
    return np.array(values, None if isinstance(values[0], str) else np.float32)


def _of_policy(policy: Policy, rollout: Rollout) -> dict[str, Any]:
    """What the result says of the policy and how it acted."""
    config = policy.config
    is_energy = config.policy == "ebt"
    settings: dict[str, Any] = {"action_steps": config.windows.action_steps}
    if policy.acting is not None:
        settings[policy.acting] = dataclasses.asdict(getattr(config, policy.acting))
    if is_energy:
        learned = dataclasses.asdict(getattr(config, config.objective))
        named = {"objective": config.objective, "form": config.form, config.objective: learned}
        settings = named | settings
    if config.observation_noise:
        settings["observation_noise"] = config.observation_noise
    rate = {} if policy.alarm is None else {"alarm_rate": policy.alarm.rate}
    return rate | {
        "task": rollout.task,
        "policy": config.policy,
        "sampler": policy.sampler,
        "starts": config.descent.starts if is_energy else 1,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "settings": settings,
    }


def of_records(records: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """What the result says of its episodes.

    Args:
        records: :class:`EpisodeRecord` as dictionaries, at least one.
        task: where they were run.
    """
    successes = sum(record["success"] for record in records)
    scores = [record["score"] for record in records]
    steps = [taken for record in records for taken in record["descent_steps"]]
    of_task = task.summarise([r["facts"] for r in records]) if task.summarise else {}
    per_task = {}
    for name in sorted({record["facts"][TASK] for record in records if TASK in record["facts"]}):
        own = [record["success"] for record in records if record["facts"].get(TASK) == name]
        per_task[name] = {
            "episodes": len(own), "success_rate": sum(own) / len(own),
            "success_ci95": list(wilson(sum(own), len(own))),
        }  # fmt: skip
    alarms = {}
    for name, success in (("of_successes", True), ("of_failures", False)):
        given = [r["alarm"] for r in records if r["success"] == success and r["alarm"] is not None]
        if given:
            alarms[name] = {
                "episodes": len(given), "rate": sum(given) / len(given),
                "ci95": list(wilson(sum(given), len(given))),
            }  # fmt: skip
    return {
        "episodes": len(records),
        "success_rate": successes / len(records),
        "success_ci95": list(wilson(successes, len(records))),
        "score_mean": float(np.mean(scores)),
        "score_ci95": list(score_interval(scores, [r["success"] for r in records])),
        "descent_steps_mean": float(np.mean(steps)),
        **({"per_task": per_task} if per_task else {}),
        **of_task,
        **({"alarms": alarms} if alarms else {}),
        "seeds": [record["seed"] for record in records],
        "records": records,
    }
