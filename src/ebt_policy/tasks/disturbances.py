"""Disturbances: a task in which something goes wrong, or which is not quite the demonstrated one.

They follow a task's name, any number of them: ``robosuite/Lift+drop``,
``robosuite/PickPlaceCan+noise=0.005+delay=2``. Of any task:

* ``noise=S``: normal noise of standard deviation S, in its own units, on every observed number;
* ``delay=N``: an action is executed N steps after it was chosen, and until the first is due the
  action 0; for robots whose actions say by how much to move;
* ``nudge=S``: the first action is off by S (root mean square over its elements), in a direction
  drawn from the seed;
* ``paraphrase``: the sentence of what is to be done is in words that were never trained on.

Of robosuite's, something that goes wrong once an episode, about the first grasp:

* ``drop``: as it is lifted, the object is lost: it lies again, 6 to 10 cm aside;
* ``move``: the object is put 3 to 8 cm aside just before it is grasped;
* ``open``: the gripper that has just closed opens for five steps.

The object stays on the table, or in that part of the bin where it may lie at the start. Such an
episode has a whole horizon left from then on. And factors of what was demonstrated:
``spread=F`` of the range of starts, the arm's and, where there is room, the object's; ``mass=F`` of
the object; ``friction=F`` of everything that touches; ``gain=F`` of the arm's controller.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ebt_policy.errors import UserError
from ebt_policy.tasks.base import Environment, Grasping, Observation, Outcome, Task

FACTORS = ("spread", "mass", "friction", "gain")
ONCE = ("drop", "move", "open")
_RISEN = 0.01  # m by which a held object must have risen, before it is dropped
_NEAR = 0.06  # m between hand and object, when it is moved away
_ASIDE = {"drop": (0.06, 0.1), "move": (0.03, 0.08)}  # m
_OPEN = 5  # steps
_EFFECT = 5  # steps after which it is looked whether the object was lost


def disturbed(task: Task, disturbances: str) -> Task:
    """A task with the disturbances that end its name, e.g. ``drop`` or ``noise=0.01+delay=2``.

    Raises:
        UserError: there is no such disturbance, its strength is missing or out of range, or the
            task's environment does not know it.
    """
    for text in disturbances.split("+"):
        name, sign, strength = text.partition("=")
        task = _with_one(task, name, strength if sign else None)
    return replace(task, may_be_shown=None)


def _with_one(task: Task, name: str, text: str | None) -> Task:
    full = f"{task.name}+{name}" + ("" if text is None else f"={text}")
    make: Callable[[], Environment]
    if name in (*ONCE, "paraphrase") and text is not None:
        raise UserError(f"--task {full}: {name} takes no strength; write +{name}")
    if name in ONCE:
        make = functools.partial(Interrupted, task.make, name, task.horizon)
        return replace(
            task, name=full, make=make, horizon=2 * task.horizon, summarise=_summarise
        )  # fmt: skip
    if name == "paraphrase":
        return replace(task, name=full, make=functools.partial(_paraphrased, task.make))
    if name not in (*FACTORS, "noise", "delay", "nudge"):
        raise UserError(
            f"--task {full}: no disturbance {name!r}; there are {', '.join(ONCE)}, paraphrase "
            f"and, with a strength, noise, delay, nudge, {', '.join(FACTORS)}"
        )
    try:
        strength = float(text or "")
    except ValueError as error:
        raise UserError(f"--task {full}: write +{name}=NUMBER") from error
    if not math.isfinite(strength) or strength < 0 or (name in FACTORS and strength == 0):
        raise UserError(f"--task {full}: {strength:g} is out of range; it must be above 0")
    if name == "noise":
        make = functools.partial(Noisy, task.make, strength)
    elif name == "nudge":
        make = functools.partial(Nudged, task.make, strength)
    elif name == "delay":
        if strength != int(strength):
            raise UserError(f"--task {full}: a delay is a whole number of steps")
        if task.action_bounds is None or sum(task.action_bounds) != 0:
            raise UserError(
                f"--task {full}: delay needs an action that is no movement, to begin with, and "
                "none of this task is known"
            )
        make = functools.partial(Delayed, task.make, int(strength), task.action_dim)
    else:
        make = functools.partial(_varied, task.make, name, strength)
    return replace(task, name=full, make=make)


def _paraphrased(make: Callable[[], Environment]) -> Environment:
    environment = make()
    environment.paraphrase()
    return environment


def _varied(make: Callable[[], Environment], name: str, factor: float) -> Environment:
    environment = make()
    environment.vary(name, factor)
    return environment


class _Wrapped(Environment):
    """An environment that passes everything on to the one within."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self.inner = make()

    @property
    def cameras(self) -> Mapping[str, tuple[int, int]]:
        return self.inner.cameras

    @cameras.setter
    def cameras(self, cameras: Mapping[str, tuple[int, int]]) -> None:
        self.inner.cameras = cameras

    def reset(self, seed: int) -> Observation:
        return self.inner.reset(seed)

    def step(self, action: np.ndarray) -> Outcome:
        return self.inner.step(action)

    def render(self) -> np.ndarray:
        return self.inner.render()

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()

    def vary(self, name: str, factor: float) -> None:
        self.inner.vary(name, factor)

    def paraphrase(self) -> None:
        self.inner.paraphrase()

    def grasping(self) -> Grasping | None:
        return self.inner.grasping()

    def close(self) -> None:
        self.inner.close()


