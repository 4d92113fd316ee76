"""Evaluation: steps of the environment in a second, and the policy's share of the time."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ebt_policy.evaluation.rollout import Rollout, evaluate
from ebt_policy.provenance import provenance
from ebt_policy.tasks import Environment, make_task

_STEPS = 2000  # of each worker in each round
_simulation: _Simulation | None = None


class _Simulation:
    """One worker's environment, moved at random within the range of the demonstrations."""

    def __init__(self, task: str, low: np.ndarray, high: np.ndarray, barrier: Barrier) -> None:
        self.task = make_task(task)
        self.environment: Environment = self.task.make()
        self.low, self.high, self.barrier = low, high, barrier

    def run(self, seed: int) -> tuple[float, float]:
        """When some steps began and ended, after all workers are ready."""
        random = np.random.default_rng(seed)
        self.environment.reset(seed)
        self.barrier.wait()
        began, taken = time.monotonic(), 0
        for step in range(_STEPS):
            # An action is held for as long as a chunk, as a policy would move.
            if step % 8 == 0:
                action = random.uniform(self.low, self.high).astype(np.float32)
            outcome = self.environment.step(action)
            taken += 1
            if outcome.success or outcome.done or taken == self.task.horizon:
                seed, taken = seed + 1, 0
                self.environment.reset(seed)
        return began, time.monotonic()


def _start(task: str, low: np.ndarray, high: np.ndarray, barrier: Barrier) -> None:
    global _simulation
    torch.set_num_threads(1)
    _simulation = _Simulation(task, low, high, barrier)


def _run(seed: int) -> tuple[float, float]:
    assert _simulation is not None
    return _simulation.run(seed)


def measure_evaluation(run: str, task: str, episodes: int, rounds: int) -> dict[str, Any]:
    """Speed of the simulation alone, with one worker and with two, and of a whole evaluation.

    Args:
        run: folder of a policy, which acts as it was saved.
        task: name of the task.
        episodes: of the evaluation, with one worker.
        rounds: of simulating with one worker and with two, in turns.

    Returns:
        ``steps_per_second`` by number of workers, their ratio ``two_over_one`` (medians over
        rounds), and of the evaluation ``policy_seconds``, ``simulation_seconds`` and
        ``policy_share``.

    Raises:
        UserError: there is no such policy or task, or they do not fit.
    """
    rollout = Rollout(run, task)
    policy = rollout.policy()
    normaliser = policy.action_normaliser
    corner = torch.ones(1, 1, policy.config.action_dim, device=normaliser.centre.device)
    low, high = (
        normaliser.unnormalise(sign * corner)[0, 0].cpu().numpy() for sign in (-1.0, 1.0)
    )  # fmt: skip
    result = evaluate(rollout, episodes, seed=100_000)
    context = multiprocessing.get_context("spawn")
    pools = {}
    for workers in (1, 2):
        arguments = (task, low, high, context.Barrier(workers))
        pools[workers] = ProcessPoolExecutor(
            workers, context, initializer=_start, initargs=arguments
        )
    rates: dict[int, list[float]] = {workers: [] for workers in pools}
    for round_ in tqdm(range(1 + rounds), desc=f"simulating {task}"):
        for workers, pool in pools.items():
            spans = list(pool.map(_run, [1000 * (round_ + 1) + i for i in range(workers)]))
            took = max(end for _, end in spans) - min(begin for begin, _ in spans)
            if round_:  # the first builds the environments
                rates[workers].append(workers * _STEPS / took)
    for pool in pools.values():
        pool.shutdown()
    policy_s, simulation_s = result["policy_seconds"], result["simulation_seconds"]
    config = policy.config
    return {
        "task": task, "policy": config.policy, "settings": result["settings"],
        "parameters": result["parameters"], "episodes": episodes, "rounds": rounds,
        "steps_per_second": {n: round(float(np.median(r)), 1) for n, r in rates.items()},
        "two_over_one": round(float(np.median(np.divide(rates[2], rates[1]))), 3),
        "policy_seconds": policy_s, "simulation_seconds": simulation_s,
        "policy_share": round(policy_s / (policy_s + simulation_s), 3),
        "success_rate": result["success_rate"], **provenance(),
    }  # fmt: skip
