"""Scripted experts of the robosuite tasks, each episode in a manner of its own.

An expert sees the observation alone. It is a plan of poses, computed anew from every observation,
which the hand goes to one after the other; the seed draws where it grasps and from which side,
its way points, its speed, its pauses and its trembling. It never tries again: a demonstration
with a failed grasp is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ebt_policy.tasks.base import Expert, Observation

OPEN, CLOSE = -1.0, 1.0
_TRANSLATION, _ROTATION = 0.05, 0.5  # what an action of 1 asks for, in m and rad
_GAIN = 1.6  # of an action to the distance that is left
_DOWN = np.array([1.0, 0.0, 0.0, 0.0])  # the hand, pointing down, its x axis along the world's


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of quaternions (x, y, z, w): the second rotation, then the first."""
    vector = first[3] * second[:3] + second[3] * first[:3] + np.cross(first[:3], second[:3])
    return np.append(vector, first[3] * second[3] - first[:3] @ second[:3])


def _turned(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """A vector (3,), rotated."""
    cross = 2 * np.cross(quaternion[:3], vector)
    return vector + quaternion[3] * cross + np.cross(quaternion[:3], cross)


def _about(axis: np.ndarray, angle: float) -> np.ndarray:
    """The quaternion of a rotation about a unit axis."""
    return np.append(np.sin(angle / 2) * axis, np.cos(angle / 2))


_X, _Y, _Z = np.eye(3)
# Where things stand that no observation tells, in m: a can in the part of its bin that the arm
# reaches, and the square peg.
_CAN_PLACE = np.array([0.15, 0.35, 0.86])
_PEG = np.array([0.23, 0.1])


@dataclass(frozen=True)
class Pose:
    """Position (3,) in m and orientation (4,) as x, y, z, w."""

    position: np.ndarray
    quaternion: np.ndarray

    def __matmul__(self, inner: Pose) -> Pose:
        """The pose that is ``inner`` as seen from this one."""
        return Pose(
            self.position + _turned(self.quaternion, inner.position),
            _product(self.quaternion, inner.quaternion),
        )

    def inverse(self) -> Pose:
        """The pose of the world as seen from this one."""
        back = self.quaternion * [-1, -1, -1, 1]
        return Pose(-_turned(back, self.position), back)

    def moved(self, offset: np.ndarray) -> Pose:
        """The same orientation somewhere else in the world."""
        return Pose(self.position + offset, self.quaternion)

    def towards(self, other: Pose) -> tuple[np.ndarray, np.ndarray]:
        """Translation (3,) and rotation vector (3,), in the world, that lead to another pose."""
        turn = _product(other.quaternion, self.quaternion * [-1, -1, -1, 1])
        turn = turn if turn[3] >= 0 else -turn
        length = float(np.linalg.norm(turn[:3]))
        vector = turn[:3] * (2 * np.arctan2(length, turn[3]) / max(length, 1e-9))
        return other.position - self.position, vector

    @property
    def yaw(self) -> float:
        """The angle of the x axis about the vertical."""
        x, y, _ = _turned(self.quaternion, _X)
        return float(np.arctan2(y, x))


def _shortened(vector: np.ndarray, length: float) -> np.ndarray:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))


