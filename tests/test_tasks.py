"""Tasks: seeded starts, true frames, experts, and the adapter for gymnasium."""

from __future__ import annotations

import numpy as np
import pytest

from ebt_policy.errors import UserError
from ebt_policy.tasks import Environment, make_task
from ebt_policy.tasks.collection import collect
from ebt_policy.tasks.mujoco_models import _compiled, compiled_once
from ebt_policy.tasks.planar import RADIUS, ROUTES, TOP_SPEED
from ebt_policy.tasks.pusht import PushTEnvironment, keypoints

TASKS = ["planar/fork", "pusht", "metaworld/pick-place", "gym:toy_gym:PointReach-v0"]


def trajectory(environment: Environment, seed: int, dimensions: int) -> np.ndarray:
    seen = [environment.reset(seed)["state"]]
    random = np.random.default_rng(0)
    for _ in range(20):
        action = random.uniform(-1, 1, dimensions) * (1 if dimensions == 4 else 0.2)
        seen.append(environment.step(action).observation["state"])
    return np.array(seen)


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_is_a_start_whatever_came_before(name: str) -> None:
    task = make_task(name)
    environment, fresh = task.make(), task.make()
    first = trajectory(environment, 7, task.action_dim)
    other = trajectory(environment, 8, task.action_dim)
    assert (trajectory(environment, 7, task.action_dim) == first).all()
    assert (trajectory(fresh, 7, task.action_dim) == first).all()
    assert abs(other[0] - first[0]).max() > 1e-3
    environment.close()
    fresh.close()


@pytest.mark.parametrize("name", TASKS)
def test_frames_are_real_and_change(name: str) -> None:
    task = make_task(name)
    environment = task.make()
    environment.reset(3)
    first, again = environment.render(), environment.render()
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert first.std() > 5
    assert (first == again).all()
    for _ in range(10):
        environment.step(np.full(task.action_dim, 250.0 if name == "pusht" else 0.1))
    assert (environment.render() != first).any()
    environment.close()


def test_meta_worlds_cameras_show_the_task_of_the_turn() -> None:
    """On demand, at the size that is asked for, and what moves."""
    task = make_task("metaworld/mt3")
    environment = task.make()
    sizes = dict(zip(task.cameras, ((48, 64), (32, 32), (32, 32)), strict=True))
    assert not set(sizes) & set(environment.reset(0))
    environment.cameras = sizes
    first, other = environment.reset(0), environment.reset(1)
    for camera, size in sizes.items():
        assert first[camera].shape == (*size, 3)
        assert first[camera].dtype == np.uint8
        assert first[camera].std() > 5
    assert (first["topview_image"] != other["topview_image"]).mean() > 0.02
    for _ in range(5):
        moved = environment.step(np.array([1.0, 0.0, 0.0, 1.0])).observation
    for camera in sizes:
        assert (moved[camera] != other[camera]).mean() > 0.005
    environment.cameras = {}
    assert set(environment.step(np.zeros(4)).observation) == {"state", "task"}
    environment.close()


def test_pusht_scores_coverage_over_0_95() -> None:
    task = make_task("pusht")
    environment = task.make()
    observation = environment.reset(100_000)
    assert observation["keypoint"].shape == (9, 2)
    outcome = environment.step(np.array([1000.0, -50.0]))  # beyond the table: clipped, not an error
    assert 0 <= outcome.score < 1
    assert not outcome.success
    environment.close()


# Mean colours of a recorded frame of the published data, 6 x 6 parts of 16 x 16 pixels: those of
# its rows 2 to 4 that are not all but white, and the state (agent, block, angle) it shows.
RECORDED_STATE = np.array([263.8435, 320.9947, 319.4067, 291.5469, 0.3105521])
RECORDED_FRAME = {
    (2, 2): (233, 252, 233), (3, 2): (199, 244, 201), (3, 3): (177, 194, 211),
    (3, 4): (235, 238, 241), (4, 3): (213, 220, 226),
}  # fmt: skip


def test_pusht_draws_what_was_recorded() -> None:
    environment = make_task("pusht").make()
    assert isinstance(environment, PushTEnvironment)
    assert "img" not in environment.reset(0)
    environment.cameras = {"img": (96, 96)}
    environment.reset(0)
    inner = environment._environment
    inner.agent.position = RECORDED_STATE[:2].tolist()
    inner.block.angle = RECORDED_STATE[4]  # before the position, which it would move
    inner.block.position = RECORDED_STATE[2:4].tolist()
    for body in (inner.agent, inner.block):
        inner.space.reindex_shapes_for_body(body)
    image = environment._observe(RECORDED_STATE)["img"]
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    coarse = image.reshape(6, 16, 6, 16, 3).mean((1, 3))
    for row in range(6):
        for column in range(6):
            expected = RECORDED_FRAME.get((row, column), (254, 254, 254))
            assert coarse[row, column] == pytest.approx(expected, abs=3), (row, column)
    environment.close()


