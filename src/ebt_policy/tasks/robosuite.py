"""``robosuite/<task>``: one-armed and two-armed tasks, with robomimic's keys.

A robot other than the Panda follows a colon: ``robosuite/Lift:UR5e``. ``ToolHangFrame`` is the
first half of ``ToolHang``: from the same starts, with the rod of the frame to be put into its hole.
"""

from __future__ import annotations

import ctypes.util
import functools
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebt_policy.errors import UserError
from ebt_policy.tasks.base import (
    Environment,
    Grasping,
    Observation,
    Outcome,
    Task,
    missing_extra,
)
from ebt_policy.tasks.mujoco_models import compiled_once
from ebt_policy.tasks.mujoco_pictures import IMAGE, Pictures, camera_streams, shared_pictures
from ebt_policy.tasks.robosuite_experts import frame_in_hand, make_expert, rod_from_mouth

ROBOTS = ("IIWA", "Kinova3", "Panda", "Sawyer", "UR5e")
RATE = 20
FRAME_HEIGHT, FRAME_WIDTH = 240, 320
CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview", "sideview", "birdview")
_DOWN, _OVER = 0.005, 0.03  # m above the mouth of a hole, and aside from its middle
_LOST = 3  # control steps without contact after which an object is lost; shorter gaps are bounces


@dataclass(frozen=True)
class _Scene:
    """What this module has to know of one of robosuite's tasks.

    Attributes:
        horizon: in control steps.
        movables: the objects to be grasped, given robosuite's environment.
        grasps: how many it takes.
        arms: robots with one arm each.
        position: element of the object stream at which the one object's position begins; None
            where there are several objects or hands.
        stage_of: robosuite's task of which this is the beginning, where it is no task of its own.
        is_done: robosuite's method that tells success.
        has_rod: whether a rod is to be put into a hole.
    """

    horizon: int
    movables: Callable[[Any], list[Any]]
    grasps: int = 1
    arms: int = 1
    position: int | None = None
    stage_of: str = ""
    is_done: str = "_check_success"
    has_rod: bool = False


SCENES = {
    "Lift": _Scene(400, lambda e: [e.cube], position=0),
    "NutAssemblySquare": _Scene(400, lambda e: [e.nuts[e.nut_id]], position=7),
    "PickPlaceCan": _Scene(400, lambda e: [e.objects[e.object_id]], position=7),
    "ToolHang": _Scene(700, lambda e: [e.frame, e.tool], grasps=2, has_rod=True),
    "ToolHangFrame": _Scene(
        300,
        lambda e: [e.frame],
        stage_of="ToolHang",
        is_done="_check_frame_assembled",
        has_rod=True,
    ),
    "TwoArmLift": _Scene(400, lambda e: [e.pot], grasps=2, arms=2),
}


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _package() -> Any:
    """Robosuite, without the hundreds of warnings that it logs on import and construction."""
    if sys.platform == "linux":  # draw without a display, or simulate without drawing
        has_egl = ctypes.util.find_library("EGL") is not None
        os.environ.setdefault("MUJOCO_GL", "egl" if has_egl else "disabled")
    logging.getLogger("robosuite_logs").addFilter(_is_error)
    try:
        import robosuite
    except ImportError as error:
        raise missing_extra("robosuite/…", error) from error
    return robosuite


@dataclass
class _Watched:
    """What a hand did in this episode."""

    closings: int = 0
    grasps: int = 0
    drops: int = 0
    is_closing: bool = False
    is_held: bool = False
    without: int = 0  # control steps since the last contact of both fingers with an object

    def watch(self, is_closing: bool, is_grasping: bool) -> None:
        """Take note of one more control step."""
        self.closings += is_closing and not self.is_closing
        self.is_closing = is_closing
        if is_grasping:
            self.grasps += is_closing and not self.is_held
            self.is_held, self.without = self.is_held or is_closing, 0
            return
        self.without += 1
        if self.is_held and (not is_closing or self.without >= _LOST):
            self.drops += is_closing
            self.is_held = False


