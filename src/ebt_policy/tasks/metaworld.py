"""``metaworld/<task>``: the fifty Meta-World tasks, whose package carries scripted experts."""

from __future__ import annotations

import ctypes.util
import functools
import os
import sys
import warnings
from typing import Any

import numpy as np

from ebt_policy.errors import UserError
from ebt_policy.tasks.base import Environment, Expert, Observation, Outcome, Task, missing_extra

HORIZON = 500
CAMERA = "corner2"
MOVED, NEAR = 0.002, 0.06
FRAME_HEIGHT, FRAME_WIDTH = 240, 320


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
        self._environment: Any = environments[name](seed=0)
        self._environment._freeze_rand_vec = False
        self._environment.seeded_rand_vec = True
        self._renderer: Any = None

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._environment.seed(seed)
        state, _ = self._environment.reset()
        return {"state": np.asarray(state, np.float32)}

    def step(self, action: np.ndarray) -> Outcome:
        clipped = np.clip(np.asarray(action, np.float64), -1, 1)
        state, _, _, truncated, info = self._environment.step(clipped)
        success = bool(info["success"])
        observation = {"state": np.asarray(state, np.float32)}
        return Outcome(observation, float(success), success, done=bool(truncated))

    def render(self) -> np.ndarray:
        import mujoco

        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._environment.model, FRAME_HEIGHT, FRAME_WIDTH)
        self._renderer.update_scene(self._environment.data, camera=CAMERA)
        return np.ascontiguousarray(self._renderer.render()[::-1])  # the camera is upside down

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._environment.close()


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
    """A Meta-World task by name, for instance ``pick-place``; 80 steps per second.

    Raises:
        UserError: there is no such task, or the package is not installed.
    """
    environments, _ = _package()
    if name not in environments:
        raise UserError(
            f"--task metaworld/{name}: no such Meta-World task; there are "
            f"{', '.join(sorted(environments))}"
        )
    return Task(
        f"metaworld/{name}", horizon=HORIZON, rate=80.0, action_dim=4,
        make=functools.partial(MetaWorldEnvironment, name),
        make_expert=functools.partial(_make_expert, name), action_bounds=(-1.0, 1.0),
        expert_knows_any_state=True, describe=_describe,
    )  # fmt: skip