class Hand:
    """A hand with its manner: how fast it goes and how it trembles.

    Args:
        random: of the episode.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.speed = random.uniform(0.75, 1.0)
        self._trembling = np.zeros(6)
        self.seen: Observation = {}

    @property
    def pose(self) -> Pose:
        """Where the hand is."""
        return Pose(
            self.seen["robot0_eef_pos"].astype(np.float64),
            self.seen["robot0_eef_quat"].astype(np.float64),
        )

    def object_pose(self, first: int) -> Pose:
        """The pose that begins at an element of the object stream."""
        numbers = self.seen["object"][first : first + 7].astype(np.float64)
        return Pose(numbers[:3], numbers[3:])

    def action(self, target: Pose, grip: float, speed: float = 1.0) -> np.ndarray:
        """One step (7,) towards a pose."""
        move, turn = self.pose.towards(target)
        fresh = self.random.normal(0, 1, 6) * [0.08, 0.08, 0.08, 0.03, 0.03, 0.03]
        self._trembling = 0.8 * self._trembling + 0.6 * fresh
        steadiness = min(1.0, 0.2 + float(np.linalg.norm(move)) / 0.1)
        command = np.concatenate(
            [
                _shortened(_GAIN * move / _TRANSLATION, self.speed * speed),
                _shortened(_GAIN * turn / _ROTATION, self.speed * speed),
            ]
        )
        command = command + steadiness * self._trembling
        return np.clip(np.append(command, grip), -1, 1).astype(np.float32)

    def go(
        self,
        target: Callable[[], Pose],
        grip: float,
        near: float,
        turned: float = 0.1,
        speed: float = 1.0,
        until: Callable[[], bool] | None = None,
    ) -> Iterator[np.ndarray]:
        """Go to a pose until it is ``near`` (m) and the orientation within ``turned`` (rad).

        The hand must be so slow, too, that it does not shoot past: ``near`` per step at most.
        Or until something else is the case.
        """
        before = self.pose.position
        while True:
            move, turn = self.pose.towards(target())
            slow = np.linalg.norm(self.pose.position - before) < near
            if slow and np.linalg.norm(move) < near and np.linalg.norm(turn) < turned:
                return
            if until is not None and until():
                return
            before = self.pose.position
            yield self.action(target(), grip, speed)

    def grip(self, grip: float, steps: int = 4) -> Iterator[np.ndarray]:
        """Stay, and close or open until the fingers have come to rest."""
        here = self.pose
        for step in range(20):
            before = self.seen["robot0_gripper_qpos"]
            yield self.action(here, grip)
            moved = float(abs(self.seen["robot0_gripper_qpos"] - before).max())
            if step >= steps and moved < 1e-3:
                return

    def pause(self, grip: float) -> Iterator[np.ndarray]:
        """Stay for a moment, now and then."""
        here = self.pose
        for _ in range(self.random.integers(0, 4) if self.random.random() < 0.3 else 0):
            yield self.action(here, grip)

    def upright(self, yaw: float, tilt: np.ndarray) -> np.ndarray:
        """The hand's quaternion when it points down, turned by ``yaw``, a little tilted."""
        return _product(_about(_X, tilt[0]), _product(_about(_Y, tilt[1]),
                        _product(_about(_Z, yaw), _DOWN)))  # fmt: skip


def _equivalent(yaw: float, symmetry: float, random: np.random.Generator) -> float:
    """What to add to a yaw of an object that looks the same after a turn by ``symmetry``.

    Mostly that which leads nearest to 0, sometimes the next.
    """
    nearest = -np.round(yaw / symmetry)
    rest = yaw + nearest * symmetry
    if abs(rest) > 0.35 * symmetry and random.random() < 0.5:
        nearest -= np.sign(rest)
    return float(nearest * symmetry)


def _lift(hand: Hand) -> Iterator[np.ndarray]:
    random = hand.random
    turn = _equivalent(hand.object_pose(0).yaw, np.pi / 2, random) + random.normal(0, 0.06)
    tilt = random.normal(0, 0.05, 2)
    grasp = np.array([random.uniform(-0.008, 0.008), random.uniform(-0.003, 0.003), 0])
    height = random.uniform(-0.006, 0.006)
    side = np.append(random.normal(0, 0.02, 2), random.uniform(0.05, 0.12))

    def at_cube() -> Pose:
        cube = hand.object_pose(0)
        yaw = cube.yaw + turn
        place = cube.position + _turned(_about(_Z, yaw), grasp) + [0, 0, height]
        return Pose(place, hand.upright(yaw, tilt))

    yield from hand.go(lambda: at_cube().moved(side), OPEN, near=0.025, turned=0.5)
    yield from hand.go(lambda: at_cube().moved(0.03 * _Z), OPEN, near=0.015, turned=0.15)
    yield from hand.pause(OPEN)
    yield from hand.go(at_cube, OPEN, near=0.006, speed=0.8)
    yield from hand.grip(CLOSE)
    above = hand.pose.moved(np.append(random.normal(0, 0.01, 2), 0.2))
    yield from hand.go(lambda: above, CLOSE, near=0.01)


