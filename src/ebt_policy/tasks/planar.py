"""``planar/fork``: go round an obstacle, above or below, as the demonstrations do half and half.

A point moves in the plane from the left to a goal on the right; a disc stands in the middle. The
mean of the two ways leads into the disc, and the disc is so near that the first executed chunk
decides: a policy that averages its demonstrations fails.
Nothing but NumPy, and an episode takes milliseconds: a laboratory for tests, research and
teaching.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ebt_policy.tasks.base import Environment, Expert, Observation, Outcome, Task

RADIUS = 0.25
HALF_WAY = 0.45  # from start or goal to the disc, along x
SIDEWAYS = 0.2  # start and goal lie up to this far above or below
CLEARANCE = 0.12  # of the middle of a route from the disc; demonstrations vary around it
CLEARANCE_SPREAD = 0.04
TOP_SPEED = 0.06  # length of one step, at most
DEMONSTRATED_SPEEDS = (0.04, 0.05)
ACTION_NOISE = 0.004  # standard deviation of the demonstrator's hand
GOAL_DISTANCE = 0.06
HORIZON = 80
ROUTES = {"above": 1.0, "below": -1.0}
_PIXELS = 192


def route(
    start: np.ndarray, goal: np.ndarray, side: float, clearance: float, progress: np.ndarray
) -> np.ndarray:
    """Points (n, 2) of a way round the disc at shares of the way, 0 at start and 1 at goal."""
    along = goal - start
    normal = np.array([-along[1], along[0]]) / np.linalg.norm(along)
    bump = side * (RADIUS + clearance) * np.sin(np.pi * progress) ** 2
    return start + progress[:, None] * along + bump[:, None] * normal


class ForkEnvironment(Environment):
    """Actions are the point's next position; a step goes there, at most ``TOP_SPEED`` far."""

    def __init__(self) -> None:
        self.reset(0)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng([seed, 0])
        self._start = np.array([-HALF_WAY, random.uniform(-SIDEWAYS, SIDEWAYS)])
        self._goal = np.array([HALF_WAY, random.uniform(-SIDEWAYS, SIDEWAYS)])
        self._disc = (self._start + self._goal) / 2
        self._collision, self._trail = False, [self._start]
        shares = np.linspace(0, 1, 101)
        self._routes = {
            name: route(self._start, self._goal, side, CLEARANCE, shares)
            for name, side in ROUTES.items()
        }
        return self._observe()

    def step(self, action: np.ndarray) -> Outcome:
        here = self._trail[-1]
        move = np.clip(np.asarray(action, np.float64), -1, 1) - here
        length = float(np.linalg.norm(move))
        there = here + move * min(1.0, TOP_SPEED / max(length, 1e-9))
        self._trail.append(there)
        # The nearest point of the segment: a fast step must not jump over the disc's edge.
        span = there - here
        share = np.clip(np.dot(self._disc - here, span) / max(float(span @ span), 1e-12), 0, 1)
        nearest = here + share * span
        self._collision = self._collision or bool(np.linalg.norm(nearest - self._disc) < RADIUS)
        whole = np.linalg.norm(self._goal - self._start)
        left = float(np.linalg.norm(self._goal - there))
        success = left < GOAL_DISTANCE and not self._collision
        score = 1.0 if success else float(np.clip(1 - left / whole, 0, 1))
        return Outcome(self._observe(), score, success, done=self._collision)

    def facts(self) -> dict[str, Any]:
        """Which way the episode went, whether it hit the disc, and how far it was from a way."""
        trail = np.stack(self._trail)
        gaps = {
            name: float(np.linalg.norm(trail[:, None] - points[None], axis=-1).min(1).mean())
            for name, points in self._routes.items()
        }
        passed = trail[-1, 0] > self._disc[0] and not self._collision
        nearest = min(gaps, key=lambda name: gaps[name])
        return {
            "route": nearest if passed else None,
            "route_distance": gaps[nearest],
            "collision": self._collision,
        }

    def render(self) -> np.ndarray:
        axis = (np.arange(_PIXELS) + 0.5) / _PIXELS * 2 - 1
        x, y = np.meshgrid(axis, -axis)
        picture = np.full((_PIXELS, _PIXELS, 3), 255, np.uint8)

        def disc(centre: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
            picture[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = colour

        disc(self._goal, GOAL_DISTANCE, (140, 200, 140))
        disc(self._disc, RADIUS, (120, 120, 120))
        for point in self._trail:
            disc(point, 0.012, (150, 180, 220))
        disc(self._trail[-1], 0.035, (200, 60, 50) if self._collision else (27, 108, 168))
        return picture

    def _observe(self) -> dict[str, np.ndarray]:
        state = np.concatenate([self._trail[-1], self._disc, self._goal])
        return {"state": state.astype(np.float32)}


def _make_expert(seed: int) -> Expert:
    """A demonstrator who takes the ways in turn, and picks a clearance and a speed."""
    random = np.random.default_rng([seed, 1])
    side = list(ROUTES.values())[seed % len(ROUTES)]
    clearance = CLEARANCE + random.uniform(-CLEARANCE_SPREAD, CLEARANCE_SPREAD)
    speed = random.uniform(*DEMONSTRATED_SPEEDS)
    start: np.ndarray | None = None

    def act(observation: Observation) -> np.ndarray:
        nonlocal start
        here, goal = observation["state"][:2].astype(np.float64), observation["state"][4:]
        start = here if start is None else start
        shares = np.linspace(0, 1, 1001)
        points = route(start, goal.astype(np.float64), side, clearance, shares)
        nearest = int(np.linalg.norm(points - here, axis=-1).argmin())
        travelled = np.concatenate([[0], np.linalg.norm(np.diff(points, axis=0), axis=-1).cumsum()])
        ahead = int(np.searchsorted(travelled, travelled[nearest] + speed).clip(max=1000))
        return (points[ahead] + random.normal(0, ACTION_NOISE, 2)).astype(np.float32)

    return act


def _summarise(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the ways among all episodes, collisions, and distance to the nearest way."""
    return {
        "route_shares": {
            name: sum(fact["route"] == name for fact in facts) / len(facts) for name in ROUTES
        },
        "collisions": sum(fact["collision"] for fact in facts) / len(facts),
        "route_distance_mean": float(np.mean([fact["route_distance"] for fact in facts])),
    }


def _describe(before: Observation, after: Observation) -> str:  # noqa: ARG001
    ahead = after["state"][2] - after["state"][0]
    if abs(ahead) < RADIUS:
        return "beside the disc"
    return "before the disc" if ahead > 0 else "behind the disc"


def fork() -> Task:
    """The fork: 80 steps at 10 Hz, observation = point, disc and goal (x, y of each)."""
    return Task(
        "planar/fork", horizon=HORIZON, rate=10.0, action_dim=2, make=ForkEnvironment,
        make_expert=_make_expert, action_bounds=(-1.0, 1.0), summarise=_summarise,
        describe=_describe,
    )  # fmt: skip
