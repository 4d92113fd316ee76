"""A gymnasium environment of a user's own, as ``gym:toy_gym:PointReach-v0`` finds it."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np


class PointReach(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A point in the plane is moved to the origin."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012, gymnasium's own
    action_space = gymnasium.spaces.Box(-0.2, 0.2, (2,), np.float32)
    observation_space: Any = gymnasium.spaces.Dict(
        {"state": gymnasium.spaces.Box(-2, 2, (3,), np.float32)}
    )

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.position = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        return self._observe(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.position = self.position + action
        success = bool(np.abs(self.position).max() < 0.1)
        return self._observe(), 0.0, success, False, {"success": success}

    def render(self) -> np.ndarray:
        frame = np.full((64, 64, 3), 255, np.uint8)
        row, column = np.clip((self.position * 20 + 32).astype(int), 2, 61)
        frame[row - 2 : row + 3, column - 2 : column + 3] = (200, 60, 30)
        return frame

    def _observe(self) -> dict[str, np.ndarray]:
        return {"state": np.array([*self.position, 0.5], np.float32)}


class PointCrash(PointReach):
    """Takes its process down, as a simulator may."""

    def step(self, action: np.ndarray) -> Any:
        os._exit(3)


class PointScore(PointReach):
    """Scores of its own, never above 0; and it cannot be drawn."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()

    def step(self, action: np.ndarray) -> Any:
        return *super().step(action)[:4], {"score": -5.0}


class PointUnjudged(PointReach):
    """Does not tell whether it has succeeded."""

    def step(self, action: np.ndarray) -> Any:
        return *super().step(action)[:4], {}


class PointHot(PointReach):
    """Raises at once."""

    def step(self, action: np.ndarray) -> Any:
        raise RuntimeError("motor 3\noverheated")


gymnasium.register("PointUnjudged-v0", "toy_gym:PointUnjudged", max_episode_steps=60)
gymnasium.register("PointHot-v0", "toy_gym:PointHot", max_episode_steps=60)
gymnasium.register("PointCrash-v0", "toy_gym:PointCrash", max_episode_steps=60)
gymnasium.register("PointScore-v0", "toy_gym:PointScore", max_episode_steps=60)
gymnasium.register("PointReach-v0", "toy_gym:PointReach", max_episode_steps=60)
