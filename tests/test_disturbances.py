"""Tasks in which something goes wrong, or which differ from the demonstrated ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ebt_policy.errors import UserError
from ebt_policy.tasks import make_task
from ebt_policy.tasks.disturbances import Interrupted


def roll(name: str, seed: int = 0, steps: int = 6) -> np.ndarray:
    """States (steps + 1, ...) of an episode with always the same action."""
    task = make_task(name)
    environment = task.make()
    states = [environment.reset(seed)["state"]]
    for _ in range(steps):
        outcome = environment.step(np.full(task.action_dim, 0.5, np.float32))
        states.append(outcome.observation["state"])
    environment.close()
    return np.array(states)


def test_noise_is_on_numbers_and_cameras_are_those_of_the_task() -> None:
    still, loud = make_task("pusht").make(), make_task("pusht+noise=5").make()
    still.cameras = loud.cameras = {"img": (24, 24)}
    seen, noisy = still.reset(0), loud.reset(0)
    assert (seen["img"] == noisy["img"]).all()
    assert (seen["state"] != noisy["state"]).all()


def test_noise_is_of_its_strength_and_of_the_seed() -> None:
    quiet = roll("planar/fork")
    loud = roll("planar/fork+noise=0.01")
    again = roll("planar/fork+noise=0.01")
    other = roll("planar/fork+noise=0.01", seed=1)
    assert 0.003 < np.std(loud - quiet) < 0.03
    assert np.array_equal(loud, again)
    assert not np.allclose(loud - quiet, other - roll("planar/fork", seed=1))


def test_a_delay_is_so_many_steps_of_rest_first() -> None:
    prompt = roll("metaworld/reach", steps=6)
    late = roll("metaworld/reach+delay=2", steps=8)
    hand = slice(0, 3)
    behind = np.linalg.norm(late[6, hand] - prompt[6, hand])
    assert np.linalg.norm(late[8, hand] - prompt[6, hand]) < 0.3 * behind


def test_a_nudge_is_of_its_size_and_of_the_first_action_alone() -> None:
    plain, nudged, again = (
        roll(name) for name in ("planar/fork", "planar/fork+nudge=0.01", "planar/fork+nudge=0.01")
    )
    assert np.array_equal(nudged, again)
    assert np.array_equal(roll("planar/fork+nudge=0"), plain)
    off = np.linalg.norm((nudged - plain)[:, :2], axis=1)
    assert off[0] == 0
    assert 0 < off[1] <= 0.01 * np.sqrt(2) + 1e-6
    assert off[-1] < off[1]  # every later action leads to the same place


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("planar/fork+nonsense", "no disturbance 'nonsense'; there are drop, move, open, p"),
        ("planar/fork+noise", r"write \+noise=NUMBER"),
        ("planar/fork+noise=nan", "nan is out of range"),
        ("planar/fork+mass=0", "0 is out of range"),
        ("metaworld/reach+delay=1.5", "a delay is a whole number"),
        ("pusht+noise=1+delay=1", "delay needs an action that is no movement"),
        ("planar/fork+drop=1", r"drop takes no strength"),
    ],
)
def test_a_wrong_disturbance_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_task(name)


@pytest.mark.parametrize("name", ["planar/fork+drop", "planar/fork+mass=2"])
def test_a_scene_that_cannot_says_so(name: str) -> None:
    with pytest.raises(UserError, match=r"\+(drop|mass=2): this task"):
        make_task(name).make()


class Expert:
    """An episode of the scripted expert under a disturbance, step by step."""

    def __init__(self, name: str, seed: int) -> None:
        self.task = make_task(name)
        self.environment: Any = self.task.make()
        assert self.task.make_expert is not None
        self.act, self.observation = self.task.make_expert(seed), self.environment.reset(seed)
        self.outcome: Any = None

    def steps(self, most: int) -> int:
        for count in range(most):
            self.outcome = self.environment.step(self.act(self.observation))
            self.observation = self.outcome.observation
            if self.outcome.success or self.outcome.done:
                return count + 1
        return most


@pytest.mark.parametrize("name", ["drop", "open"])
def test_what_is_lost_out_of_the_gripper_is_noticed_and_gives_a_horizon_more(name: str) -> None:
    episode = Expert(f"robosuite/Lift+{name}", seed=0)
    environment = episode.environment
    assert isinstance(environment, Interrupted)
    environment.horizon = 20  # which the expert, who never tries again, only waits for
    while episode.environment.facts()["disturbed_at"] is None:
        environment.horizon += 1
        assert episode.steps(1) == 1
        assert not episode.outcome.done
    facts = environment.facts()
    left = episode.steps(200)
    assert episode.outcome.done
    assert not episode.outcome.success
    assert left == environment.horizon - 1
    assert environment.facts() | {"took_effect": True} == environment.facts()
    assert not environment._scene.is_grasping()
    # The same again, from the same seed.
    again = environment.reset(0)
    assert environment.facts()["disturbed_at"] is None
    assert np.array_equal(again["object"], Expert("robosuite/Lift", 0).observation["object"])
    summary = episode.task.summarise
    assert summary is not None
    assert summary([facts])["disturbed_at"] == [facts["disturbed_at"]]


def test_an_object_is_moved_before_it_is_grasped_and_the_expert_follows() -> None:
    episode = Expert("robosuite/Lift+move", seed=1)
    scene = episode.environment._scene
    while episode.environment.facts()["disturbed_at"] is None:
        before = scene._position()
        episode.steps(1)
    away = np.linalg.norm((scene._position() - before)[:2])
    assert 0.025 < away < 0.085
    episode.steps(200)
    assert episode.outcome.success  # this expert looks where the object is


def test_factors_hold_in_an_episode() -> None:
    def measured(name: str) -> dict[str, float]:
        environment: Any = make_task(name).make()
        environment.reset(0)
        scene = environment._environment
        for _ in range(3):  # until the cube lies
            environment.step(np.zeros(7, np.float32))
        body = scene.sim.model.body_name2id("cube_main")
        cube = scene.sim.model.geom_name2id("cube_g0")
        touching = [c for c in scene.sim.data._data.contact if cube in (c.geom1, c.geom2)]
        found = {
            "mass": scene.sim.model.body_mass[body],
            "friction": touching[0].friction[0],
            "gain": scene.robots[0].part_controllers["right"].kp[0],
            "spread": np.ptp(scene.placement_initializer.x_range),
        }
        environment.close()
        return found

    plain = measured("robosuite/Lift")
    for kind, factor in (("mass", 2.0), ("friction", 0.5), ("gain", 0.8), ("spread", 2.0)):
        varied = measured(f"robosuite/Lift+{kind}={factor:g}")
        ratios = {name: varied[name] / plain[name] for name in plain}
        assert ratios == pytest.approx(dict.fromkeys(plain, 1.0) | {kind: factor})


def test_disturbances_may_follow_each_other_in_any_order() -> None:
    for name in ("robosuite/Lift+noise=0.001+drop", "robosuite/Lift+drop+noise=0.001"):
        task = make_task(name)
        assert task.horizon == 2 * make_task("robosuite/Lift").horizon
        environment = task.make()
        environment.reset(0)
        assert environment.facts()["disturbed_at"] is None
        environment.close()
