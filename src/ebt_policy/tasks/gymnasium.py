"""``gym:<id>``: any gymnasium environment of the user's own.

``--task gym:MyRobot-v0`` takes a registered id, ``--task gym:my_package:MyRobot-v0`` imports
``my_package`` first (gymnasium's own notation). The adapter asks for little:

* observations: a ``Box`` becomes the stream ``state``; a ``Dict`` of boxes one stream per key,
  of which those of uint8 stay what they are (images);
* actions: a one-dimensional ``Box``, in the units of the demonstrations;
* success: ``info["is_success"]`` or ``info["success"]`` at any step;
* score: ``info["score"]`` where there is one, else 1 at success and 0 before; every episode that
  ends needs one of the three, a failed one, too;
* rendering: ``rgb_array``, only for videos;
* ``max_episode_steps`` of the registration is the horizon.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.errors import UserError
from ebt_policy.tasks.base import Environment, Outcome, Task, missing_extra

_JUDGEMENTS = ("is_success", "success", "score")


class GymnasiumEnvironment(Environment):
    """Adapter from a gymnasium environment, see the module's text.

    What it raises while it is reset or takes a step becomes a ``UserError`` that names the episode,
    with the original as its cause.
    """

    def __init__(self, identifier: str) -> None:
        self._environment: Any = _make(identifier)
        self._identifier = identifier
        self._episode = ""
        self._is_judged = False

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._episode = f"--task gym:{self._identifier}: episode with seed {seed}"
        self._is_judged = False
        with self._named():
            observation, _ = self._environment.reset(seed=seed)
            return self._observe(observation)

    def step(self, action: np.ndarray) -> Outcome:
        space = self._environment.action_space
        clipped = np.clip(action, space.low, space.high).astype(space.dtype)
        with self._named():
            observation, _, terminated, truncated, info = self._environment.step(clipped)
            success = bool(info.get("is_success", info.get("success", False)))
            score = float(info.get("score", success))
            seen = self._observe(observation)
            self._is_judged = self._is_judged or not info.keys().isdisjoint(_JUDGEMENTS)
        done = bool(terminated or truncated)
        if done and not self._is_judged:
            raise UserError(
                f"{self._episode}: no step's info had any of {', '.join(_JUDGEMENTS)}; the "
                "environment has to give one of them in every episode, failed ones included"
            )
        return Outcome(seen, score, success, done)

    def render(self) -> np.ndarray:
        return np.asarray(self._environment.render(), np.uint8)

    def close(self) -> None:
        self._environment.close()

    @contextlib.contextmanager
    def _named(self) -> Generator[None, None, None]:
        """Name the episode in what the user's own code raises."""
        try:
            yield
        except Exception as error:  # anything may go wrong there
            what = " ".join(f"{type(error).__name__}: {error}".split())
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            raise UserError(f"{self._episode}: {what} ({where})") from error

    def _observe(self, observation: Any) -> dict[str, np.ndarray]:
        named = observation if isinstance(observation, dict) else {"state": observation}
        arrays = {name: np.asarray(value) for name, value in named.items()}
        return {
            name: array if array.dtype == np.uint8 else array.astype(np.float32)
            for name, array in arrays.items()
        }


def _make(identifier: str) -> Any:
    """Make the environment, with ``rgb_array`` rendering if it can draw at all."""
    import gymnasium

    try:
        with warnings.catch_warnings():  # gymnasium warns where it is about to raise, too
            warnings.simplefilter("ignore")
            return gymnasium.make(identifier, render_mode="rgb_array")
    except TypeError:
        return gymnasium.make(identifier)


def gymnasium_task(identifier: str) -> Task:
    """A registered gymnasium environment as a task.

    Raises:
        UserError: the id is not registered, or its action space is not a 1-D ``Box``.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise missing_extra(f"gym:{identifier}", error) from error
    try:
        environment = _make(identifier)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"--task gym:{identifier}: gymnasium cannot make it ({error})") from error
    space, spec = environment.action_space, environment.spec
    rate = float(environment.metadata.get("render_fps", 10))
    environment.close()
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise UserError(f"--task gym:{identifier}: its action space is {space}, expected a 1-D Box")
    if spec is None or spec.max_episode_steps is None:
        raise UserError(
            f"--task gym:{identifier}: its registration has no max_episode_steps, "
            "so an episode would never end"
        )
    return Task(
        f"gym:{identifier}", horizon=spec.max_episode_steps, rate=rate,
        action_dim=space.shape[0], make=functools.partial(GymnasiumEnvironment, identifier),
    )  # fmt: skip
