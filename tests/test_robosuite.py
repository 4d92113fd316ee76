"""robosuite tasks: seeded starts, true frames, experts that neither miss nor try again."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.robomimic import Episode, write_robomimic
from ebt_policy.errors import UserError
from ebt_policy.tasks import Task, make_task
from ebt_policy.tasks.base import Environment
from ebt_policy.tasks.collection import collect
from ebt_policy.tasks.robosuite import SCENES, RobosuiteEnvironment
from ebt_policy.windows.windows import ROBOMIMIC_STREAMS, choose_streams

EnvironmentOf = Callable[[str], Environment]
OBJECT_SIZES = {
    "Lift": 10, "PickPlaceCan": 14, "NutAssemblySquare": 14, "ToolHang": 44, "ToolHangFrame": 44,
    "TwoArmLift": 19,
}  # fmt: skip
EPISODES = {
    "Lift": 2, "PickPlaceCan": 2, "NutAssemblySquare": 2, "ToolHang": 1, "ToolHangFrame": 1,
    "TwoArmLift": 2,
}  # fmt: skip
LONGEST = {"ToolHang": 600}


@pytest.fixture(scope="module")
def environment_of() -> Iterator[EnvironmentOf]:
    """One environment of each task for all tests that begin with a reset: making one takes long."""
    made: dict[str, Environment] = {}

    def of(name: str) -> Environment:
        if name not in made:
            made[name] = make_task(f"robosuite/{name}").make()
        return made[name]

    yield of
    for environment in made.values():
        environment.close()


def trajectory(task: Task, environment: Environment, seed: int, steps: int = 8) -> np.ndarray:
    seen = [environment.reset(seed)]
    random = np.random.default_rng(0)
    actions = random.uniform(-1, 1, (steps, task.action_dim))
    seen += [environment.step(action).observation for action in actions]
    return np.stack([np.concatenate(list(s.values())) for s in seen])


@pytest.mark.parametrize("name", OBJECT_SIZES)
def test_a_seed_is_a_start_whatever_came_before(name: str, environment_of: EnvironmentOf) -> None:
    task = make_task(f"robosuite/{name}")
    environment, fresh = environment_of(name), task.make()
    other = trajectory(task, environment, 8, steps=20)
    first = trajectory(task, environment, 7)
    assert (trajectory(task, fresh, 7) == first).all()
    assert (trajectory(task, environment, 7) == first).all()
    assert abs(other[0] - first[0]).max() > 1e-3
    fresh.close()


@pytest.mark.parametrize("name", OBJECT_SIZES)
def test_observations_are_robomimics_and_of_the_present(
    name: str, environment_of: EnvironmentOf
) -> None:
    task, environment = make_task(f"robosuite/{name}"), environment_of(name)
    observation = environment.reset(0)
    arms = task.action_dim // 7
    assert arms == (2 if name == "TwoArmLift" else 1)
    assert tuple(observation) == (*ROBOMIMIC_STREAMS[: 3 * arms], ROBOMIMIC_STREAMS[-1])
    sizes = [values.shape for values in observation.values()]
    assert sizes == [(3,), (4,), (2,)] * arms + [(OBJECT_SIZES[name],)]
    assert all(values.dtype == np.float32 for values in observation.values())
    for _ in range(3):
        observation = environment.step(np.array([1.0, 1, 1, 0, 0, 1, -1] * arms)).observation
    assert isinstance(environment, RobosuiteEnvironment)
    simulator = environment._environment
    for arm, robot in enumerate(simulator.robots):
        place = simulator.sim.data.site_xpos[robot.eef_site_id["right"]]
        assert observation[f"robot{arm}_eef_pos"] == pytest.approx(place)
    if name == "Lift":  # the cube's position, then the cube as seen from the hand
        between = observation["object"][:3] - observation["robot0_eef_pos"]
        assert observation["object"][7:] == pytest.approx(between, abs=1e-6)


@pytest.mark.parametrize("name", ["Lift", "TwoArmLift"])
def test_frames_are_real_upright_and_change(name: str) -> None:
    task = make_task(f"robosuite/{name}")
    environment = task.make()
    environment.reset(3)
    first = environment.render()
    gc.collect()
    assert (environment.render() == first).all()
    assert first.shape == (240, 320, 3)
    assert first.dtype == np.uint8
    assert first.std() > 5
    red = (first[..., 0] > 90) & (first[..., 1:].max(-1) < 60)
    assert red.sum() > 20  # the cube or the pot
    for _ in range(10):
        environment.step(np.full(task.action_dim, 0.5))
    gc.collect()
    moved = environment.render()
    assert (moved != first).mean() > 0.01
    environment.reset(3)
    assert (environment.render() == first).all()
    environment.close()


@pytest.mark.parametrize("name", ["Lift", "PickPlaceCan"])
def test_cameras_show_the_present_alike_in_all_environments(name: str) -> None:
    task = make_task(f"robosuite/{name}")
    sizes = {"agentview_image": (84, 84), "robot0_eye_in_hand_image": (60, 84)}
    one, other = task.make(), task.make()
    assert not sizes.keys() & one.reset(3).keys()
    one.cameras = other.cameras = sizes
    first, again = one.reset(3), other.reset(3)
    for camera, size in sizes.items():
        assert first[camera].shape == (*size, 3)
        assert first[camera].dtype == np.uint8
        assert first[camera].std() > 5
        assert (first[camera] == again[camera]).all()
    moved = other.step(np.full(7, 0.5)).observation
    film = other.render()
    one.close()
    del one
    gc.collect()
    again = other.reset(3)
    for camera in sizes:
        assert (moved[camera] != first[camera]).mean() > 0.005
        assert (again[camera] == first[camera]).all()
    assert film.shape == (240, 320, 3)
    other.close()


@cache
def demonstrations(name: str, episodes: int) -> tuple[Task, tuple[Episode, ...]]:
    task = make_task(f"robosuite/{name}")
    return task, tuple(collect(task, episodes, seed=0, progress=False))


@pytest.mark.parametrize("name", EPISODES)
def test_experts_succeed(name: str) -> None:
    task, made = demonstrations(name, EPISODES[name])
    assert max(episode.seed for episode in made) < EPISODES[name] + 1  # one failure at most
    for episode in made:
        assert episode.actions.shape[1] == task.action_dim
        assert abs(episode.actions).max() <= 1
        assert len(episode.actions) < LONGEST.get(name, 250)
    if len(made) > 1:
        starts = np.stack([episode.observations["object"][0] for episode in made])
        assert starts.std(0).max() > 1e-3


def contacts(environment: Environment, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Replay a demonstration: which gripper (steps, arms) was told to close and which held."""
    assert isinstance(environment, RobosuiteEnvironment)
    environment.reset(episode.seed)
    held = []
    for action in episode.actions:
        outcome = environment.step(action)
        held.append([environment.is_grasping(arm) for arm in range(len(action) // 7)])
    assert outcome.success
    return episode.actions[:, 6::7] > 0, np.array(held)


def check_no_failed_grasp_or_retry(
    environment: Environment, episode: Episode, objects: int
) -> None:
    for closing, held in zip(*(part.T for part in contacts(environment, episode)), strict=True):
        starts = np.flatnonzero(np.diff(closing.astype(int)) == 1) + 1
        assert len(starts) == objects  # the gripper closes once for each
        for start in starts:
            end = start + int(np.argmin(np.append(closing[start:], False)))
            grasped = start + int(np.argmax(held[start:end]))
            assert held[grasped]
            # Between the grasp and the release the object never leaves the fingers.
            lost = ~held[grasped:end]
            assert not any(lost[i : i + 3].all() for i in range(len(lost) - 2))


@pytest.mark.parametrize("name", EPISODES)
def test_no_demonstration_shows_a_failed_grasp_or_a_retry(
    name: str, environment_of: EnvironmentOf
) -> None:
    _, made = demonstrations(name, EPISODES[name])
    objects = 2 if name == "ToolHang" else 1
    check_no_failed_grasp_or_retry(environment_of(name), made[0], objects)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", EPISODES)
def test_forty_demonstrations_without_a_failed_grasp_or_a_retry(
    name: str, environment_of: EnvironmentOf
) -> None:
    _, made = demonstrations(name, 40)
    assert made[-1].seed < 42  # at least 95% succeed
    objects = 2 if name == "ToolHang" else 1
    for episode in made:
        check_no_failed_grasp_or_retry(environment_of(name), episode, objects)


@pytest.mark.parametrize("name", ["Lift", "PickPlaceCan", "NutAssemblySquare"])
def test_what_a_hand_does_is_told_from_observations(name: str) -> None:
    task, made = demonstrations(name, EPISODES[name])
    assert task.describe is not None
    seen = made[0].observations
    chunk = [{key: values[step] for key, values in seen.items()} for step in range(0, 400, 8)
             if step < len(made[0].actions)]  # fmt: skip
    doing = [task.describe(*pair) for pair in itertools.pairwise(chunk)]
    kinds = [kind for kind, _ in itertools.groupby(doing)]
    assert kinds[:2] == ["reaching", "grasping"]
    assert set(kinds[2:]) <= {"carrying", "placing"}
    assert ("placing" in kinds) == (name != "Lift")
    hand = {"robot0_eef_pos": np.zeros(3), "object": np.full(14, 0.01)}
    away = hand | {"robot0_eef_pos": np.full(3, 0.2)}
    assert task.describe(hand, away) == "leaving"


def test_missed_and_dropped_grasps_are_noticed(environment_of: EnvironmentOf) -> None:
    task, environment = make_task("robosuite/Lift"), environment_of("Lift")
    assert task.make_expert is not None
    assert task.may_be_shown is not None
    environment.reset(0)
    for grip in (1, 1, -1, -1, 1):
        environment.step(np.array([0, 0, 0, 0, 0, 0, grip]))
    assert environment.facts() == {"closings": 2, "grasps": 0, "drops": 0}
    assert not task.may_be_shown(environment.facts())

    expert, observation, success = task.make_expert(0), environment.reset(0), False
    while not success:
        outcome = environment.step(expert(observation))
        observation, success = outcome.observation, outcome.success
    assert environment.facts() == {"closings": 1, "grasps": 1, "drops": 0}
    assert task.may_be_shown(environment.facts())
    assert isinstance(environment, RobosuiteEnvironment)
    data = environment._environment.sim.data
    data.set_joint_qpos("cube_joint0", [0.2, 0.2, 0.83, 1, 0, 0, 0])  # snatched away
    for _ in range(5):
        environment.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert environment.facts() == {"closings": 1, "grasps": 1, "drops": 1}
    assert not task.may_be_shown(environment.facts())


def test_the_frame_is_the_first_half_of_tool_hang() -> None:
    _, (first,) = demonstrations("ToolHangFrame", 1)
    _, (whole,) = demonstrations("ToolHang", 1)
    steps = len(first.actions)
    assert steps < len(whole.actions) / 2
    assert (first.actions == whole.actions[:steps]).all()
    assert (first.observations["object"] == whole.observations["object"][:steps]).all()


def test_where_the_rod_comes_down_is_told(environment_of: EnvironmentOf) -> None:
    environment = environment_of("ToolHangFrame")
    task, (shown,) = demonstrations("ToolHangFrame", 1)
    environment.reset(shown.seed)
    for action in shown.actions:
        assert not environment.step(action).done
    facts = environment.facts()
    seen = {name: values[-1] for name, values in shown.observations.items()}
    assert np.linalg.norm(facts["aim_mm"]) < 3  # the expert does not go down beside the hole
    held = 1e3 * (seen["object"][21:24] - seen["robot0_eef_pos"])  # as it does not slip
    assert facts["grasp_mm"] == pytest.approx(held, abs=2)
    assert task.may_be_shown is not None
    assert task.may_be_shown(facts)

    assert isinstance(environment, RobosuiteEnvironment)
    environment.reset(0)
    assert "aim_mm" not in environment.facts()
    assert environment.aim is not None
    places = [(50, 0, 80), (8, 2, 80), (7, -3, 40), (7, -4, 4), (0, 0, 30), (0, 0, 4)]
    for place in places:  # of the tip from the mouth, in mm: only the first descent counts
        seen = {"robot0_eef_pos": np.array([0.01, 0, 0]), "object": np.zeros(44)}
        seen["object"][[13, 27]] = 1  # the stand and the frame, not turned
        tip, mouth = np.array([0, 0, -0.2207]), np.array([0, 0.045, 0.155])
        seen["object"][21:24] = mouth - tip + np.array(place) / 1e3
        environment.aim.watch(seen)
    facts = environment.facts()
    assert facts["aim_mm"] == pytest.approx([7, -4], abs=0.01)
    assert facts["grasp_mm"] == pytest.approx([-3, 41, 379.7], abs=0.01)
    assert task.summarise is not None
    assert task.summarise([{}]) == {}
    of_all = task.summarise([facts, {}, {"aim_mm": [1.0, 0.0]}])
    assert of_all == {"aim": {"episodes": 2, "mean_mm": [4, -2], "sd_mm": [3, 2]}}


def test_hands_are_watched_one_by_one(environment_of: EnvironmentOf) -> None:
    environment = environment_of("TwoArmLift")
    environment.reset(0)
    for grips in ((1, -1), (1, 1), (-1, 1), (1, 1)):
        action = np.zeros((2, 7))
        action[:, 6] = grips
        environment.step(action.ravel())
    assert environment.facts() == {"closings": 3, "grasps": 0, "drops": 0}


def test_another_robot_needs_its_name_only() -> None:
    made = collect(make_task("robosuite/Lift:UR5e"), 2, seed=0, progress=False)
    assert [episode.seed for episode in made] == [0, 1]


@pytest.mark.parametrize("name", ["Lift", "TwoArmLift"])
def test_what_was_collected_can_be_trained_on(name: str, tmp_path: Path) -> None:
    episodes = EPISODES[name]
    task, made = demonstrations(name, episodes)
    file = tmp_path / "demonstrations.hdf5"
    write_robomimic(
        file, made, task.name, {"control_freq": task.rate, "action_bounds": task.action_bounds}
    )
    opened = open_demonstrations(file)
    assert opened.episodes == episodes
    assert opened.rate == 20
    assert opened.action_bounds == (-1, 1)
    assert tuple(choose_streams(opened, None)) == tuple(made[0].observations)


def test_images_are_collected_on_demand(tmp_path: Path) -> None:
    task = make_task("robosuite/Lift")
    (made,) = collect(task, 1, seed=0, progress=False, cameras={"agentview_image": (24, 24)})
    file = tmp_path / "lift.hdf5"
    write_robomimic(file, [made], task.name, {"control_freq": task.rate})
    opened = open_demonstrations(file)
    assert choose_streams(opened, "agentview_image")["agentview_image"].kind == "image"
    assert opened.read("agentview_image", 0, 5).dtype == np.uint8
    with pytest.raises(UserError, match="no camera 'agentview'; there are agentview_image, robot0"):
        collect(task, 1, seed=0, cameras={"agentview": (24, 24)})


def test_unknown_names_are_named() -> None:
    for name, message in [
        ("robosuite/Lifft", f"no such robosuite task; there are {', '.join(SCENES)}"),
        ("robosuite/Lift:Pandda", "no such robot; there are IIWA, Kinova3, Panda, Sawyer, UR5e"),
        ("robosuite/Lift:", "no such robot"),
    ]:
        with pytest.raises(UserError, match=message):
            make_task(name)
