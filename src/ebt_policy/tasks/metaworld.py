"""``metaworld/<task>``: the fifty Meta-World tasks, whose package carries scripted experts.

``metaworld/mt10`` and ``metaworld/mt50`` are ten and all fifty of them in turn, ``metaworld/mt3``
three whose scenes show what is to be done: for policies that see them by a camera
(``corner2_image``) and the hand alone (``state:elements=0+1+2+3``). The sentence of what is to be
done (``task``) is part of every observation; nothing else names the task.

``metaworld/puck`` is one scene with three things to do, and nothing but the sentence says which.
Meta-World's reach, push and pick-place have the arm, a puck and a goal in common, but not where the
goal may be. Here all have pick-place's scene with the goal 15 to 30 cm above the table, and

    reach        the hand is at the goal, while the puck lies on the table
    push         the puck lies on the table below the goal
    pick-place   the puck is at the goal

An episode ends with the first of the three that is done, in success if it is the named one.
"""

from __future__ import annotations

import ctypes.util
import functools
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ebt_policy.demonstrations.base import TASK
from ebt_policy.errors import UserError
from ebt_policy.shapes import Float
from ebt_policy.tasks.base import Environment, Expert, Observation, Outcome, Task, missing_extra
from ebt_policy.tasks.metaworld_sentences import PHRASES, sentence
from ebt_policy.tasks.mujoco_models import compiled_once
from ebt_policy.tasks.mujoco_pictures import IMAGE, Pictures, camera_streams, shared_pictures

HORIZON = 500
CAMERA = "corner2"  # it hangs upside down
CAMERAS = (CAMERA, "topview", "gripperPOV")
MOVED, NEAR = 0.002, 0.06
FRAME_HEIGHT, FRAME_WIDTH = 240, 320
# Meta-World's MT10 (arXiv 1910.10897) and MT50.
MIXTURES: dict[str, tuple[str, ...]] = {
    "mt3": ("drawer-open", "button-press-topdown", "window-open"),
    "mt10": (
        "reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close",
        "button-press-topdown", "peg-insert-side", "window-open", "window-close",
    ),
    "mt50": tuple(sorted(PHRASES)),
}  # fmt: skip
PUCK_TASKS = ("reach", "push", "pick-place")
LOWEST_GOAL, LYING, TABLE = 0.15, 0.04, 0.02  # heights in m; a lying puck's middle is at TABLE


def _package() -> tuple[dict[str, Any], dict[str, Any]]:
    """Environments and experts by task name, without Meta-World's version suffixes."""
    if sys.platform == "linux":  # draw without a display, or simulate without drawing
        has_egl = ctypes.util.find_library("EGL") is not None
        os.environ.setdefault("MUJOCO_GL", "egl" if has_egl else "disabled")
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise missing_extra("metaworld/…", error) from error
    return (
        {n.split("-v3")[0]: e for n, e in ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE.items()},
        {n.split("-v3")[0]: e for n, e in ENV_POLICY_MAP.items()},
    )


class MetaWorldEnvironment(Environment):
    """A Meta-World task with the goal in its observation and a start drawn from the seed.

    The variant without the goal shows zeros in its place, so that the task cannot be learnt;
    and unless the random vector is unfrozen and seeded, every reset is the same start.
    """

    def __init__(self, name: str) -> None:
        environments, _ = _package()
        self.name, self._scene, self._unseen = name, f"metaworld/{name}", False
        with compiled_once():
            self._environment: Any = environments[name](seed=0)
        self._environment._freeze_rand_vec = False
        self._environment.seeded_rand_vec = True
        self._pictures: Pictures | None = None

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._environment.seed(seed)
        state, _ = self._environment.reset()
        self._sentence = np.array(sentence(self.name, seed, self._unseen))
        return self._observe(state)

    def _observe(self, state: np.ndarray) -> dict[str, np.ndarray]:
        pictures = camera_streams(self.cameras, self._picture)
        return {"state": np.asarray(state, np.float32), TASK: self._sentence, **pictures}

    def step(self, action: np.ndarray) -> Outcome:
        clipped = np.clip(np.asarray(action, np.float64), -1, 1)
        state, _, _, truncated, info = self._environment.step(clipped)
        success = bool(info["success"])
        return Outcome(self._observe(state), float(success), success, done=bool(truncated))

    def render(self) -> np.ndarray:
        return self._picture(CAMERA, FRAME_HEIGHT, FRAME_WIDTH)

    def _picture(self, camera: str, height: int, width: int) -> np.ndarray:
        model = self._environment.model
        if self._pictures is None:
            # The shadows are drawn so finely that they take three quarters of the time.
            self._pictures = shared_pictures(self._scene, model, shadows=False)
        drawn = self._pictures.draw(model, self._environment.data, camera, height, width)
        return np.ascontiguousarray(drawn[::-1, ::-1]) if camera == CAMERA else drawn

    def paraphrase(self) -> None:
        self._unseen = True

    def close(self) -> None:
        self._pictures = None
        self._environment.close()