def test_pusht_keypoints_turn_and_move_with_the_block() -> None:
    still = keypoints(np.array([0.0, 0, 0, 0, 0]))
    moved = keypoints(np.array([9.0, 9, 30, 40, np.pi / 2]))
    assert moved == pytest.approx(np.stack([30 - still[:, 1], 40 + still[:, 0]], 1))


def test_metaworld_shows_the_goal_and_records_clipped_actions() -> None:
    made = collect(make_task("metaworld/drawer-open"), 2, seed=5, progress=False)
    assert [episode.success for episode in made] == [True, True]
    for episode in made:
        assert abs(episode.actions).max() <= 1
        assert abs(episode.observations["state"][0, -3:]).max() > 0
        assert len(episode.actions) == len(episode.observations["state"]) < 500
    assert abs(made[0].observations["state"][0] - made[1].observations["state"][0]).max() > 1e-3


def test_a_model_is_compiled_once_and_every_environment_changes_its_own() -> None:
    import mujoco

    compilers = mujoco.MjModel.from_xml_string, mujoco.MjModel.from_xml_path
    scene = "<mujoco><worldbody><geom size='0.1'/></worldbody></mujoco>"
    assets = {"ball.xml": b"<mujoco><worldbody><geom size='0.3'/></worldbody></mujoco>"}
    with compiled_once():
        first, second = (mujoco.MjModel.from_xml_string(scene) for _ in range(2))
        first.geom_size[0, 0] = 0.2
        third = mujoco.MjModel.from_xml_string(scene)
        included = "<mujoco><include file='ball.xml'/></mujoco>"
        other = mujoco.MjModel.from_xml_string(included, assets)
        named = mujoco.MjModel.from_xml_string(xml=scene)
        with pytest.raises(ValueError, match="XML"):
            mujoco.MjModel.from_xml_string("<mujoco>")
    sizes = [model.geom_size[0, 0] for model in (first, second, third, other, named)]
    assert sizes == [0.2, 0.1, 0.1, 0.3, 0.1]
    assert (mujoco.MjModel.from_xml_string, mujoco.MjModel.from_xml_path) == compilers

    _compiled.cache_clear()
    environments = [make_task("metaworld/push").make() for _ in range(3)]
    assert (_compiled.cache_info().misses, _compiled.cache_info().hits) == (1, 2)
    for environment in environments:
        environment.close()


def test_unknown_tasks_and_impossible_collections_are_named() -> None:
    for name, message in [
        ("nothing", "--task nothing: unknown; there are planar/fork, pusht"),
        ("metaworld/pick-plaice", "no such Meta-World task; there are puck, mt3, mt10"),
        ("gym:NoSuch-v0", "gymnasium cannot make it"),
        ("gym:CartPole-v1", "expected a 1-D Box"),
    ]:
        with pytest.raises(UserError, match=message):
            make_task(name)
    with pytest.raises(UserError, match="has no scripted expert"):
        collect(make_task("pusht"), 1, 0)


def test_fork_demonstrations_go_both_ways_and_straight_ahead_is_the_obstacle() -> None:
    task = make_task("planar/fork")
    assert task.summarise is not None
    environment = task.make()
    facts = []
    for episode in collect(task, 40, seed=0, progress=False):
        assert episode.success
        environment.reset(episode.seed)
        for action in episode.actions:
            environment.step(action)
        facts.append(environment.facts())
    summary = task.summarise(facts)
    assert min(summary["route_shares"].values()) >= 0.3
    assert sum(summary["route_shares"].values()) == 1
    assert summary["collisions"] == 0
    assert summary["route_distance_mean"] < 0.03

    state = environment.reset(1)["state"]
    goal = state[4:]
    for _ in range(task.horizon):
        outcome = environment.step(goal)  # the mean of the two ways
        if outcome.done:
            break
    assert outcome.done
    assert not outcome.success
    assert environment.facts() | {"route_distance": 0} == {
        "route": None, "collision": True, "route_distance": 0
    }  # fmt: skip
    assert task.summarise([environment.facts()])["route_shares"] == dict.fromkeys(ROUTES, 0.0)


def test_fork_steps_are_short_and_cannot_jump_into_or_over_the_disc() -> None:
    environment = make_task("planar/fork").make()
    before = environment.reset(4)["state"]
    after = environment.step(np.array([50.0, -50.0])).observation["state"]
    assert np.linalg.norm(after[:2] - before[:2]) == pytest.approx(TOP_SPEED, abs=1e-6)
    disc = before[2:4]
    environment.reset(4)
    outcomes = [environment.step(disc) for _ in range(60)]
    first = next(i for i, outcome in enumerate(outcomes) if outcome.done)
    gap = np.linalg.norm(outcomes[first].observation["state"][:2] - disc)
    assert RADIUS - TOP_SPEED <= gap <= RADIUS
    assert not any(outcome.success for outcome in outcomes)
