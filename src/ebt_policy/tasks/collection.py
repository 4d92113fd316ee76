"""``collect``: demonstrations of a task's scripted expert, successes without a slip only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from ebt_policy.demonstrations.base import TASK
from ebt_policy.demonstrations.robomimic import Episode
from ebt_policy.errors import UserError
from ebt_policy.tasks.base import Environment, Observation, Task


def collect(
    task: Task,
    episodes: int,
    seed: int,
    progress: bool = True,
    cameras: Mapping[str, tuple[int, int]] | None = None,
) -> list[Episode]:
    """Run the expert from the starts ``seed, seed + 1, …`` until enough have succeeded.

    Actions are recorded as they were executed (clipped), observations before their action;
    an episode ends at success. Successes that the task says are not fit to be shown count as
    failures.

    Args:
        task: with a scripted expert.
        episodes: how many successes to keep.
        seed: of the first start.
        progress: show a progress bar with the expert's success rate.
        cameras: height and width of the images that are recorded, by stream.

    Raises:
        UserError: the task has no expert or not this camera, or the expert keeps failing.
    """
    if task.make_expert is None:
        raise UserError(f"collect {task.name}: this task has no scripted expert")
    if episodes < 1:
        raise UserError(f"--episodes {episodes}: at least one is needed")
    for name in cameras or {}:
        if name not in task.cameras:
            there = f"there are {', '.join(task.cameras)}" if task.cameras else "it has none"
            raise UserError(f"collect {task.name}: no camera {name!r}; {there}")
    environment = task.make()
    environment.cameras = cameras or {}
    kept: list[Episode] = []
    tried = 0
    with tqdm(total=episodes, desc=f"collect {task.name}", unit="ep", disable=not progress) as bar:
        while len(kept) < episodes:
            if tried >= 20 and len(kept) < tried / 10:
                raise UserError(
                    f"collect {task.name}: the expert succeeded in {len(kept)} of {tried} starts "
                    f"from seed {seed} on; too few to go on"
                )
            episode = _demonstrate(task, environment, seed + tried)
            tried += 1
            slipped = task.may_be_shown and not task.may_be_shown(environment.facts())
            if episode.success and not slipped:
                kept.append(episode)
                bar.update()
            bar.set_postfix_str(f"expert success {len(kept) / tried:.2f}", refresh=False)
    environment.close()
    return kept


def _demonstrate(task: Task, environment: Environment, seed: int) -> Episode:
    assert task.make_expert is not None
    expert = task.make_expert(seed)
    observation = environment.reset(seed)
    observations: list[Observation] = []
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    success = done = False
    while not (success or done) and len(actions) < task.horizon:
        action = expert(observation)
        observations.append(observation)
        outcome = environment.step(action)
        actions.append(action)
        rewards.append(outcome.score)
        observation, success, done = outcome.observation, outcome.success, outcome.done
    first = observations[0]
    return Episode(
        {name: np.stack([o[name] for o in observations]) for name in first if name != TASK},
        np.stack(actions), np.array(rewards), success, seed,
        str(first[TASK]) if TASK in first else None,
    )  # fmt: skip
