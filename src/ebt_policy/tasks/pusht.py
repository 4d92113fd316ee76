"""``pusht``: push the T onto its outline (gym-pusht), scored as Diffusion Policy scores it.

The score is the coverage divided by 0.95, cut at 1; an episode's score is its highest.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ebt_policy.tasks.base import Environment, Observation, Outcome, Task, missing_extra

SUCCESS_COVERAGE = 0.95
IMAGE = "img"
# The nine key points of the published data, in the block's own frame (pixels); found by
# rotating data/keypoint back by data/state, which reproduces 99% of the frames to 0.04 pixels.
KEYPOINTS = np.array(
    [
        [9.270, 90.041], [-60.983, -1.187], [60.913, -1.393], [-0.271, 25.544], [-14.065, 122.816],
        [39.003, 32.857], [-39.966, 32.730], [-16.824, 62.863], [23.541, -1.700],
    ],
    np.float64,
)  # fmt: skip


def keypoints(state: np.ndarray) -> np.ndarray:
    """The nine key points (9, 2) of a state (agent x, y, block x, y, angle), in pixels."""
    sine, cosine = np.sin(state[4]), np.cos(state[4])
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    return KEYPOINTS @ rotation.T + state[2:4]


class PushTEnvironment(Environment):
    """gym-pusht with the observation keys of the published demonstrations, ``img`` on demand."""

    def __init__(self) -> None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        try:
            from gym_pusht.envs.pusht import PushTEnv
        except ImportError as error:
            raise missing_extra("pusht", error) from error
        self._environment: Any = PushTEnv(obs_type="state", render_mode="rgb_array")

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        state, _ = self._environment.reset(seed=seed)
        return self._observe(state)

    def step(self, action: np.ndarray) -> Outcome:
        target = np.clip(np.asarray(action, np.float64), 0, 512)
        state, _, _, _, info = self._environment.step(target)
        score = min(1.0, float(info["coverage"]) / SUCCESS_COVERAGE)
        return Outcome(self._observe(state), score, success=score >= 1.0)

    def render(self) -> np.ndarray:
        return np.asarray(self._environment.render(), np.uint8)

    def close(self) -> None:
        self._environment.close()

    def _observe(self, state: np.ndarray) -> dict[str, np.ndarray]:
        observation = {
            "state": np.asarray(state, np.float32),
            "keypoint": keypoints(state).astype(np.float32),
        }
        if IMAGE in self.cameras:
            height, width = self.cameras[IMAGE]
            scene = self._environment._draw()
            observation[IMAGE] = self._environment._get_img(scene, width, height)
        return observation


def _describe(before: Observation, after: Observation) -> str:
    """Whether the block moved (by a pixel or a degree), or the agent alone (by two), or none."""
    change = np.abs(after["state"] - before["state"])
    if np.linalg.norm(change[2:4]) > 1 or 0.017 < change[4] < 2 * np.pi - 0.017:
        return "pushing"
    return "moving freely" if np.linalg.norm(change[:2]) > 2 else "standing still"


def pusht() -> Task:
    """The PushT task: 300 steps at 10 Hz, action = target of the agent in pixels."""
    return Task(
        "pusht", horizon=300, rate=10.0, action_dim=2, make=PushTEnvironment,
        action_bounds=(0.0, 512.0), describe=_describe, cameras=(IMAGE,),
    )  # fmt: skip