class Noisy(_Wrapped):
    """Normal noise on every observed number; images and sentences stay as they are.

    Args:
        make: of the environment within.
        deviation: standard deviation, in the units of the observations.
    """

    def __init__(self, make: Callable[[], Environment], deviation: float) -> None:
        super().__init__(make)
        self.deviation = deviation

    def reset(self, seed: int) -> Observation:
        self._random = np.random.default_rng([seed, 11])
        return self._noisy(self.inner.reset(seed))

    def step(self, action: np.ndarray) -> Outcome:
        outcome = self.inner.step(action)
        return replace(outcome, observation=self._noisy(outcome.observation))

    def _noisy(self, observation: Observation) -> Observation:
        return {
            name: values
            if values.dtype.kind != "f"
            else values + self._random.normal(0, self.deviation, values.shape).astype(values.dtype)
            for name, values in observation.items()
        }


class Delayed(_Wrapped):
    """Actions that are executed some steps later.

    Args:
        make: of the environment within.
        steps: of delay.
        action_dim: of the action 0, which is executed until the first is due.
    """

    def __init__(self, make: Callable[[], Environment], steps: int, action_dim: int) -> None:
        super().__init__(make)
        self.steps, self.neutral = steps, np.zeros(action_dim, np.float32)

    def reset(self, seed: int) -> Observation:
        self._due: deque[np.ndarray] = deque([self.neutral] * self.steps)
        return self.inner.reset(seed)

    def step(self, action: np.ndarray) -> Outcome:
        self._due.append(action)
        return self.inner.step(self._due.popleft())


class Nudged(_Wrapped):
    """A first action that is a little off.

    Args:
        make: of the environment within.
        size: root mean square of what is added to it.
    """

    def __init__(self, make: Callable[[], Environment], size: float) -> None:
        super().__init__(make)
        self.size = size

    def reset(self, seed: int) -> Observation:
        self._random = np.random.default_rng([seed, 12])
        self._is_first = True
        return self.inner.reset(seed)

    def step(self, action: np.ndarray) -> Outcome:
        if self._is_first:
            way = self._random.normal(size=len(action))
            action = action + self.size * way / np.sqrt(np.mean(way**2))
            self._is_first = False
        return self.inner.step(action)


class Interrupted(_Wrapped):
    """Something goes wrong once; from then on the episode has a whole horizon left.

    Args:
        make: of the environment within, one that knows its ``grasping``.
        name: one of :data:`ONCE`.
        horizon: of the undisturbed task.
    """

    def __init__(self, make: Callable[[], Environment], name: str, horizon: int) -> None:
        super().__init__(make)
        self.name, self.horizon = name, horizon
        scene = self.inner.grasping()
        if scene is None:
            raise UserError(f"+{name}: this task has no gripper and object that it could tell of")
        self._scene = scene

    def reset(self, seed: int) -> Observation:
        self._random = np.random.default_rng([seed, 13])
        self._steps, self._is_held = 0, False
        self._at: int | None = None
        self._effect: bool | None = None
        first = self.inner.reset(seed)
        self._lying = self._scene.height()
        return first

    def step(self, action: np.ndarray) -> Outcome:
        if not self._is_held:
            self._lying = min(self._lying, self._scene.height())
        if self._at is None and self._is_time():
            self._at = self._steps
            if self.name in _ASIDE:
                self._effect = self._scene.displace(self._random, *_ASIDE[self.name], self._lying)
        since = -1 if self._at is None else self._steps - self._at
        if self.name == "open" and 0 <= since < _OPEN:
            action = self._scene.opened(action)
        outcome = self.inner.step(action)
        self._steps += 1
        self._is_held = self._scene.is_grasping()
        if self.name != "move" and since == _EFFECT - 1 and self._effect is not False:
            self._effect = not self._scene.is_grasping()
        left = self.horizon + (self._at or 0) - self._steps
        return replace(outcome, done=outcome.done or left <= 0)

    def _is_time(self) -> bool:
        if self.name == "move":
            return not self._scene.is_closing() and self._scene.distance() < _NEAR
        risen = self._scene.height() - self._lying
        return self._is_held and (self.name == "open" or risen > _RISEN)

    def facts(self) -> dict[str, Any]:
        """Also the step of the disturbance, None if it did not come to it; and its effect."""
        return {
            **self.inner.facts(), "disturbed_at": self._at, "took_effect": bool(self._effect),
        }  # fmt: skip


def _summarise(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each episode when it was disturbed, and whether that had an effect."""
    return {
        "disturbed_at": [fact["disturbed_at"] for fact in facts],
        "took_effect": [fact["took_effect"] for fact in facts],
    }