class MixedEnvironment(Environment):
    """Several tasks in turn: the start of seed s is that of seed s // n of the task s % n.

    Args:
        names: of the n tasks.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self._unseen = names, False
        self._made: dict[str, MetaWorldEnvironment] = {}

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        name, seed = _of_turn(self.names, seed)
        if name not in self._made:
            self._made[name] = MetaWorldEnvironment(name)
            if self._unseen:
                self._made[name].paraphrase()
        self._now = self._made[name]
        self._now.cameras = self.cameras
        return self._now.reset(seed)

    def step(self, action: np.ndarray) -> Outcome:
        self._now.cameras = self.cameras
        return self._now.step(action)

    def render(self) -> np.ndarray:
        return self._now.render()

    def facts(self) -> dict[str, Any]:
        """The task's name, by which :mod:`ebt_policy.evaluation.rollout` counts successes."""
        return {TASK: self._now.name}

    def paraphrase(self) -> None:
        self._unseen = True

    def close(self) -> None:
        for environment in self._made.values():
            environment.close()


class PuckEnvironment(MetaWorldEnvironment):
    """One start, three sentences: that of seed s names the task s % 3 in the start s // 3."""

    def __init__(self) -> None:
        from gymnasium.spaces import Box

        super().__init__("pick-place")
        space = self._environment._random_reset_space  # of the puck, then of the goal
        low = np.concatenate([space.low[:5], [LOWEST_GOAL]])
        self._environment._random_reset_space = Box(low, space.high, dtype=space.dtype)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.name, start = _of_turn(PUCK_TASKS, seed)
        self._did: str | None = None
        return super().reset(start)

    def step(self, action: np.ndarray) -> Outcome:
        outcome = super().step(action)
        self._did = done_with_puck(outcome.observation["state"])
        success = self._did == self.name
        done = outcome.done or self._did is not None
        return replace(outcome, score=float(success), success=success, done=done)

    def facts(self) -> dict[str, Any]:
        """The named task and what was done, if anything was."""
        return {TASK: self.name, "did": self._did}


def done_with_puck(state: Float[np.ndarray, 39]) -> str | None:
    """Which of the puck's tasks is done in a state of Meta-World, if one is; lengths in m."""
    hand, puck, goal = state[:3], state[4:7], state[-3:]
    if np.linalg.norm(puck - goal) <= 0.07:
        return "pick-place"
    if puck[2] > LYING:
        return None
    if np.linalg.norm(puck[:2] - goal[:2]) <= 0.05:
        return "push"
    return "reach" if np.linalg.norm(hand - goal) <= 0.05 else None


def _puck_expert(seed: int) -> Expert:
    """The three tasks' own experts; that of push is shown the goal's place on the table."""
    name, start = _of_turn(PUCK_TASKS, seed)
    act = _make_expert(name, start)
    if name != "push":
        return act

    def push(observation: Observation) -> np.ndarray:
        state = observation["state"].copy()
        state[-1] = TABLE
        return act({"state": state})

    return push


def _what_was_done(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each named task how often which one was done."""
    every = (*PUCK_TASKS, None)
    return {
        "did": {
            name: {
                str(did or "nothing"): sum(f["did"] == did for f in facts if f[TASK] == name)
                for did in every
            }
            for name in PUCK_TASKS
        }
    }


def _of_turn(names: tuple[str, ...], seed: int) -> tuple[str, int]:
    """Task and start of a seed, of several tasks in turn."""
    start, turn = divmod(seed, len(names))
    return names[turn], start


def _mixed_expert(names: tuple[str, ...], seed: int) -> Expert:
    return _make_expert(*_of_turn(names, seed))


def _make_expert(name: str, seed: int) -> Expert:  # noqa: ARG001, its starts say it all
    _, experts = _package()
    expert = experts[name]()

    def act(observation: Observation) -> np.ndarray:
        with warnings.catch_warnings():  # scripted actions exceed the box; they are clipped here
            warnings.simplefilter("ignore")
            action = expert.get_action(np.asarray(observation["state"], np.float64))
        return np.clip(action, -1, 1).astype(np.float32)

    return act


def _describe(before: Observation, after: Observation) -> str:
    """By the hand's place and the object's, the first of the two that the state holds (m)."""
    hand, thing = after["state"][:3], after["state"][4:7]
    if np.linalg.norm(thing - before["state"][4:7]) > MOVED:
        return "moving the object"
    return "at the object" if np.linalg.norm(hand - thing) < NEAR else "reaching"


def metaworld(name: str) -> Task:
    """A Meta-World task by name, for instance ``pick-place``, or several; 80 steps per second.

    Raises:
        UserError: there is no such task, or the package is not installed.
    """
    environments, _ = _package()
    summarise = None
    if name == "puck":
        make: Callable[[], Environment] = PuckEnvironment
        make_expert, summarise = _puck_expert, _what_was_done
    elif name in MIXTURES:
        make = functools.partial(MixedEnvironment, MIXTURES[name])
        make_expert = functools.partial(_mixed_expert, MIXTURES[name])
    elif name in environments:
        make = functools.partial(MetaWorldEnvironment, name)
        make_expert = functools.partial(_make_expert, name)
    else:
        raise UserError(
            f"--task metaworld/{name}: no such Meta-World task; there are "
            f"{', '.join(['puck', *MIXTURES, *sorted(environments)])}"
        )
    return Task(
        f"metaworld/{name}", horizon=HORIZON, rate=80.0, action_dim=4,
        make=make, make_expert=make_expert, action_bounds=(-1.0, 1.0),
        expert_knows_any_state=name in environments, describe=_describe, summarise=summarise,
        cameras=tuple(camera + IMAGE for camera in CAMERAS),
    )  # fmt: skip
