"""Scripted experts of the robosuite tasks, each episode in a manner of its own.

An expert sees the observation alone. It is a plan of poses, computed anew from every observation,
which a hand, or two, go to one after the other; the seed draws where they grasp and from which
side, their way points, speed, pauses and trembling. They never try again: a demonstration with a
failed grasp is none.
"""

from __future__ import annotations

import functools
import itertools
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
_NOT_TURNED = np.array([0, 0, 0, 1.0])
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

    def at(self, point: np.ndarray) -> np.ndarray:
        """Where in the world a point (3,) is that is seen from this pose."""
        return self.position + _turned(self.quaternion, point)

    @property
    def yaw(self) -> float:
        """The angle of the x axis about the vertical."""
        x, y, _ = _turned(self.quaternion, _X)
        return float(np.arctan2(y, x))


def _shortened(vector: np.ndarray, length: float) -> np.ndarray:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))


def _object_pose(observation: Observation, first: int) -> Pose:
    """The pose that begins at an element of the object stream."""
    numbers = observation["object"][first : first + 7].astype(np.float64)
    return Pose(numbers[:3], numbers[3:])


class Hand:
    """A hand with its manner: how fast it goes and how it trembles.

    Args:
        random: of the episode.
        arm: the robot's number.
        facing: the direction in the world that its base faces, about the vertical.
    """

    def __init__(self, random: np.random.Generator, arm: int, facing: float) -> None:
        self.random, self.arm, self.facing = random, arm, facing
        self.speed = random.uniform(0.75, 1.0)
        self._trembling = np.zeros(6)
        self.seen: Observation = {}

    @property
    def pose(self) -> Pose:
        """Where the hand is."""
        return Pose(
            self.seen[f"robot{self.arm}_eef_pos"].astype(np.float64),
            self.seen[f"robot{self.arm}_eef_quat"].astype(np.float64),
        )

    @property
    def fingers(self) -> np.ndarray:
        """Where the joints of the fingers are."""
        return self.seen[f"robot{self.arm}_gripper_qpos"]

    def object_pose(self, first: int) -> Pose:
        """The pose that begins at an element of the object stream."""
        return _object_pose(self.seen, first)

    def action(self, target: Pose, grip: float, speed: float = 1.0) -> np.ndarray:
        """One step (7,) towards a pose."""
        move, turn = self.pose.towards(target)
        fresh = self.random.normal(0, 1, 6) * [0.08, 0.08, 0.08, 0.03, 0.03, 0.03]
        self._trembling = 0.8 * self._trembling + 0.6 * fresh
        steadiness = min(1.0, 0.2 + float(np.linalg.norm(move)) / 0.1)
        base = _about(_Z, -self.facing)
        command = np.concatenate(
            [
                _shortened(_GAIN * _turned(base, move) / _TRANSLATION, self.speed * speed),
                _shortened(_GAIN * _turned(base, turn) / _ROTATION, self.speed * speed),
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
            before = self.fingers
            yield self.action(here, grip)
            moved = float(abs(self.fingers - before).max())
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


# Elements of ToolHang's object stream at which the poses of its three objects begin.
_BASE, _FRAME, _TOOL = 7, 21, 35
# Of ToolHang, in m. As seen from the bottom plate of the stand: the mouth of the hole. As seen
# from the corner of the frame (its rod leads down, its bar along -x): the rod's tip, the middle of
# the grip, and the end of the bar with the hook, which is as high as the elbow is wide. As seen
# from the middle of the tool: the centre of the ring that is to be hung.
_MOUTH = np.array([0, 0.045, 0.155])
_TIP, _GRIP, _ELBOW = np.array([0, 0, -0.2207]), np.array([0, 0, -0.04]), np.array([-0.0875, 0, 0])
_RING = np.array([-0.0936, 0, 0])
# The hand that holds the frame at a right angle to frame and rod; the hand that holds the tool as
# it lies; the tool that hangs, as seen from the frame.
_AT_FRAME = np.array([-0.5, 0.5, 0.5, 0.5])
_AT_TOOL = np.array([0, 1.0, 0, 0])
_HANGING = np.array([np.sqrt(0.5), 0, -np.sqrt(0.5), 0])
# How the ring goes from the hook around the elbow: its axis' slope against the bar, its centre
# along the bar and above it. Half way the elbow leaves 2.5 mm of play on either side.
_AROUND = [(1.3, 0.0, 0.008), (1.0, 0.0, 0.004), (0.8, 0.001, 0.002), (0.65, 0.0028, 0.0005)]


def _tool_hang(hand: Hand) -> Iterator[np.ndarray]:
    yield from _insert_frame(hand)
    yield from _hang_tool(hand)


def _pick_up(
    hand: Hand, at: Callable[[], Pose], side: np.ndarray, lift: np.ndarray
) -> Iterator[np.ndarray]:
    """By ``side``, then from above, to where the hand grasps, and up by ``lift`` (3,), m."""
    yield from hand.go(lambda: at().moved(side), OPEN, near=0.025, turned=0.3)
    yield from hand.go(lambda: at().moved(0.03 * _Z), OPEN, near=0.012, turned=0.12)
    yield from hand.pause(OPEN)
    yield from hand.go(at, OPEN, near=0.005, speed=0.8)
    yield from hand.grip(CLOSE)
    above = hand.pose.moved(lift)
    yield from hand.go(lambda: above, CLOSE, near=0.05, turned=0.5)


def _insert_frame(hand: Hand) -> Iterator[np.ndarray]:
    random = hand.random
    # Leaning to the tip's side, the hand comes to the stand from above and behind.
    grasp = Pose(
        _GRIP + random.uniform([-0.002, -0.007, -0.006], [0.002, -0.005, 0.006]),
        _product(_about(_X, -random.uniform(0.6, 0.75)), _AT_FRAME),
    )
    side = np.append(random.normal(0, 0.015, 2), random.uniform(0.07, 0.11))
    lift = np.append(random.normal(0, 0.02, 2), random.uniform(0.12, 0.18))
    over = random.uniform(0.02, 0.035)

    def at_frame() -> Pose:
        return hand.object_pose(_FRAME) @ grasp

    def carried(height: float) -> Pose:
        """The hand's pose that brings the tip above the mouth, the rod upright.

        The bar leads to the side where the tool lies: otherwise the hand that turns the tool
        around its hook would have to point back at its own base.
        """
        base, now = hand.object_pose(_BASE), hand.object_pose(_FRAME)
        mouth, tip = base.at(_MOUTH), now.at(_TIP)
        above = float(tip[2] - mouth[2])
        # As with the nut, down by little steps; and only as far as the tip will not miss the hole.
        missed = float(np.linalg.norm((tip - mouth)[:2]))
        step = 0.015 if above < 0 or missed < 0.0025 else 0.0
        height = max(height, above - step) if above < over + 0.005 else height
        goal = Pose(mouth + height * _Z, _about(_Z, np.pi / 2))
        return goal @ Pose(-_TIP, _NOT_TURNED) @ now.inverse() @ hand.pose

    def inserted() -> bool:
        base, now = hand.object_pose(_BASE), hand.object_pose(_FRAME)
        return bool(now.at(_TIP)[2] - base.position[2] < 0.012)

    yield from _pick_up(hand, at_frame, side, lift)
    yield from hand.go(lambda: carried(over + 0.06), CLOSE, near=0.03, turned=0.15)
    yield from hand.go(lambda: carried(over), CLOSE, near=0.003, turned=0.04)
    yield from hand.pause(CLOSE)
    yield from hand.go(lambda: carried(-0.16), CLOSE, near=0.0, until=inserted)
    yield from hand.grip(OPEN)
    # Backwards out of the frame.
    back = hand.pose @ Pose(np.array([0, 0, -0.06]), _NOT_TURNED)
    yield from hand.go(lambda: back, OPEN, near=0.04)


def _hang_tool(hand: Hand) -> Iterator[np.ndarray]:
    random = hand.random
    # Hardly leaning: the forearm of a hand that comes from the ring's side would meet the hook.
    grasp = Pose(
        random.uniform([-0.006, -0.002, 0.005], [0.006, 0.002, 0.007]),
        _product(_about(_Y, -random.uniform(-0.05, 0.1)), _AT_TOOL),
    )
    beside = random.uniform([-0.04, -0.16, 1.14], [0.02, -0.1, 1.2])
    side = np.append(random.normal(0, 0.015, 2), random.uniform(0.07, 0.11))
    lift = np.append(random.normal(0, 0.02, 2), random.uniform(0.1, 0.15))
    before = Pose(
        random.uniform([-0.1, -0.22, 1.1], [-0.04, -0.18, 1.14]),
        _about(_Z, random.normal(-1.6, 0.1)),
    )
    over = random.uniform(0.04, 0.06)
    hung = (random.uniform(0.35, 0.45), random.uniform(0.007, 0.009), 0.0)

    def at_tool() -> Pose:
        return hand.object_pose(_TOOL) @ grasp

    def carried(target: Pose) -> Pose:
        return target @ hand.object_pose(_TOOL).inverse() @ hand.pose

    def ring_at(slope: float, along: float, height: float) -> Pose:
        """The hand's pose for the ring somewhere about the elbow, as in ``_AROUND``."""
        ring = Pose(_ELBOW + along * _X + height * _Z, _product(_about(_Y, slope), _HANGING))
        return carried(hand.object_pose(_FRAME) @ ring @ Pose(-_RING, _NOT_TURNED))

    # Over the hook and only then down.
    high = side + np.array([0.06, 0.04, 0.2])
    yield from hand.go(lambda: Pose(beside, at_tool().quaternion), OPEN, near=0.06, turned=0.8)
    yield from hand.go(lambda: at_tool().moved(high), OPEN, near=0.06, turned=0.8)
    yield from _pick_up(hand, at_tool, side, lift)
    yield from hand.go(lambda: carried(before), CLOSE, near=0.06, turned=0.5)
    yield from hand.go(lambda: ring_at(1.3, 0.0, over + 0.03), CLOSE, near=0.03, turned=0.15)
    yield from hand.go(lambda: ring_at(1.3, 0.0, over), CLOSE, near=0.002, turned=0.06)
    yield from hand.pause(CLOSE)
    # The next of many little steps only when the ring itself has made the last one: a ring that
    # runs ahead of its turn jams.
    for start, end in itertools.pairwise([(1.3, 0.0, over), *_AROUND, hung]):
        steps = int(np.ceil(max(np.abs(np.subtract(end, start)) / [0.04, 0.002, 0.002])))
        for point in np.linspace(start, end, steps + 1)[1:]:
            target = functools.partial(ring_at, *point)
            yield from hand.go(target, CLOSE, near=0.002, turned=0.05)
    yield from hand.grip(OPEN)
    gone = hand.pose @ Pose(np.array([0, 0, -0.1]), _NOT_TURNED)
    yield from hand.go(lambda: gone, OPEN, near=0.02)


def _two_arm_lift(first: Hand, second: Hand) -> Iterator[np.ndarray]:
    random = first.random
    hands, grasps = (first, second), (_handle_grasp(first, 1), _handle_grasp(second, -1))
    yield from _together(*((h, _grasp_handle(h, g)) for h, g in zip(hands, grasps, strict=True)))
    # Under its load each hand yields outwards, and its handle slips out of it: so the hands stay
    # where the pot wants them, ask for thrice what they miss sideways, and rise by little steps,
    # which leave enough of the action for that.
    start = first.object_pose(0)
    aside = np.append(random.normal(0, 0.02, 2), 0)
    step = random.uniform(0.012, 0.02)
    while (height := first.object_pose(0).position[2] - start.position[2]) < 0.15:
        goal = start.moved(height / 0.15 * aside + (height + step) * _Z)
        actions = []
        for hand, grasp in zip(hands, grasps, strict=True):
            place = goal @ grasp
            missed = (place.position - hand.pose.position) * [1, 1, 0]
            actions.append(hand.action(place.moved(2 * missed), CLOSE))
        yield np.concatenate(actions)


def _handle_grasp(hand: Hand, side: int) -> Pose:
    """How to hold the pot, as seen from it, by the handle on this side of its y axis."""
    random = hand.random
    handle = np.array([0, 0.16 * side, 0.06])
    place = handle + random.uniform([-0.014, -0.002, 0], [0.014, 0.002, 0.01])
    # The handle looks the same from behind: turn to it the short way.
    turn = -np.pi * np.round((hand.object_pose(0).yaw - hand.facing) / np.pi)
    return Pose(place, hand.upright(turn + random.normal(0, 0.05), random.normal(0, 0.05, 2)))


def _grasp_handle(hand: Hand, grasp: Pose) -> Iterator[np.ndarray]:
    side = np.append(hand.random.normal(0, 0.02, 2), hand.random.uniform(0.07, 0.14))

    def at_handle() -> Pose:
        return hand.object_pose(0) @ grasp

    yield from hand.go(lambda: at_handle().moved(side), OPEN, near=0.03, turned=0.3)
    yield from hand.go(lambda: at_handle().moved(0.04 * _Z), OPEN, near=0.012, turned=0.12)
    yield from hand.pause(OPEN)
    yield from hand.go(at_handle, OPEN, near=0.006, speed=0.8)
    yield from hand.grip(CLOSE)


def _together(*parts: tuple[Hand, Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """The actions of several hands side by side; who is done waits for the others."""
    last = [np.zeros(7)] * len(parts)
    while True:
        actions = [next(plan, None) for _, plan in parts]
        if all(action is None for action in actions):
            return
        last = [
            hand.action(hand.pose, float(before[-1])) if action is None else action
            for (hand, _), action, before in zip(parts, actions, last, strict=True)
        ]
        yield np.concatenate(last)


PLANS: dict[str, Callable[..., Iterator[np.ndarray]]] = {
    "Lift": _lift,
    "NutAssemblySquare": _square,
    "PickPlaceCan": _can,
    "ToolHang": _tool_hang,
    "ToolHangFrame": _insert_frame,
    "TwoArmLift": _two_arm_lift,
}
# Robots face along x; two of them face each other, from -y and from y.
_FACING = {1: (0.0,), 2: (np.pi / 2, -np.pi / 2)}


def rod_from_mouth(observation: Observation) -> np.ndarray:
    """From the mouth of ToolHang's hole to the tip of the frame's rod (3,), in m, in the world."""
    base, frame = (_object_pose(observation, first) for first in (_BASE, _FRAME))
    return frame.at(_TIP) - base.at(_MOUTH)


def frame_in_hand(observation: Observation) -> np.ndarray:
    """From the hand to the corner of ToolHang's frame (3,), in m, in the world."""
    return _object_pose(observation, _FRAME).position - observation["robot0_eef_pos"]


def make_expert(task: str, arms: int, seed: int) -> Expert:
    """The expert of a robosuite task for the episode of a seed; it holds still when it is done."""
    random = np.random.default_rng([seed, 1])
    hands = [Hand(random, arm, facing) for arm, facing in enumerate(_FACING[arms])]
    plan = PLANS[task](*hands)
    grips = [OPEN] * arms

    def act(observation: Observation) -> np.ndarray:
        nonlocal grips
        for hand in hands:
            hand.seen = observation
        action = next(plan, None)
        if action is None:
            still = [hand.action(hand.pose, grip) for hand, grip in zip(hands, grips, strict=True)]
            action = np.concatenate(still)
        grips = action[6::7].tolist()
        return action

    return act