class _Aim:
    """How the rod of the tool's frame came down to its hole, the first time in this episode.

    Attributes:
        is_over: whether the rod's tip has been over the mouth and not yet come down.
        facts: where it came down, once it has.
    """

    def __init__(self) -> None:
        self.is_over = False
        self.facts: dict[str, Any] = {}

    def watch(self, observation: Observation) -> None:
        """Take note of one more control step."""
        if self.facts:
            return
        off = rod_from_mouth(observation)
        if off[2] > _DOWN:
            self.is_over = bool(np.linalg.norm(off[:2]) < _OVER)
        elif self.is_over:
            self.facts = {
                "aim_mm": [round(1e3 * float(x), 2) for x in off[:2]],
                "grasp_mm": [round(1e3 * float(x), 2) for x in frame_in_hand(observation)],
            }


def _summarise_aim(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the episodes in which the rod came down: mean and standard deviation of x and y."""
    aims = np.array([each["aim_mm"] for each in facts if "aim_mm" in each]).reshape(-1, 2)
    if not len(aims):
        return {}
    mean, spread = aims.mean(0).round(2).tolist(), aims.std(0).round(2).tolist()
    return {"aim": {"episodes": len(aims), "mean_mm": mean, "sd_mm": spread}}


class RobosuiteEnvironment(Environment):
    """A robosuite task at 20 Hz; the seed draws the objects' poses and the arms' joints.

    Actions (7,) per arm in [-1, 1], clipped: the hand's translation (1 is 5 cm) and rotation vector
    (1 is 0.5 rad) in the frame of the robot's base, for operational space control; and the
    gripper, above 0 to close and below to open. Observations (float32): ``robot0_eef_pos`` (3,)
    m; ``robot0_eef_quat`` (4,), x y z w, of the hand's body, as in robomimic's data, not of the
    grip site, which is turned by 90 degrees; ``robot0_gripper_qpos`` (2,) for the Panda; the
    same of ``robot1`` where there are two; and ``object``, robosuite 1.5's ``object-state``.
    Images on demand, upright.

    Args:
        name: one of ``SCENES``.
        robot: one of ``ROBOTS``.
    """

    def __init__(self, name: str, robot: str) -> None:
        robosuite = _package()
        config = robosuite.load_composite_controller_config(controller="BASIC")
        scene = SCENES[name]
        # Without hard resets the cube's size is drawn here, once: the seed fixes it.
        with compiled_once():
            self._environment: Any = robosuite.make(
                scene.stage_of or name, robots=[robot] * scene.arms, controller_configs=config,
                control_freq=RATE, seed=0, hard_reset=False, ignore_done=True, use_camera_obs=False,
                has_renderer=False, has_offscreen_renderer=False,
            )  # fmt: skip
        self._movables = scene.movables(self._environment)
        self._is_done: Callable[[], bool] = getattr(self._environment, scene.is_done)
        self._arms, self._has_rod = scene.arms, scene.has_rod
        self._scene = f"{scene.stage_of or name}:{robot}"
        self._pictures: Pictures | None = None
        self._gain = 1.0
        self._begin()

    def _begin(self) -> None:
        self.hands = [_Watched() for _ in range(self._arms)]
        self.aim = _Aim() if self._has_rod else None

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        # The placement samplers and the robot hold this very generator: give it a new state.
        self._environment.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._environment.reset()
        for robot in self._environment.robots:
            for arm in robot.arms:
                controller = robot.part_controllers[arm]
                controller.kp = controller.kp * self._gain
        self._begin()
        return self._observe()

    def step(self, action: np.ndarray) -> Outcome:
        clipped = np.clip(np.asarray(action, np.float64), -1, 1)
        self._environment.step(clipped)
        for arm, (hand, close) in enumerate(zip(self.hands, clipped[6::7], strict=True)):
            hand.watch(bool(close > 0), self.is_grasping(arm))
        success, observation = bool(self._is_done()), self._observe()
        if self.aim is not None:
            self.aim.watch(observation)
        return Outcome(observation, float(success), success)

    def is_grasping(self, arm: int = 0) -> bool:
        """Whether both fingers of a hand touch the same object now."""
        gripper = self._environment.robots[arm].gripper
        return any(self._environment._check_grasp(gripper, thing) for thing in self._movables)

    def grasping(self) -> Grasping:
        return _Grasping(self, self._environment, self._movables[0])

    def vary(self, name: str, factor: float) -> None:
        environment, model = self._environment, self._environment.sim.model
        if name == "mass":
            for body in {body for thing in self._movables for body in thing.bodies}:
                index = model.body_name2id(body)
                model.body_mass[index] *= factor
                model.body_inertia[index] *= factor
        elif name == "friction":
            # Of two that touch the larger counts: the object's alone would change nothing.
            model.geom_friction[:] *= factor
        elif name == "gain":
            self._gain *= factor  # of controllers that each reset makes anew
        elif name == "spread":
            for robot in environment.robots:
                robot.initialization_noise["magnitude"] *= factor
            for sampler in _samplers(environment.placement_initializer):
                low, high = (end - sampler.reference_pos[:2] for end in _area(environment))
                sampler.x_range = _widened(sampler.x_range, factor, low[0], high[0])
                sampler.y_range = _widened(sampler.y_range, factor, low[1], high[1])
        else:
            super().vary(name, factor)

    def facts(self) -> dict[str, Any]:
        """Closings of the grippers, grasps that came of them, and drops from closed grippers.

        Where a rod is to be put into a hole, from its first coming down to the mouth on: how far,
        along the world's x and y, its tip was from the mouth's middle, ``aim_mm`` (2,), and the
        frame's corner from the hand, ``grasp_mm`` (3,).
        """
        return {
            "closings": sum(hand.closings for hand in self.hands),
            "grasps": sum(hand.grasps for hand in self.hands),
            "drops": sum(hand.drops for hand in self.hands),
            **(self.aim.facts if self.aim is not None else {}),
        }

    def render(self) -> np.ndarray:
        return self._picture("agentview", FRAME_HEIGHT, FRAME_WIDTH)

    def _picture(self, camera: str, height: int, width: int) -> np.ndarray:
        model = self._environment.sim.model._model
        if self._pictures is None:
            self._pictures = shared_pictures(self._scene, model)
        return self._pictures.draw(model, self._environment.sim.data._data, camera, height, width)

    def close(self) -> None:
        self._pictures = None
        self._environment.close()

    def _observe(self) -> dict[str, np.ndarray]:
        # Without force robosuite shows the state one control step ago. An object's pose relative
        # to the hand is computed from the update before: the second makes it the present one.
        self._environment._update_observables(force=True)
        seen = self._environment._get_observations(force_update=True)
        parts = ("eef_pos", "eef_quat", "gripper_qpos")
        keys = [f"robot{arm}_{part}" for arm in range(self._arms) for part in parts]
        observation = {key: np.asarray(seen[key], np.float32) for key in keys}
        observation["object"] = np.asarray(seen["object-state"], np.float32)
        pictures = camera_streams(self.cameras, self._picture)
        return observation | pictures


class _Grasping(Grasping):
    """The gripper of the first robot and the first object; see the base class."""

    def __init__(self, scene: RobosuiteEnvironment, environment: Any, thing: Any) -> None:
        self._scene, self._environment, self._thing = scene, environment, thing

    def is_grasping(self) -> bool:
        return self._scene.is_grasping()

    def is_closing(self) -> bool:
        return self._scene.hands[0].is_closing

    def height(self) -> float:
        return float(self._position()[2])

    def distance(self) -> float:
        sim, robot = self._environment.sim, self._environment.robots[0]
        grip = sim.data.site_xpos[robot.eef_site_id[robot.arms[0]]]
        parts = [sim.model.geom_name2id(name) for name in self._thing.contact_geoms]
        return float(np.linalg.norm(sim.data.geom_xpos[parts] - grip, axis=1).min())

    def displace(
        self, random: np.random.Generator, least: float, most: float, height: float
    ) -> bool:
        low, high = _area(self._environment)
        here = self._position()
        for _ in range(50):
            angle, length = random.uniform(0, 2 * np.pi), random.uniform(least, most)
            there = here[:2] + length * np.array([np.cos(angle), np.sin(angle)])
            if (there > low + _MARGIN).all() and (there < high - _MARGIN).all():
                sim, joint = self._environment.sim, self._thing.joints[0]
                pose = sim.data.get_joint_qpos(joint).copy()
                pose[:3] += np.append(there, height) - here
                sim.data.set_joint_qpos(joint, pose)
                sim.data.set_joint_qvel(joint, np.zeros(6))
                sim.forward()
                return True
        return False

    def opened(self, action: np.ndarray) -> np.ndarray:
        opened = action.copy()
        opened[6] = -1
        return opened

    def _position(self) -> np.ndarray:
        sim = self._environment.sim
        place: np.ndarray = sim.data.body_xpos[sim.model.body_name2id(self._thing.root_body)]
        return place.copy()


def _samplers(initializer: Any) -> list[Any]:
    """Those that draw where the objects begin, not where robosuite draws their images."""
    parts = getattr(initializer, "samplers", {"": initializer})
    return [sampler for name, sampler in parts.items() if not name.startswith("Visual")]


_MARGIN = 0.05  # m from the ends of a bin or table, within which robosuite's own starts keep


def _widened(ends: Any, factor: float, low: float, high: float) -> list[float]:
    """A range about the same middle, ``factor`` times as wide where there is room."""
    middle, half = (ends[0] + ends[1]) / 2, factor * (ends[1] - ends[0]) / 2
    return [max(middle - half, low + _MARGIN), min(middle + half, high - _MARGIN)]


def _area(environment: Any) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest x and y (2,), in m, of where an object may lie: its bin, or the table."""
    if hasattr(environment, "bin1_pos"):
        middle, size = environment.bin1_pos, environment.bin_size
    else:
        middle, size = environment.table_offset, environment.table_full_size
    half = np.array(size[:2]) / 2
    return middle[:2] - half, middle[:2] + half


def _may_be_shown(grasps: int, facts: dict[str, Any]) -> bool:
    """Whether every grasp came of the first try and nothing was let go by accident."""
    wanted = {"closings": grasps, "grasps": grasps, "drops": 0}
    return {name: facts[name] for name in wanted} == wanted


MOVED, NEAR = 0.002, 0.09  # m; the hand that holds a nut is 7 cm from its middle


def _describe(position: int, before: Observation, after: Observation) -> str:
    """By how far the hand is from the object, and how that has moved meanwhile."""
    places = [seen["object"][position : position + 3] for seen in (before, after)]
    was_near, is_near = (
        np.linalg.norm(seen["robot0_eef_pos"] - place) < NEAR
        for seen, place in zip((before, after), places, strict=True)
    )
    moved = places[1] - places[0]
    if was_near and np.linalg.norm(moved) > MOVED:
        return "placing" if moved[2] < -MOVED else "carrying"
    if is_near:
        return "grasping"
    return "leaving" if was_near else "reaching"


def robosuite_task(name: str) -> Task:
    """A robosuite task by name, ``Lift`` or ``Lift:UR5e``; 20 steps per second.

    Raises:
        UserError: there is no such task or robot, or the package is not installed.
    """
    title, colon, robot = name.partition(":")
    if title not in SCENES:
        raise UserError(
            f"--task robosuite/{name}: no such robosuite task; there are {', '.join(SCENES)}"
        )
    if not colon:
        robot = "Panda"
    if robot not in ROBOTS:
        raise UserError(f"--task robosuite/{name}: no such robot; there are {', '.join(ROBOTS)}")
    _package()
    scene = SCENES[title]
    describe = None
    if scene.position is not None:
        describe = functools.partial(_describe, scene.position)
    return Task(
        f"robosuite/{name}", horizon=scene.horizon, rate=float(RATE), action_dim=7 * scene.arms,
        make=functools.partial(RobosuiteEnvironment, title, robot),
        make_expert=functools.partial(make_expert, title, scene.arms),
        action_bounds=(-1.0, 1.0), cameras=tuple(camera + IMAGE for camera in CAMERAS),
        may_be_shown=functools.partial(_may_be_shown, scene.grasps), describe=describe,
        summarise=_summarise_aim if scene.has_rod else None,
    )  # fmt: skip
