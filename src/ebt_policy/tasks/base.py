"""What a task is: where an episode starts, what an action does, when it has succeeded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ebt_policy.errors import UserError

Observation = Mapping[str, np.ndarray]


@dataclass
class Outcome:
    """What one control step led to.

    Attributes:
        observation: by stream name.
        score: how well the episode stands now; an episode's score is its highest.
        success: whether the task is solved at this step; the episode ends there.
        done: whether the episode has ended for another reason.
    """

    observation: Observation
    score: float
    success: bool
    done: bool = False


class Grasping(ABC):
    """A gripper and the object it is to grasp, for :mod:`ebt_policy.tasks.disturbances`."""

    @abstractmethod
    def is_grasping(self) -> bool:
        """Whether the object is held now."""

    @abstractmethod
    def is_closing(self) -> bool:
        """Whether the last action closed the gripper."""

    @abstractmethod
    def height(self) -> float:
        """Of the object's middle, in m."""

    @abstractmethod
    def distance(self) -> float:
        """From the grip to the middle of the nearest part of the object, in m."""

    @abstractmethod
    def displace(
        self, random: np.random.Generator, least: float, most: float, height: float
    ) -> bool:
        """Put the object some m aside, at rest, at a height; False if there is no room for it."""

    @abstractmethod
    def opened(self, action: np.ndarray) -> np.ndarray:
        """The same action (A,) with the gripper opening."""


class Environment(ABC):
    """One simulated (or real) scene. The same seed gives the same start, always.

    Attributes:
        cameras: height and width of the image streams that observations shall have from now on,
            among those that the task renders on demand. Rendering takes time: it is done for
            those who look.
    """

    cameras: Mapping[str, tuple[int, int]] = MappingProxyType({})

    @abstractmethod
    def reset(self, seed: int) -> Observation:
        """Begin the episode of this seed, forgetting every earlier one."""

    @abstractmethod
    def step(self, action: np.ndarray) -> Outcome:
        """Execute one action (A,), in the units of the demonstrations."""

    @abstractmethod
    def render(self) -> np.ndarray:
        """The scene as (H, W, 3) uint8."""

    def facts(self) -> dict[str, Any]:
        """What the task tells of the episode so far beyond score and success, if anything."""
        return {}

    def vary(self, name: str, factor: float) -> None:
        """Multiply something of the scene, from the next reset on; see ``disturbances``.

        Raises:
            UserError: this scene cannot.
        """
        raise UserError(f"+{name}={factor:g}: this task cannot vary its {name}")

    def paraphrase(self) -> None:
        """From the next reset on, say what is to be done in words that were never trained on.

        Raises:
            UserError: this scene says nothing.
        """
        raise UserError("+paraphrase: no sentence says what is to be done in this task")

    def grasping(self) -> Grasping | None:
        """What a disturbance needs of a scene in which something is grasped; None in others."""
        return None

    def close(self) -> None:  # noqa: B027, most have nothing to close
        """Give back windows and graphics contexts, if there are any."""


Expert = Callable[[Observation], np.ndarray]


@dataclass(frozen=True)
class Task:
    """A task by name, with everything that evaluation and collection need.

    Attributes:
        name: as ``--task`` takes it.
        horizon: steps after which an episode ends without success.
        rate: control steps per second.
        action_dim: A.
        make: builds an environment; called once in each worker process.
        make_expert: builds a scripted expert for the episode of a seed, where there is one.
        expert_knows_any_state: whether the expert's action depends on the observation alone, so
            that it can be asked what to do wherever another has led.
        action_bounds: legal range of the actions, where it is one for all dimensions.
        summarise: from every episode's facts to further keys of an evaluation's result.
        describe: in a few words what the robot did between two observations, where that can be
            told from them.
        cameras: image streams that its environments render on demand.
        may_be_shown: from a success's facts whether it is fit to be a demonstration, where not
            all are, for instance because the robot failed at first and tried again.
    """

    name: str
    horizon: int
    rate: float
    action_dim: int
    make: Callable[[], Environment]
    make_expert: Callable[[int], Expert] | None = None
    expert_knows_any_state: bool = False
    action_bounds: tuple[float, float] | None = None
    summarise: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    describe: Callable[[Observation, Observation], str] | None = None
    cameras: tuple[str, ...] = ()
    may_be_shown: Callable[[dict[str, Any]], bool] | None = None


def missing_extra(task: str, error: ImportError) -> UserError:
    """The error for a task whose simulator is not installed."""
    return UserError(
        f"--task {task}: its simulator cannot be imported ({error}); "
        "install it with: pip install 'ebt-policy[sim]'"
    )