def _can(hand: Hand) -> Iterator[np.ndarray]:
    random = hand.random
    grasp = hand.upright(
        float(np.clip(random.normal(0, 0.25), -0.5, 0.5)), random.normal(0, 0.05, 2)
    )
    offset = np.append(random.uniform(-0.006, 0.006, 2), random.uniform(0.02, 0.03))
    side = np.append(random.normal(0, 0.02, 2), random.uniform(0.08, 0.14))
    goal = _CAN_PLACE + random.uniform([-0.01, -0.015, 0.01], [0.012, 0.015, 0.03])
    over = random.uniform(0.12, 0.15) * _Z

    def at_can() -> Pose:
        return Pose(hand.object_pose(7).position + offset, grasp)

    def carried(place: np.ndarray) -> Pose:
        return Pose(hand.pose.position + place - hand.object_pose(7).position, grasp)

    yield from hand.go(lambda: at_can().moved(side), OPEN, near=0.03, turned=0.5)
    yield from hand.go(lambda: at_can().moved(0.06 * _Z), OPEN, near=0.02, turned=0.15)
    yield from hand.pause(OPEN)
    yield from hand.go(at_can, OPEN, near=0.008, speed=0.9)
    yield from hand.grip(CLOSE)
    above = hand.object_pose(7).position + over + np.append(random.normal(0, 0.03, 2), 0)
    yield from hand.go(lambda: carried(above), CLOSE, near=0.05, turned=0.5)
    yield from hand.go(lambda: carried(goal + over), CLOSE, near=0.025, turned=0.2)
    yield from hand.go(
        lambda: carried(goal - 0.01 * _Z), CLOSE, near=0.0,
        until=lambda: bool(hand.object_pose(7).position[2] < goal[2]),
    )  # fmt: skip
    yield from hand.pause(CLOSE)
    yield from hand.grip(OPEN)
    gone = hand.pose.moved(0.2 * _Z)
    yield from hand.go(lambda: gone, OPEN, near=0.02)


def _square(hand: Hand) -> Iterator[np.ndarray]:
    random = hand.random
    # Grasped from its far end or from its near end, the handle points away from the robot or to
    # it. The peg is so far off that over it the handle must point to the robot or to a side.
    yaw = hand.object_pose(7).yaw
    turn = _equivalent(yaw, np.pi, random)
    final = np.copysign(np.pi / 2, yaw) if turn == 0 else np.pi
    bias = random.normal(0, 0.04)
    tilt = random.normal(0, 0.03, 2)
    grip_point = np.array([random.uniform(0.064, 0.072), random.uniform(-0.002, 0.002), 0])
    height = random.uniform(0, 0.006)
    side = np.append(random.normal(0, 0.02, 2), random.uniform(0.06, 0.12))
    over, low = random.uniform(1.0, 1.04), random.uniform(0.885, 0.92)

    def at_handle() -> Pose:
        nut = hand.object_pose(7)
        place = nut.position + _turned(_about(_Z, nut.yaw), grip_point) + [0, 0, height]
        return Pose(place, hand.upright(nut.yaw + turn + bias, tilt))

    def carried(height: float) -> Pose:
        """The hand's pose that brings the nut over the peg, aligned to it, and down a bit."""
        now = hand.object_pose(7)
        # A long way down would leave nothing of the step to correct what is sideways.
        nut = Pose(np.append(_PEG, max(height, now.position[2] - 0.02)), _about(_Z, final))
        return nut @ now.inverse() @ hand.pose

    yield from hand.go(lambda: at_handle().moved(side), OPEN, near=0.03, turned=0.5)
    yield from hand.go(lambda: at_handle().moved(0.03 * _Z), OPEN, near=0.012, turned=0.12)
    yield from hand.pause(OPEN)
    yield from hand.go(at_handle, OPEN, near=0.007, speed=0.8)
    yield from hand.grip(CLOSE)
    above = hand.pose.moved(np.append(random.normal(0, 0.02, 2), over - 0.83))
    yield from hand.go(lambda: above, CLOSE, near=0.06, turned=0.5)
    yield from hand.go(lambda: carried(over), CLOSE, near=0.004, turned=0.05)
    yield from hand.pause(CLOSE)
    yield from hand.go(
        lambda: carried(low - 0.01), CLOSE, near=0.0,
        until=lambda: bool(hand.object_pose(7).position[2] < low),
    )  # fmt: skip
    yield from hand.grip(OPEN)
    gone = hand.pose.moved(0.15 * _Z)
    yield from hand.go(lambda: gone, OPEN, near=0.02)


PLANS: dict[str, Callable[[Hand], Iterator[np.ndarray]]] = {
    "Lift": _lift,
    "NutAssemblySquare": _square,
    "PickPlaceCan": _can,
}


def make_expert(task: str, seed: int) -> Expert:
    """The expert of a robosuite task for the episode of a seed; it holds still when it is done."""
    hand = Hand(np.random.default_rng([seed, 1]))
    plan = PLANS[task](hand)

    grip = OPEN

    def act(observation: Observation) -> np.ndarray:
        nonlocal grip
        hand.seen = observation
        action = next(plan, None)
        if action is None:
            action = hand.action(hand.pose, grip)
        grip = float(action[-1])
        return action

    return act
