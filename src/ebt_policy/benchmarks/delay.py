"""Robots at a fixed control rate, driven through ``ebt-policy serve`` over a slow, lossy link.

Each robot is a simulated task in a process of its own, which takes one step every 1 / rate seconds
whether or not there is a new chunk; the link lies between its client and the server. Time is real.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ebt_policy.benchmarks.serving import serving
from ebt_policy.client import PolicyClient
from ebt_policy.config import override
from ebt_policy.evaluation.statistics import score_interval, wilson
from ebt_policy.policies.files import load_policy
from ebt_policy.provenance import provenance
from ebt_policy.tasks import make_task
from ebt_policy.tasks.base import Environment, Task
from ebt_policy.training.files import read_summary

_LOST_AFTER = 1.0  # s


@dataclass(frozen=True)
class Link:
    """What lies between a robot and the server.

    Attributes:
        delay_ms: from a question to its answer, beyond what the server takes.
        jitter_ms: most that a delay differs from that.
        lost: share of the questions that are never answered.
    """

    delay_ms: float
    jitter_ms: float
    lost: float

    def steps(self, rate: float) -> int:
        """Control steps for which the robot needs actions while it waits; 0 without a delay.

        One more than the link takes is for the server, and for a step that has begun.
        """
        if self.delay_ms == 0:
            return 0
        return math.ceil(1e-3 * (self.delay_ms + self.jitter_ms) * rate) + 1


class _SlowClient(PolicyClient):
    """A client at the end of a link, which remembers where its chunks began."""

    def __init__(self, port: int, link: Link, rate: float) -> None:
        super().__init__(port=port, ahead=link.steps(rate), lost_after=_LOST_AFTER)
        self._link = link
        self.seams: list[int] = []

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._random, self.seams = np.random.default_rng(seed), []

    def _ask(self, message: dict[str, Any], patience: float) -> bytes | str:
        link, is_first = self._link, self._begins
        if not is_first and self._random.random() < link.lost:
            time.sleep(patience)
            raise ConnectionError("lost")
        delay = link.delay_ms + link.jitter_ms * self._random.uniform(-1, 1)
        answer = super()._ask(message, patience)
        time.sleep(1e-3 * max(0.0, delay))
        return answer

    def _reply(self, answer: bytes | str) -> dict[str, Any]:
        self.seams.append(max(self._step, self._due))
        return super()._reply(answer)


def measure_delay(
    run: Path,
    settings: list[str],
    task: str,
    links: list[Link],
    episodes: int,
    first_seed: int,
    robots: int,
) -> dict[str, Any]:
    """Success and smoothness of a policy behind links of different delays.

    Without a delay the robot asks when its chunk has ended and time stands still for the answer;
    with one it asks as many control steps ahead as the link may take.

    Args:
        run: folder of the policy.
        settings: of acting, as ``serve --set`` takes them.
        task: as ``--task`` takes it.
        links: in turn.
        episodes: starts, the same for every link.
        first_seed: of the starts.
        robots: at once.

    Returns:
        ``rows``, one for each link: mean ``score`` and ``success``, each with its 95% interval,
        those of each episode; ``seam_jerk`` and ``inner_jerk``, the mean third difference of
        the actions, as a vector's length in the actions' units per step^3, where it spans the
        beginning of a chunk and where it does not; ``held``, share of the control steps at which
        no action was there; ``late``, share at which the robot was late by half a step or more.

    Raises:
        UserError: the task or the policy is unknown, or they do not suit each other.
    """
    make_task(task)
    config, rows = override(load_policy(run).config, settings), []
    context = multiprocessing.get_context("spawn")
    with serving(run, settings) as (_, port), context.Pool(min(robots, episodes)) as pool:
        for link in links:
            jobs = [(port, task, link, first_seed + i) for i in range(episodes)]
            name = f"{task}, {link.delay_ms:g} ms"
            found = list(tqdm(pool.imap(_drive, jobs), name, episodes, unit="ep"))
            rows.append(_row(link, found))
    return {
        "run": run.name, "task": task, "settings": settings, "policy": config.policy,
        "prefix_share": config.basin.prefix_share, "windows": asdict(config.windows),
        "episodes": episodes, "first_seed": first_seed, "robots": robots, "rows": rows,
        "training": read_summary(run), **provenance(),
    }  # fmt: skip


@dataclass
class _Ride:
    """One episode."""

    score: float
    success: bool
    seam_jerks: list[float]
    inner_jerks: list[float]
    steps: int
    held: int
    late: int


@functools.cache  # once in each robot's process
def _simulated(name: str) -> tuple[Task, Environment]:
    task = make_task(name)
    return task, task.make()


def _drive(job: tuple[int, str, Link, int]) -> _Ride:
    """One episode at the task's control rate."""
    port, name, link, seed = job
    task, environment = _simulated(name)
    score, success, late, held = 0.0, False, 0, 0
    actions: list[np.ndarray] = []
    client = _SlowClient(port, link, task.rate)
    with client:
        client.reset(seed)
        observation = environment.reset(seed)
        due = time.perf_counter()
        while len(actions) < task.horizon:
            actions.append(client.select_action(observation))
            held += client.is_holding
            outcome = environment.step(actions[-1])
            observation, score = outcome.observation, max(score, outcome.score)
            success = outcome.success
            if success or outcome.done:
                break
            if link.delay_ms == 0 or len(actions) == 1:
                due = time.perf_counter()  # waiting for the first chunk takes no time
                continue
            due += 1 / task.rate
            left = due - time.perf_counter()
            late += left < -0.5 / task.rate
            time.sleep(max(0.0, left))
    jerks = np.linalg.norm(np.diff(actions, 3, axis=0), axis=1) if len(actions) > 3 else []
    # The third difference at i is of the actions i to i + 3.
    spans = {seam - back for seam in client.seams for back in (1, 2, 3)}
    return _Ride(
        score, success,
        [float(jerk) for i, jerk in enumerate(jerks) if i in spans],
        [float(jerk) for i, jerk in enumerate(jerks) if i not in spans],
        len(actions), held, late,
    )  # fmt: skip


def _row(link: Link, rides: list[_Ride]) -> dict[str, Any]:
    scores, successes = [ride.score for ride in rides], [ride.success for ride in rides]
    steps = sum(ride.steps for ride in rides)
    return {
        **asdict(link), "score": round(float(np.mean(scores)), 4),
        "score_ci95": [round(x, 4) for x in score_interval(scores, successes)],
        "success": round(float(np.mean(successes)), 4),
        "success_ci95": [round(x, 4) for x in wilson(sum(successes), len(successes))],
        "seam_jerk": _mean([jerk for ride in rides for jerk in ride.seam_jerks]),
        "inner_jerk": _mean([jerk for ride in rides for jerk in ride.inner_jerks]),
        "held": round(sum(ride.held for ride in rides) / steps, 4),
        "late": round(sum(ride.late for ride in rides) / steps, 4),
        "scores": [round(score, 4) for score in scores], "successes": successes,
    }  # fmt: skip


def _mean(values: list[float]) -> float | None:
    """None of no values: episodes may end before there is a jerk."""
    return round(float(np.mean(values)), 4) if values else None
